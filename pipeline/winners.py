"""What a search has come to, in a file; and an experiment with all of its jobs: those of the sweep and the winners'.

{"search": "8ae9612bb3", "trials": 24, "finished": 9, "stopped": 13, "failed": 1, "undecided": {"17": 2},
 "ended": "its budget is spent: 30 minutes", "at": "2026-01-02T03:04:05+00:00",
 "jobs": {"digits-...": {"trial": 3, "config": {...}}, ...}}

`undecided`: the trials that a budget has ended, with the epochs that they had finished. Such a trial may win, and is
then trained in full: what is later than `at` was not done for the search.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

from pipeline.config import JobConfig, canonical, job_id, read_job
from pipeline.experiment import Experiment, load_experiment
from pipeline.holder import now
from pipeline.paths import Paths
from pipeline.records import replace_file
from pipeline.trials import Trial, last_row


def write_found(
    experiment: Experiment, trials: list[Trial], jobs: dict[str, tuple[Trial, JobConfig]], ended: str, paths: Paths
) -> None:
    """ended: why there are no more trials."""
    assert experiment.search is not None
    counts = {name: sum(trial.outcome == name for trial in trials) for name in ("finished", "stopped", "failed")}
    rows = {trial.number: last_row(trial.job, paths) for trial in trials if trial.outcome == "running"}
    found = {
        "search": experiment.search.id,
        "trials": len(trials),
        **counts,
        "undecided": {str(number): row.epoch if row else 0 for number, row in rows.items()},
        "ended": ended,
        "at": now(),
        "jobs": {job: {"trial": trial.number, "config": canonical(config)} for job, (trial, config) in jobs.items()},
    }
    file = paths.found(experiment.name, experiment.search.result_id)
    replace_file(file, (json.dumps(found, indent=1) + "\n").encode())


def read_winners(experiment: Experiment, paths: Paths) -> dict[str, JobConfig]:
    """None before the search is done, or without one. Raises ValueError for a broken file."""
    if experiment.search is None:
        return {}
    file = Path(paths.found(experiment.name, experiment.search.result_id))
    try:
        rows = json.loads(file.read_text())["jobs"]
        jobs = {job: read_job(row["config"], f"{file}: {job}") for job, row in rows.items()}
    except FileNotFoundError:
        return {}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{file}: not what a search has found ({error}); delete it to have it made again") from None
    wrong = [job for job, config in jobs.items() if job_id(config) != job]
    if wrong:
        raise ValueError(f"{file}: {wrong[0]} is not the job that stands there; delete it to have it made again")
    return jobs


def with_winners(experiment: Experiment, paths: Paths) -> Experiment:
    """Its jobs are those of the sweep and, once the search is done, the winners'."""
    return replace(experiment, jobs=experiment.jobs | read_winners(experiment, paths))


def load_whole(path: str | Path, paths: Paths) -> Experiment:
    """The experiment file, with the winners of its search. Raises ValueError."""
    return with_winners(load_experiment(path), paths)
