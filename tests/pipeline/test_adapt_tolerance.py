"""The paper's tolerance rule at each of its branches, with numbers done by hand."""

from __future__ import annotations

import math

import pytest
import torch
from solves import Pretended, always, answer, built, check

from gode_core.solvers import parse_solver
from pipeline.adapt import ToleranceRule
from pipeline.adaptation import Answer, Decision


def tolerance_rule(solver="fehlberg2@1e-6", **settings):
    rule = built("tolerance", solver, **settings)
    rule.begin(math.nan)  # ignored
    return rule


def right_below(critical, right=128, wrong=64, **settings):
    return Pretended(lambda s: right if s.method == "dopri5" or s.rtol <= critical else wrong, **settings)


def test_the_test_tolerance_is_a_fifth_or_a_tenth():
    ask = always(100, calls=lambda s: 60 if s.method == "dopri5" else 50)
    check(tolerance_rule("fehlberg2@1e-6"), ask)
    assert ask.asked == ["dopri5@2e-7", "fehlberg2@1.1e-6"]
    ask = always(100, calls=lambda s: 60 if s.rtol < 5e-7 else 50)
    check(tolerance_rule("dopri5@1e-6"), ask)
    assert ask.asked == ["dopri5@1e-7", "dopri5@1.1e-6"]


def test_the_test_tolerance_falls_until_it_costs_more_than_this_iterations_training():
    """As many calls are not more; all of them are counted."""
    cost = {"fehlberg2@1e-6": 40, "dopri5@2e-7": 30, "dopri5@2e-8": 40, "dopri5@2e-9": 41, "fehlberg2@1.1e-6": 39}
    ask = always(100, calls=lambda s: cost[str(s)])
    decision = check(tolerance_rule(), ask)
    assert ask.asked == ["dopri5@2e-7", "dopri5@2e-8", "dopri5@2e-9", "fehlberg2@1.1e-6"]
    assert (decision.reference, decision.num_evals) == ("dopri5@2e-9", 30 + 40 + 41 + 39)


@pytest.mark.parametrize(
    ("start", "last", "tried"), [("1e-3", "2e-10", 7), ("1e-6", "2e-12", 6), ("1e-11", "2e-12", 1)]
)
def test_a_test_solve_that_never_costs_more_ends_the_search(start, last, tried):
    """After six divisions, or before 10^-12."""
    ask = always(100, calls=lambda s: 20)
    decision = check(tolerance_rule(f"fehlberg2@{start}"), ask)
    assert ask.asked[tried - 1] == decision.reference == f"dopri5@{last}"
    assert len(ask.asked) == tried + 1
    assert "no more calls than in training, 20 and 20" in decision.reason


def test_a_stricter_solve_that_fails_is_no_reference():
    """float32 cannot follow every tolerance."""
    broken = Answer(torch.full((128, 2), math.nan), torch.arange(128) % 2, 1000)
    ask = always(100, calls=lambda s: 20)
    rule = tolerance_rule()
    decision = rule.check(lambda s: broken if s.rtol < 1e-8 else ask(s), answer(100, num_evals=20))
    assert decision.reference == "dopri5@2e-8"
    assert decision.num_evals == 20 + 20 + 1000 + 20
    assert "dopri5@2e-9 failed" in decision.reason


def test_the_tolerance_is_halved_where_accuracies_differ():
    rule, ask = tolerance_rule(), right_below(0.9e-6, calls=lambda s: 60 if s.method == "dopri5" else 50)
    decision = check(rule, ask)
    assert decision == Decision(
        "shrink", "fehlberg2@1e-6", "dopri5@2e-7", 0.5, None, None, 0.5, "fehlberg2@5e-7", 60, decision.reason
    )


def growing(solver):
    """More calls for smaller tolerances, 60 and more for dopri5."""
    return (60 if solver.method == "dopri5" else 50) + round(-10 * math.log(solver.rtol))


@pytest.mark.parametrize(("critical", "action", "after"), [(1.2e-6, "grow", "1.1e-6"), (1.05e-6, "keep", "1e-6")])
def test_a_tenth_more_is_taken_if_it_agrees(critical, action, after):
    rule = tolerance_rule()
    decision = check(rule, right_below(critical, calls=growing))
    assert (decision.action, decision.trial, decision.next_solver) == (action, "fehlberg2@1.1e-6", f"fehlberg2@{after}")
    assert decision.trial_difference == (0.0 if action == "grow" else 0.5)


@pytest.mark.parametrize(
    ("past", "action"),
    [([50] * 4, "keep"), ([50] * 3, "grow"), ([52, 50, 50, 50, 50], "keep"), ([50, 52, 50, 50, 50], "grow")],
)
def test_a_growth_without_effect_on_the_calls_is_not_taken(past, action):
    """The trial has 50 calls, as has the iteration that is checked: the fifth of the last five."""
    rule = tolerance_rule()
    for num_evals in past:
        rule.observe(num_evals)
    assert check(rule, always(100, calls=lambda s: 60 if s.method == "dopri5" else 50)).action == action


def test_a_tolerance_stays_below_one():
    rule, ask = tolerance_rule("fehlberg2@0.5"), always(100, calls=growing)
    actions = [check(rule, ask).action for _ in range(12)]
    assert actions[-1] == "keep"
    assert 1 / 1.1 <= rule.solver.rtol < 1
    assert ask.asked[-1].startswith("dopri5")  # no trial


def test_a_tolerance_does_not_shrink_without_end():
    rule, ask = tolerance_rule(), right_below(0)
    found = [check(rule, ask) for _ in range(30)]
    assert [d.action for d in found] == ["shrink"] * 19 + ["limit"] * 11  # 10^-6 / 2^19 = 1.9 10^-12
    assert rule.solver.rtol == pytest.approx(1e-6 / 2**19, rel=1e-5)


def test_tolerances_have_short_names_and_lose_nothing():
    rule = tolerance_rule()
    for _ in range(20):
        check(rule, always(100, calls=growing))
    assert rule.state()["tolerance"] == pytest.approx(1e-6 * 1.1**20, rel=1e-14)
    assert str(rule.solver) == "fehlberg2@6.7275e-6"
    assert rule.solver == parse_solver(str(rule.solver))


def test_it_remembers_five_iterations():
    rule = tolerance_rule()
    for k in range(9):
        rule.observe(k)
    assert rule.state()["usual"] == [4, 5, 6, 7, 8]
    assert ToleranceRule.NUM_USUAL == 5


def test_a_state_that_was_taken_does_not_change_later():
    rule = tolerance_rule()
    rule.observe(3)
    state = rule.state()
    rule.observe(4)
    assert state["usual"] == [3]
    other = tolerance_rule()
    other.restore(state)
    other.observe(5)
    assert state["usual"] == [3]
