"""The paper's step rule at each of its branches, with numbers done by hand; what all rules have in common."""

from __future__ import annotations

import dataclasses
import json
import math
import random

import pytest
import torch
from solves import SOLVERS, Net, Pretended, always, built, calls, check

from gode_core.solvers import Adaptive, Fixed, parse_solver
from pipeline import adapt
from pipeline.adaptation import Answer, Decision, num_steps
from pipeline.records import DecisionRecord, to_line


def begun(step, solver="euler@500", **settings):
    rule = built("step", solver, **settings)
    rule.begin(step)
    return rule


def right_from(critical, right=128, wrong=64):
    """Right with so many Euler steps or more, and with any finer method."""
    return Pretended(lambda s: right if s.method != "euler" or s.num_steps >= critical else wrong)


# --- StepRule


def test_a_count_is_free_of_the_noise_of_its_inverse():
    assert all(num_steps(1 / n) == n for n in range(1, 3000))
    assert num_steps(1 / (1 / (1 / 49))) == 49
    assert [num_steps(h) for h in (1, 0.999, 0.5, 0.3, 1 / 3.0001)] == [1, 2, 2, 4, 4]


@pytest.mark.parametrize(
    ("solver", "step", "finer"),
    [
        ("euler@500", 1 / 100, "midpoint@100"),  # 1/h = 100 > 50: h' = h
        ("euler@500", 1 / 8, "midpoint@20"),  # h'^2 = 1/8/50 = 1/400
        ("euler@500", 1.0, "midpoint@8"),  # 1/h' = sqrt(50) = 7.07
        ("midpoint@500", 1 / 10, "rk4@10"),  # 1/h^2 = 100 > 50
        ("midpoint@500", 1 / 4, "rk4@6"),  # h'^4 = 1/16/50: 1/h' = 800^(1/4) = 5.32
        ("midpoint@500", 1.0, "rk4@3"),  # 50^(1/4) = 2.66
    ],
)
def test_the_finer_solver_of_the_paper(solver, step, finer):
    assert str(begun(step, solver).finer) == finer


@pytest.mark.parametrize(("step", "finer"), [(1 / 10, "rk4@10"), (1 / 4, "rk4@4"), (1 / 2, "rk4@4"), (1.0, "rk4@3")])
def test_the_general_form_gives_the_papers_third_pair_too(step, finer, monkeypatch):
    """Euler and rk4: h' = h if 1/h^3 > 50 (64 is), else (h/50)^(1/4), with 1/h' = 100^(1/4) = 3.16 and 50^(1/4)."""
    monkeypatch.setitem(adapt.FINER, "euler", "rk4")
    assert str(begun(step).finer) == finer


@pytest.mark.parametrize("solver", ["euler@10000", "midpoint@10000"])
def test_the_finer_step_is_about_as_many_times_more_exact_as_wanted(solver):
    for step in (1.0, 0.3, 0.1, 0.03, 0.01, 0.003):
        rule = begun(step, solver)
        p, q = rule.solver.order, rule.finer.order
        assert (1 / rule.finer.num_steps) ** q <= 1.0001 * step**p / 50


@pytest.mark.parametrize(
    ("step", "count"), [(0.12, 9), (3.0, 1), (1e-6, 500), (0.0, 500), (math.nan, 500), (math.inf, 500), (1.0, 1)]
)
def test_the_first_step_lies_between_one_and_the_most(step, count):
    rule = built("step")
    decision = rule.begin(step)
    assert rule.solver == Fixed("euler", count)
    assert (decision.action, decision.solver, decision.next_solver) == ("start", None, f"euler@{count}")
    assert decision.num_evals == 0


@pytest.mark.parametrize(
    ("trained", "reference", "size", "action"),
    [
        (116, 128, 128, "grow"),
        (115, 128, 128, "shrink"),
        (128, 115, 128, "shrink"),
        (7, 8, 10, "grow"),
        (7, 9, 10, "shrink"),
    ],
)
def test_a_difference_of_a_tenth_is_allowed_and_more_is_not(trained, reference, size, action):
    """12/128 = 0.094, 13/128 = 0.102; 8/10 and 7/10 differ by a tenth, though 0.8 - 0.7 > 0.1 in floats."""
    ask = Pretended(lambda s: reference if s.method == "midpoint" or s.num_steps < 50 else trained, size)
    assert check(begun(0.02), ask).action == action


def test_shrinking_halves_the_step_and_asks_nothing_more():
    rule, ask = begun(0.02), right_from(51)
    decision = check(rule, ask)
    assert rule.state() == {"h": 0.01}
    assert ask.asked == ["midpoint@50"]
    assert decision == Decision(
        "shrink", "euler@50", "midpoint@50", 0.5, None, None, 0.5, "euler@100", 2 * 50, decision.reason
    )
    assert "h from 0.02 to 0.01" in decision.reason


def test_growing_by_a_tenth_is_tried_on_the_same_batch():
    rule, ask = begun(0.02), right_from(46)
    decision = check(rule, ask)
    assert ask.asked == ["midpoint@50", "euler@46"]  # 1 / 0.022 = 45.45
    assert rule.state()["h"] == pytest.approx(0.022, rel=1e-15)
    assert decision == Decision(
        "grow", "euler@50", "midpoint@50", 0.0, "euler@46", 0.0, 1.0, "euler@46", 100 + 46, decision.reason
    )


def test_a_growth_that_differs_is_not_taken():
    rule, ask = begun(0.02), right_from(47)
    decision = check(rule, ask)
    assert rule.state() == {"h": 0.02}
    assert (decision.action, decision.trial, decision.trial_difference) == ("keep", "euler@46", 0.5)
    assert decision.num_evals == 100 + 46


def test_a_trial_is_compared_with_the_finer_method_and_not_with_the_training():
    """Training 12 below the reference, the trial 12 above: 24 apart, and taken."""
    counts = {"midpoint@50": 100, "euler@50": 88, "euler@46": 112}
    assert check(begun(0.02), Pretended(lambda s: counts[str(s)])).action == "grow"


def test_a_growth_within_the_same_count_is_solved_too():
    rule, ask = begun(0.3), always(100)
    decision = check(rule, ask)
    assert ask.asked[1] == "euler@4"
    assert rule.state()["h"] == pytest.approx(0.33)
    assert (decision.action, decision.solver, decision.next_solver) == ("grow", "euler@4", "euler@4")


def test_the_step_ends_at_one():
    rule = begun(0.95)
    assert [check(rule, always(100)).action for _ in range(3)] == ["grow", "keep", "keep"]
    assert rule.state() == {"h": 1.0}


def test_towards_the_most_steps_the_count_goes_half_the_way():
    rule, ask = begun(1 / 300), right_from(10**6)
    found = [check(rule, ask) for _ in range(10)]
    assert [d.next_solver for d in found] == [f"euler@{n}" for n in (400, 450, 475, 488, 494, 497, 499, 500, 500, 500)]
    assert [d.action for d in found] == ["shrink"] * 8 + ["limit"] * 2
    assert "no more steps are allowed" in found[-1].reason


def test_a_doubling_that_just_fits_is_made():
    rule = begun(1 / 250)
    assert check(rule, right_from(10**6)).next_solver == "euler@500"


def test_at_chance_the_papers_rule_comes_down_to_one_step():
    """Its known weakness: every solver is as good as any other there."""
    rule, ask = begun(1 / 50), always(64)
    needed = math.ceil(math.log(50) / math.log(1.1))
    assert [check(rule, ask).action for _ in range(needed)] == ["grow"] * needed
    assert rule.solver == Fixed("euler", 1)


@pytest.mark.parametrize("step", [1.0, 0.12, 1 / 200, 1 / 500])
def test_it_ends_within_one_growth_of_the_critical_count(step):
    rule, ask = begun(step), right_from(40)
    for _ in range(60):
        check(rule, ask)
    for _ in range(40):
        check(rule, ask)
        assert 40 <= rule.solver.num_steps <= math.ceil(40 * 1.1)


def test_a_critical_count_that_moves_is_followed_in_a_saw_tooth():
    """A net that gets used to coarse steps asks for finer ones: h is halved, climbs, is halved."""
    rule, critical, counts, actions = begun(0.02), 40, [], []
    for k in range(300):
        critical = 60 if k % 25 == 0 and k else 40 if k % 25 == 1 else critical
        actions.append(check(rule, right_from(critical)).action)
        counts.append(rule.solver.num_steps)
    assert actions.count("shrink") == 11
    assert actions.count("grow") > 60
    assert (min(counts[30:]), max(counts[30:])) == pytest.approx((42, 86), abs=4)


def test_what_is_not_finite_is_wrong():
    logits = torch.tensor([[math.nan, 1.0], [math.inf, 0.0], [0.0, -math.inf], [2.0, 1.0]])
    found = Answer(logits, torch.zeros(4, dtype=torch.long), 0)
    assert (found.num_right, found.accuracy) == (1, 0.25)


# --- all rules


@pytest.mark.parametrize("rule", SOLVERS)
def test_checks_come_after_49_steps_and_then_every_50(rule):
    assert [step for step in range(200) if built(rule).due(step)] == [49, 99, 149, 199]
    assert [step for step in range(7) if built(rule, every=1).due(step)] == list(range(7))


@pytest.mark.parametrize(("rule", "held_out"), [("step", False), ("tolerance", False), ("agreement", True)])
def test_who_looks_at_held_out_images(rule, held_out):
    assert built(rule).held_out is held_out


@pytest.mark.parametrize(
    ("rule", "solver"),
    [("step", "rk4@8"), ("step", "dopri5@1e-3"), ("tolerance", "euler@8"), ("agreement", "dopri5@1e-3")],
)
def test_a_solver_that_a_rule_cannot_change_is_refused(rule, solver):
    with pytest.raises(ValueError, match=f"the rule {rule} "):
        built(rule, solver)


class Moody(Net):
    """As near to an ODE, at each check, as chance will have it."""

    def renew(self):
        super().renew()
        self.error = 120 * torch.rand((), generator=self.generator).item() ** 4


def noisy(rule, seed):
    """As any net may answer, from one seed."""
    draw = random.Random(seed)
    noise = Pretended(lambda s: draw.choice([100, 108, 116, 128]), calls=lambda s: calls(s) + draw.randrange(3))
    return Moody(0, size=200, seed=seed) if rule == "agreement" else noise


@pytest.mark.parametrize("rule", SOLVERS)
def test_a_rule_that_was_stored_goes_on_as_if_nothing_had_been(rule):
    """Through a file, bit for bit, whenever."""
    whole, ask, decisions, states = built(rule), noisy(rule, 1), [], []
    whole.begin(0.11)
    for _ in range(40):
        states.append(json.dumps(whole.state(), allow_nan=False))
        decisions.append(check(whole, ask))
    assert {"shrink", "keep", "grow"} <= {d.action for d in decisions}
    for middle in (1, 17, 30):
        ask, resumed = noisy(rule, 1), built(rule)
        played = built(rule)
        played.begin(0.11)
        for _ in range(middle):
            check(played, ask)
        resumed.restore(json.loads(states[middle]))
        assert [check(resumed, ask) for _ in range(middle, 40)] == decisions[middle:]


@pytest.mark.parametrize("rule", SOLVERS)
def test_a_decision_is_a_record_without_the_jobs_part(rule):
    names = [f.name for f in dataclasses.fields(DecisionRecord)]
    assert [f.name for f in dataclasses.fields(Decision)] == [n for n in names if n not in ("job", "code", "step")]
    adaptation, ask = built(rule), noisy(rule, 2)
    for decision in (adaptation.begin(0.1), *(check(adaptation, ask) for _ in range(8))):
        record = DecisionRecord("job", "code", 49, **vars(decision))
        assert json.loads(to_line(record)) == vars(record)  # no number that JSON lacks
        assert str(parse_solver(decision.next_solver)) == decision.next_solver
        assert any(c.isdigit() for c in decision.reason)
    assert decision.next_solver == str(adaptation.solver)
    assert isinstance(adaptation.solver, Fixed | Adaptive)
