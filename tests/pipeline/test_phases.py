"""Laws of the phases of a training: one conversion at each boundary, wherever it is interrupted; the rest goes on."""

import dataclasses
import math
from pathlib import Path

import pytest
import torch
from small import on_cpu, small_job, write_job

from pipeline import checkpoint
from pipeline.build import build_network
from pipeline.records import TrainingRecord, read_records
from pipeline.train import train
from pipeline.training import Training

LINE = {"degree": 1, "num_coefficients": 2}
HATS = {"degree": 1, "num_coefficients": 3}
PIECES = {"degree": 0, "num_coefficients": 2}
GODE = {"family": "gode", "basis": HATS}
STEM = {"network": "stem", "field": "preactivation", "width": 4, "num_groups": 2, "pad_channels": None}
SGD = {"optimiser": "sgd", "momentum": 0.9, "lr": 0.02, "weight_decay": 1e-3}
STEPS = 4  # of an epoch


def phase(until=1, solver="euler@2", **more):
    return {"until": until, "solver": solver} | more


KINDS = {
    "coarse to fine, adam": (GODE, {"phases": [phase(basis=LINE)]}),
    "sgd": (GODE, SGD | {"phases": [phase(solver="euler@1", basis=LINE)], "schedule": "cosine"}),
    "projection": (GODE, {"phases": [phase(basis={"degree": 0, "num_coefficients": 4})]}),
    "two phases": (GODE, {"epochs": 3, "phases": [phase(basis=LINE), phase(2, "rk4@1")]}),
    "adaptive": ({"family": "neural_ode"}, {"solver": "bosh3@1e-2", "gradient": "adjoint", "phases": [phase()]}),
    "evolving": ({"family": "evolving", "evolution": {"kind": "network", "width": 2}}, {"phases": [phase()]}),
    "seldom recorded": (GODE, {"epochs": 5, "record_every": 2, "phases": [phase(3, basis=LINE)]}),
}


def job(kind="coarse to fine, adam", data=None, **train):
    model, more = KINDS[kind]
    return small_job(data=data, model=model, **more, **train)


def trained(root: Path, config, stops=()):
    """The files of the job, interrupted after so many steps of each attempt; and what `converted_*` was asked for."""
    paths, name = write_job(root, config)
    for stop in stops:
        left = iter(range(stop - 1, -1, -1))
        assert not train({name: config}, paths, on_cpu(), lambda left=left: next(left) == 0)
    assert train({name: config}, paths, on_cpu(), lambda: False)
    return [Path(p).read_bytes() for p in (paths.model(name), paths.training(name), paths.weights(name))]


def records(root: Path, config) -> list[TrainingRecord]:
    trained(root, config)
    paths, name = write_job(root, config)
    return read_records(TrainingRecord, paths.training(name))


@pytest.mark.parametrize("kind", KINDS)
def test_interrupted_around_the_boundary_it_ends_with_the_same_bits(tmp_path, kind):
    """Before the last step of the phase, after it, and after the first of the next."""
    config = job(kind, data={"crop_padding": 1})
    whole = trained(tmp_path / "whole", config)
    boundary = config.train.phases[0].until * STEPS
    assert trained(tmp_path / "parts", config, [boundary - 1, 1, 1]) == whole
    assert trained(tmp_path / "at once", config, [boundary]) == whole


def test_a_checkpoint_between_the_phases_converts_once(tmp_path, monkeypatch):
    """Kept at the end of each epoch, on the boundary itself: there the phase is still the old one."""
    config = job()
    whole = trained(tmp_path / "whole", config)
    paths, name = write_job(tmp_path / "parts", config)
    conversions = []
    convert = Training._convert
    monkeypatch.setattr(Training, "_convert", lambda self: (conversions.append(self.step), convert(self))[1])

    class Killed(BaseException):
        pass

    def kill() -> bool:
        if conversions:
            raise Killed  # after the first step of the new phase: what has been converted is lost
        return False

    with pytest.raises(Killed):
        train({name: config}, paths, on_cpu(checkpoint_epochs=1), kill)
    state = checkpoint.load(paths.resume(name), config)
    assert state is not None
    assert (state["phase"], state["place"]) == (1, [1, 0])
    assert train({name: config}, paths, on_cpu(), lambda: False)
    assert conversions == [STEPS, STEPS]
    assert [Path(p).read_bytes() for p in (paths.model(name), paths.training(name), paths.weights(name))] == whole


def test_state_and_restore_are_inverse_in_each_phase(tmp_path):
    """The conversion's figures too, while they wait for their record."""
    config = job("two phases")
    _, name = write_job(tmp_path, config)
    training = Training(config, name, on_cpu())
    for steps in (3, 1, 2, 2, 1, 3):  # within and at the ends of epochs
        left = iter(range(steps - 1, -1, -1))
        while training.run_epoch(lambda left=left: next(left) == 0):
            pass
        again = Training(config, name, on_cpu())
        again.restore(training.state())
        one, other = again.state(), training.state()
        assert str(one) == str(other)
        assert again.learner.phase == training.learner.phase
        assert again.solver == training.solver
        training = again


@pytest.mark.parametrize(("kind", "optimiser"), [("gode", {}), ("gode", SGD), ("evolving", {}), ("batch norm", SGD)])
def test_a_phase_like_the_rest_changes_nothing(tmp_path, kind, optimiser):
    """The conversion is a copy, of weights, statistics and the optimiser's state: not a bit differs."""
    model = {
        "gode": GODE
        | {"time_channel": True},  # without it the one that has no phases would be trained as a stack of one
        "evolving": {"family": "evolving", "evolution": {"kind": "linear", "rank": 2}},
        "batch norm": STEM | {"family": "gode", "basis": HATS, "norm": "batch"},
    }[kind]
    data = {"num_train": 128, "num_validation": 50}
    plain = small_job(data=data, model=model, **optimiser)
    phased = small_job(data=data, model=model, phases=[phase()], **optimiser)
    one, other = records(tmp_path / "plain", plain), records(tmp_path / "phased", phased)
    assert (other[1].converted_error, other[1].converted_loss) == (0, other[0].validation_loss)
    nothing = {"job": "", "converted_loss": None, "converted_accuracy": None, "converted_error": None}
    assert [vars(r) | nothing for r in other] == [vars(r) | nothing for r in one]
    networks = [build_network(plain), build_network(plain)]
    for network, root, config in zip(networks, ("plain", "phased"), (plain, phased)):
        paths, name = write_job(tmp_path / root, config)
        checkpoint.load_model(paths.model(name), network)
    one, other = (network.state_dict() for network in networks)
    assert all(torch.equal(value, other[name]) for name, value in one.items())


def test_learned_knots_go_through_phases_of_the_solver(tmp_path):
    """They are a group of parameters of their own, without weight decay."""
    model = {"family": "gode", "basis": {"degree": 1, "num_coefficients": 4, "knots": "free"}}
    config = small_job(model=model, **SGD, phases=[phase(solver="euler@3")])
    training = Training(config, "job", on_cpu())
    training.run_epoch(lambda: False)
    before = [p.clone() for p in training.learner.optimiser.param_groups[1]["params"]]
    training._convert()
    groups = training.learner.optimiser.param_groups
    assert [group["weight_decay"] for group in groups] == [1e-3, 0]
    assert all(torch.equal(p, q) for p, q in zip(groups[1]["params"], before, strict=True))


@pytest.mark.parametrize(
    ("model", "coarse"),
    [
        (GODE, {"basis": LINE}),
        (GODE, {"basis": {"degree": 0, "num_coefficients": 1}}),
        (STEM | GODE | {"norm": "batch", "statistics": 3}, {"basis": LINE}),
    ],
    ids=["hats", "constant", "batch norm"],
)
def test_an_exact_conversion_makes_no_jump(tmp_path, model, coarse):
    config = small_job(data={"num_train": 128}, model=model, phases=[phase(basis=coarse["basis"])])
    before, after = records(tmp_path, config)
    assert after.converted_error == 0
    assert before.validation_loss is not None
    assert after.converted_loss == pytest.approx(before.validation_loss, abs=1e-5)
    assert after.converted_loss != after.validation_loss
    assert (before.num_coefficients, after.num_coefficients) == (
        config.basis_of(config.train.phases[0]).num_coefficients,
        3,
    )


def test_a_projection_tells_its_error(tmp_path):
    before, after = records(tmp_path, job("projection"))
    assert before.converted_error is None
    assert after.converted_error is not None
    assert 0.01 < after.converted_error < 1
    assert after.converted_loss != before.validation_loss


def test_the_first_record_of_a_phase_tells_of_the_conversion(tmp_path):
    """Recorded at the end of each phase, and each `record_every` epochs."""
    found = records(tmp_path / "seldom", job("seldom recorded"))
    assert [r.epoch for r in found] == [2, 3, 4, 5]
    assert [r.converted_loss is not None for r in found] == [False, False, True, False]
    found = records(tmp_path / "two", job("two phases"))
    assert [r.converted_error for r in found] == [None, 0, 0]
    assert [r.solver for r in found] == ["euler@2", "rk4@1", "euler@2"]


def test_without_validation_the_error_alone_is_told(tmp_path):
    before, after = records(tmp_path, job(data={"num_validation": 0}))
    assert (after.converted_loss, after.converted_accuracy, after.converted_error) == (None, None, 0)
    assert before.converted_error is None


@pytest.mark.parametrize(
    "schedule",
    [{"schedule": "cosine"}, {"schedule": "multistep", "milestones": [1]}, {"warmup_epochs": 1.5}],
    ids=lambda s: next(iter(s)),
)
def test_the_learning_rate_takes_no_notice(tmp_path, schedule):
    plain = small_job(model=GODE, epochs=3, **schedule)
    phased = small_job(model=GODE, epochs=3, **schedule, phases=[phase(basis=LINE), phase(2, "euler@1")])
    one, other = records(tmp_path / "plain", plain), records(tmp_path / "phased", phased)
    assert [r.lr for r in other] == [r.lr for r in one]
    assert len({r.lr for r in one}) > 1


@pytest.mark.parametrize("lr", [1e30, 1e38])
def test_a_training_that_fails_early_still_leaves_a_model_of_the_last_phase(tmp_path, lr):
    config = job(optimiser="sgd", lr=lr)
    (record,) = records(tmp_path, config)
    assert (record.epoch, record.status, record.solver) == (0, "nonfinite", "euler@2")
    paths, name = write_job(tmp_path, config)
    network = build_network(config)
    checkpoint.load_model(paths.model(name), network)
    assert network.fields[0].basis.num_coefficients == 3


def test_a_conversion_that_fails_ends_the_training_with_its_record(tmp_path, monkeypatch):
    """What it had learned before is in the model."""
    config = job()

    def fails(self):
        convert(self)
        self.status = "nonfinite"

    convert = Training._convert
    monkeypatch.setattr(Training, "_convert", fails)
    before, after = records(tmp_path, config)
    assert (before.epoch, before.status) == (1, "ok")
    assert (after.epoch, after.status, after.train_loss) == (1, "nonfinite", None)
    assert after.converted_error == 0
    assert after.converted_loss == pytest.approx(before.validation_loss, abs=1e-5)
    paths, name = write_job(tmp_path, config)
    checkpoint.load_model(paths.model(name), build_network(config))


def test_weight_decay_goes_on_with_the_phases(tmp_path):
    """Without a gradient the weights shrink at the same rate on either side."""
    config = job("sgd", label_smoothing=0.0)
    training = Training(config, "job", on_cpu())
    assert math.prod(g["weight_decay"] for g in training.learner.optimiser.param_groups) == 1e-3
    training.run_epoch(lambda: False)
    before = training.learner.optimiser.param_groups
    training._convert()
    drop = {"params"}
    assert [{k: v for k, v in g.items() if k not in drop} for g in training.learner.optimiser.param_groups] == [
        {k: v for k, v in g.items() if k not in drop} | {"lr": config.train.lr} for g in before
    ]
    counted = sum(p.numel() for g in training.learner.optimiser.param_groups for p in g["params"])
    assert counted == sum(p.numel() for p in training.learner.network.parameters())
    assert len(training.learner.optimiser.state) == len(list(training.learner.network.parameters()))
    assert dataclasses.asdict(training.learner.phase)["until"] == config.train.epochs
