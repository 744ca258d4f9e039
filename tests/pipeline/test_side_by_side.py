"""Laws of trainings side by side: each ends with the bits that it has alone, wherever they were interrupted, together
or apart; what becomes of one is nothing to the others."""

import dataclasses
import random
import subprocess
import sys
from pathlib import Path

import pytest
from small import on_cpu, small_job, write_job

from pipeline.records import AttemptRecord, TrainingRecord, WeightRecord, read_records
from pipeline.stacks import alike
from pipeline.train import groups_of, train

SPHERES = {"name": "spheres", "dimension": 2, "num_train": 208, "num_validation": 50}  # batches of 64, 64, 64 and 16
MODELS = {
    "neural_ode": {"family": "neural_ode"},
    "resnet": {"family": "resnet"},
    "gode": {"family": "gode", "basis": {"degree": 1, "num_coefficients": 3}},
    "gode, degree 0": {"family": "gode", "basis": {"degree": 0, "num_coefficients": 2}, "vary": "kernels"},
    "perceptron": {"family": "gode", "field": "perceptron", "basis": {"degree": 3, "num_coefficients": 4}},
}
SGD = {"optimiser": "sgd", "momentum": 0.9, "lr": 0.05, "weight_decay": 1e-3}
KINDS = {
    "adam": {},
    "adamw": {"optimiser": "adamw", "weight_decay": 0.1},
    "sgd": {"optimiser": "sgd", "lr": 0.1},
    "momentum, cosine, warm-up": SGD | {"schedule": "cosine", "warmup_epochs": 0.5},
    "clipping": {"clip_norm": 0.2, "optimiser": "sgd", "lr": 0.3},
    "smoothing": {"label_smoothing": 0.1, "optimiser": "sgd", "lr": 0.3},
    "checkpoint": {"gradient": "checkpoint", "solver": "rk4@4"},
    "multistep": {"solver": "ab2@4", "drop_last": True},
    "seldom recorded": {"epochs": 3, "record_every": 2},
}
SEEDS = 3
STEPS = 8  # of two epochs


class Killed(BaseException):
    pass


def job(seed=0, model="gode", data=None, width=16, **train):
    return small_job(seed, SPHERES | (data or {}), {"width": width, "pad_channels": None} | MODELS[model], **train)


def stop_after(n):
    asked = []

    def ask():
        asked.append(1)
        return len(asked) >= n

    return ask


def kill_after(n):
    ask = stop_after(n)

    def kill():
        if ask():
            raise Killed

    return kill


def written(root: Path, configs):
    """Paths, and the jobs by name."""
    found = [write_job(root, config) for config in configs]
    return found[0][0], {name: config for (_, name), config in zip(found, configs)}


def bits(paths, jobs):
    """The files of each job that are to be the same, byte for byte."""
    return {name: [Path(p).read_bytes() for p in (paths.model(name), paths.weights(name))] for name in jobs}


def rows(paths, name):
    return read_records(TrainingRecord, paths.training(name))


def attempts(paths, name):
    return read_records(AttemptRecord, paths.attempts(name))


def one_by_one(root: Path, configs):
    paths, jobs = written(root, configs)
    for name, config in jobs.items():
        assert train({name: config}, paths, on_cpu(), lambda: False)
    return paths, jobs


def check_rows(found, expected):
    """Means over an epoch's samples are added up in another order: equal to rounding. The rest is the same."""
    assert len(found) == len(expected)
    for one, other in zip(found, expected):
        for name, value in vars(other).items():
            mean = name.startswith("train_") and value is not None
            wanted = pytest.approx(value, rel=1e-6, abs=1e-7) if mean else value
            assert getattr(one, name) == wanted, name


def check_against(root, paths, jobs):
    """These jobs have ended as they do alone, below `root`."""
    alone, _ = one_by_one(root, jobs.values())
    assert bits(paths, jobs) == bits(alone, jobs)
    for name in jobs:
        check_rows(rows(paths, name), rows(alone, name))


@pytest.mark.parametrize(("model", "kind"), [*((m, "adam") for m in MODELS), *(("gode", k) for k in KINDS)])
def test_each_ends_with_the_bits_that_it_has_alone(tmp_path, model, kind):
    paths, jobs = written(tmp_path / "together", [job(seed, model, **KINDS[kind]) for seed in range(SEEDS)])
    assert train(jobs, paths, on_cpu(), lambda: False)
    check_against(tmp_path / "alone", paths, jobs)
    assert len({model for model, _ in bits(paths, jobs).values()}) == SEEDS


@pytest.mark.parametrize("dimension", [2, 3])
def test_clipping_is_of_each_networks_own_gradient(tmp_path, dimension):
    """At a norm between theirs, so that some steps are cut and others not."""
    data = {"dimension": dimension, "num_train": 208}
    configs = [job(seed, data=data, clip_norm=0.5, label_smoothing=0.2, optimiser="sgd", lr=1.0) for seed in range(5)]
    paths, jobs = written(tmp_path / "together", configs)
    assert train(jobs, paths, on_cpu(), lambda: False)
    check_against(tmp_path / "alone", paths, jobs)


def apart(one, other):
    """The largest difference of two networks' weights, each as a share of the largest weight of its tensor."""
    pairs = zip(one.parameters(), other.parameters(), strict=True)
    return max(((p - q).abs().max() / q.abs().max()).item() for p, q in pairs)


@pytest.mark.parametrize("kind", ["adam", "momentum, cosine, warm-up", "sgd"])
def test_stopped_at_any_step_and_resumed_they_end_with_the_same_bits(tmp_path, kind):
    """Together, some of them, one alone, and together again: checkpoints know nothing of the company."""
    paths, jobs = written(tmp_path / "parts", [job(seed, **KINDS[kind]) for seed in range(SEEDS)])
    names, draw = list(jobs), random.Random(kind)
    assert not train(jobs, paths, on_cpu(), stop_after(draw.randint(1, 3)))
    for _ in range(6):
        some = draw.sample(names, draw.randint(1, SEEDS))
        train({name: jobs[name] for name in some}, paths, on_cpu(), stop_after(draw.randint(1, 4)))
    assert train(jobs, paths, on_cpu(), lambda: False)
    check_against(tmp_path / "alone", paths, jobs)


@pytest.mark.parametrize("cadence", [{"checkpoint_seconds": 0}, {"checkpoint_epochs": 1}], ids=lambda c: next(iter(c)))
def test_killed_at_any_step_they_lose_only_the_work_since_their_checkpoints(tmp_path, cadence):
    paths, jobs = written(tmp_path / "parts", [job(seed, epochs=3) for seed in range(SEEDS)])
    draw = random.Random(0)
    for steps in (3, draw.randint(1, 5), draw.randint(1, 3)):
        with pytest.raises(Killed):
            train(jobs, paths, on_cpu(**cadence), kill_after(steps))
    assert train(jobs, paths, on_cpu(), lambda: False)
    check_against(tmp_path / "alone", paths, jobs)
    for name in jobs:
        found = attempts(paths, name)
        assert [a.outcome for a in found] == ["failed"] * 3 + ["finished"]
        assert all(a.from_step <= b.to_step for a, b in zip(found[1:], found))


def test_members_with_older_checkpoints_catch_up_by_themselves(tmp_path):
    """As after a kill between the saves of two jobs: three places, one of them the end."""
    paths, jobs = written(tmp_path / "parts", [job(seed) for seed in range(4)])
    first, second, third, _ = jobs
    assert not train({first: jobs[first]}, paths, on_cpu(), stop_after(2))
    assert not train({second: jobs[second]}, paths, on_cpu(), stop_after(5))
    assert train({third: jobs[third]}, paths, on_cpu(), lambda: False)
    Path(paths.model(third)).unlink()  # killed before it was written
    assert train(jobs, paths, on_cpu(), lambda: False)
    check_against(tmp_path / "alone", paths, jobs)
    assert [attempts(paths, name)[-1].from_step for name in jobs] == [2, 5, STEPS, 0]


def test_attempts_share_the_seconds_and_say_so(tmp_path, monkeypatch):
    """Seconds are those of the clock; divided by `share` they add up to the machine's."""
    clock = [0.0]
    monkeypatch.setattr("pipeline.lease.time.monotonic", lambda: clock[0])

    def nine_seconds_a_step() -> bool:
        clock[0] += 9
        return False

    paths, jobs = written(tmp_path, [job(seed, epochs=1) for seed in range(SEEDS)])
    assert train(jobs, paths, on_cpu(), nine_seconds_a_step)
    found = [attempts(paths, name)[0] for name in jobs]
    assert [(a.reason, a.share) for a in found] == [("ok", SEEDS)] * SEEDS
    assert [(a.from_step, a.to_step, a.outcome) for a in found] == [(0, STEPS // 2, "finished")] * SEEDS
    assert [a.seconds for a in found] == [9 * (STEPS // 2)] * SEEDS
    monkeypatch.undo()
    paths, jobs = written(tmp_path / "one", [job(0, epochs=1)])
    assert train(jobs, paths, on_cpu(), lambda: False)
    assert (attempts(paths, *jobs)[0].reason, attempts(paths, *jobs)[0].share) == ("ok", 1)


def test_each_leaves_the_paths_of_its_own_weights(tmp_path):
    paths, jobs = written(tmp_path, [job(seed) for seed in range(SEEDS)])
    assert train(jobs, paths, on_cpu(), lambda: False)
    for name in jobs:
        assert {row.job for row in read_records(WeightRecord, paths.weights(name))} == {name}
        assert read_records(AttemptRecord, paths.attempts(name))[0].job == name
        assert Path(paths.decisions(name)).read_bytes() == b""


def changed(config, **values):
    """Of its train section."""
    return dataclasses.replace(config, train=dataclasses.replace(config.train, **values))


DIFFERENT = {
    "momentum": lambda config: changed(config, optimiser="sgd", momentum=0.5),
    "optimiser": lambda config: changed(config, optimiser="adamw"),
    "solver": lambda config: changed(config, solver="euler@3"),
    "batch size": lambda config: changed(config, batch_size=32),
    "epochs": lambda config: changed(config, epochs=3),
    "width": lambda config: dataclasses.replace(config, model=dataclasses.replace(config.model, width=8)),
    "data": lambda config: dataclasses.replace(config, data=dataclasses.replace(config.data, split_seed=1)),
}


@pytest.mark.parametrize("what", DIFFERENT)
def test_only_jobs_that_differ_in_numbers_alone_are_alike(what):
    assert alike([job(0), job(1), job(7)])
    assert alike([job(0)])
    other = job(1)
    assert alike([job(0), dataclasses.replace(other, model=dataclasses.replace(other.model, init="torch_default"))])
    assert not alike([job(0), job(1), DIFFERENT[what](job(2))])


def test_jobs_that_are_not_alike_are_trained_one_after_the_other():
    """What stands together in the list, and is alike, is one computation."""
    configs = dict(zip("abcd", [job(0), job(1, lr=1e-3), job(0, epochs=3), job(2)]))
    assert [list(group) for group in groups_of(configs)] == [["a", "b"], ["c"], ["d"]]


def test_the_stage_trains_several_and_skips_what_is_finished(tmp_path):
    paths, jobs = written(tmp_path / "stage", [job(seed) for seed in range(SEEDS)])
    first, *others = jobs
    assert train({first: jobs[first]}, paths, on_cpu(), lambda: False)
    files = [paths.config(name) for name in jobs]
    command = [sys.executable, "-m", "pipeline.train", *files, "--device", "cpu"]
    found = subprocess.run(command, capture_output=True, text=True)
    assert found.returncode == 0, found.stderr
    assert f"{first} is finished" in found.stderr
    assert len(attempts(paths, first)) == 1
    assert {(attempts(paths, name)[0].reason, attempts(paths, name)[0].share) for name in others} == {("ok", 2)}
    check_against(tmp_path / "alone", paths, jobs)
