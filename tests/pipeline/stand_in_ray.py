"""In place of Ray, for the fleet: a function of the test answers each call of a process, at once and in order."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

Work = Callable[
    [int, tuple[str, ...]], Any
]  # (number of the process, names of the jobs) -> Outcome, or raises RayError


@dataclass
class StandInRay:
    """`sys.modules["ray"]`, as far as the fleet asks."""

    work: Work
    resources: list[Mapping[str, float]] = field(default_factory=lambda: [{"CPU": 2.0}])  # of each node
    started: int = 0
    killed: list[int] = field(default_factory=list)
    asked: dict[str, Any] = field(default_factory=dict)  # for each process

    def nodes(self) -> list[dict[str, Any]]:
        return [{"Alive": True, "Resources": resources} for resources in self.resources]

    def remote(self, **asked: Any) -> Callable[[type], StandInRay]:
        self.asked = asked
        return lambda kind: _Hiring(self)  # type: ignore[return-value]

    def wait(self, answers: list[Call], timeout: float) -> tuple[list[Call], list[Call]]:
        return answers[:1], answers[1:]

    def get(self, call: Call) -> Any:
        return call.answer()

    def kill(self, process: Process) -> None:
        self.killed.append(process.number)


@dataclass(eq=False)
class Call:
    """Of a process, and what comes of it when it is asked for."""

    answer: Callable[[], Any]


class _Hiring:
    def __init__(self, ray: StandInRay):
        self.ray = ray

    def remote(self, *_: Any) -> Process:
        self.ray.started += 1
        return Process(self.ray, self.ray.started)


class Process:
    """An actor. A method is asked for by its name and `remote`."""

    def __init__(self, ray: StandInRay, number: int):
        self.ray, self.number = ray, number
        self.ready, self.stop = _Method(lambda: None), _Method(lambda reason: None)
        self.train = _Method(lambda unit: ray.work(number, tuple(unit)))


class _Method:
    def __init__(self, work: Callable[..., Any]):
        self.work = work

    def options(self, **_: Any) -> _Method:
        return self

    def remote(self, *given: Any) -> Call:
        return Call(lambda: self.work(*given))


def install(monkeypatch, work: Work, **facts: Any) -> StandInRay:
    ray = StandInRay(work, **facts)
    monkeypatch.setitem(sys.modules, "ray", ray)
    return ray
