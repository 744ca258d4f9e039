"""Solvers as text, tableaus as checked data, and the order that each method shows on an equation."""

from __future__ import annotations

import math
import random
from dataclasses import replace
from fractions import Fraction

import pytest

from gode_core.methods import ADAPTIVE_METHODS, IMPLICIT_METHODS, MULTISTEPS, TABLEAUS, ImplicitMethod, Tableau
from gode_core.solvers import FIXED_METHODS, Adaptive, Fixed, Implicit, parse_solver


def random_tolerance(rng: random.Random) -> float:
    """From round ones (1e-5) to those with all 17 digits, over the whole range of floats below 1."""
    digits = rng.choice([1, 2, 5, 17])
    value = float(f"{10 ** rng.uniform(-300, 0) * rng.random():.{digits - 1}e}")
    return min(max(value, 5e-324), math.nextafter(1, 0))


@pytest.mark.parametrize("seed", range(5))
def test_parsing_inverts_printing(seed):
    """And equal solvers print alike, so that text may stand for the solver."""
    rng = random.Random(seed)
    for _ in range(400):
        num_steps = rng.choice([1, 7, rng.randrange(1, 10**9)])
        fixed = Fixed(rng.choice(list(FIXED_METHODS)), num_steps)
        implicit = Implicit(rng.choice(list(IMPLICIT_METHODS)), num_steps)
        rtol, atol = random_tolerance(rng), random_tolerance(rng)
        adaptive = Adaptive(rng.choice(list(ADAPTIVE_METHODS)), rtol, rng.choice([rtol, atol]))
        for solver in (fixed, implicit, adaptive):
            assert parse_solver(str(solver)) == solver
            assert str(parse_solver(str(solver))) == str(solver)


@pytest.mark.parametrize("value", [5e-324, 1e-300, 0.1, 0.25, 0.1 + 0.2, 1 / 3, math.nextafter(1, 0)])
def test_odd_tolerances_survive_printing(value):
    assert parse_solver(str(Adaptive("dopri5", value, 1e-9))) == Adaptive("dopri5", value, 1e-9)


@pytest.mark.parametrize(
    "text", ["euler@1", "ab2@16", "trapezoid@8", "rk4@8", "rk4_38@256", "dopri5@1e-5", "bosh3@2.5e-3", "dopri8@5e-1"]
)
def test_the_usual_text_prints_as_written(text):
    assert str(parse_solver(text)) == text


@pytest.mark.parametrize(
    ("texts", "printed"),
    [
        (["euler@8", "euler@08", "euler@0008"], "euler@8"),
        (["dopri5@1e-5", "dopri5@1e-05", "dopri5@0.00001", "dopri5@1.E-5", "dopri5@.1e-4"], "dopri5@1e-5"),
        (["bosh3@rtol=1e-3,atol=0.001", "bosh3@1e-3"], "bosh3@1e-3"),
        (["bosh3@rtol=0.01,atol=1e-4"], "bosh3@rtol=1e-2,atol=1e-4"),
    ],
)
def test_however_written_a_solver_has_one_text(texts, printed):
    assert {str(parse_solver(text)) for text in texts} == {printed}


@pytest.mark.parametrize(
    ("text", "form"),
    [
        *[(f"euler{rest}", "euler@8") for rest in ("", "@", "@-1", "@2.5", "@1e1", "@ 8", "@8 ", "@0", "@٣", "@8@8")],
        ("rk4@1e-5", "rk4@8"),
        ("ab2@1e-5", "ab2@8"),
        ("leapfrog@0", "leapfrog@8"),
        ("backward_euler", "backward_euler@8"),
        ("trapezoid@0", "trapezoid@8"),
        ("backward_eulr@8", "Did you mean `backward_euler`?"),
        pytest.param("rk4@" + "9" * 5000, "rk4@8", id="rk4@9...9"),
        *[(f"dopri5{rest}", "dopri5@1e-5") for rest in ("", "@", "@8", "@1", "@0", "@1.5", "@-1e-5", "@nan", "@inf")],
        *[(f"dopri5@{rest}", "dopri5@1e-5") for rest in ("1e-5 ", "1_0e-5", "1e-400", "x", "1e", ".", "1e-5@8")],
        *[
            (f"dopri5@{rest}", "dopri5@rtol=1e-5,atol=1e-7")
            for rest in ("rtol=1e-5", "atol=1e-5", "atol=1e-5,rtol=1e-5", "rtol=1e-5,atol=", "rtol=1,e-5,atol=1e-5")
        ],
        ("dopri5@rtol=2,atol=1e-5", "rtol must lie in (0, 1)"),
        ("dopri5@rtol=1e-5,atol=0", "atol must lie in (0, 1)"),
        ("rk5@8", "Did you mean `rk4`?"),
        ("bosh@1e-5", "Did you mean `bosh3`?"),
        *[(text, "`euler@8`") for text in ("", "@", "8", "@8", "Euler@8", " euler@8", "euler 8", "rk4;8")],
    ],
)
def test_wrong_text_is_refused_with_the_text_and_the_allowed_form(text, form):
    with pytest.raises(ValueError) as error:
        parse_solver(text)
    assert str(error.value).startswith(f"solver `{text}`: ")
    assert form in str(error.value)


def test_an_unknown_method_lists_the_known_ones():
    with pytest.raises(ValueError) as error:
        parse_solver("newmark@8")
    assert all(method in str(error.value) for method in (*TABLEAUS, *MULTISTEPS, *IMPLICIT_METHODS, *ADAPTIVE_METHODS))


@pytest.mark.parametrize(
    "make",
    [
        lambda: Fixed("dopri5", 8),
        lambda: Fixed("trapezoid", 8),
        lambda: Implicit("ab2", 8),
        lambda: Adaptive("rk4", 1e-5, 1e-5),
        lambda: Adaptive("ab2", 1e-5, 1e-5),
    ],
)
def test_a_method_of_the_other_kind_is_refused(make):
    with pytest.raises(ValueError, match="unknown method"):
        make()


def test_no_method_has_two_kinds():
    kinds = [TABLEAUS, MULTISTEPS, IMPLICIT_METHODS, ADAPTIVE_METHODS]
    assert len({name for kind in kinds for name in kind}) == sum(map(len, kinds))


@pytest.mark.parametrize(("order", "theta"), [(2, "1"), (1, "1/2"), (1, "1/3"), (1, "3/2"), (2, "2/3")])
def test_an_implicit_method_has_the_order_of_its_theta(order, theta):
    with pytest.raises(ValueError, match="theta"):
        ImplicitMethod(order, Fraction(theta))


F = Fraction


@pytest.mark.parametrize(
    ("a", "b"),
    [
        ((), ()),
        (((F(0),),), (F(1),)),  # the first row is empty
        (((), (F(1, 2),)), (F(1),)),  # a weight is missing
        (((),), (F(1, 2), F(1, 2))),  # a row is missing
        (((), (F(1, 2), F(0))), (F(1, 2), F(1, 2))),  # implicit
        (((), (F(1),), (F(1),)), (F(1, 3), F(1, 3), F(1, 3))),  # the third row is short
    ],
)
def test_a_tableau_of_the_wrong_shape_is_refused(a, b):
    with pytest.raises(ValueError, match=r"row i of a must have i - 1 entries|sum b = 1"):
        Tableau(1, a, b)


@pytest.mark.parametrize("order", [-1, 0, 5])
def test_an_order_whose_conditions_are_not_known_is_refused(order):
    with pytest.raises(ValueError, match="order must be 1, 2, 3 or 4"):
        replace(TABLEAUS["rk4"], order=order)


# Butcher's rooted trees up to four nodes: a tree is the tuple of its root's branches. Each is one order condition.
TREES = {
    "sum b": (),
    "sum b c": ((),),
    "sum b c^2": ((), ()),
    "sum b a c": (((),),),
    "sum b c^3": ((), (), ()),
    "sum b c a c": ((), ((),)),
    "sum b a c^2": (((), ()),),
    "sum b a a c": ((((),),),),
}


def size(tree: tuple) -> int:
    return 1 + sum(map(size, tree))


def density(tree: tuple) -> int:
    return size(tree) * math.prod(map(density, tree))


def elementary_weights(tree: tuple, a: tuple[tuple[Fraction, ...], ...]) -> list[Fraction]:
    """phi_i of each stage: the product over the branches of sum_j a_ij phi_j(branch) (Butcher 2008, section 312)."""
    branches = [elementary_weights(branch, a) for branch in tree]
    return [math.prod((sum((x * y for x, y in zip(row, w)), F(0)) for w in branches), start=F(1)) for row in a]


def solve(rows: list[list[Fraction]], wanted: list[Fraction]) -> list[Fraction]:
    """The x with rows x = wanted, exactly (Gauss and Jordan)."""
    table, n = [[*row, w] for row, w in zip(rows, wanted)], len(rows)
    for i in range(n):
        pivot = next(k for k in range(i, n) if table[k][i])
        table[i], table[pivot] = table[pivot], table[i]
        table[i] = [x / table[i][i] for x in table[i]]
        for k in set(range(n)) - {i}:
            table[k] = [x - table[k][i] * y for x, y in zip(table[k], table[i])]
    return [row[-1] for row in table]


def eight_stages(missed: str | None) -> tuple[tuple[tuple[Fraction, ...], ...], tuple[Fraction, ...]]:
    """Numbers (a, b) that meet the eight conditions but `missed`: for a given `a` they are linear in the weights b."""
    rng = random.Random(0)
    a = tuple(tuple(F(rng.randint(-3, 5), 4) for _ in range(i)) for i in range(len(TREES)))
    wanted = [F(1, density(tree)) + (name == missed) for name, tree in TREES.items()]
    return a, tuple(solve([elementary_weights(tree, a) for tree in TREES.values()], wanted))


@pytest.mark.parametrize("missed", TREES)
def test_each_condition_is_required_from_its_order_on_and_named(missed):
    a, b = eight_stages(missed)
    order = size(TREES[missed])
    for stated in range(1, 5):
        if stated < order:
            Tableau(stated, a, b)
        else:
            with pytest.raises(ValueError) as error:
                Tableau(stated, a, b)
            right = F(1, density(TREES[missed]))
            assert str(error.value) == f"a method of order {stated} has {missed} = {right}, got {right + 1}"


def test_a_method_that_meets_all_conditions_is_accepted():
    assert Tableau(4, *eight_stages(None)).num_stages == 8


@pytest.mark.parametrize("name", TABLEAUS)
def test_the_derived_numbers_are_those_of_the_table(name):
    """c_i = sum_j a_ij; the float copies are the nearest floats; stages stay within their step."""
    method = TABLEAUS[name]
    assert method.c == tuple(sum(row, F(0)) for row in method.a)
    assert all(0 <= c <= 1 for c in method.c)
    assert method.num_stages == len(method.b) == len(method.c)
    assert [*map(list, method.float_a)] == [[float(x) for x in row] for row in method.a]
    assert list(method.float_b) == [float(x) for x in method.b]


@pytest.mark.parametrize("name", TABLEAUS)
def test_no_method_has_a_higher_order_than_stated(name):
    """By the conditions of the next order; four stages cannot have order 5 (Butcher 1964)."""
    method = TABLEAUS[name]
    if method.order < 4:
        with pytest.raises(ValueError, match=f"a method of order {method.order + 1} has"):
            replace(method, order=method.order + 1)
    else:
        assert method.num_stages == 4


def solve_y_cos_t(method: Tableau, num_steps: int) -> float:
    """y(1) of dy/dt = y cos t, y(0) = 1, by the formulas of the module's first lines."""
    y, h = 1.0, 1 / num_steps
    for n in range(num_steps):
        slopes: list[float] = []
        for row, c in zip(method.a, method.c):
            stage = y + h * sum(float(x) * k for x, k in zip(row, slopes))
            slopes.append(math.cos((n + float(c)) * h) * stage)
        y += h * sum(float(x) * k for x, k in zip(method.b, slopes))
    return y


@pytest.mark.parametrize("name", TABLEAUS)
def test_the_error_falls_at_the_stated_order(name):
    """dy/dt = y cos t has y(1) = exp(sin 1); it depends on t and on y, so that the nodes count too."""
    coarse, fine = (abs(solve_y_cos_t(TABLEAUS[name], n) - math.exp(math.sin(1))) for n in (64, 128))
    assert math.log2(coarse / fine) == pytest.approx(TABLEAUS[name].order, abs=0.15)


def test_rk4_is_the_classical_method_and_rk4_38_the_three_eighths_rule():
    """torchdiffeq calls the 3/8 rule `rk4`; with weights that depend on depth the two differ."""
    assert TABLEAUS["rk4"].c == (0, F(1, 2), F(1, 2), 1)
    assert TABLEAUS["rk4"].b == (F(1, 6), F(1, 3), F(1, 3), F(1, 6))
    assert TABLEAUS["rk4_38"].c == (0, F(1, 3), F(2, 3), 1)
    assert TABLEAUS["rk4_38"].b == (F(1, 8), F(3, 8), F(3, 8), F(1, 8))


@pytest.mark.parametrize("name", TABLEAUS)
def test_a_fixed_solve_costs_stages_times_steps(name):
    assert Fixed(name, 5).num_evals == 5 * TABLEAUS[name].num_stages


@pytest.mark.parametrize("name", ADAPTIVE_METHODS)
def test_an_adaptive_method_is_described_as_torchdiffeq_has_it(name):
    odeint = pytest.importorskip("torchdiffeq._impl.odeint")
    solver = odeint.SOLVERS[name]
    assert ADAPTIVE_METHODS[name].order == solver.order
    assert ADAPTIVE_METHODS[name].evals_per_step == len(solver.tableau.alpha)


@pytest.mark.parametrize("method", [*TABLEAUS.values(), *MULTISTEPS.values()])
def test_the_floats_of_a_method_are_made_with_it(method):
    """Else torch.compile would meet the lock of `cached_property` (Python 3.11), which it cannot trace."""
    copy = replace(method)
    assert {name for name in vars(type(method)) if name.startswith("float_")} <= set(vars(copy))
