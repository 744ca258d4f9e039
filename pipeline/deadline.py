"""Until when this process may compute, and under which name: what SLURM says of the allocation that it runs in."""

from __future__ import annotations

import logging
import os
import time
from dataclasses import dataclass

from pipeline import slurm

log = logging.getLogger(__name__)
MARGIN = 60.0  # seconds before the end, at least, where the allocation is long enough
SHARE = 0.1  # of a shorter allocation


@dataclass(frozen=True)
class Allocation:
    """Where a process runs. Times are seconds since 1970; None: no limit, or not known."""

    slurm_job: str = ""
    campaign: str = ""  # the SLURM job's name, which the executor gives to all jobs of one run of Snakemake
    start: float | None = None
    end: float | None = None

    @staticmethod
    def here() -> Allocation:
        """Asks SLURM, if this is one of its jobs. Without an answer the end is not known, and nothing is lost by it
        but the steps since the last checkpoint."""
        number = os.environ.get("SLURM_JOB_ID", "")
        if not number:
            return Allocation()
        try:
            job = slurm.own()
        except slurm.Away as away:
            log.warning("SLURM does not say until when this job may run: %s", away)
            job = None
        return Allocation(number) if job is None else Allocation(number, job.name, job.start, job.end)


class Deadline:
    """Asked after each step, says when there is just time for a checkpoint. The margin grows with the longest time
    between two questions, which includes validation and the writing of checkpoints."""

    def __init__(self, allocation: Allocation, clock=time.time):
        self.end, self.clock = allocation.end, clock
        self.longest, self.last = 0.0, clock()
        length = self.end - (allocation.start or self.last) if self.end is not None else 0.0
        self.least, self.most = min(MARGIN, SHARE * length), length / 2

    def near(self) -> bool:
        now = self.clock()
        self.longest, self.last = max(self.longest, now - self.last), now
        return self.end is not None and now > self.end - min(max(self.least, 2 * self.longest), self.most)
