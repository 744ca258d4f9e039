"""Why a search ends before all of its trials are decided: somebody asks for it, the allocation ends, or the budget."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime

from pipeline.past import DeviceSeconds, cost_of, read_attempts
from pipeline.paths import Paths
from pipeline.records import AttemptRecord, TrialRecord
from pipeline.search_config import SearchBudget

LOOK = 60.0  # seconds between two looks at what all of the experiment has spent
CLOCKS = 60.0  # seconds by which those of two nodes may differ


@dataclass(frozen=True)
class Spent:
    """By trials, so far."""

    minutes: float = 0.0  # by the clock, in which any was trained
    gpu_hours: float = 0.0
    core_hours: float = 0.0


def spent_on(events: Iterable[TrialRecord], paths: Paths) -> Spent:
    """By the attempts of trials that are recorded, from their beginning to what decided them: what a sweep has trained
    before, or trains a winner afterwards, is not the search's. Raises ValueError for a broken row."""
    spans: dict[str, tuple[float, float]] = {}
    for event in events:
        at = datetime.fromisoformat(event.at).timestamp()
        if event.event in ("begun", "changed"):
            spans.setdefault(event.job, (at, math.inf))
        elif event.job in spans:
            spans[event.job] = spans[event.job][0], at
    attempts = [
        attempt
        for job, (begun, ended) in spans.items()
        for attempt in read_attempts(job, paths)
        if begun - CLOCKS <= _span(attempt)[0] <= ended
    ]
    seconds = sum(map(cost_of, attempts), DeviceSeconds())
    return Spent(_covered(attempts) / 60, seconds.hours("gpu"), seconds.hours("core"))


def _covered(attempts: Iterable[AttemptRecord]) -> float:
    """Seconds of the clock in which at least one of them was under way."""
    total, reached = 0.0, 0.0
    for start, end in sorted(map(_span, attempts)):
        total += max(end - max(start, reached), 0.0)
        reached = max(reached, end)
    return total


def _span(attempt: AttemptRecord) -> tuple[float, float]:
    start = datetime.fromisoformat(attempt.started).timestamp()
    return start, start + attempt.seconds


class WithinBudget:
    """Asked again and again: what `asked` says, or why the experiment's budget refuses more, which is looked up once in
    a while. What cannot be read then is not known."""

    def __init__(
        self, asked: Callable[[], str], refusal: Callable[[], str], clock: Callable[[], float] = time.monotonic
    ):
        self.asked, self.refusal, self.clock = asked, refusal, clock
        self.looked, self.refused = -math.inf, ""

    def __call__(self) -> str:
        if not self.refused and self.clock() - self.looked >= LOOK:
            self.looked = self.clock()
            with suppress(ValueError, OSError):
                self.refused = self.refusal()
        return self.asked() or self.refused


class Ending:
    """Asked again and again while trials run; empty, or why to end. Once said, it stands.

    running: how many trials run now, each on so many `gpus`, or `cores` without any.
    """

    def __init__(
        self,
        asked: Callable[[], str],
        budget: SearchBudget | None,
        past: Spent,
        running: Callable[[], int],
        gpus: float,
        cores: int,
        clock: Callable[[], float] = time.monotonic,
    ):
        self.asked, self.budget, self.spent, self.running, self.clock = asked, budget, past, running, clock
        self.gpus, self.cores = gpus, cores
        self.last = clock()
        self.reason = ""
        self.is_spent = False

    def __call__(self) -> str:
        self._count()
        if not self.reason and (asked := self.asked()):
            self.reason = asked
        for name, limit in {} if self.budget is None else vars(self.budget).items():
            if limit is not None and getattr(self.spent, name) >= limit and not self.reason:
                self.reason = f"its budget is spent: {limit:g} {name.replace('_', ' ').replace('gpu', 'GPU')}"
                self.is_spent = True
        return self.reason

    def _count(self) -> None:
        now = self.clock()
        seconds, self.last = now - self.last, now
        running = self.running()
        hours = seconds * running / 3600
        self.spent = Spent(
            self.spent.minutes + (seconds / 60 if running else 0.0),
            self.spent.gpu_hours + hours * self.gpus,
            self.spent.core_hours + (0.0 if self.gpus else hours * self.cores),
        )
