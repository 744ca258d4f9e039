"""A job's config.json: resolved and complete, so that the job can be run again from its folder alone. No torch here."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

from pipeline.config import JobConfig, canonical, job_id
from pipeline.experiment import Experiment
from pipeline.paths import Paths
from pipeline.records import replace_file


def write_configs(experiment: Experiment, paths: Paths, jobs: Iterable[str] | None = None) -> None:
    """Of these jobs (None: all). One that says the same already is left alone. Raises ValueError for a job that is none
    of the experiment's, OSError if one cannot be written."""
    for job in experiment.jobs if jobs is None else jobs:
        if job not in experiment.jobs:
            raise ValueError(f"{job}: is no job of {experiment.name}; was the experiment file changed meanwhile?")
        write_config(experiment.jobs[job], paths)


def write_config(config: JobConfig, paths: Paths) -> None:
    """Of one job. Raises OSError if it cannot be written."""
    path, content = Path(paths.config(job_id(config))), (json.dumps(canonical(config), indent=1) + "\n").encode()
    if not path.is_file() or path.read_bytes() != content:
        replace_file(path, content)
