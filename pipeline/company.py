"""Which jobs share a process in the run that was started last: it writes so, and who looks on reads it. No torch here.

How many do is said on Snakemake's command line (`--config together=8`), which those who look on do not know.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

from pipeline.experiment import Experiment
from pipeline.paths import Paths
from pipeline.records import replace_file
from pipeline.stacks import Batch, batches_of


def write_company(batches: Iterable[Batch], name: str, paths: Paths) -> None:
    """Of a run of the experiment of that name. Raises OSError if it cannot be written."""
    found = {batch.name: batch.jobs for batch in batches}
    replace_file(paths.batches(name), (json.dumps(found, indent=1) + "\n").encode())


def company_of(experiment: Experiment, paths: Paths) -> dict[str, str]:
    """The batch of each job that is in one; before the first run, as one without settings would have it."""
    try:
        found = json.loads(Path(paths.batches(experiment.name)).read_text())
    except FileNotFoundError:
        found = {batch.name: batch.jobs for batch in batches_of(experiment.jobs, paths, experiment.evaluate_with.id)}
    return {job: name for name, jobs in found.items() for job in jobs}
