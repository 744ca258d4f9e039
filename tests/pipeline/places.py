"""An experiment whose jobs stand where a test puts them: the files that a training leaves, without one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from pipeline.describe import write_configs
from pipeline.experiment import load_experiment
from pipeline.holder import Holder
from pipeline.lease import SIZE
from pipeline.paths import Paths
from pipeline.records import AttemptRecord, TrainingRecord, append_record, write_records
from pipeline.slurm import SlurmJob

FOUR = """
question: Where do they stand?
job:
  data: {name: digits, num_validation: 144}
  model: {network: raw, family: gode, width: 16, basis: {degree: 1, num_coefficients: 3}}
  train: {solver: euler@4, optimiser: adam, lr: 5e-3, epochs: 10, batch_size: 64}
sweep: {seed: [0, 1, 2, 3]}
evaluate_with: {solvers: [euler@4]}
"""
STACKED = FOUR.replace("{name: digits, num_validation: 144}", "{name: spheres, dimension: 2, num_train: 640}")
STARTED = "2026-11-21T16:20:00+00:00"
PER_EPOCH = 21  # optimiser steps: ceil((1437 - 144) / 64)


class Places:
    """Four jobs below a folder."""

    def __init__(self, folder: Path, text: str = FOUR):
        self.file = folder / "four.yaml"
        self.file.write_text(text)
        self.experiment = load_experiment(self.file)
        self.paths = Paths(str(folder / "results"))
        self.slurm_logs = folder / "slurm_logs"
        self.jobs = list(self.experiment.jobs)
        write_configs(self.experiment, self.paths)

    @property
    def judging(self) -> str:
        return self.experiment.evaluate_with.id

    def train(self, *jobs: str) -> None:
        for job in jobs:
            touch(*self.paths.trained(job))

    def judge(self, *jobs: str) -> None:
        self.train(*jobs)
        for job in jobs:
            touch(*self.paths.judged(job, self.judging))

    def attempt(self, job: str, outcome: Any = "finished", reason: str = "ok", **facts: Any) -> AttemptRecord:
        """One more, on a core, for 100 s."""
        plain = AttemptRecord(job, "c0de", "abc", "node1", 7, "cpu", 0, 0, STARTED, 100.0, outcome, reason)
        record = replace(plain, **facts)
        append_record(self.paths.attempts(job), record)
        return record

    def hold(self, job: str, **facts: Any) -> Holder:
        """A process of another machine trains the job."""
        plain = {"host": "node2", "pid": 12, "born": "another-boot pid:[1] 1", "started": STARTED, "code": "c0de"}
        plain |= {"device": "cpu", "threads": 2, "share": 1, "slurm_job": "", "campaign": ""}
        plain |= {"from_step": 21, "step": 50, "epoch": 2, "seconds": 300.0, "token": "t"}
        holder = Holder(**(plain | facts))
        self._write(self.paths.lease(job), json.dumps(asdict(holder)).ljust(SIZE))
        return holder

    def so_far(self, job: str, epoch: int) -> None:
        """Rows beside a checkpoint."""
        rows = [TrainingRecord(job, "c", e, e * PER_EPOCH, 0.1, 1, 1, 1, 1, 4, "ok") for e in range(1, epoch + 1)]
        write_records(self.paths.training_so_far(job), rows)

    def log(self, rule: str, name: str, text: str) -> str:
        return self._write(self.paths.log(rule, name), text)

    def slurm_log(self, rule: str, job: str, number: str, text: str) -> str:
        """Of the executor; job: empty for a rule without wildcards."""
        return self._write(str(self.slurm_logs / f"rule_{rule}" / job / f"{number}.log"), text)

    @staticmethod
    def _write(path: str, text: str) -> str:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        Path(path).write_text(text)
        return path


def touch(*files: str) -> None:
    for file in files:
        Path(file).parent.mkdir(parents=True, exist_ok=True)
        Path(file).touch()


def grow_old(path: str, seconds: float) -> None:
    """As if it had not changed for so long."""
    then = time.time() - seconds
    os.utime(path, (then, then))


def call(stage: str, *arguments: Any) -> subprocess.CompletedProcess[str]:
    """`python -m pipeline.<stage>` as a person calls it."""
    command = [sys.executable, "-m", f"pipeline.{stage}", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[2], timeout=60)


def row(rule: str, job: str, state: str = "RUNNING", number: str = "7", **fields: Any) -> SlurmJob:
    """Of squeue, for a job of this folder; job: empty for a rule without wildcards."""
    comment = f"rule_{rule}_wildcards_{job}" if job else f"rule_{rule}"
    plain = SlurmJob(number, "gode_x", state, comment, os.getcwd(), "node1", "None", None, None)
    return replace(plain, **fields)
