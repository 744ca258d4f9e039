"""A few processes that stay warm in a Ray, and train units of jobs, one after the other. A door of ray.

What dies, or is sick, is replaced, and what it trained goes on from its checkpoint, by another.
"""

from __future__ import annotations

import logging
import math
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from pipeline.config import JobConfig, canonical
from pipeline.deadline import Allocation
from pipeline.fleet_worker import Outcome, Worker
from pipeline.guess import guessed_seconds
from pipeline.paths import Paths
from pipeline.ray_nodes import NoRay
from pipeline.training import RunSettings

log = logging.getLogger(__name__)
POLL = 0.2  # seconds between two questions whether to stop
SAY = 10.0  # seconds between two lines of progress
TRIES = 3  # of a unit whose process dies or is sick; and of a process that does not even start
MOST_FAULTS = 5  # errors in a row that were no job's, after which there is no other process in a sick one's place

Unit = Mapping[str, JobConfig]


@dataclass(frozen=True)
class Crew:
    """How many processes, and what each may take. number 0: as many as fit."""

    number: int = 0
    gpus: float = 0.0  # of a device, for each
    allocation: Allocation = field(default_factory=Allocation)


def run_fleet(
    units: Iterable[Unit],
    paths: Paths,
    run: RunSettings,
    should_stop: Callable[[], str | bool],
    on_finished: Callable[[Outcome], None] = lambda outcome: None,
    crew: Crew | None = None,
    in_order: bool = False,
) -> list[Outcome]:
    """Train units of jobs, the longest first, or `in_order`, in the Ray that this process is connected to
    (`private_ray`).

    `should_stop` is asked a few times a second; then all that is under way is asked to write its checkpoint, and counts
    as interrupted, as does what was not begun. `on_finished` is called with each outcome as it comes, in this process.
    Raises NoRay if no process of the fleet can be started, or none is left that is not sick.
    """
    queue = list(units) if in_order else sorted(units, key=_seconds, reverse=True)
    fleet = _Fleet(queue, paths, run, crew or Crew())
    try:
        for outcome in fleet.outcomes(should_stop):
            on_finished(outcome)
    finally:
        fleet.dismiss()
    return fleet.ended


def _seconds(unit: Unit) -> float:
    """Guessed; what only the data folder knows counts as long: begun last, it would end alone."""
    guesses = [guessed_seconds(config) for config in unit.values()]
    return sum(math.inf if guess is None else guess for guess in guesses)


@dataclass(eq=False)
class _Process:
    """One of the fleet."""

    actor: Any
    faults: int = 0  # errors in a row that may be its own or its machine's, those of whom it has replaced among them


class _Fleet:
    """Units that wait, processes, and who does what."""

    def __init__(self, units: Sequence[Unit], paths: Paths, run: RunSettings, crew: Crew):
        import ray
        from ray.exceptions import RayError

        self.ray, self.ray_error = ray, RayError
        self.total = sum(map(len, units))
        self.waiting = deque((unit, 1) for unit in units)  # and the number of the try
        self.ended: list[Outcome] = []
        self.starting: dict[Any, _Process] = {}  # by the answer to come
        self.busy: dict[Any, tuple[_Process, Unit, int]] = {}
        self.idle: list[_Process] = []
        self.failed_starts = 0
        self.stopped = self.last_fault = ""
        self.began = self.said = time.monotonic()
        as_actor: Any = ray.remote  # its types know no concurrency groups
        actor = as_actor(concurrency_groups={"stop": 1}, num_cpus=run.threads, num_gpus=crew.gpus)(Worker)
        there = Paths(str(Path(paths.root).absolute()))  # a process on another node may stand in another folder
        settings = replace(run, gpus=crew.gpus or run.gpus)
        self.hire = lambda: actor.remote(there, settings, crew.allocation)
        for _ in range(min(processes(crew.number, run.threads, crew.gpus), len(self.waiting))):
            self._start()

    def outcomes(self, should_stop: Callable[[], str | bool]) -> Iterable[Outcome]:
        """As they come, until all units have ended."""
        while self.busy or (self.waiting and not self.stopped):
            if not (self.busy or self.idle or self.starting):
                raise NoRay(f"{MOST_FAULTS} errors in a row that are no job's, the last: {self.last_fault}")
            self._give_work()
            answers, _ = self.ray.wait([*self.starting, *self.busy], timeout=POLL)
            for answer in answers:
                outcome = self._ready(answer) if answer in self.starting else self._back(answer)
                if outcome is not None:
                    self.ended.append(outcome)
                    yield outcome
            if not self.stopped and (reason := should_stop()):
                self._stop(reason if isinstance(reason, str) else "asked to stop")
            self._say()
        for unit, _ in self.waiting:
            self.ended.append(Outcome(tuple(unit), "interrupted", self.stopped))
            yield self.ended[-1]
        self._say(last=True)

    def dismiss(self) -> None:
        """End all processes."""
        for process in (*self.starting.values(), *self.idle, *(process for process, _, _ in self.busy.values())):
            self.ray.kill(process.actor)

    def _start(self, faults: int = 0) -> None:
        process = _Process(self.hire(), faults)
        self.starting[process.actor.ready.remote()] = process

    def _ready(self, answer: Any) -> None:
        process = self.starting.pop(answer)
        try:
            self.ray.get(answer)
        except self.ray_error as error:
            self.failed_starts += 1
            if self.failed_starts >= TRIES and not (self.idle or self.busy):
                raise NoRay(f"no process of the fleet starts: {_last_line(error)}") from None
            self._start(process.faults)
            return
        self.failed_starts = 0
        self.idle.append(process)

    def _give_work(self) -> None:
        while self.idle and self.waiting and not self.stopped:
            process, (unit, number) = self.idle.pop(), self.waiting.popleft()
            plain = {job: canonical(config) for job, config in unit.items()}
            self.busy[process.actor.train.remote(plain)] = process, unit, number

    def _back(self, answer: Any) -> Outcome | None:
        """A unit has ended, or its process has."""
        process, unit, number = self.busy.pop(answer)
        try:
            outcome: Outcome = self.ray.get(answer)
        except self.ray_error as error:
            died = "its process died" if number == 1 else f"{number} processes died over it, the last"
            log.warning("%s: %s: %s", ", ".join(unit), died, _last_line(error))
            if not self.stopped:
                self._start(process.faults)
            return self._again(unit, number, f"{died}: {_last_line(error)}")
        for line in outcome.warnings:
            log.warning("%s: %s", ", ".join(unit), line)
        if outcome.by_place:
            log.warning("%s: %s", ", ".join(unit), outcome.reason)
            self._replace(process, outcome.reason)
            return self._again(unit, number, outcome.reason, later=True)
        process.faults = 0
        self.idle.append(process)
        if outcome.state == "failed" and len(unit) > 1:
            self._part(unit, outcome.reason)
            return None
        return outcome

    def _replace(self, process: _Process, reason: str) -> None:
        """One that is perhaps sick. If those that come in its place are too, it is the machine: the others go on."""
        self.ray.kill(process.actor)
        self.last_fault = reason
        if process.faults + 1 < MOST_FAULTS and not self.stopped:
            self._start(process.faults + 1)

    def _again(self, unit: Unit, number: int, reason: str, later: bool = False) -> Outcome | None:
        """By another process; `later`: when those that wait had their turn, lest a sick machine takes it each time."""
        if self.stopped:
            return Outcome(tuple(unit), "interrupted", reason)
        if number < TRIES:
            (self.waiting.append if later else self.waiting.appendleft)((unit, number + 1))
        elif len(unit) > 1:  # perhaps each has memory enough alone
            self._part(unit, reason)
        else:
            return Outcome(tuple(unit), "failed", reason)
        return None

    def _part(self, unit: Unit, reason: str) -> None:
        """One of them may be the reason: now each by itself."""
        log.warning("%s: %s; now one by one", ", ".join(unit), reason)
        self.waiting.extendleft(({job: config}, 1) for job, config in unit.items())

    def _stop(self, reason: str) -> None:
        self.stopped = reason
        log.info("%s: %d trainings write their checkpoints", reason, len(self.busy))
        for process, _, _ in self.busy.values():
            process.actor.stop.options(concurrency_group="stop").remote(reason)

    def _say(self, last: bool = False) -> None:
        now = time.monotonic()
        if not last and now - self.said < SAY:
            return
        self.said = now
        count = {
            state: sum(len(end.jobs) for end in self.ended if end.state == state)
            for state in ("finished", "interrupted", "failed")
        }
        running = sum(len(unit) for _, unit, _ in self.busy.values())
        waiting = self.total - running - sum(count.values())
        pace = 60 * count["finished"] / (now - self.began)
        text = "%d of %d finished, %d running, %d waiting, %d failed; %.1f a minute"
        log.info(text, count["finished"], self.total, running, waiting + count["interrupted"], count["failed"], pace)


def processes(asked: int, cpus: float, gpus: float) -> int:
    """How many are started: as many as fit, or as are asked for (0: no wish). Raises NoRay if none fits."""
    fits = places(cpus, gpus)
    if not fits:
        raise NoRay(f"no process fits: each needs {cpus} CPUs and {gpus:g} of a GPU")
    return min(asked or fits, fits)


def places(cpus: float, gpus: float) -> int:
    """How many processes of so many CPUs and GPUs each the nodes of this Ray have room for: none spans two."""
    import ray

    return sum(_fitting(node["Resources"], cpus, gpus) for node in ray.nodes() if node["Alive"])


def _fitting(node: Mapping[str, float], cpus: float, gpus: float) -> int:
    """How many processes, of so many CPUs and GPUs each, a node has room for."""
    asked = {"CPU": cpus, "GPU": gpus}
    return min(int(node.get(name, 0.0) / amount + 1e-9) for name, amount in asked.items() if amount)


def _last_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[-1].strip()
