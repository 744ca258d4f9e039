"""Methods for dh/dt = f(t, h), as checked tables of exact numbers.

Runge-Kutta (explicit, s stages):  k_i = f(t + c_i h, y + h sum_j a_ij k_j)     y(t + h) = y + h sum_i b_i k_i
linear multistep (explicit):       y_{n+1} = sum_j alpha_j y_{n-j} + h sum_j beta_j f_{n-j}         j = 0 .. k - 1
implicit (one stage):              y_{n+1} = y_n + h ((1 - theta) f_n + theta f_{n+1})
adaptive:                          embedded pairs, which are torchdiffeq's

No torch here: planning an experiment reads these names.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property


@dataclass(frozen=True)
class Tableau:
    """An explicit Runge-Kutta method (Hairer, Norsett, Wanner, Solving ODEs I, II.1), in exact numbers.

    Row i of `a` holds a_i1 .. a_i,i-1 (the first is empty); `b` holds the s weights. What can be derived (the nodes
    c, the number of stages) is not asked for. Raises ValueError when the shape is wrong or a condition of the
    stated order (1 to 4) does not hold exactly.
    """

    order: int
    a: tuple[tuple[Fraction, ...], ...]
    b: tuple[Fraction, ...]

    def __post_init__(self):
        if self.order not in (1, 2, 3, 4):
            raise ValueError(f"order must be 1, 2, 3 or 4: the conditions of others are not known, got {self.order}")
        if [len(row) for row in self.a] != list(range(len(self.b))):
            raise ValueError(f"row i of a must have i - 1 entries and b one per row, got {self.a} and {self.b}")
        for condition, (found, wanted) in self._order_conditions().items():
            if found != wanted:
                raise ValueError(f"a method of order {self.order} has {condition} = {wanted}, got {found}")
        _ = self.float_a, self.float_b  # made now: torch.compile cannot trace the lock that makes them (Python 3.11)

    @property
    def num_stages(self) -> int:
        return len(self.b)

    @cached_property
    def c(self) -> tuple[Fraction, ...]:
        return tuple(sum(row, Fraction(0)) for row in self.a)

    @cached_property
    def float_a(self) -> tuple[tuple[float, ...], ...]:
        return tuple(tuple(float(x) for x in row) for row in self.a)

    @cached_property
    def float_b(self) -> tuple[float, ...]:
        return tuple(float(x) for x in self.b)

    def _order_conditions(self) -> dict[str, tuple[Fraction, Fraction]]:
        """The eight conditions up to order 4 (Hairer et al., II.2, table 2.2); those of the stated order."""
        b, c = self.b, self.c
        ac = [sum((x * y for x, y in zip(row, c)), Fraction(0)) for row in self.a]
        acc = [sum((x * y * y for x, y in zip(row, c)), Fraction(0)) for row in self.a]
        aac = [sum((x * y for x, y in zip(row, ac)), Fraction(0)) for row in self.a]
        trees = [
            (1, "sum b", [Fraction(1)] * len(b), 1),
            (2, "sum b c", list(c), 2),
            (3, "sum b c^2", [x**2 for x in c], 3),
            (3, "sum b a c", ac, 6),
            (4, "sum b c^3", [x**3 for x in c], 4),
            (4, "sum b c a c", [x * y for x, y in zip(c, ac)], 8),
            (4, "sum b a c^2", acc, 12),
            (4, "sum b a a c", aac, 24),
        ]
        return {
            name: (sum((x * y for x, y in zip(b, terms)), Fraction(0)), Fraction(1, density))
            for order, name, terms, density in trees
            if order <= self.order
        }


def _tableau(order: int, a: str, b: str) -> Tableau:
    """From text: rows of `a` (the empty first one left out) parted by `;`."""
    rows = [()] + [tuple(Fraction(x) for x in row.split()) for row in a.split(";") if row.strip()]
    return Tableau(order, tuple(rows), tuple(Fraction(x) for x in b.split()))


TABLEAUS: dict[str, Tableau] = {
    "euler": _tableau(1, "", "1"),
    "midpoint": _tableau(2, "1/2", "0 1"),
    "heun": _tableau(2, "1", "1/2 1/2"),
    "ralston": _tableau(2, "2/3", "1/4 3/4"),
    "ssprk3": _tableau(3, "1; 1/4 1/4", "1/6 1/6 2/3"),  # Shu and Osher 1988
    "kutta3": _tableau(3, "1/2; -1 2", "1/6 2/3 1/6"),
    "rk4": _tableau(4, "1/2; 0 1/2; 0 0 1", "1/6 1/3 1/3 1/6"),  # the classical one
    "rk4_38": _tableau(4, "1/3; -1/3 1; 1 -1 1", "1/8 3/8 3/8 1/8"),  # what torchdiffeq calls "rk4"
}


@dataclass(frozen=True)
class LinearMultistep:
    """An explicit linear multistep method (Hairer, Norsett, Wanner, Solving ODEs I, III.2), in exact numbers.

    `alpha` and `beta`: weights of the states and slopes so far, the newest first; k is the longer one's length.
    `start`: the Runge-Kutta method that makes the first k - 1 steps, of order - 1 at least: k - 1 steps of order p - 1
    have an error of order p. Raises ValueError when a condition of the stated order does not hold exactly, or the start
    is too weak.
    """

    order: int
    alpha: tuple[Fraction, ...]
    beta: tuple[Fraction, ...]
    start: str

    def __post_init__(self):
        if self.order < 1:
            raise ValueError(f"order must be at least 1, got {self.order}")
        if not self.alpha or not self.beta:
            raise ValueError(f"alpha and beta need a number each at least, got {self.alpha} and {self.beta}")
        for power in range(self.order + 1):
            found = self._next(power)
            if found != 1:
                raise ValueError(
                    f"a method of order {self.order} takes t^{power} from t <= 0 to 1 at t = 1, got {found}"
                )
        if self.start not in TABLEAUS:
            raise ValueError(f"the start must be one of {', '.join(TABLEAUS)}, got `{self.start}`")
        if TABLEAUS[self.start].order < self.order - 1:
            raise ValueError(f"a method of order {self.order} needs a start of order {self.order - 1} at least")
        _ = self.float_alpha, self.float_beta  # made now, as a tableau's

    @property
    def num_steps_back(self) -> int:
        """k - 1: the steps made before the method can begin."""
        return max(len(self.alpha), len(self.beta)) - 1

    @cached_property
    def float_alpha(self) -> tuple[float, ...]:
        return tuple(float(x) for x in self.alpha)

    @cached_property
    def float_beta(self) -> tuple[float, ...]:
        return tuple(float(x) for x in self.beta)

    def _next(self, power: int) -> Fraction:
        """The step from 0 to 1 (h = 1) of y = t^power, whose slope is power t^(power - 1), from its exact past."""
        states = sum((x * (-j) ** power for j, x in enumerate(self.alpha)), Fraction(0))
        slopes = sum((x * power * (-j) ** (power - 1) for j, x in enumerate(self.beta) if power), Fraction(0))
        return states + slopes


def _multistep(order: int, alpha: str, beta: str, start: str) -> LinearMultistep:
    return LinearMultistep(
        order, tuple(Fraction(x) for x in alpha.split()), tuple(Fraction(x) for x in beta.split()), start
    )


MULTISTEPS: dict[str, LinearMultistep] = {
    "ab2": _multistep(2, "1", "3/2 -1/2", "midpoint"),  # Adams and Bashforth, as the next two
    "ab3": _multistep(3, "1", "23/12 -4/3 5/12", "kutta3"),
    "ab4": _multistep(4, "1", "55/24 -59/24 37/24 -3/8", "rk4"),
    "leapfrog": _multistep(2, "0 1", "2", "midpoint"),  # two-step midpoint rule; unstable where the state is damped
}


@dataclass(frozen=True)
class ImplicitMethod:
    """The theta method: order 2 for theta = 1/2, else 1 (Hairer, Wanner, Solving ODEs II, IV.3). Raises ValueError for
    an order that it does not have, or theta < 1/2: there some decaying solutions grow."""

    order: int
    theta: Fraction

    def __post_init__(self):
        if not Fraction(1, 2) <= self.theta <= 1:
            raise ValueError(f"theta must lie in [1/2, 1], got {self.theta}")
        if self.order != (2 if self.theta == Fraction(1, 2) else 1):
            raise ValueError(f"theta = 1/2 has order 2, others order 1, got theta {self.theta} and order {self.order}")


IMPLICIT_METHODS: dict[str, ImplicitMethod] = {
    "backward_euler": ImplicitMethod(1, Fraction(1)),
    "trapezoid": ImplicitMethod(2, Fraction(1, 2)),
}


@dataclass(frozen=True)
class AdaptiveMethod:
    """An embedded pair of torchdiffeq: its order and the field evaluations of one attempted step."""

    order: int
    evals_per_step: int


ADAPTIVE_METHODS: dict[str, AdaptiveMethod] = {
    "dopri5": AdaptiveMethod(5, 6),
    "dopri8": AdaptiveMethod(8, 13),
    "bosh3": AdaptiveMethod(3, 3),
    "fehlberg2": AdaptiveMethod(2, 2),
    "adaptive_heun": AdaptiveMethod(2, 1),
}
