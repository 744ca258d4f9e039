"""Solvers of dh/dt = f(t, h) on [0, 1], as data.

A *method* is a checked table of numbers; a *solver* is a method with its step count or tolerance. The solver is
an argument of a forward pass, written `rk4@8` (8 steps of size 1/8) or `dopri5@1e-5` (rtol = atol = 1e-5).

An explicit Runge-Kutta method with s stages makes the step from t to t + h

    k_i = f(t + c_i h, y + h sum_j a_ij k_j)        y(t + h) = y + h sum_i b_i k_i

No torch here: planning an experiment reads these names.
"""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction
from functools import cached_property, lru_cache


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


@dataclass(frozen=True)
class Fixed:
    """`num_steps` equal steps of an explicit Runge-Kutta method."""

    method: str
    num_steps: int

    def __post_init__(self):
        _check_method(self.method, TABLEAUS)
        if self.num_steps < 1:
            raise ValueError(f"the number of steps must be at least 1, as in `{self.method}@8`, got {self.num_steps}")

    @property
    def tableau(self) -> Tableau:
        return TABLEAUS[self.method]

    @property
    def num_evals(self) -> int:
        return self.num_steps * self.tableau.num_stages

    def __str__(self) -> str:
        return f"{self.method}@{self.num_steps}"


@dataclass(frozen=True)
class Adaptive:
    """An embedded pair that chooses its steps so that the local error stays below atol + rtol |h|."""

    method: str
    rtol: float
    atol: float

    def __post_init__(self):
        _check_method(self.method, ADAPTIVE_METHODS)
        for name, value in (("rtol", self.rtol), ("atol", self.atol)):
            if not 0 < value < 1:
                raise ValueError(f"{name} must lie in (0, 1), as in `{self.method}@1e-5`, got {value:g}")

    def __str__(self) -> str:
        if self.rtol == self.atol:
            return f"{self.method}@{_number(self.rtol)}"
        return f"{self.method}@rtol={_number(self.rtol)},atol={_number(self.atol)}"


@dataclass(frozen=True)
class Layers:
    """No solver: the layers of a discrete net, whose update rule is its own. `counts`: how many in each block of the
    network, one number if all have the same. Nothing else can judge such a net, and it judges no other."""

    counts: tuple[int, ...]

    def __post_init__(self):
        if not self.counts or min(self.counts) < 1:
            raise ValueError(f"the number of layers must be at least 1, as in `layers@8`, got {self.counts}")

    def count(self, block: int) -> int:
        """Layers of block number `block`, from 0."""
        return self.counts[0] if len(self.counts) == 1 else self.counts[block]

    def __str__(self) -> str:
        return "layers@" + "-".join(map(str, self.counts))


Solver = Fixed | Adaptive | Layers

_NUMBER = r"([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?"
_TOLERANCES = re.compile(r"rtol=([^,]+),atol=([^,]+)")


@lru_cache(maxsize=4096)
def parse_solver(text: str) -> Solver:
    """The inverse of `str(solver)`. Raises ValueError that names the text, what is wrong and what is allowed."""
    method, _, rest = text.partition("@")
    try:
        if method == "layers":
            return _parse_layers(rest)
        _check_method(method, TABLEAUS | ADAPTIVE_METHODS)
        return _parse_fixed(method, rest) if method in TABLEAUS else _parse_adaptive(method, rest)
    except ValueError as error:
        raise ValueError(f"solver `{text}`: {error}") from None


def _parse_fixed(method: str, steps: str) -> Fixed:
    if not re.fullmatch(r"[0-9]{1,9}", steps):
        raise ValueError(f"`{method}` has fixed steps; write `{method}@8` for 8 of them")
    return Fixed(method, int(steps))


def _parse_layers(counts: str) -> Layers:
    if not re.fullmatch(r"[0-9]{1,9}(-[0-9]{1,9})*", counts):
        raise ValueError("write `layers@8` for 8 layers in each block, or `layers@2-3-5-2` for each of four")
    return Layers(tuple(map(int, counts.split("-"))))


def _parse_adaptive(method: str, text: str) -> Adaptive:
    match = _TOLERANCES.fullmatch(text)
    rtol, atol = match.groups() if match else (text, text)
    if not all(re.fullmatch(_NUMBER, tolerance) for tolerance in (rtol, atol)):
        quotes = " (in quotes within a YAML list, which ends an item at the comma)" if text.startswith("rtol=") else ""
        raise ValueError(
            f"`{method}` is adaptive; write its tolerance: `{method}@1e-5` or `{method}@rtol=1e-5,atol=1e-7`{quotes}"
        )
    return Adaptive(method, float(rtol), float(atol))


def _number(value: float) -> str:
    """The shortest digits that read back as the same float, and an exponent: 1e-5, 2.5e-1."""
    return f"{Decimal(repr(value)):e}"


def _check_method(method: str, known: dict) -> None:
    if method not in known:
        near = difflib.get_close_matches(method.lower(), known, n=1)
        hint = f" Did you mean `{near[0]}`?" if near else ""
        form = " or ".join(f"`{name}@{n}`" for name, n in (("euler", 8), ("dopri5", "1e-5")) if name in known)
        raise ValueError(f"unknown method `{method}`.{hint} Write {form}. Known methods: {', '.join(known)}.")
