"""Rules that change the solver while a network trains: step-size and tolerance adaptation.

A net that is trained with too coarse a solver need not be an ODE: its accuracy is then that of a discrete map, and is
lost under a finer solver (Ott, Katiyar, Hennig, Tiemann, ICLR 2021). Every 50 optimiser steps a rule solves some images
again, with a finer solver, and makes the training's solver finer where the answers differ, coarser where they would
still agree. Here are the paper's two rules, with the constants of its released code. What that code intends is done
where it does another thing; each such place is named. Our own rule is in `pipeline.agreement`.
"""

from __future__ import annotations

from functools import partial
from typing import Any, ClassVar, Literal

from gode_core.solvers import Adaptive, Fixed, Solver
from pipeline.adapt_config import FINER, AdaptConfig
from pipeline.adaptation import Adaptation, Answer, Ask, Decision, first_step, given, num_steps
from pipeline.agreement import AgreementRule

SMALLEST = 1e-12  # a tolerance below which float64 has little left to control
MAX_DIVISIONS = 6  # of a test tolerance by 10


def build_adaptation(config: AdaptConfig, solver: Solver) -> Adaptation:
    """The rule, before its start. Raises ValueError unless it can change this solver."""
    config.check(solver)
    if isinstance(solver, Adaptive):
        return ToleranceRule(config, solver)
    assert isinstance(solver, Fixed)
    return (StepRule if config.rule == "step" else AgreementRule)(config, solver)


class StepRule(Adaptation):
    """Step-size adaptation of Ott et al. (2021), section 3.1 and algorithm 2, with the constants of the released code.

    It keeps a real step h <= 1; a solve makes n = ceil(1/h) equal steps. (The released code makes n - 1 steps of h and
    a shorter last one: as many, but of two lengths.) A check looks at the training batch:

    1. A finer method (`FINER`, order q > p) solves it with the step h' = h if h^(q-p) < 1/ratio, else
       (h^p / ratio)^(1/q): its error h'^q is to be about `ratio` times below h^p.
    2. Accuracies that differ by more than `threshold`: h := shrink h. If that made more steps than allowed, n is set to
       the mean of the present and the largest count; at the largest it stays, with the action `limit`.
    3. Otherwise the step min(1, grow h) is tried by the method of the training, and taken if the accuracy still differs
       from the finer method's by at most `threshold`. It is solved even where n would stay, as there.

    A known weakness, kept: at chance all solvers agree, so that h grows to 1 before the net has learnt anything.
    Accuracies are counts here; there they are divided by the nominal batch size, in the last, smaller batch too.
    """

    held_out = False

    def __init__(self, config: AdaptConfig, solver: Fixed):
        self.config, self.ratio = config, given(config.ratio)
        self.threshold, self.grow = given(config.threshold), given(config.grow)
        self.method, self.max_steps = solver.method, solver.num_steps
        self.h = 1 / self.max_steps

    @property
    def solver(self) -> Fixed:
        return Fixed(self.method, num_steps(self.h))

    @property
    def finer(self) -> Fixed:
        """What the present step is checked with."""
        method = FINER[self.method]
        p, q = self.solver.order, Fixed(method, 1).order
        whole = self.h ** (q - p) < 1 / self.ratio
        return Fixed(method, num_steps(self.h if whole else (self.h**p / self.ratio) ** (1 / q)))

    def begin(self, step: float) -> Decision:
        self.h = first_step(step, self.max_steps)
        return Decision.start(
            self.solver, f"the first step is to be {step:.4g}, at least 1/{self.max_steps} and at most 1"
        )

    def check(self, ask: Ask, trained: Answer) -> Decision:
        before, finer, h = self.solver, self.finer, self.h
        reference = ask(finer)
        apart = _apart(trained, reference)
        decision = partial(Decision.check, before, finer, apart, trained.accuracy)
        said = f"accuracy {trained.accuracy:.4g} and {reference.accuracy:.4g} with {finer}, {apart:.4g} apart"
        if apart > self.threshold:
            action = self._shrink()
            end = "no more steps are allowed" if action == "limit" else f"h from {h:.4g} to {self.h:.4g}"
            reason = f"{said}, more than {self.threshold:g}: {end}"
            return decision(action, self.solver, reference.num_evals, reason)
        longer = min(1.0, self.grow * h)
        coarser = Fixed(self.method, num_steps(longer))
        trial = ask(coarser)
        trial_apart = _apart(trial, reference)
        said += f"; h = {longer:.4g} would be {trial_apart:.4g} apart"
        if trial_apart > self.threshold:
            action, reason = "keep", f"{said}, more than {self.threshold:g}"
        elif longer == h:
            action, reason = "keep", f"{said}: h is at its largest"
        else:
            self.h, action, reason = longer, "grow", f"{said}: h from {h:.4g} to {longer:.4g}"
        cost = reference.num_evals + trial.num_evals
        return decision(action, self.solver, cost, reason, coarser, trial_apart)

    def _shrink(self) -> Literal["shrink", "limit"]:
        n = self.solver.num_steps
        if n >= self.max_steps:
            return "limit"
        shorter = self.config.shrink * self.h
        self.h = shorter if num_steps(shorter) <= self.max_steps else 1 / -(-(n + self.max_steps) // 2)
        return "shrink"

    def state(self) -> dict[str, Any]:
        return {"h": self.h}

    def restore(self, state: dict[str, Any]) -> None:
        self.h = state["h"]


class ToleranceRule(Adaptation):
    """Tolerance adaptation of Ott et al. (2021), supplement, with the constants of the released code; rtol = atol.

    It begins with the job's tolerance. A check looks at the training batch:

    1. The test solver is dopri5, at 1/5 of the tolerance for fehlberg2 and at 1/10 for dopri5; its tolerance is divided
       by 10 until it calls the field more often than the training's solve of this iteration. (The released code
       compares with the last slot of a log that is not filled yet: with chance numbers.) The division ends at 10^-12,
       after six, or where more samples fail than before: the last answer that stands is then taken.
    2. Accuracies that differ by more than `threshold`: tolerance := shrink tolerance; below 10^-12 it stays (`limit`;
       without a bound there).
    3. Otherwise grow times the tolerance is tried, and taken if its accuracy still differs by at most `threshold`,
       unless the trial calls the field as often as each of the last five training iterations, this one among them:
       then the tolerance has no effect, and stays. It stays below 1, as it must here; there it has no bound.

    Tolerances have six digits in solvers, so that their names stay short; the rule's own has all.
    """

    held_out = False
    DIVISORS: ClassVar = {"fehlberg2": 5.0, "dopri5": 10.0}
    NUM_USUAL = 5  # training iterations whose calls are remembered

    def __init__(self, config: AdaptConfig, solver: Adaptive):
        self.config, self.threshold, self.grow = config, given(config.threshold), given(config.grow)
        self.method, self.tolerance = solver.method, solver.rtol
        self.usual: list[int] = []  # calls in the last training iterations

    @property
    def solver(self) -> Adaptive:
        return _adaptive(self.method, self.tolerance)

    def begin(self, step: float) -> Decision:
        return Decision.start(self.solver, f"the tolerance is to begin with {self.tolerance:.4g}")

    def observe(self, num_evals: int) -> None:
        self.usual = [*self.usual, num_evals][-self.NUM_USUAL :]

    def check(self, ask: Ask, trained: Answer) -> Decision:
        before, tolerance = self.solver, self.tolerance
        finer, reference, cost, note = self._reference(ask, trained)
        apart = _apart(trained, reference)
        decision = partial(Decision.check, before, finer, apart, trained.accuracy)
        said = f"accuracy {trained.accuracy:.4g} and {reference.accuracy:.4g} with {finer}{note}, {apart:.4g} apart"
        if apart > self.threshold:
            said += f", more than {self.threshold:g}"
            smaller = self.config.shrink * tolerance
            if smaller < SMALLEST:
                return decision("limit", before, cost, f"{said}: a tolerance below {SMALLEST:g} is not taken")
            self.tolerance = smaller
            return decision("shrink", self.solver, cost, f"{said}: tolerance from {tolerance:.4g} to {smaller:.4g}")
        larger = self.grow * tolerance
        if larger > 0.999999:  # which six digits round to 1
            return decision("keep", before, cost, f"{said}: the tolerance {tolerance:.4g} is at its largest")
        coarser = _adaptive(self.method, larger)
        trial = ask(coarser)
        trial_apart = _apart(trial, reference)
        said += f"; {larger:.4g} would be {trial_apart:.4g} apart"
        if trial_apart > self.threshold:
            action, reason = "keep", f"{said}, more than {self.threshold:g}"
        elif self.usual == [trial.num_evals] * self.NUM_USUAL:
            action, reason = "keep", f"{said} and calls the field {trial.num_evals} times, as the last five iterations"
        else:
            self.tolerance, action = larger, "grow"
            reason = f"{said}: tolerance from {tolerance:.4g} to {larger:.4g}"
        return decision(action, self.solver, cost + trial.num_evals, reason, coarser, trial_apart)

    def _reference(self, ask: Ask, trained: Answer) -> tuple[Adaptive, Answer, int, str]:
        """The test solver, its answer, the calls of all that were asked, and a remark."""
        tolerance = self.tolerance / self.DIVISORS[self.method]
        solver = _adaptive(FINER[self.method], tolerance)
        answer = ask(solver)
        cost = answer.num_evals
        for _ in range(MAX_DIVISIONS):
            if answer.num_evals > trained.num_evals or tolerance / 10 < SMALLEST:
                break
            tolerance /= 10
            stricter = _adaptive(solver.method, tolerance)
            closer = ask(stricter)
            cost += closer.num_evals
            if int(closer.finite.sum()) < int(answer.finite.sum()):
                return solver, answer, cost, f" ({stricter} failed)"
            solver, answer = stricter, closer
        if answer.num_evals > trained.num_evals:
            return solver, answer, cost, ""
        return solver, answer, cost, f" (no more calls than in training, {answer.num_evals} and {trained.num_evals})"

    def state(self) -> dict[str, Any]:
        return {"tolerance": self.tolerance, "usual": list(self.usual)}

    def restore(self, state: dict[str, Any]) -> None:
        self.tolerance, self.usual = state["tolerance"], list(state["usual"])


def _adaptive(method: str, tolerance: float) -> Adaptive:
    rounded = float(f"{tolerance:.6g}")
    return Adaptive(method, rounded, rounded)


def _apart(one: Answer, other: Answer) -> float:
    """Difference of two accuracies, from counts: 8/10 and 7/10 differ by 1/10, not by 0.10000000000000009."""
    return abs(one.num_right - other.num_right) / len(one.labels)
