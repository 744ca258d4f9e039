"""Our rule for the number of steps in training: answers must agree, beyond doubt, on images that are not trained on.

What is asked is whether the answers are those of an ODE, so the answers are compared, sample by sample, and not the
accuracies: two solvers may be right equally often on different images.

    reference   the limit h -> 0, extrapolated from the logits y of n and 2n steps of the same method, of order p
                (Richardson): y_2n + (y_2n - y_n) / (2^p - 1). The answers of 2n steps alone would not do: halfway to
                the limit, few images have changed their class, where at its end many have. And errors of two methods
                may cancel: a net trained with 2 Euler steps is perfect under one midpoint step.
    distance    of two answers to one image: total variation sum |p - q| / 2 of the class probabilities, in [0, 1];
                1 where logits are not finite. Near 0 for any solver while all probabilities are alike, so for a
                coarser count the share of images with another class is looked at too: it does not depend on how
                large the logits are.
    decision    by a one-sided normal test of the mean over the B images: mean -+ z s / sqrt(B), s the standard
                deviation, z the quantile of `confidence`. A true distance at the threshold is taken for another, on
                either side, with the probability 1 - confidence; what the sample cannot tell changes nothing. For the
                share of images with another class the bound is exact (`gode_core.intervals`): it is a small one, of
                which a normal test knows too much where none was seen. With few images nothing is allowed: for a
                threshold of 0.02 not with fewer than 149, and of 512 at most 4 may have another class.

That n steps agree with an extrapolated limit is evidence, and no proof: see `gode_core.validity` for the trained model.
"""

from __future__ import annotations

import math
from functools import partial
from statistics import NormalDist
from typing import Any

import torch
from torch import Tensor

from gode_core.intervals import best_guess, share_bound
from gode_core.solvers import Fixed
from pipeline.adapt_config import AdaptConfig
from pipeline.adaptation import Adaptation, Answer, Ask, Decision, first_step, given, num_steps


class AgreementRule(Adaptation):
    """A check of n steps, on held-out images:

    1. The distance to the limit is above `threshold` (mean - z se): n := ceil(n / shrink), at most the
       job's count; at that it stays, with the action `limit`.
    2. Nothing grows while the accuracy is not above the share of the most frequent label by z standard errors of a
       guess: a net that knows nothing agrees with everything. (The paper's rule comes down to one step there.)
    3. A distance below `threshold` (mean + z se) lets n' = floor(n / grow) steps be tried. They are allowed if their
       distance to that limit (mean + z se), and the share of images with another class, are below `threshold` too.
    4. After `patience` checks in a row that allowed it, n := n'. Any other outcome begins that count again.
    """

    held_out = True

    def __init__(self, config: AdaptConfig, solver: Fixed):
        self.config, self.patience = config, given(config.patience)
        self.threshold, self.grow = given(config.threshold), given(config.grow)
        self.confidence = given(config.confidence)
        self.z = NormalDist().inv_cdf(self.confidence)
        self.method, self.max_steps = solver.method, solver.num_steps
        self.num_steps = self.max_steps
        self.num_allowed = 0  # checks in a row

    @property
    def solver(self) -> Fixed:
        return Fixed(self.method, self.num_steps)

    def begin(self, step: float) -> Decision:
        self.num_steps, self.num_allowed = num_steps(first_step(step, self.max_steps)), 0
        return Decision.start(self.solver, f"the first step is to be {step:.4g}, of at most {self.max_steps} steps")

    def check(self, ask: Ask, trained: Answer) -> Decision:
        before, finer, limit = self.solver, Fixed(self.method, 2 * self.num_steps), self.threshold
        answer, fine = ask(before), ask(finer)
        reference = extrapolated(answer, fine, before.order)
        cost = answer.num_evals + fine.num_evals
        mean, low, high = self._interval(distances(answer, reference))
        decision = partial(Decision.check, before, finer, mean, answer.accuracy)
        said = f"distance {mean:.4g} ({low:.4g} to {high:.4g}) to the limit, by {finer}"
        allowed, self.num_allowed = self.num_allowed, 0
        if low > limit:
            end = f"{said}, above {limit:g}"
            if before.num_steps == self.max_steps:
                return decision("limit", before, cost, f"{end}: no more steps are allowed")
            self.num_steps = min(self.max_steps, math.ceil(before.num_steps / self.config.shrink))
            return decision("shrink", self.solver, cost, f"{end}: {self.num_steps} steps from now on")
        commonest = answer.labels.bincount().max().item() / len(answer.labels)
        guess = best_guess(commonest, len(answer.labels), self.confidence)
        if answer.accuracy <= guess:
            end = f"accuracy {answer.accuracy:.4g}, not above what a guess may have ({guess:.4g})"
            return decision("keep", before, cost, f"{said}; {end}")
        if high >= limit:
            return decision("keep", before, cost, f"{said}: not clearly below {limit:g}")
        fewer = min(math.floor(before.num_steps / self.grow), before.num_steps - 1)
        if fewer < 1:
            return decision("keep", before, cost, f"{said}, below {limit:g}: there is no smaller count")
        coarser = Fixed(self.method, fewer)
        trial = ask(coarser)
        apart, agrees, found = self._compare(trial, reference)
        action, said = "keep", f"{said}; {coarser}: {found}"
        if agrees:
            self.num_allowed = allowed + 1
            said += f": allowed, {self.num_allowed} of {self.patience} times"
            if self.num_allowed >= self.patience:
                self.num_steps, self.num_allowed, action = fewer, 0, "grow"
        return decision(action, self.solver, cost + trial.num_evals, said, coarser, apart)

    def _compare(self, trial: Answer, reference: Answer) -> tuple[float, bool, str]:
        """The distance of a trial, whether it and the share of other classes are below the threshold, in words too."""
        apart, _, high = self._interval(distances(trial, reference))
        different = other_classes(trial, reference)
        others = different.mean().item()
        others_high = share_bound(int(different.sum()), len(different), self.confidence)
        agrees = max(high, others_high) < self.threshold
        said = f"distance {apart:.4g} (to {high:.4g}), another class {others:.4g} (to {others_high:.4g})"
        return apart, agrees, said if agrees else f"{said}, not clearly below {self.threshold:g}"

    def _interval(self, values: Tensor) -> tuple[float, float, float]:
        """Mean, and its one-sided bounds below and above, each with the rule's confidence. One value bounds nothing."""
        mean = values.mean().item()
        error = math.inf if len(values) < 2 else values.std().item() / math.sqrt(len(values))
        return mean, mean - self.z * error, mean + self.z * error

    def state(self) -> dict[str, Any]:
        return {"num_steps": self.num_steps, "num_allowed": self.num_allowed}

    def restore(self, state: dict[str, Any]) -> None:
        self.num_steps, self.num_allowed = state["num_steps"], state["num_allowed"]


def extrapolated(coarse: Answer, fine: Answer, order: int) -> Answer:
    """The answer in the limit h -> 0, from those of n steps and of 2n."""
    logits = fine.logits.double() + (fine.logits.double() - coarse.logits.double()) / (2**order - 1)
    return Answer(logits, fine.labels, 0)


def distances(one: Answer, other: Answer) -> Tensor:
    """(B,) float64 in [0, 1]: total variation of the class probabilities; 1 where either's logits are not finite."""
    p, q = (answer.logits.double().softmax(1) for answer in (one, other))
    return torch.where(one.finite & other.finite, (p - q).abs().sum(1) / 2, 1.0)


def other_classes(one: Answer, other: Answer) -> Tensor:
    """(B,) float64: 1 where the two give different classes, or either's logits are not finite, else 0."""
    same = one.logits.argmax(1) == other.logits.argmax(1)
    return (~(same & one.finite & other.finite)).double()
