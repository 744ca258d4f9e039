"""An experiment under way on a cluster: Snakemake as a user starts it, its trainings, and what they leave in files."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import pairwise
from pathlib import Path

from daemons import wait_until

from pipeline.config import load_job
from pipeline.counting import training_steps
from pipeline.experiment import load_experiment
from pipeline.holder import Holder, read_holder
from pipeline.paths import Paths
from pipeline.records import AttemptRecord, read_records

ROOT = Path(__file__).resolve().parents[2]
SMALL = (ROOT / "tests/workflow/small.yaml").read_text()
EXPERIMENT = SMALL.replace("epochs: 3", "epochs: 300").replace("[euler@2, euler@4, rk4@4, dopri5@1e-3]", "[euler@2]")
ONE_SEED = EXPERIMENT.replace("seed: [0, 1]", "seed: [0]")  # three of its six trainings
SITE = """
partition: low  # jobs in `main` take its nodes
train: {minutes: 2, memory_mb: 400}
evaluate: {minutes: 2, memory_mb: 400}
most_jobs: 6
poll_seconds: 5
most_poll_seconds: 5
"""
OF_TRAINING = ("model.safetensors", "training.jsonl", "weights.jsonl", "decisions.jsonl")


@dataclass(frozen=True)
class Victim:
    """A training under way that something happens to."""

    job: str
    holder: Holder
    at: datetime

    @property
    def node(self) -> str:
        return self.holder.host

    @property
    def slurm_job(self) -> str:
        return self.holder.slurm_job


class Campaign:
    """A folder like a user's checkout, with one experiment; results lie in it."""

    def __init__(self, folder: Path, experiment: str, environment: Mapping[str, str], site: str = ""):
        """`experiment` and `site` are YAML. No site: nothing of SLURM is used."""
        self.folder = folder
        for name in ("Snakefile", "cluster", "envs", "gode_core", "pipeline"):
            (folder / name).symlink_to(ROOT / name)
        (folder / "x.yaml").write_text(experiment)
        (folder / "site.yaml").write_text(site)
        clean = {k: v for k, v in environment.items() if not k.startswith(("MLFLOW_", "SNAKEMAKE_"))}
        self.environment = clean | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(folder)}
        if site:
            self.environment["GODE_SITE"] = str(folder / "site.yaml")
        self.paths = Paths(str(folder / "results"))
        self.experiment = load_experiment(folder / "x.yaml")
        self.output = folder / "output.txt"

    def has_seen_its_data(self) -> None:
        """As after a former run: Snakemake begins with the trainings."""
        seen = Path(self.paths.data("digits"))
        seen.parent.mkdir(parents=True)
        seen.touch()

    # ------------------------------------------------------------------ programs

    def snakemake(self, *options: object, checkpoint_seconds: int = 10) -> list[str]:
        common = ["--configfile", "x.yaml", "--config", "together=1", f"checkpoint_seconds={checkpoint_seconds}"]
        return [sys.executable, "-m", "snakemake", *common, *map(str, options)]

    @contextmanager
    def started(self, *command: str) -> Iterator[subprocess.Popen]:
        """Running, in a process group of its own; killed at the end if it still runs."""
        with self.output.open("ab") as out:
            process = subprocess.Popen(
                command, cwd=self.folder, env=self.environment, stdout=out, stderr=out, start_new_session=True
            )
        try:
            yield process
        finally:
            if process.poll() is None:
                process.send_signal(signal.SIGKILL)
            process.wait()

    def finish(self, process: subprocess.Popen, seconds: float) -> None:
        """Wait for exit code 0. AssertionError with the end of its output for another one."""
        code = process.wait(seconds)
        assert code == 0, f"exit code {code}\n{self.output.read_text()[-4000:]}"

    def run(self, *command: str, seconds: float = 60) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            command, cwd=self.folder, env=self.environment, capture_output=True, text=True, timeout=seconds
        )

    # ------------------------------------------------------------------ trainings

    @property
    def jobs(self) -> list[str]:
        return sorted(path.parent.name for path in Path(self.paths.root).glob("jobs/*/config.json"))

    def training(self, job: str) -> Holder | None:
        """Who trains it, if he has shown that he does: the lease is taken before the first step is made."""
        holder = read_holder(self.paths.lease(job))
        if holder is None or holder.from_step is None or holder.step <= holder.from_step:
            return None
        return None if Path(self.paths.model(job)).exists() else holder

    def attempts(self, job: str) -> list[AttemptRecord]:
        path = Path(self.paths.attempts(job))
        return read_records(AttemptRecord, path) if path.exists() else []

    def victims(self, number: int, process: subprocess.Popen, *, spare: Collection[str] = ()) -> list[Victim]:
        """As many trainings under way, those with most before them; none of the jobs in `spare`."""
        found: dict[str, Holder] = {}

        def look() -> bool:
            assert process.poll() is None, f"all is over\n{self.output.read_text()[-3000:]}"
            found.clear()
            found.update({job: it for job in self.jobs if job not in spare and (it := self.training(job)) is not None})
            return len(found) >= number

        wait_until(look, f"{number} trainings are under way", 120, self.output)
        chosen = sorted(found, key=lambda job: found[job].step)[:number]
        return [Victim(job, found[job], now()) for job in chosen]

    def wait_for_successor(self, victim: Victim, seconds: float = 120) -> Holder:
        """Until another process trains the job than the one that was hit."""
        found: list[Holder] = []

        def look() -> bool:
            holder = self.training(victim.job)
            found[:] = [holder] if holder is not None and holder.token != victim.holder.token else []
            return bool(found)

        wait_until(look, f"{victim.job} is trained by another process", seconds, self.output)
        return found[0]

    # ------------------------------------------------------------------ what they leave

    def files(self) -> dict[str, bytes]:
        """Everything that trainings declare, by `job/file`."""
        places = [place for name in OF_TRAINING for place in Path(self.paths.root).glob(f"jobs/*/{name}")]
        return {f"{place.parent.name}/{place.name}": place.read_bytes() for place in places}

    def assert_as_undisturbed(self, undisturbed: Mapping[str, bytes]) -> None:
        """The files of its trainings are those in `undisturbed`, which may hold others too, bit for bit."""
        whole = {name: bits for name, bits in undisturbed.items() if name.partition("/")[0] in self.experiment.jobs}
        assert len(whole) == len(OF_TRAINING) * len(self.experiment.jobs)
        found = self.files()
        assert found.keys() == whole.keys()
        assert [name for name in whole if found[name] != whole[name]] == []

    def back_after(self, victim: Victim) -> float | None:
        """Seconds until a training of the job went on. None if none had to: it was finished by the one that was hit."""
        starts = [begin(attempt) for attempt in self.attempts(victim.job)]
        later = [(start - victim.at).total_seconds() for start in starts if start > victim.at]
        return min(later, default=None)

    def hit_and_next(self, victim: Victim) -> list[AttemptRecord]:
        """The attempt that was under way, and the one after it if there is one."""
        attempts = self.attempts(victim.job)
        (i,) = (i for i, attempt in enumerate(attempts) if attempt.started == victim.holder.started)
        return attempts[i : i + 2]

    def assert_counted_once(self) -> None:
        """Each job's attempts are a chain from its first step to its last: none is missing, none is there twice. (The
        end itself may be: of a SLURM job that dies between a training's end and its own, Snakemake deletes what it
        declared, and the next attempt writes that again from the checkpoint, without a step.)"""
        for job in self.jobs:
            attempts = self.attempts(job)
            assert self.steps_in_a_chain(job) == training_steps(load_job(self.paths.config(job), job)), (job, attempts)
            assert attempts[-1].outcome == "finished", (job, attempts)

    def steps_in_a_chain(self, job: str) -> int:
        """Where the job's attempts lead from its first step, each from where the former has ended."""
        reached = 0
        for attempt in self.attempts(job):
            assert attempt.from_step == reached, (job, self.attempts(job))
            reached = attempt.to_step
        return reached

    def assert_one_writer(self) -> None:
        """No attempt of a job begins before the former one has ended, or shown its last sign of life."""
        for job in self.jobs:
            attempts = sorted(self.attempts(job), key=begin)
            for former, latter in pairwise(attempts):
                assert begin(latter) >= begin(former) + timedelta(seconds=former.seconds), (job, former, latter)


def now() -> datetime:
    return datetime.now().astimezone()


def begin(attempt: AttemptRecord | Holder) -> datetime:
    return datetime.fromisoformat(attempt.started)
