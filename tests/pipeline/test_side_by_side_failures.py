"""One of several trainings fails: it ends alone, and the others go on to the bits that they have without it."""

import math

import pytest
import torch
from small import on_cpu
from test_side_by_side import SEEDS, SGD, STEPS, check_against, job, rows, stop_after, written

from pipeline import checkpoint
from pipeline.build import build_network
from pipeline.train import train
from pipeline.training import Training


def poison(monkeypatch, seed, step):
    """The points of one job, from one step on, are no numbers."""
    batches = Training.batches

    def poisoned(self):
        for points, labels in batches(self):
            yield (points * math.nan if self.config.seed == seed and self.step >= step else points), labels

    monkeypatch.setattr(Training, "batches", poisoned)


@pytest.mark.parametrize("step", [0, 2, 5])
def test_one_that_fails_ends_alone(tmp_path, monkeypatch, step):
    """With the weights that it had, its record and its status; the others go on as if it had not been there."""
    poison(monkeypatch, 1, step)
    paths, jobs = written(tmp_path / "together", [job(seed, **SGD) for seed in range(SEEDS)])
    assert train(jobs, paths, on_cpu(), lambda: False)
    check_against(tmp_path / "alone", paths, jobs)
    assert [rows(paths, name)[-1].status for name in jobs] == ["ok", "nonfinite", "ok"]
    assert [rows(paths, name)[-1].step for name in jobs] == [STEPS, step, STEPS]
    if step == 0:
        name = list(jobs)[1]
        network, first = build_network(jobs[name]), build_network(jobs[name])
        checkpoint.load_model(paths.model(name), network)
        assert all(torch.equal(p, q) for p, q in zip(network.parameters(), first.parameters()))


def test_one_that_fails_is_finished_for_a_resume_too(tmp_path, monkeypatch):
    poison(monkeypatch, 1, 2)
    paths, jobs = written(tmp_path / "parts", [job(seed) for seed in range(SEEDS)])
    assert not train(jobs, paths, on_cpu(), stop_after(6))
    assert train(jobs, paths, on_cpu(), lambda: False)
    check_against(tmp_path / "alone", paths, jobs)


def test_all_may_fail_at_different_steps(tmp_path, monkeypatch):
    for seed, step in ((0, 3), (1, 1), (2, 3)):
        poison(monkeypatch, seed, step)
    paths, jobs = written(tmp_path / "together", [job(seed) for seed in range(SEEDS)])
    assert train(jobs, paths, on_cpu(), lambda: False)
    check_against(tmp_path / "alone", paths, jobs)
    assert [rows(paths, name)[-1].step for name in jobs] == [3, 1, 3]


def test_one_that_fails_on_validation_ends_alone(tmp_path, monkeypatch):
    """At the end of an epoch, after its step was made: the others go on without it."""
    validate = Training._validate

    def fails(self):
        found = validate(self)
        if self.config.seed == 1:
            self.status = "nonfinite"
        return found

    monkeypatch.setattr(Training, "_validate", fails)
    paths, jobs = written(tmp_path / "together", [job(seed) for seed in range(SEEDS)])
    assert train(jobs, paths, on_cpu(), lambda: False)
    check_against(tmp_path / "alone", paths, jobs)
    assert [rows(paths, name)[-1].step for name in jobs] == [STEPS, STEPS // 2, STEPS]


def test_learning_rates_that_are_too_large_end_all_as_they_end_alone(tmp_path):
    """Each at its own step: what overflows first depends on the seed."""
    configs = [job(seed, optimiser="sgd", lr=1e4, epochs=5, solver="euler@8") for seed in range(4)]
    paths, jobs = written(tmp_path / "together", configs)
    assert train(jobs, paths, on_cpu(), lambda: False)
    check_against(tmp_path / "alone", paths, jobs)
    assert {rows(paths, name)[-1].status for name in jobs} == {"nonfinite"}
