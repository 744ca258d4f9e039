"""Is a trained model the flow of an ODE, or a discrete net in disguise? (Ott et al. 2021, ResNet After All?)

The same weights are solved with other solvers, on the same n samples. `lost` are the samples that are right under the
training solver and wrong under the other, `gained` the reverse:

    gap = accuracy under the training solver - accuracy under the other = (lost - gained) / n

A flow has one answer. So in the limit h -> 0, and under every solver at least as exact as the training solver, a
*finer* one, the gap must be zero: here, no larger than a margin, by confidence intervals. Those of the limit and of all
finer solvers hold together, over draws of the samples, for this one trained model.

    discrete    an interval lies wholly outside [-margin, margin]
    ode         all of them lie within it
    undecided   neither: a gap near the margin, too few samples, or a limit that was not reached

A coarser solver may always fail, which proves nothing. Nor does the accuracy under the training solver alone, which is
as high for a discrete net. And a net that is no better than a guess agrees with itself under every solver: that shows
nothing.

No torch here: these are functions of counts and numbers.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import linear_regression
from typing import Literal, get_args

from gode_core.intervals import check_share, paired_interval
from gode_core.solvers import Fixed, Implicit, Solver

Answer = Literal["ode", "discrete", "undecided"]
VAGUE = 2 / 3  # of the training solver's distance to the limit: a check that is farther from it doubts the limit


@dataclass(frozen=True)
class Order:
    """error = c h^slope, fitted to `num_points` steps."""

    slope: float
    standard_error: float
    num_points: int


def fitted_order(steps: Sequence[float], errors: Sequence[float]) -> Order | None:
    """Least squares of log error over log step. Points whose step or error is not positive and finite are left out (an
    error of 0 has no logarithm); None if fewer than three are left, or all at one step."""
    points = [(h, e) for h, e in zip(steps, errors, strict=True) if 0 < h < math.inf and 0 < e < math.inf]
    x, y = [math.log(h) for h, _ in points], [math.log(e) for _, e in points]
    if len(points) < 3 or len(set(x)) == 1:
        return None
    slope, intercept = linear_regression(x, y)
    mean, left = math.fsum(x) / len(x), [b - intercept - slope * a for a, b in zip(x, y)]
    variance = math.fsum(r * r for r in left) / (len(points) - 2) / math.fsum((a - mean) ** 2 for a in x)
    return Order(slope, math.sqrt(variance), len(points))


@dataclass(frozen=True)
class Judgement:
    """One other solver against the training solver, on the same samples.

    num_failed: samples whose solve did not end. They count as wrong: those that the training solver has right are
        among num_lost.
    error: distance of its logits to those in the limit, in any unit that is the same throughout; None if it does not
        exist (a solve that failed).
    """

    solver: str
    num_samples: int
    num_lost: int
    num_gained: int
    num_failed: int = 0
    error: float | None = None

    def __post_init__(self):
        if not 0 <= self.num_failed <= self.num_samples:
            raise ValueError(f"{self.solver}: {self.num_failed} samples failed, of {self.num_samples}: not possible")
        _check_error(self.solver, self.error)


def _check_error(name: str, error: float | None) -> None:
    if error is not None and not 0 <= error < math.inf:
        raise ValueError(f"{name}: an error must be finite and not negative, got {error:g}; None if there is none")


def may_be_finer(other: Solver, own: Solver) -> bool:
    """Whether `other` can be finer than the training solver `own`, before anything is measured: of no lower order, and
    with no fewer field evaluations (implicit: steps). By an accident a coarse solver comes near to the limit too, above
    all for a discrete net; that must not make it a judge. What adapts its steps is told by the measured error alone."""
    if not (isinstance(other, Fixed | Implicit) and isinstance(own, Fixed | Implicit)):
        return True
    counts = [s.num_evals if isinstance(s, Fixed) else s.num_steps for s in (other, own)]
    return other.order >= own.order and counts[0] >= counts[1]


@dataclass(frozen=True)
class Verdict:
    """gap, gap_low, gap_high: of the limit, and its interval. worst_...: of the `num_finer` other solvers that count
    the one whose gap is the largest in absolute value; None if there is none. All intervals hold together, at
    `confidence`.
    Gaps are shares of samples: positive if the other solver is less accurate. reason: a sentence, in percent points.
    ode_within: the smallest margin at which the verdict would be `ode`; None if the limit was not reached.
    limit_check, limit_check_gap: of the other solvers the one nearest to the limit, and its error."""

    verdict: Answer
    reason: str
    gap: float
    gap_low: float
    gap_high: float
    worst_solver: str | None
    worst_gap: float | None
    worst_low: float | None
    worst_high: float | None
    num_finer: int
    confidence: float
    margin: float
    ode_within: float | None
    limit_check: str | None
    limit_check_gap: float | None


@dataclass(frozen=True)
class _Gap:
    """A judgement's gap and interval."""

    of: Judgement
    gap: float
    low: float
    high: float

    @staticmethod
    def at(judgement: Judgement, confidence: float) -> _Gap:
        lost, gained, n = judgement.num_lost, judgement.num_gained, judgement.num_samples
        return _Gap(judgement, (lost - gained) / n, *paired_interval(lost, gained, n, confidence))

    def outside(self, margin: float) -> bool:
        return self.low > margin or self.high < -margin

    @property
    def reach(self) -> float:
        """The smallest margin that the interval lies within."""
        return max(-self.low, self.high)

    def within(self, margin: float) -> bool:
        return self.reach <= margin

    def __str__(self) -> str:
        way = "loses" if self.gap >= 0 else "gains"
        low, high = (self.low, self.high) if self.gap >= 0 else (-self.high, -self.low)
        failed = f"; {self.of.num_failed} of {self.of.num_samples} solves failed" if self.of.num_failed else ""
        return f"{self.of.solver} {way} {_points(abs(self.gap))} points ({_points(low)} to {_points(high)}{failed})"


def _points(share: float) -> str:
    return f"{round(100 * share, 2) + 0.0:.2f}"  # never -0.00


def judge(
    training_error: float | None,
    limit: Judgement,
    others: Sequence[Judgement],
    *,
    margin: float = 0.01,
    confidence: float = 0.95,
    limit_reached: bool = True,
) -> Verdict:
    """Whether the accuracy depends on the solver.

    training_error: distance of the training solver's logits to those in the limit; None if it does not exist.
    limit: a solver so fine that it stands for h -> 0. Its `error` is not read.
    others: solvers beside the limit and the training solver that `may_be_finer`.
    limit_reached: False if the solve in the limit was given up (budget, underflow).

    The limit always counts; another solver if its error is at most `training_error`. A coarser one, or one without an
    error, counts neither for nor against the model; without `training_error` the limit alone counts. Each of the m
    intervals has the confidence 1 - (1 - confidence) / m (Bonferroni).

    If the limit was not reached, nothing says what the flow is, nor which solvers are finer: `undecided`. A solve in
    the limit that became not finite *was* followed to its end: its failed samples are lost, and that is a finding.

    The limit is checked by the nearest of the others. Halved steps of Euler's method halve the distance to an exact
    limit, those of better methods leave less. So if the check is more than VAGUE as far from it as the training solver,
    the limit is off itself, perhaps farther than the training solver, and errors measured from it rank nothing: what
    would be `discrete` is `undecided`, and for `ode` the gap of the check counts too. A training solver as exact as the
    limit has such a check as well, and all agree: it stays an `ode`. Without others the limit is believed.

    Raises ValueError for judgements of different samples, two of one solver, or counts that are not possible.
    """
    _check(training_error, limit, others, margin, confidence)
    check = min((o for o in others if o.error is not None), key=lambda o: o.error or 0.0, default=None)
    nearest = None if check is None else check.error
    vague = nearest is not None and training_error is not None and nearest > VAGUE * training_error
    finer = [o for o in others if training_error is not None and o.error is not None and o.error <= training_error]
    if vague and check is not None and check not in finer:
        finer.append(check)
    each = 1 - (1 - confidence) / (1 + len(finer))
    gap, *gaps = (_Gap.at(judgement, each) for judgement in (limit, *finer))
    if limit_reached:
        answer, reason = _decide(gap, gaps, margin, vague)
    else:
        answer, reason = "undecided", f"the limit was not reached: {limit.solver} was given up before t = 1"
    worst = max(gaps, key=lambda g: abs(g.gap), default=None)
    name, *numbers = (worst.of.solver, worst.gap, worst.low, worst.high) if worst else (None,) * 4
    return Verdict(
        answer,
        reason,
        *(gap.gap, gap.low, gap.high),
        name,
        *numbers,
        num_finer=len(finer),
        confidence=confidence,
        margin=margin,
        ode_within=max(g.reach for g in (gap, *gaps)) if limit_reached else None,
        limit_check=None if check is None else check.solver,
        limit_check_gap=nearest,
    )


def _decide(limit: _Gap, finer: list[_Gap], margin: float, vague: bool) -> tuple[Answer, str]:
    """vague: the limit may be farther from the flow than the training solver."""
    allowed = f"the margin of {_points(margin)} points"
    against = sorted((g for g in finer if g.outside(margin)), key=lambda g: -abs(g.gap))
    if vague and (limit.outside(margin) or against):
        worst = limit if limit.outside(margin) else against[0]
        return "undecided", f"{worst}: beyond {allowed}, but the limit {limit.of.solver} is too inexact to tell"
    if limit.outside(margin):
        return "discrete", f"in the limit, {limit}: beyond {allowed}"
    if against:
        return "discrete", f"a finer solver, {against[0]}: beyond {allowed}"
    widest = max((limit, *finer), key=lambda g: g.reach)
    if widest.within(margin):
        return "ode", f"{widest}, the widest of {1 + len(finer)} intervals: within {allowed}"
    return "undecided", f"{widest}: neither within nor beyond {allowed} on {widest.of.num_samples} samples"


def _check(training_error, limit: Judgement, others: Sequence[Judgement], margin, confidence) -> None:
    _check_error("the training solver", training_error)
    check_share("margin", margin)
    check_share("confidence", confidence)
    names = [each.solver for each in (limit, *others)]
    if twice := [name for name in names if names.count(name) > 1]:
        raise ValueError(f"`{twice[0]}` is judged twice; the limit and each other solver are given once")
    if other := [o for o in others if o.num_samples != limit.num_samples]:
        raise ValueError(
            f"all solvers must be judged on the same samples: {other[0].solver} has {other[0].num_samples}, "
            f"{limit.solver} has {limit.num_samples}"
        )


@dataclass(frozen=True)
class Critical:
    """Where on a ladder of training step counts discrete nets end and ODEs begin: above coarser, up to num_steps.

    num_steps: the smallest count from which on, at it and all larger ones, every seed is `ode`; None if not even the
        largest is.
    coarser: the largest count where some seed is not; None if there is none: the critical step is then coarser than
        all that was tried.
    whole: all counts have equally many seeds. Where some are missing, a count may be called `ode` by fewer.
    """

    num_steps: int | None
    coarser: int | None
    whole: bool


def critical_step(verdicts: Mapping[int, Sequence[str]]) -> Critical:
    """verdicts: those of all seeds, or one, by the step count trained with. `undecided` is not `ode`, and neither is a
    count without a verdict. An `ode` below a count that is none (a ladder that is not monotone) does not count."""
    by_count = {n: [each] if isinstance(each, str) else list(each) for n, each in sorted(verdicts.items())}
    for n, each in by_count.items():
        if unknown := [verdict for verdict in each if verdict not in get_args(Answer)]:
            raise ValueError(f"{n} steps: unknown verdict `{unknown[0]}`; known are {', '.join(get_args(Answer))}")
    coarser = max((n for n, each in by_count.items() if set(each) != {"ode"}), default=None)
    num_steps = min((n for n in by_count if coarser is None or n > coarser), default=None)
    return Critical(num_steps, coarser, len({len(each) for each in by_count.values()}) <= 1)


def next_count(verdicts: Mapping[int, str], lowest: int, highest: int) -> int | None:
    """The step count to train with next, to find the critical step by bisection among the powers of two from `lowest`
    to `highest`, which are powers of two themselves.

    verdicts: so far, by step count; {} at the start. They are taken to be monotone (`ode` from some count on); where
    they are not, the bracket is that of `critical_step`. The middle one in log2 of the powers of two within the bracket
    is next, and of two the smaller, which costs half. None when there is none left: after k trainings at most, if there
    are fewer than 2^k powers.
    """
    if lowest < 1 or highest < lowest or lowest & (lowest - 1) or highest & (highest - 1):
        raise ValueError(f"the counts must be powers of two, lowest <= highest, got {lowest} and {highest}")
    critical = critical_step({n: [verdict] for n, verdict in verdicts.items()})
    below, above = critical.coarser or 0, critical.num_steps or math.inf
    powers = [1 << k for k in range(lowest.bit_length() - 1, highest.bit_length())]
    candidates = [n for n in powers if below < n < above]
    return candidates[(len(candidates) - 1) // 2] if candidates else None
