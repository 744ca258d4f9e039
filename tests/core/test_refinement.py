"""From one basis to another: the same theta(t) where the new basis can write it, the nearest one where it cannot."""

from __future__ import annotations

import random
from fractions import Fraction

import pytest
import torch

from gode_core.bases import Basis, BSpline, Chebyshev, Fourier, Legendre, clamped, constant, hat, unclamped
from gode_core.refinement import change_of_basis, elevate, insert_knots, projection_error, refined

F = Fraction
TIMES = [i / 43 for i in range(44)]  # no knot is among them: there, fractions

SPLINES = {
    **{f"clamped-{p}-{n}": clamped(p, p + n) for p in range(5) for n in (1, 2, 5)},
    **{f"unclamped-{p}-{n}": unclamped(p, p + n) for p in range(5) for n in (1, 2, 5)},
    **{f"repeated-{p}": clamped(p, p + 4 + p, ["1/7", *["0.3"] * (p + 1), "5/6"]) for p in range(5)},
    "clamped-left": BSpline(2, tuple(map(F, ("0", "0", "0", "1/3", "2/3", "1")))),
}
NESTED: dict[str, tuple[Basis, Basis]] = {
    "constant to pieces": (constant(), clamped(0, 5)),
    "constant to cubic": (Legendre(1), clamped(3, 7)),
    "constant to fourier": (constant(), Fourier(5)),
    "constant of fourier to chebyshev": (Fourier(1), Chebyshev(3)),
    "fourier": (Fourier(3), Fourier(7)),
    "legendre": (Legendre(3), Legendre(6)),
    "chebyshev": (Chebyshev(3), Chebyshev(6)),
    "legendre to chebyshev": (Legendre(6), Chebyshev(6)),
    "chebyshev to legendre": (Chebyshev(5), Legendre(7)),
    "legendre to cubic": (Legendre(4), clamped(3, 7)),
    "chebyshev to quintic": (Chebyshev(4), clamped(5, 9)),
    "line to legendre": (clamped(1, 2), Legendre(3)),
    "hats to hats": (hat([0, "1/3", 1]), hat([0, "1/4", "1/3", "0.9", 1])),
    "hats to a smoother degree, kinks kept": (hat([0, "1/3", 1]), clamped(2, 6, ["1/3", "1/3", "1/2"])),
}
NOT_NESTED: dict[str, tuple[Basis, Basis]] = {
    "fewer pieces": (clamped(0, 6), clamped(0, 4)),
    "fewer knots": (clamped(3, 12), clamped(3, 6)),
    "lower degree": (clamped(3, 6), clamped(1, 6)),
    "kinks to smooth": (clamped(1, 5), clamped(2, 9)),
    "pieces to curve": (clamped(0, 5), clamped(2, 5)),
    "other knots": (hat([0, "1/3", 1]), hat([0, "1/2", 1])),
    "clamped to unclamped": (clamped(1, 4), unclamped(1, 4)),
    "constant to unclamped": (constant(), unclamped(2, 6)),
    "line to unclamped": (Legendre(2), unclamped(2, 6)),
    "spline to fourier": (clamped(2, 6), Fourier(5)),
    "fourier to spline": (Fourier(7), clamped(3, 9)),
    "fourier to legendre": (Fourier(3), Legendre(8)),
    "fewer fourier": (Fourier(7), Fourier(3)),
    "fewer legendre": (Legendre(7), Legendre(3)),
    "legendre to chebyshev": (Legendre(7), Chebyshev(5)),
    "legendre to quadratic": (Legendre(4), clamped(2, 9)),
    "spline to legendre": (clamped(1, 3), Legendre(9)),
}


def coefficients(basis: Basis, seed: int = 0) -> torch.Tensor:
    return torch.randn(basis.num_coefficients, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def table(basis: Basis, times, from_left: bool = False) -> torch.Tensor:
    rows = [basis.row(t, from_left) for t in times]
    return torch.tensor(rows, dtype=torch.float64).view(-1, basis.num_coefficients)


def theta(basis: Basis, values: torch.Tensor, times=TIMES, from_left: bool = False) -> torch.Tensor:
    return table(basis, times, from_left) @ values


def check_same_function(old: Basis, new: Basis) -> None:
    """Between the breaks, and on them from either side."""
    change, values = change_of_basis(old, new), coefficients(old)
    assert change.exact
    assert change.matrix.shape == (new.num_coefficients, old.num_coefficients)
    for times, from_left in ((TIMES, False), (new.breaks, False), (new.breaks, True)):
        before = theta(old, values, times, from_left)
        torch.testing.assert_close(theta(new, change.matrix @ values, times, from_left), before, rtol=0, atol=2e-13)
    assert projection_error(old, new, values) == 0


def randomly(basis: BSpline, seed: int) -> BSpline:
    """Five knots more: random ones, and some where there are knots already."""
    rng = random.Random(seed)
    free = [k for k in basis.breaks if basis.knots.count(k) <= basis.degree]
    again = rng.sample(free, min(len(free), 2))
    return insert_knots(basis, [*again, *(F(rng.randrange(1, 9973), 9973) for _ in range(5 - len(again)))])


@pytest.mark.parametrize("name", SPLINES)
def test_theta_is_the_same_after_knots_are_inserted(name):
    basis = SPLINES[name]
    for new in (randomly(basis, 1), randomly(basis, 2), refined(basis), refined(refined(basis)), basis):
        assert new.degree == basis.degree
        check_same_function(basis, new)


@pytest.mark.parametrize("name", SPLINES)
def test_theta_is_the_same_after_the_degree_is_raised(name):
    """As smooth as before at each break, and no knot more; with knots inserted before and after too."""
    basis = SPLINES[name]
    for by in (0, 1, 2):
        new = elevate(basis, by)
        assert (new.degree, new.breaks) == (basis.degree + by, basis.breaks)
        assert [new.continuity(k) for k in new.breaks] == [basis.continuity(k) for k in basis.breaks]
        check_same_function(basis, new)
    check_same_function(basis, refined(elevate(randomly(basis, 3))))


@pytest.mark.parametrize("name", SPLINES)
def test_rows_of_an_insertion_are_convex_combinations(name):
    """So no weight leaves the range of the coefficients. Without clamped ends zero is among what is combined."""
    for new in (randomly(SPLINES[name], 4), refined(SPLINES[name]), elevate(SPLINES[name])):
        matrix = change_of_basis(SPLINES[name], new).matrix
        assert matrix.min() >= 0
        if SPLINES[name].sums_to_one:
            torch.testing.assert_close(matrix.sum(1), torch.ones(len(matrix)).double(), rtol=0, atol=1e-15)
        assert matrix.sum(1).max() <= 1 + 1e-15


def test_twice_the_pieces_copy_each_layer():
    """Degree 0: a ResNet's refinement."""
    for n in (1, 3, 5):
        assert refined(clamped(0, n)) == clamped(0, 2 * n)
        copies = torch.eye(n, dtype=torch.float64).repeat_interleave(2, 0)
        assert torch.equal(change_of_basis(clamped(0, n), clamped(0, 2 * n)).matrix, copies)


@pytest.mark.parametrize("name", NESTED)
def test_theta_is_the_same_on_a_basis_that_can_write_it(name):
    check_same_function(*NESTED[name])


@pytest.mark.parametrize("name", NESTED)
def test_refining_and_projecting_back_gives_the_coefficients_again(name):
    old, new = NESTED[name]
    back = change_of_basis(new, old).matrix @ change_of_basis(old, new).matrix
    torch.testing.assert_close(back, torch.eye(old.num_coefficients).double(), rtol=0, atol=1e-13)


@pytest.mark.parametrize("name", [name for name in SPLINES if "1" not in name.rpartition("-")[2]])
def test_refining_a_spline_and_projecting_back_gives_the_coefficients_again(name):
    basis = SPLINES[name]
    for new in (randomly(basis, 5), elevate(basis)):
        back = change_of_basis(new, basis).matrix @ change_of_basis(basis, new).matrix
        torch.testing.assert_close(back, torch.eye(basis.num_coefficients).double(), rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", NOT_NESTED)
def test_elsewhere_the_projection_is_the_best(name):
    """No nearby coefficients are nearer to theta, and `projection_error` is the distance: by the midpoint rule in 840
    cells, which no break cuts."""
    old, new = NOT_NESTED[name]
    change, values = change_of_basis(old, new), coefficients(old)
    assert not change.exact
    middles = [(2 * i + 1) / 1680 for i in range(840)]
    wanted, functions = theta(old, values, middles), table(new, middles)
    missing = wanted - functions @ (change.matrix @ values)
    relative = float(missing.norm() / wanted.norm())
    assert projection_error(old, new, values) == pytest.approx(relative, rel=1e-3)
    assert 1e-4 < relative <= 1
    for function in functions.T:
        for step in (-0.01, 0.01):
            assert (missing - step * function.unsqueeze(1)).norm() > missing.norm()


@pytest.mark.parametrize("name", NOT_NESTED)
def test_projecting_what_was_projected_changes_nothing(name):
    """Round trip through a basis that holds the new one: the projection is idempotent."""
    old, new = NOT_NESTED[name]
    finer = {BSpline: refined, Fourier: lambda b: Fourier(b.num_coefficients + 2)}.get(
        type(new), lambda b: Legendre(b.num_coefficients + 3)
    )(new)
    projected = change_of_basis(old, new).matrix
    again = change_of_basis(finer, new).matrix @ change_of_basis(new, finer).matrix @ projected
    torch.testing.assert_close(again, projected, rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("shared", "old", "new"),
    [
        (clamped(2, 4, ["1/2"]), clamped(2, 6, ["1/4", "1/2", "2/3"]), clamped(2, 5, ["1/2", "3/4"])),
        (clamped(0, 2), clamped(0, 6), clamped(0, 4)),
        (Legendre(3), clamped(3, 8), clamped(2, 5)),
        (Legendre(2), Legendre(7), hat([0, "1/3", 1])),
        (constant(), Fourier(5), clamped(2, 5)),
        (clamped(1, 2), clamped(1, 6), Chebyshev(4)),
    ],
)
def test_what_both_bases_can_write_is_kept(shared, old, new):
    values = change_of_basis(shared, old).matrix @ coefficients(shared)
    assert not change_of_basis(old, new).exact
    projected = change_of_basis(old, new).matrix @ values
    torch.testing.assert_close(theta(new, projected), theta(old, values), rtol=0, atol=1e-12)
    assert projection_error(old, new, values) < 1e-12


def test_a_projection_is_the_mean_over_the_piece():
    """Six pieces to three, and to a constant; and pieces whose ends do not meet."""
    values = coefficients(clamped(0, 6))
    three = change_of_basis(clamped(0, 6), clamped(0, 3)).matrix @ values
    torch.testing.assert_close(three, values.view(3, 2, 3).mean(1))
    torch.testing.assert_close(change_of_basis(clamped(0, 6), constant()).matrix @ values, values.mean(0, keepdim=True))
    halves = change_of_basis(clamped(0, 3), clamped(0, 2)).matrix
    torch.testing.assert_close(halves, torch.tensor([[2 / 3, 1 / 3, 0], [0, 1 / 3, 2 / 3]], dtype=torch.float64))


def test_projection_error_counts_all_entries_and_knows_zero():
    old, new = clamped(0, 2), constant()
    assert projection_error(old, new, torch.tensor([[1.0], [-1.0]])) == pytest.approx(1)
    assert projection_error(old, new, torch.tensor([[1.0, 2.0], [-1.0, 2.0]])) == pytest.approx((1 / 5) ** 0.5)
    assert projection_error(old, new, torch.tensor([[[3.0]], [[3.0]]])) == pytest.approx(0, abs=1e-15)
    assert projection_error(old, new, torch.zeros(2, 3)) == 0


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: insert_knots(clamped(1, 3), [0]), r"knots are inserted between 0 and 1, got 0"),
        (lambda: insert_knots(clamped(1, 3), ["1/2", "1/2"]), "a knot may stand at most"),
        (lambda: elevate(clamped(2, 4), -1), "can be raised, not lowered exactly, got -1"),
    ],
)
def test_what_cannot_be_refined_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
