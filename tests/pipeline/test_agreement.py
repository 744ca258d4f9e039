"""Our rule on pretended nets whose true distances are known: where it ends, how often it errs, what it cannot do."""

from __future__ import annotations

import math

import pytest
import torch
from solves import Net, built, check

from gode_core.solvers import Fixed
from pipeline.adaptation import Answer
from pipeline.agreement import distances, extrapolated, other_classes

LIMIT = 10**9  # steps


def true_distance(error, one, other):
    """Of n = one and n = other steps of Euler's method, over very many images."""
    net = Net(error, size=50_000, seed=99)
    return distances(net(Fixed("euler", one)), net(Fixed("euler", other))).mean().item()


def error_with(distance, one, other):
    """The `error` that has this true distance between two counts, by bisection."""
    low, high = 0.0, 1000.0
    for _ in range(22):
        middle = (low + high) / 2
        low, high = (middle, high) if true_distance(middle, one, other) < distance else (low, middle)
    return low


def begun(n, most=500, **settings):
    rule = built("agreement", f"euler@{most}", **settings)
    rule.begin(1 / n)
    return rule


def test_distances_by_hand():
    """softmax of (0, log 3) is (1/4, 3/4); against (1/2, 1/2) the total variation is 1/4."""
    logits = torch.tensor([[0.0, math.log(3)], [2.0, 2.0], [50.0, -50.0], [math.nan, 1.0], [0.0, math.inf], [1.0, 2.0]])
    other = torch.tensor([[1.0, 1.0], [-1.0, -1.0], [-50.0, 50.0], [0.0, 1.0], [0.0, 1.0], [1.0, math.nan]])
    labels = torch.zeros(6, dtype=torch.long)
    one, two = Answer(logits, labels, 0), Answer(other, labels, 0)
    assert distances(one, two).tolist() == pytest.approx([0.25, 0, 1, 1, 1, 1], abs=1e-7)
    assert torch.equal(distances(one, two), distances(two, one))
    assert other_classes(one, two).tolist() == [1, 0, 1, 1, 1, 1]


def test_of_three_classes_the_distance_is_half_the_sum():
    p, q = torch.tensor([[0.5, 0.3, 0.2]]), torch.tensor([[0.2, 0.2, 0.6]])
    labels = torch.zeros(1, dtype=torch.long)
    assert distances(Answer(p.log(), labels, 0), Answer(q.log(), labels, 0)).item() == pytest.approx(0.4)


@pytest.mark.parametrize(("method", "order"), [("euler", 1), ("midpoint", 2), ("rk4", 4)])
def test_the_limit_is_exact_where_the_error_is_a_power(method, order):
    """And a net whose classes change beyond 2n steps alone is seen to be far: 2n are half the way of Euler's method."""
    net = Net(error=3**order, size=50)
    coarse, fine = net(Fixed(method, 3)), net(Fixed(method, 6))
    torch.testing.assert_close(extrapolated(coarse, fine, order).logits, net(Fixed(method, LIMIT)).logits)
    late = [Answer(torch.tensor([[0.0, 3.0 - far]]), torch.tensor([1]), 0) for far in (0, 2, 4)]  # n, 2n, the limit
    assert distances(late[0], late[1]).item() < 0.25
    assert other_classes(late[0], late[1]).item() == 0
    assert other_classes(late[0], extrapolated(late[0], late[1], 1)).item() == 1


@pytest.mark.parametrize(
    ("step", "most", "count"), [(0.12, 500, 9), (0.12, 6, 6), (2.0, 9, 1), (1e-6, 64, 64), (0.0, 8, 8)]
)
def test_it_starts_with_the_count_of_the_first_step(step, most, count):
    rule = built("agreement", f"euler@{most}")
    decision = rule.begin(step)
    assert rule.solver == Fixed("euler", count)
    assert (decision.action, decision.next_solver, decision.num_evals) == ("start", f"euler@{count}", 0)


def test_far_answers_double_the_count_and_cost_two_solves():
    rule, net = begun(9), Net(error=60)
    decision = check(rule, net)
    assert net.asked == ["euler@9", "euler@18"]
    assert (decision.action, decision.solver, decision.reference) == ("shrink", "euler@9", "euler@18")
    assert (decision.next_solver, decision.num_evals, decision.trial) == ("euler@18", 27, None)
    assert decision.accuracy is not None
    assert decision.difference == pytest.approx(true_distance(60, 9, LIMIT), abs=0.04)


@pytest.mark.parametrize(("shrink", "counts"), [(0.5, [18, 36, 40, 40]), (0.7, [13, 19, 28, 40])])
def test_the_most_steps_bound_it(shrink, counts):
    rule, net = begun(9, most=40, shrink=shrink), Net(error=300)
    found = [check(rule, net) for _ in range(5)]
    assert [d.next_solver for d in found[:4]] == [f"euler@{n}" for n in counts]
    assert (found[4].action, found[4].next_solver) == ("limit", "euler@40")


def test_the_trained_batch_is_not_looked_at():
    rule, net = begun(9), Net(error=60)
    assert rule.check(net, None).action == "shrink"  # type: ignore[arg-type]


@pytest.mark.parametrize("patience", [1, 2, 4])
def test_it_grows_after_so_many_allowed_checks_in_a_row(patience):
    rule, net = begun(100, patience=patience), Net(error=2)
    found = [check(rule, net) for _ in range(3 * patience)]
    assert [d.action for d in found] == (["keep"] * (patience - 1) + ["grow"]) * 3
    assert [d.next_solver for d in found[patience - 1 :: patience]] == ["euler@80", "euler@64", "euler@51"]
    assert (found[0].trial, found[0].num_evals) == ("euler@80", 100 + 200 + 80)


@pytest.mark.parametrize("interruption", [{"error": 60.0}, {"error": 200.0}, {"error": 2.0, "knows": False}])
def test_whatever_else_happens_begins_the_count_of_allowed_checks_again(interruption):
    """A trial that is too far, a shrinking, and a net that guesses."""
    rule, calm, storm = begun(100, patience=3), Net(error=2), Net(**interruption)
    actions = [check(rule, net).action for net in (calm, calm, storm, calm, calm, calm)]
    assert actions[2] != "grow"
    assert actions[3:] == ["keep", "keep", "grow"]


def test_there_is_nothing_below_one_step():
    rule, net = begun(3, patience=1), Net(error=0)
    found = [check(rule, net) for _ in range(4)]
    assert [d.next_solver for d in found] == ["euler@2", "euler@1", "euler@1", "euler@1"]
    assert [d.action for d in found] == ["grow", "grow", "keep", "keep"]
    assert found[3].trial is None


def test_a_net_at_chance_does_not_grow():
    """The paper's rule comes down to one step here. 5 % of the checks may take luck for knowledge, two in a row do not
    come often, and each growth takes two."""
    rule, net = begun(64), Net(error=0, knows=False)
    actions = [check(rule, net).action for _ in range(100)]
    assert "shrink" not in actions
    assert actions.count("grow") <= 2
    same_label = Net(error=0)
    same_label.renew = lambda: same_label.labels.zero_()  # one label alone: nothing shows that anything was learnt
    same_label.margin.abs_().neg_()
    assert check(rule, same_label).accuracy == 1
    assert [check(rule, same_label).action for _ in range(5)] == ["keep"] * 5


def test_small_logits_do_not_hide_that_answers_differ():
    """At the start of a training all probabilities are near 1/2, and so is their distance near 0, with any solver."""
    rule, net = begun(16, patience=1), Net(error=60, scale=0.01)
    decision = check(rule, net)
    assert decision.difference < 0.012
    assert decision.trial_difference < 0.012
    assert decision.accuracy > 0.6
    assert (decision.action, decision.next_solver) == ("keep", "euler@16")


@pytest.mark.parametrize("start", [2, 30, 500])
def test_it_comes_to_the_critical_count_and_stays(start):
    """Critical: n = 40, whose true distance to the limit is the threshold. From above it comes to rest where n / 1.25
    is not surely below it."""
    error = error_with(0.02, 40, LIMIT)
    rule, net = begun(start), Net(error, size=1000)
    for _ in range(60):
        check(rule, net)
    found = [check(rule, net) for _ in range(300)]
    assert {d.action for d in found} <= {"keep", "grow"}  # no false alarm
    assert all(40 <= int(d.next_solver.partition("@")[2]) <= 80 for d in found)


def test_a_distance_at_the_threshold_gives_false_alarms_as_often_as_stated():
    """5 % of 600 checks: 30 -+ 5.3; and never at half the threshold, nearly always at twice."""
    alarms = {}
    for times, checks in ((0.5, 200), (1, 600), (2, 200)):
        net, rule = Net(error_with(0.02 * times, 40, LIMIT), size=1000, seed=5), begun(40)
        state = rule.state()
        alarms[times] = 0
        for _ in range(checks):
            alarms[times] += check(rule, net).action == "shrink"
            rule.restore(state)
    assert alarms[0.5] == 0
    assert 10 <= alarms[1] <= 30 + 3 * 5.3
    assert alarms[2] > 180


def test_a_trial_at_the_threshold_is_allowed_as_seldom_as_stated():
    """Of n' = 32; patience 1. Alarms and permissions are both errors here. At a third of it, most are allowed."""
    grown = {}
    for times in (1, 1 / 3):
        net, rule = Net(error_with(0.02 * times, 32, LIMIT), size=1000, seed=6), begun(40, patience=1)
        state, grown[times] = rule.state(), 0
        for _ in range(600):
            grown[times] += check(rule, net).action == "grow"
            rule.restore(state)
    assert grown[1] <= 30 + 3 * 5.3
    assert grown[1 / 3] > 400


def test_more_confidence_decides_less():
    error, counts = error_with(0.0215, 40, LIMIT), []
    for confidence in (0.8, 0.95, 0.999):
        net, rule = Net(error, size=200, seed=7), begun(40, confidence=confidence)
        state = rule.state()
        counts.append(0)
        for _ in range(200):
            counts[-1] += check(rule, net).action == "shrink"
            rule.restore(state)
    assert counts[0] > counts[1] + 10 > counts[2] + 20


def test_solves_that_are_not_finite_are_far_and_wrong():
    rule = begun(8)
    labels = torch.arange(100) % 2
    good = torch.stack([1.0 - labels, labels.float()], 1) * 20

    def ask(solver):
        return Answer(good if solver.num_steps > 8 else good * math.nan, labels, solver.num_evals)

    decision = rule.check(ask, ask(rule.solver))
    assert (decision.action, decision.difference, decision.accuracy) == ("shrink", 1.0, 0.0)


def test_one_image_decides_nothing():
    """Not even where 8 and 16 steps give opposite classes."""
    rule = begun(8)
    answers = {n: Answer(torch.tensor([[0.0, 12.0 - n]]), torch.tensor([1]), n) for n in (8, 16)}
    decision = rule.check(lambda solver: answers[solver.num_steps], answers[8])
    assert (decision.action, decision.reference, decision.trial) == ("keep", "euler@16", None)


def test_a_distance_that_may_be_above_the_threshold_costs_no_trial():
    rule, net = begun(40), Net(error_with(0.019, 40, LIMIT))
    decision = check(rule, net)
    assert (decision.action, decision.trial, decision.num_evals) == ("keep", None, 40 + 80)


@pytest.mark.parametrize("size", [64, 148, 149, 512])
def test_a_share_of_other_classes_at_the_threshold_is_allowed_as_seldom_as_stated(size):
    """5 % at most, of 400 checks, of any number of images, and never with fewer than 149: where none of them has
    another class, that says little. All probabilities are near 1/2, so that the distance hides it."""
    rule, generator, grown = begun(40, patience=1), torch.Generator().manual_seed(size), 0
    state = rule.state()
    for _ in range(400):
        labels = torch.randint(0, 2, (size,), generator=generator)
        others = torch.rand(size, generator=generator) < 0.02
        good = 1e-3 * torch.nn.functional.one_hot(labels, 2).double()

        def ask(solver, good=good, others=others, labels=labels):
            turned = others & (solver.num_steps < 40)
            return Answer(torch.where(turned[:, None], good.flip(1), good), labels, solver.num_evals)

        grown += rule.check(ask, ask(rule.solver)).action == "grow"
        rule.restore(state)
    assert grown <= (20 + 3 * 4.4 if size >= 149 else 0)


@pytest.mark.parametrize(("apart", "action"), [(0.035, "grow"), (0.038, "keep")])
def test_a_trial_must_be_below_the_threshold_beyond_doubt(apart, action):
    """Half of 200 images are `apart`, half are not, and no class changes: the mean is apart / 2, its standard error
    apart / 2 / sqrt(199). 0.0175 (1 + 1.645 / 14.1) = 0.0195; 0.019 (1 + ...) = 0.0212, though the mean is below 0.02.
    """
    labels = torch.arange(200) // 100
    sure = torch.full((200,), 0.9, dtype=torch.float64)
    other = torch.where(torch.arange(200) % 2 == 0, sure - apart, sure)

    def ask(solver):
        p = other if solver.num_steps == 8 else sure
        p = torch.where(labels == 1, p, 1 - p)
        return Answer(torch.stack([1 - p, p], 1).log(), labels, solver.num_evals)

    rule = begun(10, patience=1)
    decision = rule.check(ask, ask(rule.solver))
    assert (decision.action, decision.trial_difference) == (action, pytest.approx(apart / 2))


@pytest.mark.parametrize(("method", "evals"), [("midpoint", 2), ("rk4", 4), ("ab2", 1)])
def test_any_method_with_fixed_steps_will_do(method, evals):
    rule, net = built("agreement", f"{method}@100"), Net(error=1)
    rule.begin(1 / 20)
    decision = check(rule, net)
    assert net.asked == [f"{method}@20", f"{method}@40", f"{method}@16"]
    extra = 3 if method == "ab2" else 0  # each solve starts with one midpoint step
    assert decision.num_evals == (20 + 40 + 16) * evals + extra
