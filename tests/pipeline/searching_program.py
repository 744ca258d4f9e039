"""A search as its user starts it: the program, in a folder of its own, and what it leaves."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from pipeline.experiment import load_experiment
from pipeline.paths import Paths
from pipeline.records import AttemptRecord, TrialRecord, read_records
from pipeline.trials import Trial, read_events, rows_of, trials_of

T = TypeVar("T")
ROOT = Path(__file__).parents[2]
FILE = """
question: Which is best?
job:
  data: {{name: digits, num_validation: 144, num_train: 300}}
  model: {{network: raw, family: gode, width: 8, basis: {{degree: 1, num_coefficients: 4}}}}
  train: {{solver: euler@2, optimiser: adam, lr: 5e-3, epochs: {epochs}, batch_size: 60}}
search:
  space: {{{space}}}
{search}
evaluate_with: {{solvers: [euler@2]}}
"""
RATE = "train.lr: {log_uniform: [1e-4, 3e-2]}"
SPACE = f"model.basis.num_coefficients: {{choice: [2, 4, 8]}}, {RATE}"


class Program:
    """`python -m pipeline.search` on an experiment."""

    def __init__(self, folder: Path, search: str, epochs: int = 4, space: str = SPACE):
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.paths = folder, Paths(str(folder / "results"))
        self.file = folder / "which.yaml"
        lines = "\n".join(f"  {line}" for line in search.splitlines())
        self.file.write_text(FILE.format(search=lines, epochs=epochs, space=space))
        self.experiment = load_experiment(self.file)
        assert self.experiment.search is not None
        self.search = self.experiment.search
        self.short = Path(tempfile.mkdtemp(prefix="t", dir="/tmp"))  # Ray's sockets want a short path
        self.started: list[subprocess.Popen] = []

    def start(self, *options: str) -> subprocess.Popen:
        environment = os.environ | {"PYTHONPATH": str(ROOT), "RAY_TMPDIR": str(self.short), "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-m", "pipeline.search", str(self.file), "--results", self.paths.root]
        with (self.folder / "output.txt").open("ab") as out:
            process = subprocess.Popen(
                [*command, "--device", "cpu", "--cpus", "2", *options],
                cwd=self.folder,
                env=environment,
                stdout=out,
                stderr=out,
                start_new_session=True,
            )
        self.started.append(process)
        return process

    def run(self, *options: str, code: int = 0) -> None:
        found = self.start(*options).wait(400)  # a search that stalls is taken up again after tuning.SILENT
        assert found == code, f"exit code {found}\n{self.output[-4000:]}"

    @property
    def output(self) -> str:
        return (self.folder / "output.txt").read_text()

    @property
    def events(self) -> list[TrialRecord]:
        return read_events(self.search.id, self.paths)

    @property
    def trials(self) -> list[Trial]:
        return trials_of(self.events)

    @property
    def found(self) -> dict:
        return json.loads(Path(self.paths.found(self.experiment.name, self.search.result_id)).read_text())

    def attempts(self, job: str) -> list[AttemptRecord]:
        file = Path(self.paths.attempts(job))
        return read_records(AttemptRecord, file) if file.exists() else []

    def wait_for(self, condition: Callable[[], T | None], what: str, seconds: float = 90) -> T:
        """The first answer that is not empty."""
        end = time.monotonic() + seconds
        while not (found := condition()):
            assert time.monotonic() < end, f"{what}\n{self.output[-3000:]}"
            assert self.started[-1].poll() is None, f"it has ended: {what}\n{self.output[-3000:]}"
            time.sleep(0.05)
        return found

    def assert_counted_once(self) -> None:
        """The attempts of each job are a chain without a step made twice, and each trial has one decision."""
        for trial in self.trials:
            reached = 0
            for attempt in self.attempts(trial.job):
                assert attempt.from_step == reached, (trial.job, attempt)
                reached = attempt.to_step
            if trial.outcome == "finished":
                assert rows_of(trial.job, self.paths)[-1].step == reached
        decided = [event.trial for event in self.events if event.event in ("finished", "stopped", "failed")]
        assert sorted(decided) == sorted(set(decided))

    def assert_nothing_is_left(self) -> None:
        """No process of its Ray, and none of its files but the book and the jobs."""
        folder = Path(self.paths.trials(self.search.id)).parent
        assert [path.name for path in folder.iterdir()] == ["trials.jsonl"]
        assert list(self.short.iterdir()) == []

    def end(self) -> None:
        for process in self.started:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        shutil.rmtree(self.short, ignore_errors=True)
