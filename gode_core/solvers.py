"""Solvers of dh/dt = f(t, h) on [0, 1], and how they are written.

A *method* is a checked table of numbers (`methods`); a *solver* is a method with its step count or tolerance. The
solver is an argument of a forward pass, written `rk4@8` (8 steps of size 1/8) or `dopri5@1e-5` (rtol = atol = 1e-5).

No torch here: planning an experiment reads these names.
"""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction
from functools import lru_cache
from itertools import pairwise
from typing import Protocol

from gode_core.methods import ADAPTIVE_METHODS, IMPLICIT_METHODS, MULTISTEPS, TABLEAUS, ImplicitMethod, Tableau

FIXED_METHODS = TABLEAUS | MULTISTEPS


class Breaks(Protocol):
    """What a solver asks of a basis: where in (0, 1) it is not smooth, and how many derivatives are continuous there
    (-1: the value itself may jump)."""

    @property
    def breaks(self) -> tuple[Fraction, ...]: ...

    def continuity(self, k: Fraction) -> int: ...


@dataclass(frozen=True)
class Fixed:
    """`num_steps` equal steps of an explicit Runge-Kutta or linear multistep method."""

    method: str
    num_steps: int

    def __post_init__(self):
        _check_method(self.method, FIXED_METHODS)
        _check_steps(self)

    @property
    def order(self) -> int:
        return FIXED_METHODS[self.method].order

    @property
    def tableau(self) -> Tableau:
        """Of a Runge-Kutta method."""
        return TABLEAUS[self.method]

    @property
    def num_evals(self) -> int:
        """Calls of the field in a solve; `num_evals` of this module counts those of a field with breaks."""
        return num_evals(self)

    def __str__(self) -> str:
        return f"{self.method}@{self.num_steps}"


def phases(solver: Fixed, basis: Breaks | None = None) -> list[tuple[str, int, int]]:
    """(method, first, last): which method makes the steps `first` .. `last` - 1.

    A linear multistep method makes its first k - 1 steps by the Runge-Kutta method that it names, at t = 0 and again at
    each break of the basis where a step ends and the past is too rough for it: past slopes across a jump of the
    derivative number j leave an error of order j + 1, so it starts anew where j + 1 < order. Its order then holds
    across such breaks. At a break within a step no start would help: there every method of the module has at most
    order j + 1.
    """
    n = solver.num_steps
    if solver.method in TABLEAUS:
        return [(solver.method, 0, n)]
    method = MULTISTEPS[solver.method]
    breaks = () if basis is None else basis.breaks
    met = [k for k in breaks if n % k.denominator == 0 and basis.continuity(k) + 2 < method.order]  # type: ignore[union-attr]
    found: list[tuple[str, int, int]] = []
    for first, last in pairwise([0, *(int(k * n) for k in met), n]):
        begin = min(first + method.num_steps_back, last)
        for name, start, end in ((method.start, first, begin), (solver.method, begin, last)):
            if found and found[-1][0] == name and start < end:
                found[-1] = (name, found[-1][1], end)
            elif start < end:
                found.append((name, start, end))
    return found


def num_evals(solver: Fixed, basis: Breaks | None = None) -> int:
    """Calls of the field in a solve, for a field whose weights lie on this basis (None: smooth in depth)."""
    return sum(
        (last - first) * (TABLEAUS[method].num_stages if method in TABLEAUS else 1)
        for method, first, last in phases(solver, basis)
    )


@dataclass(frozen=True)
class Implicit:
    """`num_steps` equal steps of an implicit method. How many calls of the field a step needs is found when it runs."""

    method: str
    num_steps: int

    def __post_init__(self):
        _check_method(self.method, IMPLICIT_METHODS)
        _check_steps(self)

    @property
    def data(self) -> ImplicitMethod:
        return IMPLICIT_METHODS[self.method]

    @property
    def order(self) -> int:
        return self.data.order

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


Solver = Fixed | Implicit | Adaptive | Layers

_NUMBER = r"([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?"
_TOLERANCES = re.compile(r"rtol=([^,]+),atol=([^,]+)")


@lru_cache(maxsize=4096)
def parse_solver(text: str) -> Solver:
    """The inverse of `str(solver)`. Raises ValueError that names the text, what is wrong and what is allowed."""
    method, _, rest = text.partition("@")
    try:
        if method == "layers":
            return _parse_layers(rest)
        _check_method(method, FIXED_METHODS | IMPLICIT_METHODS | ADAPTIVE_METHODS)
        return _parse_adaptive(method, rest) if method in ADAPTIVE_METHODS else _parse_steps(method, rest)
    except ValueError as error:
        raise ValueError(f"solver `{text}`: {error}") from None


def _parse_steps(method: str, steps: str) -> Fixed | Implicit:
    if not re.fullmatch(r"[0-9]{1,9}", steps):
        raise ValueError(f"`{method}` has fixed steps; write `{method}@8` for 8 of them")
    return Fixed(method, int(steps)) if method in FIXED_METHODS else Implicit(method, int(steps))


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
        forms = [(name, 8) for name in known if name not in ADAPTIVE_METHODS][:1]
        forms += [(name, "1e-5") for name in known if name in ADAPTIVE_METHODS][:1]
        form = " or ".join(f"`{name}@{n}`" for name, n in forms)
        raise ValueError(f"unknown method `{method}`.{hint} Write {form}. Known methods: {', '.join(known)}.")


def _check_steps(solver: Fixed | Implicit) -> None:
    if solver.num_steps < 1:
        raise ValueError(f"the number of steps must be at least 1, as in `{solver.method}@8`, got {solver.num_steps}")
