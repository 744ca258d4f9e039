"""What a solve gives back, and how it may end."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

Gradient = Literal["direct", "checkpoint", "adjoint"]
Status = Literal["ok", "nonfinite", "budget", "underflow", "unconverged"]


@dataclass
class Solution:
    """The end of a solve.

    h1: the state at t = 1, or the last accepted one at `t` < 1 if the solve was given up.
    states: the states at the depths asked for, as far as they were reached.
    num_evals: calls of the field; num_accepted, num_rejected: steps.
    lost_as: what became of samples whose h1 is not finite, though the solve of the others went on.
    kinetic, jacobian: energies of the path if `regularisation` was asked for them: scalars, means over the batch.
    """

    h1: Tensor
    states: list[Tensor]
    num_evals: int
    num_accepted: int
    num_rejected: int = 0
    t: float = 1.0
    stopped: Status | None = None
    lost_as: Status = "nonfinite"
    kinetic: Tensor | None = None
    jacobian: Tensor | None = None

    @property
    def status(self) -> Status:
        """`ok`; `nonfinite`: the state or the field became inf or nan; `budget`: max_steps were not enough;
        `underflow`: the step fell below what the time's precision can add; `unconverged`: the iteration for an implicit
        step reached its limit. Reads the device once."""
        if self.stopped is not None:
            return self.stopped
        return "ok" if bool(torch.isfinite(self.h1).all()) else self.lost_as


class SolveFailed(RuntimeError):
    """A solve was given up. Reaches the caller from a backward pass only: an adjoint's, or an implicit step's."""

    def __init__(self, status: Status, t: float = math.nan):
        super().__init__(f"the solve was given up at t = {t:g}: {status}")
        self.status: Status = status
