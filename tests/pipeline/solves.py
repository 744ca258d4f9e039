"""Solves without a network: what the rules that change the solver are asked with in tests."""

from __future__ import annotations

from collections.abc import Callable

import torch

from gode_core.solvers import Adaptive, Fixed, Solver, parse_solver
from pipeline.adapt import build_adaptation
from pipeline.adapt_config import AdaptConfig
from pipeline.adaptation import Adaptation, Answer, Decision

SOLVERS = {"step": "euler@500", "tolerance": "fehlberg2@1e-6", "agreement": "euler@500"}  # by rule
PER_DECADE = 7  # calls of a pretended adaptive solve, per decade of its tolerance


def built(rule: str = "step", solver: str | None = None, **settings) -> Adaptation:
    return build_adaptation(AdaptConfig(rule, **settings), parse_solver(solver or SOLVERS[rule]))


def answer(num_right: int, size: int = 128, num_evals: int = 0) -> Answer:
    """Two classes, `num_right` of `size` samples right."""
    labels = torch.arange(size) % 2
    shown = torch.where(torch.arange(size) < num_right, labels, 1 - labels)
    return Answer(torch.nn.functional.one_hot(shown, 2).float(), labels, num_evals)


def calls(solver: Solver) -> int:
    """Of an adaptive solver, pretended: `PER_DECADE` for each decade of its tolerance, for dopri5 as for fehlberg2."""
    if isinstance(solver, Adaptive):
        return PER_DECADE * len(f"{1 / solver.rtol:.0f}")
    assert isinstance(solver, Fixed)
    return solver.num_evals


class Pretended:
    """Answers with so many right of `size`, as a function of the solver; remembers what was asked."""

    def __init__(self, num_right: Callable[[Solver], int], size: int = 128, calls: Callable[[Solver], int] = calls):
        self.num_right, self.size, self.calls = num_right, size, calls
        self.asked: list[str] = []

    def __call__(self, solver: Solver) -> Answer:
        self.asked.append(str(solver))
        return answer(self.num_right(solver), self.size, self.calls(solver))


class Net:
    """Two classes, new images at each check: logit m + error / n^p x, with a margin m and a direction x of each image.

    `knows`: the label is the sign of m. Otherwise labels are drawn by themselves, as for a net at chance.
    `scale`: of all logits, which are small at the start of a training.
    """

    def __init__(self, error, size=500, seed=0, knows=True, scale=1.0):
        self.error, self.size, self.knows, self.scale = error, size, knows, scale
        self.generator = torch.Generator().manual_seed(seed)
        self.asked = []
        self.renew()

    def renew(self):
        draw = {"generator": self.generator, "dtype": torch.float64}
        self.margin, self.way = 4 * torch.randn(self.size, **draw), torch.randn(self.size, **draw)
        labels = self.margin if self.knows else torch.randn(self.size, **draw)
        self.labels = (labels > 0).long()

    def __call__(self, solver):
        self.asked.append(str(solver))
        logit = self.scale * (self.margin + self.error / solver.num_steps**solver.order * self.way)
        return Answer(torch.stack([-logit / 2, logit / 2], 1), self.labels, solver.num_evals)


def always(num_right: int, **settings) -> Pretended:
    """As good with any solver."""
    return Pretended(lambda solver: num_right, **settings)


def check(rule: Adaptation, ask: Pretended | Net) -> Decision:
    """A check after a training step with the rule's solver. Afterwards `ask.asked` holds what the check asked."""
    if isinstance(ask, Net):
        ask.renew()
    trained = ask(rule.solver)
    rule.observe(trained.num_evals)
    ask.asked.clear()
    return rule.check(ask, trained)
