"""What a process of the fleet does: one unit after the other, with torch imported once. Knows nothing of Ray.

A unit is a few jobs that are trained side by side, or one.
"""

from __future__ import annotations

import logging
import traceback
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch

from pipeline.config import read_job
from pipeline.deadline import Allocation, Deadline
from pipeline.device import choose_device, set_threads
from pipeline.lease import LeaseLost
from pipeline.paths import Paths
from pipeline.train import train
from pipeline.training import RunSettings

log = logging.getLogger(__name__)
OF_JOBS = (ValueError, MemoryError, torch.OutOfMemoryError)  # errors after which a process can train others


@dataclass(frozen=True)
class Outcome:
    """How a unit ended."""

    jobs: tuple[str, ...]
    state: Literal["finished", "interrupted", "failed"]
    reason: str = ""
    warnings: tuple[str, ...] = ()  # what its training had to say, and who listens here
    by_place: bool = False  # failed by an error that may be its process's or its machine's: another place, another end


class Worker:
    """Lives as long as the fleet. `stop` may be called, from another thread, while `train` is under way."""

    def __init__(self, paths: Paths, run: RunSettings, allocation: Allocation):
        self.paths, self.run, self.allocation = paths, run, allocation
        self.stopped = ""
        self.said = _Said()
        logging.getLogger().addHandler(self.said)
        set_threads(run.threads)

    def ready(self) -> None:
        """Answered when all is imported."""

    def stop(self, reason: str) -> None:
        self.stopped = reason

    def train(self, unit: Mapping[str, Mapping[str, Any]]) -> Outcome:
        """Train jobs, given as the plain data of their config.json, until they are finished or `stop` is called. What
        goes wrong is an outcome: the attempt is recorded, and the next unit may fare better."""
        self.said.lines = []
        deadline = Deadline(self.allocation)  # a new one: between two units nobody asks it

        def should_stop() -> str:
            return self.stopped or ("the time limit is near" if deadline.near() else "")

        try:
            configs = {job: read_job(data, job) for job, data in unit.items()}
            finished = self._train(configs, should_stop)
        except Exception as error:
            if not isinstance(error, ValueError | OSError):  # ours: it is to be seen where
                log.warning("%s", traceback.format_exc())
            named = "" if isinstance(error, ValueError) else f"{type(error).__name__}: "
            reason, by_place = f"{named}{' '.join(str(error).split())}", not isinstance(error, OF_JOBS)
            return Outcome(tuple(unit), "failed", reason, self.said.all, by_place)
        state = "finished" if finished else "interrupted"
        return Outcome(tuple(unit), state, "" if finished else should_stop(), self.said.all)

    def _train(self, configs, should_stop) -> bool:
        device = choose_device(self.run.device)
        if device.type == "cuda" and self.run.gpus < 1:
            torch.cuda.set_per_process_memory_fraction(self.run.gpus)  # Ray counts fractions, and holds nobody to them
        run = replace(self.run, device=str(device))
        while True:
            try:
                return train(configs, self.paths, run, should_stop)
            except LeaseLost as lost:
                log.warning("%s; waiting for it", lost)


class _Said(logging.Handler):
    """Warnings, kept until the unit's outcome takes them along."""

    def __init__(self):
        super().__init__(logging.WARNING)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())

    @property
    def all(self) -> tuple[str, ...]:
        return tuple(self.lines)
