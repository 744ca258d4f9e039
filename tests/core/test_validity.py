"""Verdicts from counts: orders of real solvers, and the ladder of step counts."""

from __future__ import annotations

import math
from dataclasses import astuple, replace

import pytest
import torch

from gode_core.integrate import integrate
from gode_core.intervals import paired_interval
from gode_core.solvers import Fixed, parse_solver
from gode_core.validity import (
    Critical,
    Judgement,
    critical_step,
    fitted_order,
    judge,
    may_be_finer,
    next_count,
)


@pytest.mark.parametrize("order", [1, 2.5, -1])
def test_the_order_of_a_power_is_exact(order):
    steps = [1 / n for n in (2, 4, 8, 16)]
    found = fitted_order(steps, [3 * h**order for h in steps])
    assert astuple(found) == pytest.approx((order, 0, 4), abs=1e-12)


def test_the_standard_error_is_that_of_the_textbook():
    """Errors exp(y) at steps exp(x): x = -1, 0, 1 about slope 2 with residuals 1, -2, 1 (sum of squares 6)."""
    found = fitted_order([math.exp(x) for x in (-1, 0, 1)], [math.exp(y) for y in (-2 + 1, -2, 2 + 1)])
    assert astuple(found) == pytest.approx((2, math.sqrt(6 / 1 / 2), 3))


@pytest.mark.parametrize(("method", "order"), [("euler", 1), ("midpoint", 2), ("rk4", 4)])
def test_the_order_of_a_solver(method, order):
    """y' = y cos t, y(0) = 1, has y(1) = exp(sin 1)."""
    counts = (16, 32, 64, 128)
    y0, wanted = torch.ones(1, 1, dtype=torch.float64), math.exp(math.sin(1))
    ends = [integrate(lambda t, y: y * math.cos(t), y0, Fixed(method, n)).h1.item() for n in counts]
    found = fitted_order([1 / n for n in counts], [abs(end - wanted) for end in ends])
    assert found.slope == pytest.approx(order, abs=0.1)
    assert found.standard_error < 0.05


def test_points_without_a_logarithm_are_left_out():
    steps, errors = [1.0, 0.5, 0.25, 0.125, 0.1, 0.05], [2.0, 1.0, 0.5, 0.0, math.inf, math.nan]
    assert astuple(fitted_order(steps, errors)) == pytest.approx((1, 0, 3), abs=1e-12)
    assert fitted_order(steps[1:], errors[1:]) is None
    assert fitted_order([0.5] * 3, [1.0, 2.0, 3.0]) is None
    with pytest.raises(ValueError):
        fitted_order([1.0], [])


LIMIT = Judgement("rk4@1024", 2000, 3, 2)
AGREES = Judgement("rk4@64", 2000, 2, 4, error=0.01)
FAILS = Judgement("midpoint@32", 2000, 400, 10, error=0.05)
DOUBTS = Judgement("euler@99", 2000, 25, 5, error=0.05)  # a gap of a point: neither within the margin nor beyond


def answers(*args, **settings):
    return judge(*args, **settings).verdict


def test_a_model_whose_accuracy_does_not_depend_on_the_solver_is_an_ode():
    verdict = judge(0.1, LIMIT, [AGREES])
    assert (verdict.verdict, verdict.num_finer, verdict.worst_solver) == ("ode", 1, "rk4@64")
    assert (verdict.gap, verdict.worst_gap) == (0.0005, -0.001)
    assert (verdict.gap_low, verdict.gap_high) == paired_interval(3, 2, 2000, 0.975)
    assert (verdict.worst_low, verdict.worst_high) == paired_interval(2, 4, 2000, 0.975)


def test_a_model_that_loses_or_gains_in_the_limit_is_discrete():
    lost, gained = replace(LIMIT, num_lost=300), replace(LIMIT, num_gained=300)
    for limit in (lost, gained):
        assert answers(0.1, limit, [AGREES]) == "discrete"
    assert judge(0.1, lost, []).reason.startswith("in the limit, rk4@1024 loses 14.90 points (13.")
    assert judge(0.1, gained, []).reason.startswith("in the limit, rk4@1024 gains 14.85 points (13.")


def test_a_finer_solver_alone_makes_it_discrete_and_a_coarser_one_never_does():
    """At the same error it still counts."""
    for error, answer in ((0.05, "discrete"), (0.1, "discrete"), (0.1000001, "ode"), (7.0, "ode"), (None, "ode")):
        verdict = judge(0.1, LIMIT, [AGREES, replace(FAILS, error=error)])
        assert (verdict.verdict, verdict.num_finer) == (answer, 2 if answer == "discrete" else 1)
        assert ("midpoint@32" in verdict.reason) == (answer == "discrete")
    assert judge(0.1, LIMIT, [AGREES, FAILS, DOUBTS]).worst_solver == "midpoint@32"


def test_a_coarser_solver_that_agrees_does_not_help():
    for doubtful in (replace(DOUBTS, solver="rk4@1024"), replace(FAILS, solver="rk4@1024")):
        alone = judge(0.1, doubtful, [])
        assert alone.worst_solver is alone.worst_gap is alone.worst_low is alone.worst_high is None
        near = replace(AGREES, solver="rk4@512", error=0.001)
        assert judge(0.1, doubtful, [near]) == judge(0.1, doubtful, [near, replace(AGREES, error=1.0)])


def test_between_the_two_it_is_undecided():
    """Whether the other loses or gains."""
    for doubtful in (DOUBTS, replace(DOUBTS, num_lost=5, num_gained=25)):
        verdict = judge(0.1, LIMIT, [AGREES, doubtful])
        assert verdict.verdict == "undecided"
        assert "euler@99" in verdict.reason
    few = [replace(each, num_samples=200, num_lost=0, num_gained=0) for each in (LIMIT, AGREES)]
    assert answers(0.1, few[0], few[1:]) == "undecided"
    assert answers(0.1, few[0], few[1:], margin=0.05) == "ode"


@pytest.mark.parametrize(
    ("other", "own", "may"),
    [
        ("euler@8", "euler@8", True),
        ("euler@9", "euler@8", True),
        ("euler@7", "euler@8", False),
        ("midpoint@1", "euler@2", True),  # as many evaluations: what it is worth is measured
        ("midpoint@1", "euler@3", False),
        ("rk4@8", "euler@128", False),
        ("rk4@32", "euler@128", True),
        ("euler@1000", "midpoint@4", False),  # of lower order
        ("ab2@8", "midpoint@4", True),
        ("trapezoid@4", "euler@8", False),
        ("dopri5@1e-1", "euler@8", True),
        ("euler@1", "dopri5@1e-5", True),
    ],
)
def test_a_solver_that_is_coarser_by_its_numbers_is_no_judge(other, own, may):
    assert may_be_finer(parse_solver(other), parse_solver(own)) is may


def test_the_margin_that_makes_it_an_ode():
    """At that margin, and no smaller one, the verdict is `ode`, whatever it is at another; a coarser solver has no part
    in it, and without a limit there is none."""
    coarse = replace(FAILS, solver="euler@1", error=7.0)
    for others in ([], [AGREES], [AGREES, DOUBTS], [AGREES, FAILS, coarse]):
        within = judge(0.1, LIMIT, others).ode_within
        assert within == judge(0.1, LIMIT, others, margin=0.3).ode_within
        assert answers(0.1, LIMIT, others, margin=within) == "ode"
        assert answers(0.1, LIMIT, others, margin=0.999 * within) != "ode"
    assert judge(0.1, LIMIT, [AGREES, coarse]).ode_within == judge(0.1, LIMIT, [AGREES]).ode_within
    assert judge(0.1, LIMIT, [AGREES], limit_reached=False).ode_within is None


def test_more_solvers_need_more_evidence():
    """Beyond the margin by little: with one solver more, that is no longer sure."""
    edge = next(k for k in range(2000) if paired_interval(k, 0, 2000, 0.95)[0] > 0.01)
    limit = replace(LIMIT, num_lost=edge, num_gained=0)
    assert answers(0.1, limit, []) == "discrete"
    assert answers(0.1, limit, [AGREES]) == "undecided"
    assert answers(0.1, limit, [AGREES], confidence=0.9) == "discrete"
    edge = next(k for k in range(2000) if paired_interval(k, 0, 2000, 0.95)[1] > 0.01) - 1
    limit = replace(LIMIT, num_lost=edge, num_gained=0)
    assert (answers(0.1, limit, []), answers(0.1, limit, [AGREES])) == ("ode", "undecided")


def test_a_limit_that_was_not_reached_decides_nothing():
    for limit in (LIMIT, replace(LIMIT, num_lost=900, num_failed=1000)):
        verdict = judge(0.1, limit, [AGREES, FAILS], limit_reached=False)
        assert verdict.verdict == "undecided"
        assert "rk4@1024 was given up" in verdict.reason


def test_a_limit_that_became_not_finite_is_a_finding():
    """Then no error exists, and no other solver counts."""
    verdict = judge(None, replace(LIMIT, num_lost=900, num_failed=1000), [replace(AGREES, error=None), FAILS])
    assert (verdict.verdict, verdict.num_finer) == ("discrete", 0)
    assert "1000 of 2000 solves failed" in verdict.reason


@pytest.mark.parametrize("limit", [LIMIT, replace(LIMIT, num_lost=300)], ids=["which agrees", "which does not"])
def test_a_limit_that_its_check_doubts_makes_nothing_discrete(limit):
    """A check more than 2/3 as far from it as the training solver; one solver near to it is enough to believe it."""
    sure, doubted = replace(FAILS, error=0.066), replace(FAILS, error=0.067)
    assert answers(0.1, limit, [sure]) == "discrete"
    for others in ([doubted], [doubted, replace(AGREES, error=0.09)], [replace(doubted, error=7.0)]):
        verdict = judge(0.1, limit, others)
        assert (verdict.verdict, "too inexact" in verdict.reason) == ("undecided", True)
        assert (verdict.limit_check, verdict.limit_check_gap) == ("midpoint@32", others[0].error)
    assert answers(0.1, limit, [doubted, replace(AGREES, error=0.01)]) == "discrete"


def test_under_a_doubted_limit_an_ode_is_one_if_its_check_agrees():
    """However far that is: else two solvers as inexact as each other, and alike, would call any net an ODE."""
    far = replace(AGREES, error=7.0)
    verdict = judge(0.1, LIMIT, [far])
    assert (verdict.verdict, verdict.num_finer, verdict.worst_solver) == ("ode", 1, "rk4@64")
    assert (verdict.gap_low, verdict.gap_high) == paired_interval(3, 2, 2000, 0.975)
    assert answers(0.1, LIMIT, [far, replace(FAILS, error=7.1)]) == "ode"
    assert answers(0.1, LIMIT, [far, replace(FAILS, error=6.9)]) == "undecided"
    assert judge(0.1, LIMIT, []).limit_check is judge(0.1, LIMIT, []).limit_check_gap is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"others": [AGREES, AGREES]}, "`rk4@64` is judged twice"),
        ({"others": [LIMIT]}, "`rk4@1024` is judged twice"),
        ({"others": [replace(AGREES, num_samples=1999)]}, "rk4@64 has 1999, rk4@1024 has 2000"),
        ({"training_error": math.nan}, "the training solver: an error must be finite"),
        ({"training_error": -1.0}, "the training solver: an error must be finite and not negative"),
        ({"margin": 1.0}, r"margin must lie in \(0, 1\)"),
        ({"confidence": 95.0}, r"confidence must lie in \(0, 1\)"),
    ],
)
def test_judgements_that_do_not_belong_together_are_refused(change, message):
    settings = {"training_error": 0.1, "limit": LIMIT, "others": [AGREES]} | change
    with pytest.raises(ValueError, match=message):
        judge(**settings)


def test_an_impossible_judgement_is_refused():
    with pytest.raises(ValueError, match="rk4@8: 6 samples failed, of 5"):
        Judgement("rk4@8", 5, 0, 0, num_failed=6)
    with pytest.raises(ValueError, match="rk4@8: an error must be finite"):
        Judgement("rk4@8", 5, 0, 0, error=math.inf)


@pytest.mark.parametrize(
    ("ladder", "found"),
    [
        ({4: "dd", 8: "do", 16: "oo", 32: "oo"}, (16, 8, True)),
        ({32: "oo", 16: "oo", 4: "dd", 8: "do"}, (16, 8, True)),  # in any order
        ({4: "oo", 8: "oo"}, (4, None, True)),
        ({4: "oo", 8: "ou"}, (None, 8, True)),
        ({4: "oo", 8: "du", 16: "oo", 64: "oo"}, (16, 8, True)),  # not monotone
        ({4: "oo", 8: "oo", 16: "uu"}, (None, 16, True)),
        ({4: "ddd", 8: "oo"}, (8, 4, False)),
        ({4: "d", 8: "", 16: "o"}, (16, 8, False)),
        ({4: "d", 8: "o"}, (8, 4, True)),
        ({}, (None, None, True)),
    ],
)
def test_the_critical_step_of_a_ladder(ladder, found):
    words = {"d": "discrete", "o": "ode", "u": "undecided"}
    verdicts = {n: [words[letter] for letter in letters] for n, letters in ladder.items()}
    assert critical_step(verdicts) == Critical(*found)
    if all(len(letters) == 1 for letters in ladder.values()):
        assert critical_step({n: words[letter] for n, letter in ladder.items()}) == Critical(*found)


def test_an_unknown_verdict_is_refused():
    with pytest.raises(ValueError, match="8 steps: unknown verdict `odd`; known are ode, discrete, undecided"):
        critical_step({4: ["ode"], 8: ["ode", "odd"]})


@pytest.mark.parametrize(("lowest", "highest"), [(1, 128), (4, 4), (2, 1024), (16, 64)])
def test_bisection_finds_the_critical_step_wherever_it_is(lowest, highest):
    """With the fewest trainings that can tell k powers of two, and none of them, apart: log2(k + 1), rounded up."""
    num_powers = (highest // lowest).bit_length()
    for threshold in [lowest << k for k in range(num_powers)] + [2 * highest]:
        verdicts = {}
        while (n := next_count(verdicts, lowest, highest)) is not None:
            assert lowest <= n <= highest
            assert n not in verdicts
            verdicts[n] = "ode" if n >= threshold else ("discrete", "undecided")[n % 3 == 1]
        found = critical_step(verdicts)
        assert found.num_steps == (threshold if threshold <= highest else None)
        assert found.coarser == (threshold // 2 if threshold > lowest else None)
        assert len(verdicts) <= math.ceil(math.log2(num_powers + 1))


@pytest.mark.parametrize(
    ("ladder", "lowest", "highest", "wanted"),
    [
        ({8: "discrete", 64: "ode"}, 1, 1024, 16),  # of 16 and 32 the cheaper
        ({8: "discrete", 16: "ode"}, 1, 1024, None),
        ({4: "ode", 8: "discrete", 128: "ode"}, 1, 1024, 32),  # not monotone: within the upper bracket
        ({4: "ode", 8: "undecided"}, 1, 32, 16),
        ({12: "discrete", 100: "ode"}, 1, 1024, 32),  # counts between powers
        ({12: "discrete", 15: "ode"}, 1, 1024, None),
        ({256: "ode"}, 16, 64, 32),  # from outside
        ({256: "discrete"}, 16, 64, None),
    ],
)
def test_the_next_count(ladder, lowest, highest, wanted):
    assert next_count(ladder, lowest, highest) == wanted


@pytest.mark.parametrize(("lowest", "highest"), [(0, 8), (3, 8), (1, 12), (8, 4), (-2, 8)])
def test_ends_that_are_no_powers_of_two_are_refused(lowest, highest):
    with pytest.raises(ValueError, match="powers of two"):
        next_count({}, lowest, highest)
