"""What a rule that changes the solver in training is: the answers that it is given, and the decisions that it makes.

A rule knows no network: `ask` solves one batch with the solver that it is given, the same images at each call within a
check, without a gradient. A solve that fails is to answer with logits that are not finite: such samples are wrong.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Protocol, TypeVar

from torch import Tensor

from gode_core.solvers import Solver
from pipeline.adapt_config import AdaptConfig

Action = Literal["start", "shrink", "grow", "keep", "limit"]
T = TypeVar("T")


@dataclass(frozen=True)
class Answer:
    """One solve of one batch: logits (B, classes), labels (B,), and the calls of the field."""

    logits: Tensor
    labels: Tensor
    num_evals: int

    @property
    def finite(self) -> Tensor:
        """(B,): samples whose logits are all finite."""
        return self.logits.isfinite().all(1)

    @property
    def num_right(self) -> int:
        return int(((self.logits.argmax(1) == self.labels) & self.finite).sum())

    @property
    def accuracy(self) -> float:
        return self.num_right / len(self.labels)


@dataclass(frozen=True)
class Decision:
    """What a check found and did: a `DecisionRecord` without the job's name, its code and the step."""

    action: Action
    solver: str | None
    reference: str | None
    difference: float | None
    trial: str | None
    trial_difference: float | None
    accuracy: float | None
    next_solver: str
    num_evals: int
    reason: str

    @classmethod
    def start(cls, solver: Solver, reason: str) -> Decision:
        return cls("start", None, None, None, None, None, None, str(solver), 0, reason)

    @classmethod
    def check(
        cls,
        solver: Solver,
        reference: Solver,
        difference: float,
        accuracy: float,
        action: Action,
        next_solver: Solver,
        num_evals: int,
        reason: str,
        trial: Solver | None = None,
        trial_difference: float | None = None,
    ) -> Decision:
        """In the order in which a check finds them."""
        tried = None if trial is None else str(trial)
        told = (str(solver), str(reference), difference, tried, trial_difference, accuracy)
        return cls(action, *told, str(next_solver), num_evals, reason)


Ask = Callable[[Solver], Answer]


class Adaptation(Protocol):
    """A rule, and where it stands. `state` and `restore` are inverse: plain data, for a checkpoint."""

    config: AdaptConfig
    held_out: ClassVar[bool]  # checks are made on held-out images, not on the training batch

    @property
    def solver(self) -> Solver:
        """To train with now."""
        ...

    def begin(self, step: float) -> Decision:
        """Set the first solver. step: what `gode_core.starting` proposes; its calls of the field are not counted."""
        ...

    def due(self, step: int) -> bool:
        """Whether to check in the iteration that comes after `step` optimiser steps: the 50th, the 100th, ..."""
        return (step + 1) % self.config.every == 0

    def observe(self, num_evals: int) -> None:
        """Take note of a training step's forward pass; of the one that is checked too, before the check."""

    def check(self, ask: Ask, trained: Answer) -> Decision:
        """Compare, decide, and set the next solver. trained: the forward pass just made on the training batch."""
        ...

    def state(self) -> dict[str, Any]: ...

    def restore(self, state: dict[str, Any]) -> None: ...


def num_steps(h: float) -> int:
    """ceil(1/h), the steps of size h <= 1 from 0 to 1; 1/(1/49) = 49.00000000000001 are 49."""
    return max(1, math.ceil((1 - 1e-12) / h))


def first_step(step: float, max_steps: int) -> float:
    """The step within [1/max_steps, 1]; the shortest for one that is no number."""
    return min(1.0, max(1 / max_steps, step)) if math.isfinite(step) else 1 / max_steps


def given(value: T | None) -> T:
    """A value that the configuration has under this rule: see `adapt_config.OWN`."""
    assert value is not None
    return value
