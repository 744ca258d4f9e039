"""Discrete nets: blocks of N layers with an update rule of their own, in place of an ODE and its solver.

Their "solver" is `layers@N`. No other step or method can judge them: with other steps an LM-ResNet, say, is another
two-step recursion, which would need f rescaled by 1 + k and starting values of its own.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor, nn

from gode_core.bases import BSpline, clamped
from gode_core.fields import Field
from gode_core.reversible import Reversible
from gode_core.rules import Fractal, Multistep, PolyNet, Residual, Rule, ShakeShake
from gode_core.solution import Solution
from gode_core.solvers import Layers
from gode_core.stochastic import NOTHING, Chance, Stochastic

RULES: dict[str, type[Rule]] = {
    "residual": Residual,
    "multistep": Multistep,
    "polynet": PolyNet,
    "fractal": Fractal,
    "shake_shake": ShakeShake,
    "reversible": Reversible,
}

MakeRule = Callable[[int, int, bool], Rule]  # num_layers, channels, has_previous -> rule; RULES[name] with its options


class DiscreteBlock(nn.Module):
    """N layers of a rule over the functions of a field: one that is constant on each of so many equal pieces of depth.

    Raises ValueError if the field has another basis or a scale: a branch is added as it is.
    """

    def __init__(self, field: Field, rule: Rule):
        super().__init__()
        basis, number = field.basis, rule.num_layers * rule.functions_per_layer
        if not (isinstance(basis, BSpline) and basis.degree == 0 and basis.knots == clamped(0, number).knots):
            raise ValueError(
                f"a discrete block of {number} functions needs a basis of degree 0 on as many equal pieces"
            )
        if field.scale != 1:
            raise ValueError(f"the branches of a discrete block have scale 1, got {field.scale:g}")
        self.field, self.rule = field, rule

    @property
    def num_layers(self) -> int:
        return self.rule.num_layers

    def forward(self, h: Tensor, previous: Tensor | None = None, chance: Chance | None = None) -> Solution:
        """previous: the state before h, of the same shape. chance: what is random; None for nothing.

        num_evals counts the calls of the field's functions, num_accepted the layers.
        """
        self.field.begin_solve()
        h1, num_evals = self.rule(self.field, h, previous, chance or Chance(NOTHING, self.num_layers))
        self.field.end_solve()
        return Solution(h1, [], num_evals, self.num_layers)

    def prepare(self) -> None:
        """Make the field's tables: once before torch.compile traces the block."""
        self.field.prepare(self.rule.times)


@dataclass(frozen=True)
class Discrete:
    """How the blocks of a discrete network are made: `layers` in each, after the rule.

    Raises ValueError for noise in a reversible net: what was added could not be taken off again.
    """

    layers: Layers
    make_rule: MakeRule = Residual
    stochastic: Stochastic = NOTHING

    def block(self, make_field: Callable[..., Field], index: int, channels: int, has_previous: bool) -> DiscreteBlock:
        """Block number `index`, from 0. make_field(channels, basis=...) -> Field."""
        rule = self.make_rule(self.layers.count(index), channels, has_previous)
        if isinstance(rule, Reversible) and self.stochastic.noise:
            raise ValueError("a reversible net goes without noise: its states could not be found again backwards")
        basis = clamped(0, rule.num_layers * rule.functions_per_layer)
        return DiscreteBlock(make_field(channels // rule.channel_split, basis=basis), rule)
