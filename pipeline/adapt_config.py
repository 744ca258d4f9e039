"""How a training changes its solver while it runs: the adapt section of a job's `train`. No torch here."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from gode_core.solvers import Adaptive, Fixed, Solver
from pipeline.reading import need

FINER = {"euler": "midpoint", "midpoint": "rk4", "fehlberg2": "dopri5", "dopri5": "dopri5"}  # the paper's test solvers
OWN = {  # what belongs to one rule or two, and its value there
    "threshold": {"step": 0.1, "tolerance": 0.1, "agreement": 0.02},
    "grow": {"step": 1.1, "tolerance": 1.1, "agreement": 1.25},
    "ratio": {"step": 50.0},
    "confidence": {"agreement": 0.95},
    "patience": {"agreement": 2},
}


@dataclass(frozen=True)
class AdaptConfig:
    """One of three rules: see pipeline.adapt. None stands for the rule's own value, in `OWN`.

    `step`, `tolerance`: those of Ott et al. (2021), with the constants of their released code. `agreement`: ours.
    `train.solver` names the method; its steps are the most that `step` and `agreement` may come to (the paper: 500),
    its tolerance the one that `tolerance` begins with (the paper: 1e-6).
    """

    rule: Literal["step", "tolerance", "agreement"]
    every: int = 50  # optimiser steps between two checks
    threshold: float | None = None  # step, tolerance: of accuracies; agreement: of class probabilities
    shrink: float = 0.5  # the step, or the tolerance, times this
    grow: float | None = None
    ratio: float | None = None  # step: how many times more exact the solver is to be that a step is checked with
    confidence: float | None = None  # agreement: of each decision
    patience: int | None = None  # agreement: checks in a row that must allow a growth

    def __post_init__(self):
        for name, values in OWN.items():
            if getattr(self, name) is None:
                object.__setattr__(self, name, values.get(self.rule))
            need(
                self.rule in values or getattr(self, name) is None, "{} does not belong to the rule {}", name, self.rule
            )
        need(self.every >= 1, "every must be at least 1, got {}", self.every)
        assert self.threshold is not None
        assert self.grow is not None
        need(0 < self.threshold < 1, "threshold must lie in (0, 1), got {}", self.threshold)
        need(0 < self.shrink < 1, "shrink must lie in (0, 1), got {}", self.shrink)
        need(self.grow > 1, "grow must be above 1, got {}", self.grow)
        need(self.ratio is None or self.ratio >= 1, "ratio must be at least 1, got {}", self.ratio)
        confidence = self.confidence
        need(confidence is None or 0.5 < confidence < 1, "confidence must lie in (0.5, 1), got {}", confidence)
        need(self.patience is None or self.patience >= 1, "patience must be at least 1, got {}", self.patience)

    def check(self, solver: Solver) -> None:
        """Raises ValueError unless the rule can change this solver."""
        if self.rule == "agreement":
            need(isinstance(solver, Fixed), "the rule agreement changes the number of steps: {} has none", solver)
            return
        kind = Fixed if self.rule == "step" else Adaptive
        names = [name for name in FINER if (name in ("euler", "midpoint")) == (self.rule == "step")]
        fits = isinstance(solver, kind) and solver.method in names
        need(fits, "the rule {} knows the solvers {}, got {}", self.rule, " and ".join(names), solver)
        if isinstance(solver, Adaptive):
            need(solver.rtol == solver.atol, "the rule tolerance has one tolerance, got {}", solver)
