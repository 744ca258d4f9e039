"""Which SLURM job is at which job of an experiment, by the queue: its own, its batch's, the fleet's; or at its search.
No torch here."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping, Sequence
from typing import Literal

from pipeline.site import PREFIX, name_of_jobs
from pipeline.slurm import SlurmJob

WAITS = ("PENDING", "CONFIGURING", "REQUEUED", "REQUEUE_HOLD", "SPECIAL_EXIT", "RESV_DEL_HOLD")
POOLS = ("fleet", "search")  # rules without wildcards, of which each experiment of a folder may have one

Rule = Literal["train", "evaluate"]
Pool = Literal["fleet", "search"]


class Queued:
    """The SLURM jobs of this folder that wait or run. queue: this user's; None where SLURM does not say. batches: the
    names of those, of jobs that are in one; fleets: the experiments whose fleet would train a job."""

    def __init__(
        self,
        queue: Sequence[SlurmJob] | None,
        batches: Mapping[str, str],
        fleets: Mapping[str, Collection[str]] | None = None,
    ):
        self.batches, self.fleets = batches, fleets or {}
        self.by_id = None if queue is None else {row.id: row for row in queue}
        self.rows: dict[tuple[str, str], SlurmJob] = {}  # by rule and job
        self.pools: list[SlurmJob] = []
        here = {folder for folder in {row.folder for row in queue or ()} if os.path.realpath(folder) == os.getcwd()}
        for row in queue or ():
            key = row.rule, row.wildcards
            if not row.live or row.folder not in here:
                continue
            if row.rule in POOLS and not row.wildcards:
                self.pools.append(row)
            elif key not in self.rows or not waits(row):
                self.rows[key] = row

    def runs_no_more(self, number: str) -> bool:
        """True if SLURM says that the job of this number is over, or waits again."""
        row = (self.by_id or {}).get(number)
        return self.by_id is not None and (row is None or not row.live or waits(row))

    def of(self, rule: Rule, job: str) -> SlurmJob | None:
        """Its own, or that of its batch."""
        return self.rows.get((rule, job)) or self.rows.get((f"{rule}_{self.batches.get(job)}", ""))

    def fleet_of(self, job: str) -> SlurmJob | None:
        found = [row for name in self.fleets.get(job, ()) if (row := self.pool("fleet", name))] if self.pools else []
        return min(found, key=waits, default=None)

    def pool(self, rule: Pool, experiment: str) -> SlurmJob | None:
        """Of an experiment of that name; the one that runs, if one does."""
        found = [row for row in self.pools if row.rule == rule and _may_be_of(row, experiment)]
        return min(found, key=waits, default=None)


def waits(row: SlurmJob) -> bool:
    return row.state in WAITS


def in_words(row: SlurmJob, runs: str = "on") -> str:
    """`SLURM job 7 waits: Priority`, `SLURM job 7 on node1`."""
    if waits(row):
        return f"SLURM job {row.id} waits" + (f": {row.reason}" if row.reason not in ("", "None") else "")
    return f"SLURM job {row.id} {runs} {row.nodes}" + ("" if row.state == "RUNNING" else f", {row.state.lower()}")


def _may_be_of(row: SlurmJob, experiment: str) -> bool:
    """By the name that cluster/slurm gives, which is that of the experiment's file; another name tells nothing."""
    name = row.name.rpartition("_")[0]
    return name == name_of_jobs(["--configfile", f"{experiment}.yaml"]) or not name.startswith(f"{PREFIX}-")
