"""Functions of depth, phi_a(t) on [0, 1], that carry a network's weights.

    theta(t) = sum_a phi_a(t) theta_a           a = 1..A

Times are exact: a fixed-step solve asks at rational times, and which piece of a spline such a time lies in is decided
by comparing fractions, never by rounding a float (a float lookup leaves whole layers untrained for most depths).
At a knot where the basis jumps, a stage says from which side it looks: the last stage of a step belongs to the step.

No torch here: planning an experiment checks bases too.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from itertools import pairwise

from gode_core.solvers import TABLEAUS

Depth = Fraction | float


@dataclass(frozen=True)
class BSpline:
    """B-splines by the recursion of Cox and de Boor.

    `knots` is the whole knot vector t_1 <= ... <= t_{A+degree+1} from 0 to 1, so A = len(knots) - degree - 1.
    Made by `clamped`, `unclamped` or `constant`. Raises ValueError for a knot vector that is no such thing.
    """

    degree: int
    knots: tuple[Fraction, ...]

    def __post_init__(self):
        p, knots = self.degree, self.knots
        if p < 0:
            raise ValueError(f"degree must be at least 0, got {p}")
        if self.num_coefficients <= p:
            raise ValueError(
                f"degree < number of coefficients is needed, got degree {p} and {self.num_coefficients} coefficients"
            )
        if list(knots) != sorted(knots):
            raise ValueError(f"knots must increase, got {_texts(knots)}")
        if knots[0] != 0 or knots[-1] != 1:
            raise ValueError(f"knots must go from 0 to 1, got {_texts(knots)}")
        if any(knots[i] == knots[i + p + 1] for i in range(self.num_coefficients)):
            raise ValueError(f"a knot may stand at most degree + 1 = {p + 1} times, got {_texts(knots)}")

    @property
    def num_coefficients(self) -> int:
        return len(self.knots) - self.degree - 1

    @property
    def sums_to_one(self) -> bool:
        """True if sum_a phi_a(t) = 1 on all of [0, 1] (clamped ends)."""
        p = self.degree
        return self.knots[p] == 0 and self.knots[-p - 1] == 1

    @cached_property
    def breaks(self) -> tuple[Fraction, ...]:
        """The interior knots: where a derivative, or for degree 0 the value, jumps."""
        return tuple(sorted({k for k in self.knots if 0 < k < 1}))

    @property
    def jumps(self) -> bool:
        """True if the value itself may jump at a break: degree 0, or a knot repeated degree + 1 times."""
        return any(self.knots.count(k) > self.degree for k in self.breaks)

    def row(self, t: Depth, from_left: bool = False) -> tuple[float, ...]:
        """(phi_1(t), ..., phi_A(t)). A jump at t is seen from the right, unless `from_left`; t outside [0, 1] is
        read at the nearer end, and the last piece is closed at t = 1."""
        exactly = isinstance(t, Fraction)
        p, knots = self.degree, self.knots if exactly else self._float_knots
        t = min(max(t, knots[0]), knots[-1])
        piece = bisect_left(knots, t) - 1 if (from_left and t > 0) or t == 1 else bisect_right(knots, t) - 1
        # de Boor's triangle over the functions that live on the piece [knots[piece], knots[piece + 1]). Unclamped
        # ends have pieces with fewer of them: an index outside the knot vector stands for none.
        values: dict[int, Depth] = {piece: t * 0 + 1}
        for d in range(1, p + 1):
            values = {
                i: _rise(knots, i, d, t) * values.get(i, 0) + (1 - _rise(knots, i + 1, d, t)) * values.get(i + 1, 0)
                for i in range(max(piece - d, 0), min(piece + 1, len(knots) - d - 1))
            }
        return tuple(float(values.get(i, 0)) for i in range(self.num_coefficients))

    @cached_property
    def _float_knots(self) -> tuple[float, ...]:
        return tuple(float(k) for k in self.knots)


def _rise(knots: Sequence[Depth], i: int, d: int, t: Depth) -> Depth:
    """(t - t_i) / (t_{i+d} - t_i); on a repeated knot the term that it multiplies is zero."""
    if knots[i + d] == knots[i]:
        return t * 0
    return (t - knots[i]) / (knots[i + d] - knots[i])


def clamped(degree: int, num_coefficients: int, interior: Sequence[Fraction | float | str] | None = None) -> BSpline:
    """Clamped (open) knots: the ends stand degree + 1 times, so the basis sums to one on all of [0, 1] and the first
    and last coefficients are the values at the ends. Interior knots are uniform unless given."""
    p, num_interior = degree, num_coefficients - degree - 1
    if num_interior < 0:
        raise ValueError(
            f"degree < number of coefficients is needed, got degree {p} and {num_coefficients} coefficients"
        )
    if interior is None:
        middle = [Fraction(j, num_interior + 1) for j in range(1, num_interior + 1)]
    else:
        middle = [exact(x) for x in interior]
        if len(middle) != num_interior:
            raise ValueError(
                f"{num_coefficients} coefficients of degree {p} have {num_interior} interior knots, got {len(middle)}"
            )
        if any(not 0 < k < 1 for k in middle) or any(a > b for a, b in pairwise(middle)):
            raise ValueError(f"interior knots must increase within (0, 1), got {_texts(middle)}")
    return BSpline(p, (Fraction(0),) * (p + 1) + tuple(middle) + (Fraction(1),) * (p + 1))


def unclamped(degree: int, num_coefficients: int) -> BSpline:
    """The knots of the Neural-GODE authors' release: num_coefficients + degree + 1 of them, equally spaced from 0 to 1.

    For degree >= 1 this is a *different model* from the clamped one: the basis does not sum to one near the ends, and
    every weight is exactly zero at t = 0 and t = 1, so the first Euler step is the identity. Kept to reproduce
    their figures (Yu, Miao, Wu, arXiv 2209.10633, released code). One difference: their table is zero at t = 1 for
    degree 0 too, which only methods that ask there can see; here the last piece is closed.
    """
    n = num_coefficients + degree
    if degree < 0 or num_coefficients <= degree:
        raise ValueError(f"0 <= degree < number of coefficients is needed, got {degree} and {num_coefficients}")
    return BSpline(degree, tuple(Fraction(j, n) for j in range(n + 1)))


def constant() -> BSpline:
    """One coefficient: theta(t) = theta_1, the weights of a Neural ODE."""
    return clamped(0, 1)


KNOTS = {"clamped": clamped, "unclamped": unclamped}
BASES = {"bspline": BSpline}

Basis = BSpline


def exact(x: Fraction | float | str) -> Fraction:
    """The number as written: 0.3 is 3/10 and "1/3" a third, so that steps can meet the knots that were meant."""
    try:
        return x if isinstance(x, Fraction) else Fraction(str(x))
    except (ValueError, ZeroDivisionError):
        raise ValueError(f"cannot read the number `{x}`; write 0.3 or 1/3, say") from None


def _texts(knots: Sequence[Fraction]) -> str:
    return "[" + ", ".join(str(k) for k in knots) + "]"


@dataclass(frozen=True)
class StageTimes:
    """All stage times of steps `first` .. `last` - 1 out of `num_steps` equal ones, in the order they are asked.

    Small and hashable, so that tables made for it can be kept.
    """

    method: str
    num_steps: int
    first: int
    last: int

    def points(self) -> list[tuple[Depth, bool]]:
        """(t, from_left) for each stage. A stage at the end of its step looks back into the step."""
        return [
            (Fraction(n + c, self.num_steps), c == 1)
            for n in range(self.first, self.last)
            for c in TABLEAUS[self.method].c
        ]


@dataclass(frozen=True)
class Moment:
    """One time, as an adaptive solver asks for it."""

    t: float
    from_left: bool = False

    def points(self) -> list[tuple[Depth, bool]]:
        return [(self.t, self.from_left)]


Times = StageTimes | Moment


def basis_rows(basis: Basis, times: Times) -> tuple[list[tuple[float, ...]], list[int]]:
    """The basis at all the times: the distinct rows, and for each time the index of its row.

    A constant basis has one row, a piecewise constant one a row per piece that is met, whatever the number of steps.
    """
    position: dict[tuple[float, ...], int] = {}
    index = [position.setdefault(basis.row(t, from_left), len(position)) for t, from_left in times.points()]
    return list(position), index
