"""Functions of depth, phi_a(t) on [0, 1], that carry a network's weights.

    theta(t) = sum_a phi_a(t) theta_a           a = 1..A

Times are exact: a fixed-step solve asks at rational times, and which piece of a spline such a time lies in is decided
by comparing fractions, never by rounding a float (a float lookup leaves whole layers untrained for most depths).
At a knot where the basis jumps, a stage says from which side it looks: the last stage of a step belongs to the step.

    bspline     B-splines of any degree on knots: layers (degree 0), hats (degree 1), smooth curves
    hat         piecewise linear between given nodes: the coefficients are the values there
    fourier     1, cos 2 pi t, sin 2 pi t, cos 4 pi t, ...: periodic, theta(0) = theta(1)
    legendre    Legendre polynomials, orthogonal over depth
    chebyshev   Chebyshev polynomials

Size: all |phi_a| <= 1, so |theta(t)| <= sum_a |theta_a|. Where the basis sums to one, theta(t) is a mean of the
coefficients, whatever their number. The other kinds begin with phi_1 = 1, so theta_1 alone is a Neural ODE, and A
independent coefficients of equal variance make theta larger than one of them: its variance over depth is (A + 1) / 2
times theirs (Fourier). Begin such a model with theta_1 drawn and the others zero, or small.

No torch here: planning an experiment checks bases too.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from itertools import pairwise
from typing import Protocol

from gode_core.smooth_bases import Chebyshev, Depth, Fourier, Legendre
from gode_core.solvers import TABLEAUS


class Basis(Protocol):
    """What all kinds keep. A protocol, not a union: learnable knots (`free_knots`) keep it too, with torch."""

    @property
    def num_coefficients(self) -> int: ...

    @property
    def breaks(self) -> tuple[Fraction, ...]:
        """Where in (0, 1) a derivative or the value may jump, increasing: a solver must not step across them."""
        ...

    @property
    def sums_to_one(self) -> bool:
        """True if sum_a phi_a(t) = 1 on all of [0, 1]."""
        ...

    def constant_coefficients(self) -> tuple[float, ...]:
        """The coefficients of theta(t) = 1. Raises ValueError if the basis has no constants."""
        ...

    def continuity(self, k: Fraction) -> int:
        """How many derivatives are continuous at the break k: 0 at a kink, -1 where the value itself may jump."""
        ...

    def row(self, t: Depth, from_left: bool = False) -> tuple[float, ...]:
        """(phi_1(t), ..., phi_A(t)). A jump at t is seen from the right, unless `from_left`; t outside [0, 1] is
        read at the nearer end."""
        ...


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

    @property
    def breaks(self) -> tuple[Fraction, ...]:
        """The interior knots: where a derivative, or for degree 0 the value, jumps."""
        return tuple(sorted({k for k in self.knots if 0 < k < 1}))

    def constant_coefficients(self) -> tuple[float, ...]:
        """All one. Raises ValueError if the ends are not clamped: theta(t) is zero there, whatever the coefficients."""
        if not self.sums_to_one:
            raise ValueError(
                "a basis whose ends are not clamped has no constants: theta(t) vanishes there; take clamped knots"
            )
        return (1.0,) * self.num_coefficients

    def continuity(self, k: Fraction) -> int:
        assert k in self.breaks, f"{k} is no break"
        return self.degree - self.knots.count(k)

    @property
    def jumps(self) -> bool:
        """True if the value itself may jump at a break: degree 0, or a knot repeated degree + 1 times."""
        return any(self.continuity(k) < 0 for k in self.breaks)

    def row(self, t: Depth, from_left: bool = False) -> tuple[float, ...]:
        """(phi_1(t), ..., phi_A(t)). A jump at t is seen from the right, unless `from_left`; t outside [0, 1] is
        read at the nearer end, and the last piece is closed at t = 1."""
        exactly = isinstance(t, Fraction)
        knots = self.knots if exactly else self._float_knots
        t = min(max(t, knots[0]), knots[-1])
        piece = bisect_left(knots, t) - 1 if (from_left and t > 0) or t == 1 else bisect_right(knots, t) - 1
        values = _triangle(knots, piece, [t] * self.degree)
        return tuple(float(values.get(i, 0)) for i in range(self.num_coefficients))

    def blossoms(self, piece: int, times: Sequence[Fraction]) -> list[Fraction]:
        """The polar form of each function's polynomial on [knots[piece], knots[piece + 1]] at `degree` times: the
        polynomial in `degree` variables, affine and symmetric in them, that is phi_a(t) at (t, ..., t)."""
        assert len(times) == self.degree
        assert self.knots[piece] < self.knots[piece + 1]
        values = _triangle(self.knots, piece, times)
        return [Fraction(values.get(i, 0)) for i in range(self.num_coefficients)]

    @cached_property
    def _float_knots(self) -> tuple[float, ...]:
        return tuple(float(k) for k in self.knots)


def _triangle(knots: Sequence[Depth], piece: int, times: Sequence[Depth]) -> dict[int, Depth]:
    """de Boor's triangle over the functions that live on the piece [knots[piece], knots[piece + 1]], a time for each
    level; equal times give values. Unclamped ends have pieces with fewer functions: an index outside stands for none.
    """
    values: dict[int, Depth] = {piece: 1}
    for d, t in enumerate(times, start=1):
        values = {
            i: _rise(knots, i, d, t) * values.get(i, 0) + (1 - _rise(knots, i + 1, d, t)) * values.get(i + 1, 0)
            for i in range(max(piece - d, 0), min(piece + 1, len(knots) - d - 1))
        }
    return values


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


def hat(nodes: Sequence[Fraction | float | str]) -> BSpline:
    """Piecewise linear between increasing nodes from 0 to 1; coefficient a is the value at node a. These are clamped
    B-splines of degree 1. Raises ValueError for other nodes."""
    points = [exact(x) for x in nodes]
    if len(points) < 2 or points[0] != 0 or points[-1] != 1 or any(a >= b for a, b in pairwise(points)):
        raise ValueError(f"nodes must increase from 0 to 1, got {_texts(points)}")
    return clamped(1, len(points), points[1:-1])


KNOTS = {"clamped": clamped, "unclamped": unclamped}
BASES: dict[str, Callable[..., Basis]] = {
    "bspline": BSpline,
    "hat": hat,
    "fourier": Fourier,
    "legendre": Legendre,
    "chebyshev": Chebyshev,
}


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
