"""A rule for the solver at work in small trainings: decisions that count exactly, that survive interruptions to the
bit, and that leave the training itself alone."""

import math
from functools import cache
from pathlib import Path

import pytest
import torch
from small import on_cpu, small_job, write_job

from gode_core.bases import constant
from gode_core.fields import preactivation
from gode_core.networks import stage_network
from gode_core.solvers import FIXED_METHODS, parse_solver
from gode_core.starting import starting_step
from pipeline import adapting
from pipeline.adaptation import Decision
from pipeline.config import job_id
from pipeline.records import DecisionRecord, TrainingRecord, read_records
from pipeline.train import train
from pipeline.training import Training

SPHERES = {"name": "spheres", "dimension": 2, "num_train": 208, "num_validation": 60}
RULES = {
    "step": {"solver": "euler@16", "adapt": {"rule": "step", "every": 2}},
    "step, midpoint": {"solver": "midpoint@8", "adapt": {"rule": "step", "every": 3, "threshold": 0.01}},
    "tolerance": {"solver": "fehlberg2@1e-2", "adapt": {"rule": "tolerance", "every": 2}},
    "tolerance, dopri5": {"solver": "dopri5@1e-3", "adapt": {"rule": "tolerance", "every": 3, "threshold": 0.01}},
    "agreement": {"solver": "euler@16", "lr": 0.3, "adapt": {"rule": "agreement", "every": 2, "confidence": 0.6}},
}
STEPS, EPOCHS = 4, 3  # an epoch's batches: 64, 64, 64 and 16 points
CHECKED = {2: [1, 3, 5, 7, 9], 3: [2, 5, 8]}  # `every` -> the steps that are checked: the last, 11, never is


def job(rule="step", seed=0, data=None, model=None, **train):
    """Of large steps, so that a short training sees a rule act."""
    model = {"width": 16, "pad_channels": None} | (model or {})
    return small_job(seed, SPHERES | (data or {}), model, **({"epochs": EPOCHS, "lr": 0.05} | RULES[rule] | train))


def finish(root: Path, config, stops=()):
    """Paths and name of the job, interrupted after so many steps of each attempt."""
    paths, name = write_job(root, config)
    for stop in stops:
        left = iter(range(stop - 1, -1, -1))
        assert not train({name: config}, paths, on_cpu(), lambda left=left: next(left) == 0)
    assert train({name: config}, paths, on_cpu(), lambda: False)
    return paths, name


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """Paths and name of a rule's small job, trained once and not interrupted; not to be changed."""
    return cache(lambda rule: finish(tmp_path_factory.mktemp("finished"), job(rule)))


def files(paths, name):
    found = (paths.model(name), paths.training(name), paths.decisions(name), paths.weights(name))
    return [Path(path).read_bytes() for path in found]


def decisions(paths, name):
    return read_records(DecisionRecord, paths.decisions(name))


def rows(paths, name):
    return read_records(TrainingRecord, paths.training(name))


@pytest.mark.parametrize("rule", RULES)
def test_one_decision_at_the_start_and_one_for_each_check_that_is_due(finished, rule):
    config = job(rule)
    found = decisions(*finished(rule))
    assert config.train.adapt is not None
    assert [d.step for d in found] == [0, *CHECKED[config.train.adapt.every]]
    assert [d.action == "start" for d in found] == [True, *[False] * (len(found) - 1)]
    assert {d.job for d in found} == {job_id(config)}


@pytest.mark.parametrize("rule", RULES)
def test_each_decision_is_about_the_solver_that_the_one_before_has_set(finished, rule):
    found = decisions(*finished(rule))
    assert found[0].solver is None
    assert [d.solver for d in found[1:]] == [d.next_solver for d in found[:-1]]


def test_the_small_jobs_see_their_rules_act(finished):
    """Else the other tests would say nothing of what changes."""
    acted = {rule: {d.action for d in decisions(*finished(rule))} for rule in RULES}
    assert all(actions & {"shrink", "grow"} for actions in acted.values()), acted


@pytest.mark.parametrize("rule", RULES)
def test_their_field_evaluations_are_those_of_the_training_records(finished, rule):
    """check_evals is a mean over the steps of the epoch that it is a record of."""
    paths, name = finished(rule)
    found, recorded = decisions(paths, name), rows(paths, name)
    for before, row in zip([0, *(r.step for r in recorded)], recorded):
        spent = sum(d.num_evals for d in found if before <= d.step < row.step)
        assert row.check_evals == pytest.approx(spent / STEPS, rel=1e-12)
    assert sum(d.num_evals for d in found) == pytest.approx(sum((r.check_evals or 0) * STEPS for r in recorded))


@pytest.mark.parametrize("rule", ["step", "step, midpoint", "agreement"])
def test_a_step_rule_begins_with_two_evaluations_a_block(finished, rule):
    start = decisions(*finished(rule))[0]
    assert start.num_evals == 2


@pytest.mark.parametrize("rule", ["tolerance", "tolerance, dopri5"])
def test_a_tolerance_begins_with_none_and_the_jobs_own(finished, rule):
    start = decisions(*finished(rule))[0]
    assert (start.num_evals, start.next_solver) == (0, job(rule).train.solver)


@pytest.mark.parametrize("rule", RULES)
def test_a_record_has_the_solver_that_the_rule_stands_at(finished, rule):
    """At the end of its epoch, with which it is validated."""
    paths, name = finished(rule)
    found = decisions(paths, name)
    for row in rows(paths, name):
        assert row.solver == [d for d in found if d.step < row.step][-1].next_solver


@pytest.mark.parametrize("rule", ["step", "step, midpoint", "agreement"])
def test_the_training_steps_are_made_with_the_solver_that_was_set(finished, rule):
    """A step's calls are those of the solver of the last decision before it; the check comes after the step."""
    paths, name = finished(rule)
    found = decisions(paths, name)
    used = [
        [d for d in found if d.step < step or d.action == "start"][-1].next_solver for step in range(STEPS * EPOCHS)
    ]
    calls = [parse_solver(solver).num_evals for solver in used]  # type: ignore[union-attr]
    for i, row in enumerate(rows(paths, name)):
        assert row.num_evals == pytest.approx(sum(calls[i * STEPS : (i + 1) * STEPS]) / STEPS)


@pytest.mark.parametrize("rule", RULES)
def test_interrupted_equals_uninterrupted_bit_for_bit(tmp_path, finished, rule):
    """Stopped on both sides of a check, after the first step, and at the end of an epoch. Decisions too."""
    config, whole = job(rule), files(*finished(rule))
    assert files(*finish(tmp_path / "around a check", config, [1, 1, 1, 3])) == whole
    assert files(*finish(tmp_path / "at an epoch's end", config, [4, 2, 5])) == whole


@pytest.mark.parametrize("rule", RULES)
def test_state_and_restore_are_inverse_after_each_step(rule):
    config = job(rule)
    training = Training(config, "job", on_cpu())
    while not training.finished:
        training.run_epoch(lambda: True)
        again = Training(config, "job", on_cpu())
        again.restore(training.state())
        assert str(again.state()) == str(training.state())
        assert str(again.solver) == str(training.solver)
        training = again


def test_a_rule_that_changes_nothing_leaves_the_training_as_it_is(monkeypatch):
    """Asked at each step, it keeps the solver: the weights are those of the job without it, bit for bit."""
    checked = Training(job("tolerance", adapt={"rule": "tolerance", "every": 1}), "", on_cpu())
    plain = Training(job("tolerance", adapt=None), "", on_cpu())
    assert checked.adapting is not None
    rule = checked.adapting.rule
    monkeypatch.setattr(rule, "check", lambda ask, trained: _keep(rule, ask))
    for training in (plain, checked):
        training.run_epoch(lambda: False)
    networks = plain.learner.network, checked.learner.network
    assert all(torch.equal(p, q) for p, q in zip(*(network.parameters() for network in networks), strict=True))
    assert len(checked.adapting.decisions) == 1 + STEPS


def _keep(rule, ask):
    """A decision that has asked and sets nothing."""
    reference = ask(parse_solver("rk4@4"))
    return Decision.check(rule.solver, rule.solver, 0.0, 0.0, "keep", rule.solver, reference.num_evals, "")


@pytest.mark.parametrize("rule", ["step", "tolerance", "agreement"])
def test_what_a_check_looks_at(monkeypatch, rule):
    """The paper's rules: the batch of the step. Ours: validation images, as many as there are up to the limit, others
    at each check, and none of the training's."""
    monkeypatch.setattr(adapting, "NUM_HELD_OUT", 40)
    config = job(rule)
    training = Training(config, "", on_cpu())
    asked, batches = [], []
    ask, step = adapting.Adapting._ask, Training._train_on
    monkeypatch.setattr(adapting.Adapting, "_ask", lambda self, *given: (asked.append(given), ask(self, *given))[1])
    monkeypatch.setattr(Training, "_train_on", lambda self, *batch: (batches.append(batch), step(self, *batch))[1])
    training.run_epoch(lambda: False)
    assert training.adapting is not None
    checks = [{tuple(p) for p in images.flatten(1).tolist()} for _, images, _, _ in asked]
    trained = [{tuple(p) for p in images.flatten(1).tolist()} for images, _ in batches]
    if rule == "agreement":
        assert training.validation is not None
        there = {tuple(p) for p in training.validation.images.flatten(1).tolist()}
        assert all(len(points) == 40 and points <= there for points in checks)
        assert not there & set.union(*trained)
        assert len({frozenset(points) for points in checks}) == 2  # two checks in an epoch
        by_point = dict(zip(map(tuple, training.validation.images.flatten(1).tolist()), training.validation.labels))
        for _, images, labels, _ in asked:
            assert [by_point[tuple(p)] for p in images.flatten(1).tolist()] == labels.tolist()
    else:
        assert all(points in (trained[1], trained[3]) for points in checks)
        assert {frozenset(points) for points in checks} == {frozenset(trained[1]), frozenset(trained[3])}


def test_held_out_images_are_a_function_of_the_seed_and_the_step():
    one, again, other = (Training(job("agreement", seed), "", on_cpu()).adapting for seed in (0, 0, 1))
    assert one is not None
    assert again is not None
    assert other is not None
    assert torch.equal(one._held_out(3)[0], again._held_out(3)[0])
    assert not torch.equal(one._held_out(3)[0], one._held_out(5)[0])
    assert not torch.equal(one._held_out(3)[0], other._held_out(3)[0])


@pytest.mark.parametrize("points", ["spheres", "digits"])
def test_a_job_without_a_rule_has_an_empty_decisions_file(tmp_path, points):
    data = SPHERES if points == "spheres" else {}
    model = {"pad_channels": None} if points == "spheres" else {}
    paths, name = finish(tmp_path, small_job(data=data, model=model, epochs=1))
    assert Path(paths.decisions(name)).read_bytes() == b""
    assert [row.check_evals for row in rows(paths, name)] == [None]


STEM = {"network": "stem", "field": "preactivation", "width": 4, "num_groups": 2, "norm": "batch", "pad_channels": None}


@pytest.mark.parametrize("rule", ["agreement"])  # the others go without batch norm
def test_checks_move_no_statistics_of_batch_norms(rule):
    """Neither those of depth nor those of the stem; nor do they leave the network in another mode."""
    config = small_job(data={"num_train": 64}, model=STEM, **RULES[rule])
    training = Training(config, "", on_cpu())
    network, rule_at_work = training.learner.network, training.adapting
    assert rule_at_work is not None
    batch = next(training.batches())
    network.train()
    solved = training.learner.solve(batch[0], training.solver)
    buffers = {name: buffer.clone() for name, buffer in network.named_buffers()}
    assert sum("variance" in name or "running" in name for name in buffers) > 2
    trained = adapting.Answer(solved.logits.detach(), batch[1], solved.num_evals)
    assert rule_at_work.begin(network, batch[0]) == 2
    for step in range(4):
        rule_at_work.after_step(network, batch, trained, step)
    assert len(rule_at_work.decisions) == 3
    assert network.training
    for name, buffer in network.named_buffers():
        assert torch.equal(buffer, buffers[name]), name
    assert all(p.grad is None for p in network.parameters())


# The step with which a network of several blocks begins


def stages(*sizes):
    """A net of three blocks without norms in between to speak of, their fields' weights of these sizes."""
    network = stage_network(1, 10, 4, 2, lambda channels: preactivation(channels, 2, constant())).double()
    generator = torch.Generator().manual_seed(0)
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, 0, 0.3, generator=generator)
    for field, size in zip(network.fields, sizes, strict=True):
        field.scale = size
    return network.eval()


@pytest.mark.parametrize("sizes", [(9.0, 1.0, 1.0), (1.0, 9.0, 1.0), (1.0, 1.0, 9.0), (1.0, 1.0, 1.0)])
@pytest.mark.parametrize("method", ["euler", "midpoint"])
def test_the_smallest_step_of_several_blocks_is_taken(sizes, method):
    """By hand: the state at each block comes of solves of the blocks before, with the smallest step so far."""
    network = stages(*sizes)
    images = torch.randn(5, 1, 8, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    proposed, states = [], []
    hooks = [
        field.register_forward_hook(lambda f, given, out: states.append((f, given[1]))) for field in network.fields
    ]
    found = network.starting_step(images, method)
    for hook in hooks:
        hook.remove()
    with torch.no_grad():
        for field in network.fields:
            h = next(h for f, h in states if f is field)  # at depth 0, of which the rule asks twice
            proposed.append(starting_step(lambda _, x, f=field: f(0.0, x), h, FIXED_METHODS[method].order))
    assert len(states) == 2 * 3
    assert found == min(1.0, *proposed)
    if 9.0 in sizes:
        assert proposed.index(min(proposed)) == sizes.index(9.0)


def test_three_blocks_begin_with_six_evaluations(tmp_path):
    model = {"network": "stages", "field": "preactivation", "width": 4, "num_groups": 2, "pad_channels": None}
    config = small_job(data={"num_train": 64}, model=model, epochs=1, **RULES["step"])
    start, *_ = found = decisions(*finish(tmp_path, config))
    assert (start.num_evals, len(found)) == (6, 1)
    assert math.isfinite(parse_solver(start.next_solver).num_steps)  # type: ignore[union-attr]
