"""A trial as Ray Tune sees it: rows that are known are told, others are trained, and the job's files are those of any
training. No Ray is started."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
from ray.tune.result import DONE
from test_space import search_of

from pipeline.config import JobConfig, job_id, load_job
from pipeline.describe import write_config
from pipeline.paths import Paths
from pipeline.records import AttemptRecord, read_records
from pipeline.train import train
from pipeline.trainable import JobTrial, task_of
from pipeline.training import RunSettings
from pipeline.trials import rows_of

RUN = RunSettings(device="cpu", checkpoint_seconds=1e9)
GOALS = ("validation_accuracy",)
MODEL = ("model.safetensors", "training.jsonl", "weights.jsonl", "decisions.jsonl")


@pytest.fixture(autouse=True)
def one_process_for_many(monkeypatch):
    """Threads can be set once in a process, and this one is not the trial's own."""
    monkeypatch.setattr("pipeline.trainable.set_threads", lambda number: None)


@pytest.fixture
def config(tmp_path) -> JobConfig:
    return search_of(tmp_path).drawn(1)[1]


def trial_of(config, root, rates=None, **facts) -> JobTrial:
    paths = Paths(str(root))
    write_config(config, paths)
    given = {
        "task": task_of(
            config,
            root=str(root),
            stop=str(root / "stop"),
            run=dataclasses.asdict(RUN),
            goals=("validation_accuracy",),
            **facts,
        )
    }
    return JobTrial({"given": given} | (rates or {}))


def trained(config, root) -> dict[str, bytes]:
    """An ordinary training's files."""
    paths = Paths(str(root))
    write_config(config, paths)
    assert train({job_id(config): config}, paths, RUN, lambda: "")
    return files(config, root)


def files(config, root):
    folder = Path(Paths(str(root)).config(job_id(config))).parent
    return {name: (folder / name).read_bytes() for name in MODEL}


def attempts(config, root):
    return read_records(AttemptRecord, Paths(str(root)).attempts(job_id(config)))


def test_a_trial_is_a_job_to_the_bit(config, tmp_path):
    trial = trial_of(config, tmp_path / "trial")
    results = [trial.train() for _ in range(4)]
    assert [result["epoch"] for result in results] == [1, 2, 3, 4]
    assert [result[DONE] for result in results] == [False] * 3 + [True]
    assert results[-1]["finished"]
    assert results[-1]["score"] == results[-1]["validation_accuracy"]
    assert files(config, tmp_path / "trial") == trained(config, tmp_path / "alone")


def test_one_that_was_stopped_is_taken_up_where_it_was(config, tmp_path):
    """By another search, or the rule `train`: steps are made once."""
    trial = trial_of(config, tmp_path / "trial")
    trial.train()
    trial.train()
    trial.stop()
    again = trial_of(config, tmp_path / "trial")
    told = [again.train() for _ in range(2)]
    assert len(attempts(config, tmp_path / "trial")) == 1  # nothing was trained for what is known
    assert [result["epoch"] for result in told] == [1, 2]
    assert again.train()["epoch"] == 3
    again.stop()
    assert trained(config, tmp_path / "trial") == trained(config, tmp_path / "alone")
    made = [(attempt.from_step, attempt.to_step) for attempt in attempts(config, tmp_path / "trial")]
    assert [start for start, _ in made[1:]] == [end for _, end in made[:-1]]


def test_a_finished_job_is_told_and_not_trained(config, tmp_path):
    before = trained(config, tmp_path)
    trial = trial_of(config, tmp_path)
    assert [trial.train()["epoch"] for _ in range(4)] == [1, 2, 3, 4]
    assert len(attempts(config, tmp_path)) == 1
    assert files(config, tmp_path) == before


def test_one_that_is_paused_while_it_is_told_goes_on_there(config, tmp_path):
    trained(config, tmp_path)
    trial = trial_of(config, tmp_path)
    trial.train()
    (tmp_path / "kept").mkdir()
    trial.save_checkpoint(str(tmp_path / "kept"))
    again = trial_of(config, tmp_path)
    again.load_checkpoint(str(tmp_path / "kept"))
    assert [again.train()["epoch"] for _ in range(3)] == [2, 3, 4]


def test_a_decision_of_a_former_run_stands(config, tmp_path):
    trial = trial_of(config, tmp_path, stop_at=2)
    assert [trial.train()[DONE] for _ in range(2)] == [False, True]


def test_a_rule_that_looks_at_groups_sees_the_row_at_which_it_had_stopped_one(config, tmp_path):
    """Like any other; the trial ends a step later, and is not trained further, whatever the rule says now."""
    trial = trial_of(config, tmp_path, stop_at=2, seen=True)
    told = [trial.train() for _ in range(3)]
    assert [result["epoch"] for result in told] == [1, 2, 2]
    assert [result[DONE] for result in told] == [False, False, True]
    assert not any(result["finished"] for result in told)
    trial.stop()
    assert len(rows_of(trial.job, Paths(str(tmp_path)))) == 2
    nothing = trial_of(dataclasses.replace(config, seed=1), tmp_path, stop_at=0, seen=True).train()
    assert (nothing[DONE], nothing["asked"], nothing["finished"]) == (True, True, False)


def test_who_has_failed_when_all_its_rows_were_there_is_not_finished_by_being_told_again(config, tmp_path):
    trained(config, tmp_path)
    trial = trial_of(config, tmp_path, stop_at=4, seen=True)
    Path(trial.paths.model(trial.job)).unlink()
    assert [trial.train()["finished"] for _ in range(5)] == [False] * 5
    assert len(attempts(config, tmp_path)) == 1


def test_a_process_takes_another_trial_and_leaves_a_checkpoint(config, tmp_path):
    other = dataclasses.replace(config, seed=1)
    trial = trial_of(config, tmp_path)
    trial.train()
    write_config(other, Paths(str(tmp_path)))
    task = trial.task.__class__(**{**vars(trial.task), "config": dataclasses.asdict(other)})
    assert trial.reset_config({"given": {"task": vars(task)}})
    assert len(rows_of(job_id(config), Paths(str(tmp_path)))) == 1
    assert trial.train()["job"] == job_id(other)
    trial.stop()


def test_asked_to_stop_in_an_epoch_it_writes_a_checkpoint(config, tmp_path):
    trial = trial_of(config, tmp_path)
    trial.train()
    trial.looked = float("-inf")
    (tmp_path / "stop").write_text("x")
    result = trial.train()
    assert (result[DONE], result["asked"], result["finished"]) == (True, True, False)
    (attempt,) = attempts(config, tmp_path)
    assert (attempt.outcome, attempt.reason) == ("interrupted", "the search was asked to stop")
    assert attempt.to_step > 0
    (tmp_path / "stop").unlink()
    trial.stop()
    assert trained(config, tmp_path) == trained(config, tmp_path / "alone")


def test_one_that_is_not_finite_is_finished_with_the_worst_score(config, tmp_path):
    config = dataclasses.replace(config, train=dataclasses.replace(config.train, optimiser="sgd", lr=1e30))
    result = trial_of(config, tmp_path).train()
    assert (result["status"], result["finished"], result[DONE]) == ("nonfinite", True, True)
    assert result["score"] < 0


def test_what_takes_over_weights_is_the_job_that_its_schedule_says(config, tmp_path):
    """Population based training as plain jobs: begun at another's checkpoint with another rate, it ends with the bits
    of the same schedule trained from the first step."""
    source = trial_of(config, tmp_path / "source", {"lr": config.train.lr, "weight_decay": 0.0})
    source.train()
    source.train()
    (tmp_path / "kept").mkdir()
    source.save_checkpoint(str(tmp_path / "kept"))
    source.train()  # goes on: what was kept is not touched by it

    other = dataclasses.replace(config, train=dataclasses.replace(config.train, lr=0.05))
    trial = trial_of(other, tmp_path / "source", {"lr": 0.002, "weight_decay": 1e-4})
    trial.load_checkpoint(str(tmp_path / "kept"))
    results = [trial.train() for _ in range(2)]
    assert [result["epoch"] for result in results] == [3, 4]
    assert results[-1]["finished"]
    changed = load_job(Paths(str(tmp_path / "source")).config(trial.job), trial.job)
    (change,) = changed.train.changes
    assert (change.epoch, change.lr, change.weight_decay) == (2, 0.002, 1e-4)
    assert files(changed, tmp_path / "source") == trained(changed, tmp_path / "alone")
    (attempt,) = attempts(changed, tmp_path / "source")
    assert attempt.to_step == 2 * attempt.from_step  # epochs 3 and 4 of four


def test_weights_of_the_middle_of_an_epoch_are_not_taken_over(config, tmp_path):
    """As an interruption leaves them: steps of the next epoch are made, with the old rates."""
    source = trial_of(config, tmp_path, {"lr": config.train.lr, "weight_decay": 0.0})
    source.train()
    (tmp_path / "stop").write_text("x")
    source.looked = float("-inf")
    source.train()  # asked to stop within the second epoch
    (tmp_path / "kept").mkdir()
    source.save_checkpoint(str(tmp_path / "kept"))
    (tmp_path / "stop").unlink()
    other = dataclasses.replace(config, train=dataclasses.replace(config.train, lr=0.05))
    trial = trial_of(other, tmp_path, {"lr": 0.002, "weight_decay": 0.0})
    trial.load_checkpoint(str(tmp_path / "kept"))
    assert trial.job == job_id(other)


def test_a_population_that_was_interrupted_decides_at_the_end_of_an_epoch_first(config, tmp_path):
    """Told of the last whole epoch, with steps of the next made, it could give nobody its weights."""
    source = trial_of(config, tmp_path, {"lr": config.train.lr, "weight_decay": 0.0}, from_end=True)
    source.train()
    (tmp_path / "stop").write_text("x")
    source.looked = float("-inf")
    assert source.train()["asked"]
    source.stop()
    (tmp_path / "stop").unlink()
    again = trial_of(config, tmp_path, {"lr": config.train.lr, "weight_decay": 0.0}, from_end=True)
    assert again.train()["epoch"] == 2
    (tmp_path / "kept").mkdir()
    again.save_checkpoint(str(tmp_path / "kept"))
    trial = trial_of(dataclasses.replace(config, seed=1), tmp_path, {"lr": 0.002, "weight_decay": 0.0}, from_end=True)
    trial.load_checkpoint(str(tmp_path / "kept"))
    assert [(change.epoch, change.lr) for change in trial.job_config.train.changes] == [(2, 0.002)]
    assert trained(config, tmp_path)
    whole = trial_of(config, tmp_path, {"lr": config.train.lr, "weight_decay": 0.0}, from_end=True).train()
    assert (whole["epoch"], whole["finished"]) == (4, True)
    trial.stop()


def test_weights_taken_over_twice_at_one_epoch_have_one_change_there(config, tmp_path):
    source = trial_of(config, tmp_path, {"lr": config.train.lr, "weight_decay": 0.0})
    source.train()
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    source.save_checkpoint(str(tmp_path / "a"))
    first = trial_of(config, tmp_path, {"lr": 0.002, "weight_decay": 0.0})
    first.load_checkpoint(str(tmp_path / "a"))
    first.save_checkpoint(str(tmp_path / "b"))
    second = trial_of(config, tmp_path, {"lr": 0.003, "weight_decay": 0.0})
    second.load_checkpoint(str(tmp_path / "b"))
    assert [(change.epoch, change.lr) for change in second.job_config.train.changes] == [(1, 0.003)]
    for trial in (source, first, second):
        trial.stop()
