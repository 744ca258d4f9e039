"""One of several trainings fails: it ends alone, and the others go on to the bits that they have without it."""

import math
from argparse import Namespace
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from small import on_cpu
from test_side_by_side import SEEDS, SGD, STEPS, attempts, check_against, job, rows, stop_after, written
from test_side_by_side_numbers import image_job

from pipeline import checkpoint
from pipeline import train as stage
from pipeline.build import build_network
from pipeline.deadline import Allocation
from pipeline.records import AttemptRecord, write_records
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


@pytest.mark.parametrize("make", [job, image_job])
def test_a_learning_rate_that_is_too_large_ends_its_own_job_alone(tmp_path, make):
    """Nothing of it comes to the others: no step of theirs is lost, and none is cut."""
    rates = (0.05, 1e12, 0.1)
    configs = [
        make(seed, optimiser="sgd", lr=lr, clip_norm=clip)
        for seed, (lr, clip) in enumerate(zip(rates, (None, None, 1.0)))
    ]
    paths, jobs = written(tmp_path / "together", configs)
    assert train(jobs, paths, on_cpu(), lambda: False)
    check_against(tmp_path / "alone", paths, jobs)
    assert [rows(paths, name)[-1].status for name in jobs] == ["ok", "nonfinite", "ok"]


def test_learning_rates_that_are_too_large_end_all_as_they_end_alone(tmp_path):
    """Each at its own step: what overflows first depends on the seed."""
    configs = [job(seed, optimiser="sgd", lr=1e4, epochs=5, solver="euler@8") for seed in range(4)]
    paths, jobs = written(tmp_path / "together", configs)
    assert train(jobs, paths, on_cpu(), lambda: False)
    check_against(tmp_path / "alone", paths, jobs)
    assert {rows(paths, name)[-1].status for name in jobs} == {"nonfinite"}


# ---------------------------------------------------------------------- what cannot be trained at all


@pytest.fixture
def trained_by_the_stage(monkeypatch):
    """`python -m pipeline.train` in this process."""
    monkeypatch.setattr(stage, "set_threads", lambda number: None)  # that can be done once in a process
    monkeypatch.setattr(stage, "Stop", lambda *_: lambda: "")

    def run(paths, jobs, done=None):
        plain = {"configs": [paths.config(name) for name in jobs], "experiment": None, "data": "none", "done": done}
        plain |= {"device": "cpu", "threads": 1, "compile": False, "stop_with_parent": None}
        stage.main(Namespace(**plain, checkpoint_seconds=60.0, checkpoint_epochs=0))

    return run


def damage(paths, name):
    Path(paths.state(name)).mkdir(parents=True)
    Path(paths.resume(name)).write_bytes(b"half a checkpoi")


def exhaust(paths, name):
    """Two SLURM jobs of this campaign have failed over it."""
    rows = [
        AttemptRecord(name, "c0de", "abc", "n1", 7, "cpu", 3, 3, f"2026-01-0{day}T03:00:00+00:00", 9.0, "failed", "x")
        for day in (1, 2)
    ]
    write_records(paths.attempts(name), [replace(row, campaign="run", slurm_job=row.started) for row in rows])


@pytest.mark.parametrize(
    ("spoil", "reason"), [(damage, "not a whole checkpoint of ours"), (exhaust, "2 attempts without a step forward")]
)
def test_one_that_cannot_be_trained_keeps_no_other_from_it(tmp_path, monkeypatch, trained_by_the_stage, spoil, reason):
    """Each retry would end the same."""
    monkeypatch.setattr(stage.Allocation, "here", lambda: Allocation("7", "run"))
    paths, jobs = written(tmp_path / "together", [job(seed) for seed in range(SEEDS)])
    spoil(paths, list(jobs)[1])
    with pytest.raises(ValueError, match=reason):
        trained_by_the_stage(paths, jobs)
    assert [Path(paths.model(name)).exists() for name in jobs] == [True, False, True]
    good = {name: config for i, (name, config) in enumerate(jobs.items()) if i != 1}
    check_against(tmp_path / "alone", paths, good)


def test_those_that_are_not_alike_are_trained_too_and_the_mark_is_written_when_all_are(tmp_path, trained_by_the_stage):
    paths, jobs = written(tmp_path / "stage", [job(seed, epochs=seed + 1) for seed in range(SEEDS)])
    bad, *others = jobs
    damage(paths, bad)
    mark = tmp_path / "batches" / "all.trained"
    with pytest.raises(ValueError, match="not a whole checkpoint of ours"):
        trained_by_the_stage(paths, jobs, mark)
    assert not mark.exists()
    check_against(tmp_path / "alone", paths, {name: jobs[name] for name in others})
    Path(paths.resume(bad)).unlink()
    trained_by_the_stage(paths, jobs, mark)
    assert mark.exists()
    assert [len(attempts(paths, name)) for name in jobs] == [2, 1, 1]
