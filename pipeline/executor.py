"""Snakemake's executor for SLURM: what it asks, and how often it looks at the queue."""

from __future__ import annotations

import importlib
import os
import sys
from typing import Any

from pipeline import slurm
from pipeline.reading import need

USUAL_AGE = 300  # seconds for which squeue remembers a job that has ended, where SLURM does not say
LOOKS = 3  # at the queue in that time: one may come to nothing
LEAST_PAUSE = 5  # seconds between two of them: the profile's max-status-checks-per-second


def ask_squeue_alone(poll_seconds: int, most_poll_seconds: int | None) -> None:
    """For the Snakemake of this process. Its executor asks SLURM before each look how long squeue remembers a job that
    has ended, and, where no answer comes, asks sacct in that look, again and again: a controller that is away for a
    moment, on a cluster without accounting, would be waited for for ever. So it is asked once, here. After each look
    that finds nothing new the executor waits longer, up to three minutes; here, up to `most_poll_seconds`, and to what
    lets it look so often that it sees the end of each job. Raises ValueError for `poll_seconds` that are too many for
    that; ends the program with one line if any would be.
    """
    try:
        executor: Any = importlib.import_module("snakemake_executor_plugin_slurm")
    except ModuleNotFoundError:
        sys.exit("error: SLURM's executor is not installed: pip install -c envs/constraints.txt -e '.[slurm]'")
    for name in os.environ.keys() - slurm.environment().keys():  # the executor's squeue is to show all jobs
        del os.environ[name]
    said = executor.get_min_job_age()
    age = USUAL_AGE if said is None else said or sys.maxsize  # 0: it never forgets
    longest, least = age // LOOKS, LOOKS * LEAST_PAUSE
    if age < least:
        what = f"SLURM forgets a job {age} s after its end (MinJobAge), and {least} s are needed"
        sys.exit(f"error: {what}: ask those who run the cluster for more, or use --profile cluster/local")
    what = "poll_seconds must be at most {}: SLURM forgets a job {} s after its end, which would go unseen"
    need(poll_seconds <= longest, what, longest, age)
    executor.get_min_job_age = lambda: age
    pause = executor.Executor.next_seconds_between_status_checks
    executor.Executor.next_seconds_between_status_checks = property(
        lambda looking: min(pause.fget(looking), longest, most_poll_seconds or longest), pause.fset
    )
