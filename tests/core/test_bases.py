"""Functions of depth against scipy's B-splines, and the piece that each stage of a solve sees."""

from __future__ import annotations

import random
from fractions import Fraction
from itertools import pairwise

import numpy as np
import pytest
from scipy.interpolate import BSpline as ScipyBSpline

from gode_core.bases import BSpline, Moment, StageTimes, basis_rows, clamped, constant, exact, unclamped
from gode_core.solvers import TABLEAUS

F = Fraction


def reference(basis: BSpline, t: Fraction, from_left: bool = False) -> np.ndarray:
    """The row by scipy. Its intervals are closed on the left, so the limit from the left is that from the right of
    the mirrored basis. Nothing is left of t = 0 or right of t = 1. Degree knots more at either
    end make scipy's base interval all of [0, 1]."""
    p = basis.degree
    if t == 1 or (from_left and t > 0):
        return reference(BSpline(p, tuple(1 - k for k in reversed(basis.knots))), 1 - t)[::-1]
    padded = [*range(-p, 0), *map(float, basis.knots), *range(2, p + 2)]
    functions = ScipyBSpline(padded, np.eye(basis.num_coefficients + 2 * p), p)
    return functions(float(t))[p : p + basis.num_coefficients]


def repeated(degree: int, multiplicity: int) -> BSpline:
    """Uneven interior knots, one of them so many times."""
    interior = ["1/7", *["0.3"] * multiplicity, "1/2", "5/6"]
    return clamped(degree, degree + 1 + len(interior), interior)


SPLINES = {
    **{f"clamped-{p}-{n}": clamped(p, n) for p in range(6) for n in (p + 1, p + 2, p + 3, p + 7)},
    **{f"unclamped-{p}-{n}": unclamped(p, n) for p in range(6) for n in (p + 1, p + 2, p + 3, p + 7)},
    "unclamped-right": BSpline(2, tuple(map(F, ("0", "0", "0", "1/3", "2/3", "1")))),
    "unclamped-left": BSpline(1, tuple(map(F, ("0", "1/3", "2/3", "1", "1")))),
    **{f"knots-{p}-{m}": repeated(p, m) for p in range(6) for m in range(1, p + 2)},
}


@pytest.fixture(params=SPLINES, scope="module")
def basis(request) -> BSpline:
    return SPLINES[request.param]


def times(basis: BSpline, seed: int = 0) -> list[Fraction]:
    """Ends, knots, and random times between."""
    rng = random.Random(seed)
    return [*sorted(set(basis.knots)), *(F(rng.randrange(1, 9973), 9973) for _ in range(20))]


@pytest.mark.parametrize("from_left", [False, True])
def test_values_are_those_of_scipy(basis, from_left):
    """At random times, at the ends, and at knots from either side; asked exactly or with a float."""
    for t in times(basis):
        wanted = pytest.approx(reference(basis, t, from_left), abs=1e-12)
        assert np.array(basis.row(t, from_left)) == wanted
        assert np.array(basis.row(float(t), from_left)) == wanted


def test_no_value_is_negative_and_functions_live_on_their_own_knots(basis):
    for t in times(basis):
        for a, value in enumerate(basis.row(t)):
            assert value >= 0
            if not basis.knots[a] <= t <= basis.knots[a + basis.degree + 1]:
                assert value == 0


@pytest.mark.parametrize("name", SPLINES)
def test_which_bases_sum_to_one(name):
    """The clamped ones, and all of degree 0."""
    assert SPLINES[name].sums_to_one == (not name.startswith("unclamped") or SPLINES[name].degree == 0)


@pytest.mark.parametrize("name", [name for name in SPLINES if not name.startswith("unclamped")])
def test_clamped_ends_take_the_first_and_the_last_coefficient(name):
    """At t = 1 too: the last piece is closed."""
    unit = [1.0, *[0.0] * (SPLINES[name].num_coefficients - 1)]
    assert list(SPLINES[name].row(F(0))) == list(SPLINES[name].row(0.0)) == unit
    assert list(SPLINES[name].row(F(1))) == list(SPLINES[name].row(1.0)) == unit[::-1]


@pytest.mark.parametrize("degree", range(1, 6))
def test_unclamped_weights_vanish_at_both_ends(degree):
    """In the Neural-GODE release the first Euler step is the identity, and methods that ask at t = 1 see nothing."""
    released = unclamped(degree, degree + 4)
    assert set(released.row(F(0)) + released.row(F(1))) == {0.0}


@pytest.mark.parametrize(
    ("degree", "num_coefficients", "sums"),
    [
        (1, 4, [0, 0.25, 0.5, 1, 1, 0.5, 0.25, 0]),
        (1, 8, [0, 0.45, 0.9, 1, 1, 0.9, 0.45, 0]),
        (2, 3, [0, 1 / 32, 1 / 8, 1 / 2, 1, 1 / 8, 1 / 32, 0]),
        (3, 5, [0, 0.4**3 / 6, 0.8**3 / 6, 0.575, 1, 0.8**3 / 6, 0.4**3 / 6, 0]),
    ],
)
def test_unclamped_sums_are_those_of_the_release(degree, num_coefficients, sums):
    """sum_a phi_a at eight times; near the ends by hand, u^degree / degree! with u in knot spacings."""
    released = unclamped(degree, num_coefficients)
    found = [sum(released.row(exact(t))) for t in ("0", "0.05", "0.1", "0.2", "0.5", "0.9", "0.95", "1")]
    assert found == pytest.approx(sums, abs=5e-4 if degree == 3 else 1e-12)


@pytest.mark.parametrize("num_coefficients", [2, 4, 8])
def test_unclamped_degree_one_is_a_row_of_hats(num_coefficients):
    """Coefficient i is a hat centred at i / (n + 1), i = 1..n."""
    n = num_coefficients
    for i in range(1, n + 1):
        assert unclamped(1, n).row(F(i, n + 1)) == tuple(float(j == i) for j in range(1, n + 1))


@pytest.mark.parametrize("num_coefficients", [1, 2, 5])
def test_degree_zero_is_one_basis_clamped_or_not(num_coefficients):
    assert unclamped(0, num_coefficients) == clamped(0, num_coefficients)


def test_breaks_are_the_interior_knots_once_each():
    assert clamped(1, 5).breaks == (F(1, 4), F(1, 2), F(3, 4))
    assert clamped(3, 4).breaks == constant().breaks == ()
    assert repeated(3, 3).breaks == (F(1, 7), F(3, 10), F(1, 2), F(5, 6))


def test_jumps_says_the_truth(basis):
    """A jump is where the two sides of a break differ."""
    assert basis.jumps == any(
        basis.row(k) != pytest.approx(basis.row(k, from_left=True), abs=1e-12) for k in basis.breaks
    )


@pytest.mark.parametrize(("degree", "multiplicity"), [(p, m) for p in range(4) for m in range(1, p + 2)])
def test_a_basis_jumps_at_a_knot_repeated_degree_plus_one_times(degree, multiplicity):
    assert repeated(degree, multiplicity).jumps == (degree == 0 or multiplicity == degree + 1)


@pytest.mark.parametrize(
    ("text", "number"), [(0.3, F(3, 10)), ("1/3", F(1, 3)), ("1e-3", F(1, 1000)), (1, F(1)), (F(2, 7), F(2, 7))]
)
def test_numbers_are_read_as_written(text, number):
    assert exact(text) == number


@pytest.mark.parametrize("text", ["", "x", "1/0", "nan", "inf", "1/3/5", float("nan")])
def test_what_is_no_number_is_refused_by_name(text):
    with pytest.raises(ValueError) as error:
        exact(text)
    assert f"cannot read the number `{text}`; write 0.3 or 1/3" in str(error.value)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: clamped(-1, 3), "degree must be at least 0, got -1"),
        (lambda: unclamped(-1, 3), "0 <= degree < number of coefficients"),
        (lambda: clamped(3, 3), "degree < number of coefficients is needed, got degree 3 and 3"),
        *[(lambda p=p, n=n: unclamped(p, n), "number of coefficients") for p, n in ((3, 3), (0, 0), (1, 0), (-1, 1))],
        (lambda: clamped(0, 0), "degree < number of coefficients"),
        (lambda: clamped(1, 4, ["1/2"]), "4 coefficients of degree 1 have 2 interior knots, got 1"),
        (lambda: clamped(1, 4, ["1/2", "1/4"]), r"interior knots must increase within \(0, 1\), got \[1/2, 1/4\]"),
        (lambda: clamped(1, 3, ["0"]), "interior knots must increase within"),
        (lambda: clamped(1, 3, ["1"]), "interior knots must increase within"),
        (lambda: clamped(1, 3, ["1.5"]), "interior knots must increase within"),
        (lambda: clamped(1, 5, ["1/2"] * 3), r"a knot may stand at most degree \+ 1 = 2 times"),
        (lambda: BSpline(1, (F(0), F(0), F(2, 3), F(1, 3), F(1), F(1))), "knots must increase"),
        (lambda: BSpline(0, (F(0), F(1, 2))), "knots must go from 0 to 1"),
        (lambda: BSpline(0, (F(1, 2), F(1))), "knots must go from 0 to 1"),
        (lambda: BSpline(1, (F(0), F(1))), "degree < number of coefficients"),
        (lambda: BSpline(0, ()), "degree < number of coefficients"),
    ],
)
def test_what_is_no_basis_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def pieces(num_pieces: int, method: str, num_steps: int) -> list[int]:
    """For each stage of a solve, the piece that a piecewise constant basis uses there."""
    rows, index = basis_rows(clamped(0, num_pieces), StageTimes(method, num_steps, 0, num_steps))
    assert all(sorted(row)[-2:] in ([0.0, 1.0], [1.0]) for row in rows)
    return [rows[i].index(1.0) for i in index]


@pytest.mark.parametrize("numbers", [range(1, 129), range(129, 193), range(193, 257)])
def test_with_as_many_pieces_as_steps_each_layer_is_used_once_and_in_order(numbers):
    """A lookup by float time, int(t * K), leaves layers out for 230 of these depths when its times are float32
    (the third of 3 among them), and steps counted by adding 1 / n are one too many for 49, 98, 103, ..."""
    for n in numbers:
        assert pieces(n, "euler", n) == list(range(n))


@pytest.mark.parametrize("num_pieces", [1, 2, 3, 6, 7, 15, 49, 98, 103, 200])
def test_with_other_numbers_of_steps_the_piece_is_that_of_the_exact_time(num_pieces):
    for n in (*range(1, 20), 31, 48, 49, 64, 98, 103, 196, 256):
        assert pieces(num_pieces, "euler", n) == [i * num_pieces // n for i in range(n)]


@pytest.mark.parametrize("method", TABLEAUS)
@pytest.mark.parametrize("n", [1, 2, 3, 6, 7, 8, 15, 49, 98])
def test_all_stages_of_a_step_see_the_step_s_own_layer(method, n):
    """The last stage of rk4 too, which elsewhere reads the next layer: 0, 0, 0, 1 | 1, 1, 1, 1 for two."""
    assert pieces(n, method, n) == [i for i in range(n) for _ in TABLEAUS[method].c]


@pytest.mark.parametrize("num_pieces", [3, 7, 15, 49])
@pytest.mark.parametrize("n", [1, 2, 5, 14, 30, 98])
def test_stages_of_rk4_see_the_piece_on_their_side_of_a_knot(num_pieces, n):
    """floor at the beginning and in the middle, from the left at the end of the step."""
    k = num_pieces
    wanted = []
    for i in range(n):
        middle = (2 * i + 1) * k // (2 * n)
        wanted += [i * k // n, middle, middle, -(-(i + 1) * k // n) - 1]
    assert pieces(k, "rk4", n) == wanted


def test_a_solve_asks_at_its_own_steps_and_at_no_more():
    """n of them, each from its number: 49 * (1 / 49) != 1."""
    for n in range(1, 257):
        times = [t for t, _ in StageTimes("euler", n, 0, n).points()]
        assert (len(times), times[0], times[-1]) == (n, 0, 1 - F(1, n))
        assert StageTimes("heun", n, n - 1, n).points()[-1] == (1, True)


@pytest.mark.parametrize("method", TABLEAUS)
def test_stage_times_are_those_of_the_tableau(method):
    n, c = 6, TABLEAUS[method].c
    points = StageTimes(method, n, 2, 5).points()
    assert [t for t, _ in points] == [(i + node) / n for i in range(2, 5) for node in c]
    assert [from_left for _, from_left in points] == [node == 1 for _ in range(2, 5) for node in c]


def test_runs_of_steps_make_up_the_whole():
    whole = StageTimes("rk4", 12, 0, 12).points()
    assert [p for a, b in pairwise([0, 3, 4, 12]) for p in StageTimes("rk4", 12, a, b).points()] == whole


@pytest.mark.parametrize("from_left", [False, True])
def test_a_moment_is_one_time(from_left):
    rows, index = basis_rows(clamped(0, 2), Moment(0.5, from_left))
    assert (rows, index) == ([(1.0, 0.0) if from_left else (0.0, 1.0)], [0])


@pytest.mark.parametrize("name", ["clamped-0-7", "clamped-1-4", "clamped-3-6", "unclamped-2-5", "knots-2-3"])
def test_the_table_holds_each_row_once_and_each_stage_finds_its_own(name):
    solve = StageTimes("rk4", 10, 0, 10)
    rows, index = basis_rows(SPLINES[name], solve)
    assert len(set(rows)) == len(rows)
    assert [rows[i] for i in index] == [SPLINES[name].row(t, from_left) for t, from_left in solve.points()]


@pytest.mark.parametrize("n", [1, 5, 64])
def test_the_table_has_a_row_per_piece_that_is_met(n):
    solve = StageTimes("rk4", n, 0, n)
    assert basis_rows(constant(), solve) == ([(1.0,)], [0] * 4 * n)
    for num_pieces in (2, 5, 64):
        met = {(2 * i + j) * num_pieces // (2 * n) for i in range(n) for j in (0, 1)}  # beginning and middle
        met |= {-(-(i + 1) * num_pieces // n) - 1 for i in range(n)}  # the end, from the left
        assert len(basis_rows(clamped(0, num_pieces), solve)[0]) == len(met)
