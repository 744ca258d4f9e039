"""A trial as Ray Tune sees it: a job that is trained epoch by epoch, in a process that stays warm. A door of ray.

What was trained before, by whatever run, sweep or search, is not trained again: its rows are told as they stand in the
job's files, and the training goes on behind them.
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from ray import tune
from ray.tune.result import DONE

from pipeline import checkpoint
from pipeline.config import JobConfig, canonical, job_id, read_job
from pipeline.device import set_threads
from pipeline.finished import is_trained
from pipeline.paths import Paths
from pipeline.records import TrainingRecord, replace_file, write_records
from pipeline.search_config import GOALS, Goal
from pipeline.train import train_by_epochs
from pipeline.train_config import Change
from pipeline.training import RunSettings
from pipeline.trials import rows_of, score_of

WORST = -1e9  # stands for a value that does not exist: a scheduler compares numbers
LOOK = 1.0  # seconds between two looks for the file that asks all to stop
RATES = ("lr", "weight_decay")  # what population based training changes


@dataclass(frozen=True)
class Task:
    """What a process needs to know of its trial: plain data."""

    config: dict[str, Any]  # of the job, at first
    root: str  # of the results
    stop: str  # a file: where it is, all stop
    run: dict[str, Any]  # RunSettings
    goals: tuple[Goal, ...]
    gpus: float = 0.0  # of one, if below 1
    stop_at: int | None = None  # epoch, where a former run of this search has stopped it, or it had failed
    seen: bool = False  # the scheduler sees the row of that epoch like any other; the trial ends a step later
    from_end: bool = False  # tell nothing of what was trained before: decisions on it were made already


class JobTrial(tune.Trainable):
    """One `step` is one row of the job's training. In its results `score` is the first goal, more being better."""

    def setup(self, config: dict[str, Any]) -> None:
        self.epochs: Iterator | None = None
        self._open(config)
        set_threads(self.run.threads)  # once in a process: of all trials alike
        if 0 < self.task.gpus < 1 and torch.cuda.is_available():
            torch.cuda.set_per_process_memory_fraction(self.task.gpus)  # Ray counts fractions, and holds nobody to them

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Another trial, in the same process."""
        self._close()
        self._open(new_config)
        return True

    def cleanup(self) -> None:
        self._close()

    def _open(self, config: dict[str, Any]) -> None:
        self.task = Task(**config["given"]["task"])
        self.rates = {name: config[name] for name in RATES if name in config}
        self.run = RunSettings(**self.task.run)
        self.paths = Paths(self.task.root)
        self.looked, self.asked = -math.inf, ""
        self._take(read_job(self.task.config, "the trial's job"))

    def _take(self, job_config: JobConfig) -> None:
        """Go on with this job."""
        self.job_config, self.job = job_config, job_id(job_config)
        self.rows = rows_of(self.job, self.paths)
        self.place = 0
        if self.task.from_end:  # a checkpoint may be of the middle of an epoch: its end is the first that can be told
            has_ended = self.rows != [] and self._is_last(self.rows[-1])
            self.place = len(self.rows) - 1 if has_ended else len(self.rows)

    def _close(self) -> None:
        """Write a checkpoint, if something is being trained."""
        epochs, self.epochs = self.epochs, None
        if epochs is not None:
            epochs.close()  # type: ignore[attr-defined]

    def step(self) -> dict[str, Any]:
        over = self.task.seen and self._is_at_stop()
        row = self._last_told() if over else self._next_row()
        if row is None:
            return {"epoch": 0, "score": WORST, "job": self.job, "finished": False, "asked": True, DONE: True}
        finished = self._is_last(row) and not self._is_at_stop()
        if finished:
            self._finish()
        score = score_of(row, self.task.goals[0])
        result = {"epoch": row.epoch, "score": WORST if score is None else score, "job": self.job}
        result |= {name: getattr(row, name) for name in (*GOALS, "status")}
        stopped = over or (self._is_at_stop() and not self.task.seen)
        return result | {"finished": finished, "asked": False, DONE: finished or stopped}

    def _last_told(self) -> TrainingRecord | None:
        return self.rows[self.place - 1] if self.place else None

    def _is_at_stop(self) -> bool:
        row, stop_at = self._last_told(), self.task.stop_at
        return stop_at is not None and (row.epoch if row else 0) >= stop_at

    def _next_row(self) -> TrainingRecord | None:
        """None if asked to stop before it was there."""
        while self.place >= len(self.rows):
            if not self._advance():
                return None
            assert self.epochs is not None or self.place < len(self.rows), "a finished training has no more rows"
        self.place += 1
        return self.rows[self.place - 1]

    def _advance(self) -> bool:
        """Train to the end of an epoch, or write what a finished training leaves. False if asked to stop before it."""
        if self.epochs is None:
            self.epochs = train_by_epochs({self.job: self.job_config}, self.paths, self.run, self._should_stop)
        try:
            self.rows = next(self.epochs)[self.job]
        except StopIteration as end:
            self.epochs = None
            self.rows = rows_of(self.job, self.paths)
            return bool(end.value)
        except BaseException:
            self.epochs = None
            raise
        return True

    def _is_last(self, row: TrainingRecord) -> bool:
        return row.epoch == self.job_config.train.epochs or row.status != "ok"

    def _finish(self) -> None:
        while not is_trained(self.job, self.paths) and self._advance():
            pass

    def _should_stop(self) -> str:
        if time.monotonic() - self.looked > LOOK:
            self.looked = time.monotonic()
            if os.path.exists(self.task.stop):
                self.asked = "the search was asked to stop"
        return self.asked

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        """For one who pauses, or whose weights another takes over. The trial itself goes on from the job's files."""
        self._close()
        self.rows = rows_of(self.job, self.paths)
        told = self.rows[: self.place]  # of a job that was trained before not all may have been told
        about = {"config": canonical(self.job_config), "epoch": told[-1].epoch if told else 0}
        replace_file(Path(checkpoint_dir, "trial.json"), json.dumps(about).encode())
        resume = Path(self.paths.resume(self.job))
        if resume.exists():
            replace_file(Path(checkpoint_dir, "resume.pt"), resume.read_bytes())

    def load_checkpoint(self, checkpoint_dir: str) -> None:  # type: ignore[override]
        about = json.loads(Path(checkpoint_dir, "trial.json").read_text())
        self._close()
        source, epoch = read_job(about["config"], "the job that is taken over"), about["epoch"]
        to_come = 0 < epoch < source.train.epochs
        if self.rates and to_come and dict(zip(RATES, source.train.base_rates(epoch))) != self.rates:
            self._take(self._cloned(source, epoch, Path(checkpoint_dir, "resume.pt")) or self.job_config)
        else:
            self._take(source)
        self.place = len([row for row in self.rows if row.epoch <= epoch])

    def _cloned(self, source: JobConfig, epoch: int, resume: Path) -> JobConfig | None:
        """The job that is `source` with other rates from an epoch on. Begun at the checkpoint, not at its first step:
        what it would have trained before is what `source` has trained. None if the checkpoint is not of an epoch's
        end, as after an interruption: steps of the next would have been made with the old rates."""
        before = (change for change in source.train.changes if change.epoch < epoch)
        changes = (*before, Change(epoch, **self.rates))
        config = replace(source, train=replace(source.train, changes=changes))
        job, paths = job_id(config), self.paths
        if not Path(paths.resume(job)).exists() and not is_trained(job, paths):
            state = checkpoint.load(resume, source)
            assert state is not None
            if state["place"] != [epoch, 0]:
                return None
            state = {name: part for name, part in state.items() if name not in ("format", "job")}
            state["records"] = [row | {"job": job} for row in state["records"]]
            replace_file(paths.config(job), (json.dumps(canonical(config), indent=1) + "\n").encode())
            write_records(paths.training_so_far(job), [TrainingRecord(**row) for row in state["records"]])
            checkpoint.save(paths.resume(job), config, state)  # last: where it is, all is there
        return config


def task_of(config: JobConfig, **facts: Any) -> dict[str, Any]:
    """For Tune: plain data."""
    return asdict(Task(config=canonical(config), **facts))
