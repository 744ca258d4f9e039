"""What is made of what Ray Tune says of its trials. No Ray is started."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from ray.tune import TuneError
from test_ledger import ledger_of, rows_to
from test_space import TRIALS, changed

from pipeline import tuning
from pipeline.holder import Holder
from pipeline.lease import LeaseLost
from pipeline.training import RunSettings
from pipeline.tuning import PAUSED, SILENT, Ended, Heard, Place
from pipeline.watching import Live, Watching

ROW = {"epoch": 1, "validation_accuracy": 0.5, "validation_loss": 1.0, "num_evals": 4.0, "status": "ok"}


class Told:
    """Trials that are begun, and time that passes as the test says."""

    def __init__(self, folder, monkeypatch):
        self.now = 1000.0
        monkeypatch.setattr(tuning.time, "monotonic", lambda: self.now)
        self.ledger, self.live = ledger_of(folder), Live()
        self.heard = Heard(self.ledger, self.live, lambda: None)
        self.trials = [self.begin(number) for number in range(3)]

    def begin(self, number):
        self.ledger.begin(number)
        given = {"given": {"number": number}}
        return SimpleNamespace(status="RUNNING", config=given, last_result={}, error_file=None)

    def step(self, seconds):
        self.now += seconds
        self.heard.on_step_end(0, self.trials)

    def result(self, number, **facts):
        trial = self.trials[number]
        row = ROW | {"job": self.ledger.trials[number].job, "finished": False, "asked": False} | facts
        trial.last_result = row
        self.heard.on_trial_result(0, [], trial, row)

    def trained_to(self, number, step):
        path = Path(self.ledger.paths.lease(self.ledger.trials[number].job))
        path.parent.mkdir(parents=True, exist_ok=True)
        facts = dict.fromkeys(("code", "device", "slurm_job", "campaign"), "")
        path.write_text(json.dumps(asdict(replace(Holder.me(threads=1, share=1, **facts), step=step))))


@pytest.fixture
def told(tmp_path, monkeypatch):
    return Told(tmp_path, monkeypatch)


def test_what_ended_is_decided_once(told):
    told.result(0, finished=True, epoch=4)
    told.result(1)
    told.result(2, asked=True)
    for trial in told.trials:
        told.heard.on_trial_complete(0, [], trial)
    outcomes = [trial.outcome for trial in told.ledger.trials.values()]
    assert outcomes == ["finished", "stopped", "running"]


def test_what_is_ended_with_all_others_is_not_decided(told, tmp_path):
    ended = Ended(lambda: "SIGTERM", tmp_path / "stop", told.heard)
    told.result(0)
    told.result(1, finished=True, epoch=4)
    assert ended.stop_all()
    assert (tmp_path / "stop").read_text() == "SIGTERM"
    for trial in told.trials[:2]:
        told.heard.on_trial_complete(0, [], trial)
    assert [trial.outcome for trial in told.ledger.trials.values()] == ["running", "finished", "running"]


def test_an_error_is_a_decision_with_its_reason(told, tmp_path):
    """One of a trial whose process has not even begun, too."""
    told.trials[0].error_file = str(tmp_path / "error.txt")
    (tmp_path / "error.txt").write_text("Traceback\n  File x\nValueError: no\n\n")
    told.heard.on_trial_error(0, [], told.trials[0])
    told.heard.on_trial_error(0, [], told.trials[1])
    assert [told.ledger.trials[n].reason for n in (0, 1)] == ["ValueError: no", "its process died"]


def test_trials_that_only_wait_for_each_other_are_noticed(told):
    for trial in told.trials[:2]:
        trial.status = "PAUSED"
    told.trials[2].status = "TERMINATED"
    told.step(1)
    told.step(PAUSED - 1)
    assert not told.heard.stalled
    told.step(2)
    assert told.heard.stalled
    told.trials[0].status = "RUNNING"
    told.step(1)
    assert not told.heard.stalled


def test_silence_without_a_step_is_noticed_and_a_long_epoch_is_not_silence(told):
    for minute in range(20):
        told.trained_to(0, minute)
        told.step(60)
        assert not told.heard.stalled
    told.step(SILENT - 1)
    assert not told.heard.stalled
    told.step(2)
    assert told.heard.stalled
    told.result(0)
    assert not told.heard.stalled


BOOK = {"finished": 0, "stopped": 1, "failed": 2, "running": 3}  # and 4 was not begun


@pytest.mark.parametrize(
    ("rule", "numbers"),
    [("asha", [0, 1, 3, 4]), ("median", [0, 1, 3, 4]), ("hyperband", [0, 1, 2, 3, 4]), ("none", [3, 4])],
)
def test_a_rule_is_told_again_of_all_that_its_decisions_rest_on(tmp_path, rule, numbers):
    """HyperBand of those that have failed, too: it had put each into a group."""
    ledger = ledger_of(tmp_path, changed((TRIALS, f"num_trials: 5\n  scheduler: {rule}")))
    for outcome, number in BOOK.items():
        ledger.begin(number)
        rows_to(ledger, number, 2)
        if outcome != "running":
            ledger.decide(number, outcome, 2, (0.5,), "why")
    assert tuning._queue(ledger) == numbers
    ledger.cut.add(1)  # its rows are to be made again; told of once it is all the same
    assert tuning._queue(ledger) == sorted({*numbers, 1})


def test_what_has_failed_is_told_as_far_as_it_came(tmp_path):
    """And not trained further: to the last row that is kept, or where it failed."""
    ledger = ledger_of(tmp_path, changed((TRIALS, "num_trials: 5\n  scheduler: hyperband")))
    tasks = tuning.Tasks(ledger, Place(RunSettings(), 1, 0.0, 1), tmp_path / "stop")
    ends = []
    for number, (kept, failed) in enumerate([(2, 3), (3, 2), (0, 2)]):
        ledger.begin(number)
        if kept:
            rows_to(ledger, number, kept)
        ledger.decide(number, "failed", failed, reason="OSError: no")
        ends.append(tasks.config(number)["task"]["stop_at"])
    assert ends == [2, 2, 0]


def test_a_search_that_another_has_taken_over_ends_as_that_and_not_by_what_ray_makes_of_it(tmp_path, monkeypatch):
    def lost():
        raise LeaseLost("another")

    def fit(self):
        ledger.check = lost
        raise TuneError("LeaseLost, somewhere")

    ledger = ledger_of(tmp_path, changed((TRIALS, "num_trials: 5\n  scheduler: asha")))
    monkeypatch.setattr(tuning.tune, "Tuner", lambda *args, **kwargs: SimpleNamespace(fit=lambda: fit(None)))
    place = Place(RunSettings(), 1, 0.0, 1)
    with pytest.raises(LeaseLost):
        tuning.tune_trials(ledger, place, lambda: "", Live(), lambda: None)
    ledger.check = lambda: None
    monkeypatch.setattr(tuning.tune, "Tuner", lambda *args, **kwargs: SimpleNamespace(fit=lambda: None))
    tuning.tune_trials(ledger, place, lambda: "", Live(), lambda: None)


def test_another_job_of_a_trial_is_written_down(told):
    told.result(0, job=told.ledger.trials[1].job, epoch=3)
    (change,) = told.ledger.trials[0].changes
    assert (told.ledger.trials[0].job, change.epoch) == (told.ledger.trials[1].job, 3)


def test_who_looks_on_sees_the_best_and_what_runs(told):
    told.result(0, finished=True, epoch=4, validation_accuracy=0.75)
    told.heard.on_trial_complete(0, [], told.trials[0])
    told.trials[0].status = "TERMINATED"
    told.result(1, validation_accuracy=0.25)
    told.step(1)
    lines = Watching(told.ledger, told.live, lambda: 1.5).text().splitlines()
    assert lines[0] == "5 trials: 1 finished, 0 stopped, 0 failed, 2 running; 1.5 minutes spent"
    assert lines[1].startswith("  best     trial 0: validation_accuracy 0.75  num_coefficients ")
    assert lines[2].startswith("  running  trial 1: epoch 1, validation_accuracy 0.25  num_coefficients ")
    assert lines[3].startswith("  running  trial 2: epoch 0  num_coefficients ")
