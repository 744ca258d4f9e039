"""The contract that every basis keeps, and the values of those that are no B-splines."""

from __future__ import annotations

import copy
import math
from fractions import Fraction

import numpy as np
import pytest
from scipy.special import eval_chebyt, eval_legendre

from gode_core.bases import BASES, Basis, BSpline, Chebyshev, Fourier, Legendre, clamped, constant, hat, unclamped

F = Fraction

EXAMPLES: dict[str, list[Basis]] = {
    "bspline": [
        *(make(p, p + n) for p in range(5) for n in (1, 4) for make in (clamped, unclamped)),
        clamped(2, 8, ["1/7", "0.3", "0.3", "1/2", "5/6"]),
        clamped(2, 7, ["0.3", "1/2", "1/2", "1/2"]),
        BSpline(1, (F(0), F(0), F(1, 2), F(1))),
    ],
    "hat": [hat([0, 1]), hat([0, 0.3, "1/2", "6/7", 1])],
    "fourier": [Fourier(1), Fourier(3), Fourier(9)],
    "legendre": [Legendre(1), Legendre(2), Legendre(7)],
    "chebyshev": [Chebyshev(1), Chebyshev(2), Chebyshev(7)],
}
TIMES = [F(i, 61) for i in range(62)] + [F(i, 12) for i in range(13)]


@pytest.fixture(params=[(kind, i) for kind, examples in EXAMPLES.items() for i in range(len(examples))], ids=str)
def basis(request) -> Basis:
    kind, i = request.param
    return EXAMPLES[kind][i]


def rows(basis: Basis, times: list) -> np.ndarray:
    return np.array([basis.row(t) for t in times])


def test_every_kind_has_examples():
    assert set(EXAMPLES) == set(BASES)


def test_a_row_has_a_value_for_each_coefficient_and_none_exceeds_one(basis):
    table = rows(basis, TIMES)
    assert table.shape == (len(TIMES), basis.num_coefficients)
    assert np.abs(table).max() <= 1 + 1e-14


def test_the_functions_are_independent(basis):
    assert np.linalg.matrix_rank(rows(basis, TIMES)) == basis.num_coefficients


def test_fractions_and_floats_give_the_same_values(basis):
    smooth = [t for t in TIMES if t not in basis.breaks]
    assert rows(basis, smooth) == pytest.approx(rows(basis, [float(t) for t in smooth]), abs=1e-13)


def test_outside_the_nearer_end_is_read(basis):
    for t in (-0.25, F(-1, 3), -1):
        assert basis.row(t) == basis.row(t, from_left=True) == basis.row(F(0))
    for t in (1.5, F(4, 3), 2):
        assert basis.row(t) == basis.row(t, from_left=True) == basis.row(F(1))


def test_sums_to_one_says_the_truth(basis):
    assert basis.sums_to_one == np.allclose(rows(basis, TIMES).sum(1), 1, rtol=0, atol=1e-12)


def test_constant_coefficients_make_theta_one_or_nothing_does(basis):
    """And a basis without constants says so."""
    table = rows(basis, TIMES)
    best = np.linalg.lstsq(table, np.ones(len(TIMES)))[0]
    if np.abs(table @ best - 1).max() < 1e-12:
        assert table @ basis.constant_coefficients() == pytest.approx(1, abs=1e-12)
    else:
        with pytest.raises(ValueError, match="ends are not clamped has no constants"):
            basis.constant_coefficients()


def test_a_basis_can_be_a_key(basis):
    """Tables are kept by what they are made of."""
    assert {basis: 1}[copy.deepcopy(basis)] == 1


def derivatives(basis: Basis, k: Fraction, end: Fraction) -> np.ndarray:
    """(8, A): value and derivatives at the break, of the polynomials between it and `end`."""
    x = np.linspace(0.1, 0.9, 8)
    fits = np.polynomial.polynomial.polyfit(x, rows(basis, [k + F(float(u)) * (end - k) for u in x]), 7)
    return np.array([fit * math.factorial(n) / float(end - k) ** n for n, fit in enumerate(fits)])


def test_breaks_and_their_continuity_say_the_truth(basis):
    """At each break the derivatives up to `continuity` agree from both sides, and the next does not."""
    assert list(basis.breaks) == sorted({k for k in basis.breaks if 0 < k < 1})
    ends = [F(0), *basis.breaks, F(1)]
    for i, k in enumerate(basis.breaks, start=1):
        gaps = np.abs(derivatives(basis, k, ends[i - 1]) - derivatives(basis, k, ends[i + 1])).max(1)
        continuous = basis.continuity(k) + 1
        assert gaps[:continuous] == pytest.approx(0, abs=1e-5)
        assert gaps[continuous] > 0.5


def test_between_breaks_the_functions_are_smooth(basis):
    """From either side, and without a jump on the way: a break that is not named would be stepped across."""
    for t in TIMES:
        if t not in basis.breaks:
            assert basis.row(t) == basis.row(t, from_left=True)
            near = [basis.row(t + F(s, 10**9)) for s in (-1, 1)]
            assert near[0] == pytest.approx(near[1], abs=1e-6)


@pytest.mark.parametrize("n", [1, 2, 3, 8, 20])
def test_polynomials_are_those_of_scipy(n):
    x = np.array([float(2 * t - 1) for t in TIMES])
    for basis, values in ((Legendre(n), eval_legendre), (Chebyshev(n), eval_chebyt)):
        assert rows(basis, TIMES) == pytest.approx(np.array([values(a, x) for a in range(n)]).T, abs=1e-13)


@pytest.mark.parametrize("n", [1, 3, 9])
def test_fourier_is_cosine_and_sine_of_whole_turns(n):
    for t in map(float, TIMES):
        turns = [f(2 * math.pi * k * t) for k in range(1, n // 2 + 1) for f in (math.cos, math.sin)]
        assert Fourier(n).row(t) == pytest.approx([1, *turns], abs=1e-13)
    assert Fourier(n).row(F(0)) == Fourier(n).row(F(1))


def test_legendre_and_fourier_are_orthogonal_over_depth():
    """With the sizes that the docstrings state."""
    x, w = np.polynomial.legendre.leggauss(60)
    t, w = list((x + 1) / 2), w / 2
    for basis, squares in (
        (Legendre(8), [1 / (2 * a + 1) for a in range(8)]),
        (Fourier(9), [1] + [1 / 2] * 8),
    ):
        table = rows(basis, t)
        assert table.T @ (w[:, None] * table) == pytest.approx(np.diag(squares), abs=1e-13)
    assert np.square(rows(Fourier(9), t)).sum(1) == pytest.approx(5)


def test_hat_interpolates_its_coefficients():
    nodes, values = [0, 0.2, 0.7, 0.75, 1], np.array([2.0, -1.0, 0.5, 3.0, 1.0])
    assert rows(hat(nodes), TIMES) @ values == pytest.approx(np.interp([float(t) for t in TIMES], nodes, values))
    assert hat([0, F(1, 3), "2/3", 1]) == clamped(1, 4)


@pytest.mark.parametrize("n", [1, 3, 5])
def test_one_coefficient_alone_is_a_neural_ode(n):
    for basis in (Fourier(n), Legendre(n), Chebyshev(n)):
        assert basis.constant_coefficients() == (1.0,) + (0.0,) * (n - 1)
        assert {basis.row(t)[0] for t in TIMES} == {constant().row(F(0))[0]}


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Fourier(4), r"an odd number of coefficients is needed \(1 and pairs of cosine and sine\), got 4"),
        *[(lambda kind=kind: kind(0), "at least 1 coefficient is needed") for kind in (Fourier, Legendre, Chebyshev)],
        (lambda: hat([0]), r"nodes must increase from 0 to 1, got \[0\]"),
        (lambda: hat([0, 0.5]), r"nodes must increase from 0 to 1, got \[0, 1/2\]"),
        (lambda: hat([0.5, 1]), "nodes must increase"),
        (lambda: hat([0, 0.5, 0.5, 1]), "nodes must increase"),
        (lambda: hat([0, 0.7, 0.5, 1]), "nodes must increase"),
        (lambda: hat([]), "nodes must increase"),
    ],
)
def test_what_is_no_basis_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
