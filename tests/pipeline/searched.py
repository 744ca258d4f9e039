"""A search that was never run: its files, by a law that says which trials are good.

Accuracy grows with the number of coefficients, falls with the distance of the learning rate from 1e-2, and grows a
little with the number of steps, which are what a solve costs. The worse half of the trials is stopped after two epochs,
as by ASHA.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from places import PER_EPOCH as STEPS
from test_collect import make_results  # the accuracies of a judgement, by another law

from pipeline.config import canonical, job_id
from pipeline.experiment import Experiment, load_experiment
from pipeline.finished import is_trained
from pipeline.paths import Paths
from pipeline.records import AttemptRecord, TrainingRecord, TrialRecord, append_record, write_records
from pipeline.search_config import Search
from pipeline.trials import jobs_of, read_events, trials_of, winners_of
from pipeline.winners import load_whole, write_found

SEARCH = """
question: Which is best?
job:
  data: {name: digits, num_validation: 144}
  model: {network: raw, family: gode, width: 16, basis: {degree: 1, num_coefficients: 4}}
  train: {solver: euler@4, optimiser: adam, lr: 5e-3, epochs: 4, batch_size: 64}
search:
  space:
    model.basis.num_coefficients: {choice: [2, 4, 8]}
    model.basis.degree: {integer: [0, 3]}
    train.solver: {choice: [euler@2, euler@4, euler@16, rk4@4]}
    train.lr: {log_uniform: [1e-3, 1e-1]}
  conditions: [model.basis.degree < model.basis.num_coefficients]
  num_trials: 24
  goals: [validation_accuracy, num_evals]
  scheduler: {name: asha, grace_epochs: 2}
  winners: {count: 3, seeds: [0, 1]}
evaluate_with: {solvers: [euler@2, euler@4, euler@16, dopri5@1e-5]}
"""
EPOCHS = 4
FAILED = 5  # the number of the trial that fails
CODE = "c0de"


class Searched:
    """An experiment below a folder, whose search has tried what the tests want."""

    def __init__(self, folder: Path, text: str = SEARCH):
        self.folder, self.file, self.paths = folder, folder / "found.yaml", Paths(str(folder / "results"))
        self.file.write_text(text)
        self.experiment = load_experiment(self.file)
        assert self.experiment.search is not None
        self.search: Search = self.experiment.search

    @property
    def whole(self) -> Experiment:
        return load_whole(self.file, self.paths)

    def event(self, number: int, job: str, event: Any, **facts: Any) -> None:
        at = f"2026-01-02T03:{number % 60:02d}:{2 * facts.get('epoch', 0):02d}+00:00"
        append_record(self.paths.trials(self.search.id), TrialRecord(number, job, event, at, **facts))

    def begin(self, number: int) -> str:
        """One trial, as random search would draw it; returns its job."""
        values, config = self.search.drawn(number)
        job = job_id(config)
        Path(self.paths.config(job)).parent.mkdir(parents=True, exist_ok=True)
        Path(self.paths.config(job)).write_text(json.dumps(canonical(config)))
        self.event(number, job, "begun", values=values)
        return job

    def trained(self, number: int, job: str, epochs: int) -> None:
        """Rows of a training that came so far, and its attempt."""
        values, _ = self.search.drawn(number)
        rows = [epoch_of(job, epoch, values) for epoch in range(1, epochs + 1)]
        whole = epochs == EPOCHS
        write_records(self.paths.training(job) if whole else self.paths.training_so_far(job), rows)
        if whole:
            Path(self.paths.model(job)).write_bytes(b"weights")
            for empty in (self.paths.decisions(job), self.paths.weights(job)):
                write_records(empty, [])
        outcome, reason = ("finished", "ok") if whole else ("interrupted", "stopped between two epochs")
        started = f"2026-01-02T03:{number % 60:02d}:00+00:00"
        to_step, seconds = STEPS * epochs, 2.0 * epochs
        append_record(
            self.paths.attempts(job),
            AttemptRecord(job, CODE, "abc", "here", 7, "cpu", 0, to_step, started, seconds, outcome, reason),
        )

    def stop(self, number: int, job: str, epochs: int = 2) -> None:
        self.trained(number, job, epochs)
        self.event(number, job, "stopped", epoch=epochs, reason="asha")

    def finish(self, number: int, job: str) -> None:
        self.trained(number, job, EPOCHS)
        self.event(number, job, "finished", epoch=EPOCHS, reason="ok")

    def try_all(self) -> None:
        """The worse half is stopped; one fails."""
        wanted = self.search.num_trials
        order = sorted(range(wanted), key=lambda n: -accuracy(self.search.drawn(n)[0]))
        better = set(order[: wanted // 2])
        for number in range(wanted):
            job = self.begin(number)
            if number == FAILED:
                self.event(number, job, "failed", reason="RuntimeError: no")
            elif number in better:
                self.finish(number, job)
            else:
                self.stop(number, job)

    def end(self) -> Experiment:
        """The search is done, and its winners are trained and judged. Returns the experiment with them."""
        trials = trials_of(read_events(self.search.id, self.paths))
        won = winners_of(self.search, trials, self.paths)
        write_found(self.experiment, trials, jobs_of(self.search, won, self.paths), "all trials", self.paths)
        whole = self.whole
        kept = {job: Path(self.paths.training(job)).read_bytes() for job in whole.jobs if is_trained(job, self.paths)}
        for job in whole.jobs:
            Path(self.paths.model(job)).parent.mkdir(parents=True, exist_ok=True)
            Path(self.paths.model(job)).write_bytes(b"weights")
        make_results(whole, self.paths, EPOCHS)
        for job, rows in kept.items():
            Path(self.paths.training(job)).write_bytes(rows)
        return whole


def accuracy(values: dict[str, Any]) -> float:
    """At the end of the training."""
    coefficients, lr = values["model.basis.num_coefficients"], values["train.lr"]
    return 0.8 + 0.02 * coefficients - 0.1 * math.log10(lr / 1e-2) ** 2 + 0.002 * evals_of(values)


def evals_of(values: dict[str, Any]) -> int:
    method, _, steps = values["train.solver"].partition("@")
    return int(steps) * (4 if method == "rk4" else 1)


def epoch_of(job: str, epoch: int, values: dict[str, Any]) -> TrainingRecord:
    reached = accuracy(values) * (1 - 0.5 * math.exp(-epoch))
    numbers = (STEPS * epoch, values["train.lr"], 1 - reached, reached, 1 - reached, reached, float(evals_of(values)))
    return TrainingRecord(job, CODE, epoch, *numbers, "ok", values["train.solver"])
