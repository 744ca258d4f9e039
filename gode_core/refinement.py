"""From one basis of depth to another: theta(t) = sum_a phi_a(t) theta_a = sum_b phi'_b(t) theta'_b.

    theta' = M theta,  M of shape (A', A)

`change_of_basis` is exact where every theta(t) of the old basis can be written on the new one: more knots, a higher
degree, more functions of one kind, polynomials on splines, constants on anything that has them. Elsewhere theta' is
the L2 projection, which minimises the integral of |theta'(t) - theta(t)|^2 over depth: compression, with the error
that `projection_error` tells.

For splines M comes from polar forms, in fractions (Ramshaw 1989; for equal degrees it is the Oslo algorithm of Cohen,
Lyche and Riesenfeld 1980: each row of a knot insertion is a convex combination, of zero too where the ends are not
clamped). The projection is a least squares fit at Gauss-Legendre points between all breaks of both bases, so that no
point lies on a jump.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import combinations, pairwise

import numpy as np
import torch
from torch import Tensor

from gode_core.bases import Basis, BSpline, exact
from gode_core.smooth_bases import Chebyshev, Fourier, Legendre


@dataclass(frozen=True)
class Change:
    """matrix: (A', A), float64, on the CPU. exact: theta(t) is the same function, to rounding, for any theta."""

    matrix: Tensor
    exact: bool


def change_of_basis(old: Basis, new: Basis) -> Change:
    """theta' = matrix @ theta: the same function of depth if the new basis can write it, else its L2 projection.

    Learnable knots are asked as they stand: give `free_knots.spline()`.
    """
    if isinstance(old, BSpline) and isinstance(new, BSpline) and _holds_spline(new, old):
        return Change(_spline_matrix(old, new), exact=True)
    if _is_constant(old):
        try:
            constant = new.constant_coefficients()
        except ValueError:
            return Change(_projection(old, new), exact=False)
        return Change(torch.tensor(constant, dtype=torch.float64).unsqueeze(1), exact=True)
    if type(old) is type(new) and not isinstance(old, BSpline) and old.num_coefficients <= new.num_coefficients:
        return Change(torch.eye(new.num_coefficients, old.num_coefficients, dtype=torch.float64), exact=True)
    return Change(_projection(old, new), exact=_holds_polynomials(new, old))


def projection_error(old: Basis, new: Basis, coefficients: Tensor) -> float:
    """How far theta(t) moves under `change_of_basis`: the L2 norm over depth (and all entries) of the difference,
    relative to that of theta. coefficients: (A, ...) on the old basis; for a whole model, its parameters flattened to
    (A, n) side by side. 0 for an exact change, and for theta = 0."""
    theta = coefficients.detach().to("cpu", torch.float64).flatten(1)
    change = change_of_basis(old, new)
    if change.exact:
        return 0.0
    points, weights = _quadrature(old, new)
    before = _rows(old, points) @ theta
    after = _rows(new, points) @ (change.matrix @ theta)
    squares = [float((weights @ x.square()).sum()) for x in (after - before, before)]
    return math.sqrt(squares[0] / squares[1]) if squares[1] else 0.0


def insert_knots(basis: BSpline, knots: Sequence[Fraction | float | str]) -> BSpline:
    """The same degree and these knots more, each as often as it is named. Raises ValueError outside (0, 1) and for a
    knot that would stand more than degree + 1 times."""
    more = [exact(k) for k in knots]
    if outside := [k for k in more if not 0 < k < 1]:
        raise ValueError(f"knots are inserted between 0 and 1, got {outside[0]}")
    return BSpline(basis.degree, tuple(sorted([*basis.knots, *more])))


def elevate(basis: BSpline, by: int = 1) -> BSpline:
    """The degree higher by so much, as smooth as before at every knot: each knot stands `by` times more."""
    if by < 0:
        raise ValueError(f"the degree can be raised, not lowered exactly, got {by}; take change_of_basis for that")
    return BSpline(basis.degree + by, tuple(sorted([*basis.knots, *sorted(set(basis.knots)) * by])))


def refined(basis: BSpline) -> BSpline:
    """A knot more in the middle of each piece: twice as many pieces."""
    return insert_knots(basis, [(a + b) / 2 for a, b in pairwise(sorted(set(basis.knots)))])


def _is_constant(basis: Basis) -> bool:
    return basis.num_coefficients == 1 and basis.sums_to_one


def _holds_spline(new: BSpline, old: BSpline) -> bool:
    """True if `new` has all functions of `old`: its degree is no lower and it may break as hard at each knot. The ends
    are knots like the others, since splines go on as zero beyond them (Curry and Schoenberg 1966)."""
    rise = new.degree - old.degree
    return rise >= 0 and all(new.knots.count(k) >= old.knots.count(k) + rise for k in set(old.knots))


def _holds_polynomials(new: Basis, old: Basis) -> bool:
    """True if `old` has polynomials only, and `new` has all polynomials of their degree."""
    if isinstance(old, Fourier) or old.breaks or isinstance(new, Fourier):
        return False
    degree = old.degree if isinstance(old, BSpline) else old.num_coefficients - 1
    if isinstance(new, BSpline):
        return new.sums_to_one and degree <= new.degree
    return degree < new.num_coefficients


def _spline_matrix(old: BSpline, new: BSpline) -> Tensor:
    """Coefficient b of a spline of degree q is the polar form, at the knots b + 1 .. b + q, of its polynomial on any
    piece where phi'_b lives. The polar form of degree q of a polynomial of degree p is the mean of that of degree p
    over all choices of p of the q arguments."""
    p, q = old.degree, new.degree
    rows = []
    for b in range(new.num_coefficients):
        piece = next(i for i in range(b, b + q + 1) if new.knots[i] < new.knots[i + 1])
        within = max(i for i in range(len(old.knots) - 1) if old.knots[i] <= new.knots[piece])
        chosen = list(combinations(new.knots[b + 1 : b + q + 1], p))
        polar = [old.blossoms(within, times) for times in chosen]
        rows.append([float(sum(column) / len(chosen)) for column in zip(*polar)])
    return torch.tensor(rows, dtype=torch.float64)


def _projection(old: Basis, new: Basis) -> Tensor:
    """The least squares fit, by QR: it loses half the digits that the normal equations would."""
    points, weights = _quadrature(old, new)
    scale = weights.sqrt().unsqueeze(1)
    return torch.linalg.lstsq(scale * _rows(new, points), scale * _rows(old, points)).solution


def _rows(basis: Basis, points: Sequence[float]) -> Tensor:
    """phi_a at all points: (M, A)."""
    return torch.tensor([basis.row(t) for t in points], dtype=torch.float64)


def _quadrature(*bases: Basis) -> tuple[list[float], Tensor]:
    """Points and weights that integrate products of these bases over [0, 1]: Gauss-Legendre on each piece between
    their breaks, exact for polynomials and to rounding for Fourier."""
    nodes, weights = np.polynomial.legendre.leggauss(max(map(_points_per_piece, bases)))
    ends = [float(k) for k in sorted({Fraction(0), Fraction(1), *(k for basis in bases for k in basis.breaks)})]
    points = [a + (b - a) * (float(x) + 1) / 2 for a, b in pairwise(ends) for x in nodes]
    scaled = [(b - a) * float(w) / 2 for a, b in pairwise(ends) for w in weights]
    return points, torch.tensor(scaled, dtype=torch.float64)


def _points_per_piece(basis: Basis) -> int:
    """n points integrate polynomials of degree 2 n - 1; the product of two Fourier functions makes up to A - 1 turns,
    which n points integrate to rounding from about pi A / 2 + 10 on."""
    if isinstance(basis, BSpline):
        return basis.degree + 1
    if isinstance(basis, Legendre | Chebyshev):
        return basis.num_coefficients
    return 2 * basis.num_coefficients + 20
