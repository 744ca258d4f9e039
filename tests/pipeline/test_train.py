"""Laws of training: interrupted = uninterrupted bit for bit, one seed one result, nothing finished is lost."""

import errno
import json
import os
import runpy
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from small import on_cpu, small_job, write_job

from pipeline import checkpoint, records
from pipeline.build import build_network
from pipeline.config import canonical
from pipeline.records import AttemptRecord, TrainingRecord, WeightRecord, read_records
from pipeline.train import train
from pipeline.training import Training

KINDS = {
    "adam": {},
    "sgd, cosine, warm-up, clipping": {
        "optimiser": "sgd",
        "momentum": 0.9,
        "lr": 0.02,
        "schedule": "cosine",
        "warmup_epochs": 0.5,
        "clip_norm": 1.0,
        "label_smoothing": 0.1,
        "weight_decay": 1e-4,
    },
    "adaptive": {"solver": "bosh3@1e-2"},
    "adjoint": {"solver": "dopri5@1e-2", "gradient": "adjoint"},
    "checkpoint": {"solver": "euler@4", "gradient": "checkpoint"},
    "bf16": {"autocast": "bf16"},
}
MODELS = {
    "resnet": {"family": "resnet"},
    "neural_ode": {"family": "neural_ode"},
    "gode": {"family": "gode", "basis": {"degree": 1, "num_coefficients": 3}},
}


def never():
    return False


def stop_after(n):
    """should_stop that says yes at its n-th question (each step asks once)."""
    asked = []

    def ask():
        asked.append(1)
        return len(asked) >= n

    return ask


def results(paths, job):
    """All that a finished job leaves: the bytes of its files."""
    return [Path(p).read_bytes() for p in (paths.model(job), paths.training(job), paths.weights(job))]


def uninterrupted(tmp_path, config, **settings):
    paths, job = write_job(tmp_path / "whole", config)
    assert train({job: config}, paths, on_cpu(**settings), never)
    return results(paths, job)


@pytest.mark.parametrize("kind", KINDS)
def test_interrupted_equals_uninterrupted_bit_for_bit(tmp_path, kind):
    """Stopped after 1, 2, 3 and 4 steps (the end of an epoch), and so on until it is done."""
    config = small_job(data={"crop_padding": 1, "flip": True}, **KINDS[kind])
    whole = uninterrupted(tmp_path, config)
    paths, job = write_job(tmp_path / "parts", config)
    attempts = 1
    while not train({job: config}, paths, on_cpu(), stop_after(attempts % 4 + 1)):
        attempts += 1
        assert not Path(paths.model(job)).exists()
    assert attempts > 2
    assert results(paths, job) == whole
    assert Path(paths.resume(job)).exists()  # until the job is judged
    outcomes = [a.outcome for a in read_records(AttemptRecord, paths.attempts(job))]
    assert outcomes == ["interrupted"] * (attempts - 1) + ["finished"]


@pytest.mark.parametrize("name", MODELS)
def test_every_family_resumes_to_the_same_bits(tmp_path, name):
    config = small_job(model=MODELS[name])
    whole = uninterrupted(tmp_path, config)
    paths, job = write_job(tmp_path / "parts", config)
    assert not train({job: config}, paths, on_cpu(), stop_after(3))
    assert train({job: config}, paths, on_cpu(), never)
    assert results(paths, job) == whole


@pytest.mark.parametrize(
    ("cadence", "kills", "places"),
    [({"checkpoint_seconds": 0}, (2, 3, 1, 1), (2, 5, 6, 7)), ({"checkpoint_epochs": 1}, (3, 6, 2), (0, 4, 4))],
    ids=["each step", "each epoch"],
)
def test_a_kill_between_checkpoints_loses_only_the_work_since(tmp_path, cadence, kills, places):
    """Killed (an exception stands for it) after some steps, of 8; the next attempt begins at the last checkpoint."""
    config = small_job()
    whole = uninterrupted(tmp_path, config)
    paths, job = write_job(tmp_path / "parts", config)

    class Killed(BaseException):
        pass

    for n in kills:
        count = stop_after(n)

        def kill(count=count):
            if count():
                raise Killed

        with pytest.raises(Killed):
            train({job: config}, paths, on_cpu(**cadence), kill)
    assert train({job: config}, paths, on_cpu(), never)
    assert results(paths, job) == whole
    assert tuple(a.from_step for a in read_records(AttemptRecord, paths.attempts(job)))[1:] == places


def test_points_and_a_perceptron_train_and_leave_weight_paths(tmp_path):
    data = {"name": "spheres", "dimension": 3, "num_train": 128}
    model = {
        "field": "perceptron",
        "pad_channels": None,
        "family": "gode",
        "basis": {"degree": 1, "num_coefficients": 2},
    }
    config = small_job(data=data, model=model)
    paths, job = write_job(tmp_path, config)
    assert train({job: config}, paths, on_cpu(), never)
    assert len(read_records(WeightRecord, paths.weights(job))) == 4 * 65


def test_seed_names_the_numbers(tmp_path):
    first, again = (uninterrupted(tmp_path / str(i), small_job()) for i in range(2))
    other = uninterrupted(tmp_path / "other", small_job(seed=1))
    assert first == again
    assert first[0] != other[0]


def forget(paths, job):
    """As Snakemake does before it has a job made again."""
    for file in paths.trained(job):
        Path(file).unlink()


def test_trained_again_with_other_code_it_begins_anew(tmp_path, monkeypatch):
    """With the same code a finished checkpoint gives the same files at once; with other code it is no use."""
    config = small_job()
    paths, job = write_job(tmp_path, config)
    train({job: config}, paths, on_cpu(), never)
    first = results(paths, job)
    forget(paths, job)
    train({job: config}, paths, on_cpu(), never)
    assert results(paths, job) == first
    forget(paths, job)
    for module in ("attempt", "training"):
        monkeypatch.setattr(f"pipeline.{module}.code_fingerprint", lambda: "other")
    train({job: config}, paths, on_cpu(), never)
    assert {row.code for row in read_records(TrainingRecord, paths.training(job))} == {"other"}
    assert [a.from_step for a in read_records(AttemptRecord, paths.attempts(job))] == [0, 8, 0]


def test_records_are_the_epochs(tmp_path):
    config = small_job(epochs=5, record_every=2)
    paths, job = write_job(tmp_path, config)
    train({job: config}, paths, on_cpu(), never)
    rows = read_records(TrainingRecord, paths.training(job))
    assert [row.epoch for row in rows] == [2, 4, 5]
    assert [row.step for row in rows] == [8, 16, 20]
    assert all(row.num_evals == 2 and row.status == "ok" and row.job == job for row in rows)
    assert rows[-1].train_loss < rows[0].train_loss
    assert 0 <= rows[-1].validation_accuracy <= 1
    (attempt,) = read_records(AttemptRecord, paths.attempts(job))
    assert (attempt.outcome, attempt.from_step, attempt.to_step) == ("finished", 0, 20)


def test_model_file_says_what_it_is_and_fills_the_network(tmp_path):
    config = small_job()
    paths, job = write_job(tmp_path, config)
    train({job: config}, paths, on_cpu(), never)
    with safe_open(paths.model(job), "pt") as file:
        assert json.loads(file.metadata()["config"]) == canonical(config)
    network = build_network(config)
    before = [p.clone() for p in network.parameters()]
    checkpoint.load_model(paths.model(job), network)
    assert not all(torch.equal(a, b) for a, b in zip(before, network.parameters()))


def test_weight_paths_follow_the_family(tmp_path):
    spreads = {}
    for name, model in MODELS.items():
        config = small_job(model=model)
        paths, job = write_job(tmp_path, config)
        train({job: config}, paths, on_cpu(), never)
        rows = read_records(WeightRecord, paths.weights(job))
        assert len(rows) == 4 * 65
        one = [r.value for r in rows if r.entry == rows[0].entry]
        spreads[name] = len(set(one))
    assert spreads["neural_ode"] == 1
    assert spreads["resnet"] == 2  # euler@2: two blocks
    assert spreads["gode"] > 50


def test_non_finite_is_recorded_and_not_trained_on(tmp_path):
    config = small_job(optimiser="sgd", lr=1e6, epochs=3)
    paths, job = write_job(tmp_path, config)
    assert train({job: config}, paths, on_cpu(), never)
    rows = read_records(TrainingRecord, paths.training(job))
    assert rows[-1].status == "nonfinite"
    assert rows[-1].epoch < 3
    network = build_network(config)
    checkpoint.load_model(paths.model(job), network)
    assert all(torch.isfinite(p).all() for p in network.parameters())


def test_a_full_disk_while_saving_keeps_the_last_checkpoint(tmp_path, monkeypatch):
    config = small_job()
    whole = uninterrupted(tmp_path, config)
    paths, job = write_job(tmp_path / "parts", config)
    assert not train({job: config}, paths, on_cpu(), stop_after(2))
    before = Path(paths.resume(job)).read_bytes()

    def full(_descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(records.os, "fsync", full)
        with pytest.raises(OSError, match="No space left"):
            train({job: config}, paths, on_cpu(checkpoint_seconds=0), never)
    assert Path(paths.resume(job)).read_bytes() == before
    assert not list(Path(paths.state(job)).glob("*.part"))
    assert train({job: config}, paths, on_cpu(), never)
    assert results(paths, job) == whole


@pytest.mark.parametrize("damage", ["truncated", "foreign", "another job's", "a pickle"])
def test_a_damaged_checkpoint_is_one_clear_error(tmp_path, damage):
    config = small_job()
    paths, job = write_job(tmp_path, config)
    train({job: config}, paths, on_cpu(), stop_after(2))
    file = Path(paths.resume(job))
    if damage == "truncated":
        file.write_bytes(file.read_bytes()[:1000])
    elif damage == "foreign":
        file.write_bytes(b"not a checkpoint at all")
    elif damage == "another job's":
        checkpoint.save(file, small_job(seed=7), Training(config, job, on_cpu()).state())
    else:
        witness = tmp_path / "witness"
        import pickle

        class Evil:
            def __reduce__(self):
                return (os.system, (f"touch {witness}",))

        file.write_bytes(pickle.dumps(Evil()))
    with pytest.raises(ValueError, match=r"resume\.pt: .*delete it to begin this training again"):
        train({job: config}, paths, on_cpu(), never)
    assert not (tmp_path / "witness").exists()
    assert file.exists()


def test_a_damaged_model_is_one_clear_error(tmp_path):
    config = small_job()
    paths, job = write_job(tmp_path, config)
    train({job: config}, paths, on_cpu(), never)
    file = Path(paths.model(job))
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match="not a whole safetensors file"):
        checkpoint.load_model(file, build_network(config))
    file.write_bytes(whole)
    with pytest.raises(ValueError, match="weights of another network"):
        checkpoint.load_model(file, build_network(small_job(model={"width": 5})))


def test_sigterm_makes_it_checkpoint_and_leave_with_85(tmp_path):
    """As a user or SLURM sees it: a process, a signal in the middle. (The others: test_attempts.py.)"""
    config = small_job(epochs=2000)
    paths, job = write_job(tmp_path, config)
    command = [sys.executable, "-m", "pipeline.train", paths.config(job), "--device", "cpu"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    line = next(line for line in process.stderr if "epoch 1/" in line)  # it trains
    process.send_signal(signal.SIGTERM)
    rest = process.communicate(timeout=60)[1]
    assert process.returncode == 85, line + rest
    assert "SIGTERM" in rest
    assert Path(paths.resume(job)).exists()
    state = checkpoint.load(paths.resume(job), config)
    assert state is not None
    assert state["place"][0] >= 1


@pytest.mark.parametrize(
    ("file", "said"),
    [("jobs/one/config.json", "config.json: not JSON"), ("x.yaml", "<results>/jobs/<job>/config.json")],
)
def test_the_stage_says_bad_input_in_one_line(tmp_path, monkeypatch, capsys, file, said):
    bad = tmp_path / file
    bad.parent.mkdir(parents=True, exist_ok=True)
    bad.write_text("{")
    monkeypatch.setattr(sys, "argv", ["train", str(bad), "--device", "cpu"])
    monkeypatch.delitem(sys.modules, "pipeline.train")  # it is run as a program, in this process
    with pytest.raises(SystemExit, match=r"^2$"):
        runpy.run_module("pipeline.train", run_name="__main__")
    (line,) = capsys.readouterr().err.splitlines()
    assert said in line
