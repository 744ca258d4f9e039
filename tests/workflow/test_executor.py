"""cluster/slurm and the executor that it asks for, before SLURM commands that are stand-ins: what is refused before a
job is submitted, and states that a real cluster hardly ever shows.

A job is pretended: the test writes what its training would, and says in which state SLURM has it.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from workplace import ROOT

from pipeline.experiment import load_experiment
from pipeline.paths import Paths
from pipeline.records import TrainingRecord, write_records

sys.path.append(str(ROOT / "tests/pipeline"))
from stand_in import StandIn

ONE = """
question: Where does it go?
job:
  data: {name: digits, num_validation: 144}
  model: {network: raw, family: gode, width: 16, basis: {degree: 1, num_coefficients: 3}}
  train: {solver: euler@4, optimiser: adam, lr: 5e-3, epochs: 10, batch_size: 64}
evaluate_with: {solvers: [euler@4]}
"""
SITE = "partition: main\npoll_seconds: 1\n"
BY_RULE = f"{SITE}gres: gpu:1\nevaluate: {{minutes: 9, memory_mb: 600, partition: low, gres: none}}\n"
OFTEN = ("--max-status-checks-per-second", "5")  # looks at the queue: 0.2, at most, by the profile
GONE = "slurm_load_jobs error: Unable to contact slurm controller (connect failure)"


class Cluster:
    """A folder like a user's checkout with an experiment of one job, and SLURM's commands on the path."""

    def __init__(self, folder: Path):
        self.folder = folder
        for name in ("Snakefile", "cluster", "envs", "gode_core", "pipeline"):
            (folder / name).symlink_to(ROOT / name)
        (folder / "x.yaml").write_text(ONE)
        self.slurm = StandIn(folder / "slurm")
        self.paths = Paths(str(folder / "results"))
        experiment = load_experiment(folder / "x.yaml")
        (self.job,) = experiment.jobs
        self.model = f"results/jobs/{self.job}/model.safetensors"
        self.judged = [Path(path) for path in self.paths.judged(self.job, experiment.evaluate_with.id)]
        seen = Path(self.paths.data("digits"))  # so that nothing but the training is to be done
        seen.parent.mkdir(parents=True)
        seen.touch()
        self.site(SITE)
        clean = {k: v for k, v in os.environ.items() if not k.startswith(("MLFLOW_", "SNAKEMAKE_", "SLURM_"))}
        path = f"{self.slurm.bin}{os.pathsep}{os.environ['PATH']}"
        self.environment = clean | {"PATH": path, "PYTHONPATH": str(folder), "GODE_SITE": "site.yaml"}
        self.output = folder / "output.txt"
        self.processes: list[subprocess.Popen[bytes]] = []

    def site(self, text: str) -> None:
        (self.folder / "site.yaml").write_text(text)

    def without_slurm(self) -> Path:
        """A folder for the path of a machine that has what Snakemake needs, and no more."""
        alone = self.folder / "alone"
        alone.mkdir()
        for name in ("bash", "sh", "which"):
            (alone / name).symlink_to(str(shutil.which(name)))
        return alone

    def start(self, *command: str) -> subprocess.Popen[bytes]:
        with self.output.open("ab") as out:
            process = subprocess.Popen(
                command, cwd=self.folder, env=self.environment, stdout=out, stderr=out, start_new_session=True
            )
        self.processes.append(process)
        return process

    def snakemake(self, *options: str, target: str = "") -> subprocess.Popen[bytes]:
        """For the model of the one job, or another file."""
        return self.start(
            *(sys.executable, "-m", "snakemake", "--workflow-profile", "cluster/slurm", "--configfile", "x.yaml"),
            *("--config", "together=1", *OFTEN, *options, "--", target or self.model),
        )

    def finish(self, process: subprocess.Popen[bytes], seconds: float = 60) -> int:
        try:
            return process.wait(seconds)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"still runs after {seconds:.0f} s\n{self.output.read_text()[-3000:]}") from None

    def await_that(self, what: Callable[[], object], name: str, seconds: float = 60) -> None:
        deadline = time.monotonic() + seconds
        while not what():
            assert time.monotonic() < deadline, f"not within {seconds:.0f} s: {name}\n{self.output.read_text()[-3000:]}"
            assert any(process.poll() is None for process in self.processes), self.output.read_text()[-3000:]
            time.sleep(0.05)

    def submitted(self, number: int = 1) -> None:
        """Wait until so many jobs were accepted."""
        self.await_that(lambda: len(self.slurm.read()["jobs"]) >= number, f"{number} jobs submitted")

    def polled(self, command: str = "squeue", more: int = 1) -> None:
        """Wait until a command was asked so often again."""
        before = len(self.slurm.calls(command))
        self.await_that(lambda: len(self.slurm.calls(command)) >= before + more, f"{command} was asked")

    def becomes(self, number: str, state: str) -> None:
        jobs = self.slurm.read()["jobs"]
        jobs[number]["state"] = state
        self.slurm.set("jobs", jobs)

    def train(self, number: str) -> None:
        """The job has done its work."""
        for path in self.paths.trained(self.job):
            Path(path).parent.mkdir(parents=True, exist_ok=True)
            Path(path).write_text("made")
        self.becomes(number, "COMPLETED")

    @property
    def judgement(self) -> str:
        """A file that the judging makes, as Snakemake calls it."""
        return str(self.judged[0].relative_to(self.folder))

    def judge(self, number: str) -> None:
        for path in self.judged:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("made")
        self.becomes(number, "COMPLETED")


@pytest.fixture
def cluster(tmp_path):
    found = Cluster(tmp_path)
    yield found
    for process in found.processes:
        if process.poll() is None:
            process.kill()
        process.wait()


# ---------------------------------------------------------------------- before any job


def test_the_profile_plans(cluster):
    process = cluster.snakemake("-n")
    assert cluster.finish(process) == 0, cluster.output.read_text()
    said = cluster.output.read_text()
    assert "runtime=120" in said
    assert "slurm_partition=main" in said
    assert cluster.slurm.calls("sbatch") == []


def test_the_profile_plans_each_rule_by_its_own_facts(cluster):
    cluster.site(BY_RULE)
    assert cluster.finish(cluster.snakemake("-n", target=cluster.judgement)) == 0, cluster.output.read_text()
    train, evaluate = re.findall(r"^    resources: (.*)$", cluster.output.read_text(), re.MULTILINE)
    assert {"runtime=120", "slurm_partition=main", "gres=gpu:1"} <= set(train.split(", "))
    assert {"runtime=9", "slurm_partition=low"} <= set(evaluate.split(", "))
    assert "gpu" not in evaluate


BAD = {
    "a file that is none": ("GODE_SITE=nowhere.yaml", "nowhere.yaml: no such file, and GODE_SITE names it"),
    "an unknown key": ("partitoin: main", "site.yaml: unknown key `partitoin`. Did you mean `partition`?"),
    "a partition that is none": ("partition: mian", "site.yaml: partition: `mian` is none here. Did you mean `main`?"),
    "an account where there are none": ("account: me", "site.yaml: account: no database of accounts answers"),
    "an account refused": ("account: me", "site.yaml: account: `me` is not yours. Yours: physics."),
    "no controller": ("", "SLURM does not answer here (`sinfo` failed: slurm_load_jobs error: Unable"),
    "no SLURM": ("", "are not on the path: is this the login node?"),
    "jobs that are forgotten at once": ("poll_seconds: 9", "site.yaml: poll_seconds must be at most 5"),
}


@pytest.mark.slow
@pytest.mark.parametrize("what", BAD)
def test_what_cannot_work_is_one_line_before_any_job(cluster, what):
    text, line = BAD[what]
    if text.startswith("GODE_SITE="):
        cluster.environment["GODE_SITE"] = text.partition("=")[2]
    cluster.site(text)
    if what == "an account refused":
        cluster.slurm.set("accounts", ["physics"])
    if what == "no controller":
        cluster.slurm.fail("sinfo", GONE)
    if what == "no SLURM":
        cluster.environment["PATH"] = str(cluster.without_slurm())
    if what == "jobs that are forgotten at once":
        cluster.slurm.set("age", 15)
    assert cluster.finish(cluster.snakemake()) == 1
    using, *rest = cluster.output.read_text().splitlines()
    assert using.startswith("Using workflow specific profile")
    (said,) = rest
    assert said.startswith("error: ")
    assert line in said
    assert cluster.slurm.calls("sbatch") == []


def test_settings_that_are_laws(cluster):
    """Each was paid for: see the comments beside them."""
    text = (ROOT / "cluster/slurm/profile.yaml").read_text()
    profile = yaml.safe_load(text)
    assert profile["retries"] >= 3
    assert "retries" not in (ROOT / "Snakefile").read_text()  # they would be made inside of one SLURM job
    assert profile["rerun-incomplete"] is True
    assert not {"keep-incomplete", "slurm-keep-incomplete", "slurm-array-jobs", "groups"} & set(profile)
    assert "group:" not in (ROOT / "Snakefile").read_text()  # its jobs would run one after the other
    assert profile["slurm-status-command"] == "squeue"
    assert profile["slurm-requeue"] is True
    assert "site.check()" in text


# ---------------------------------------------------------------------- states that are hard to provoke


@pytest.mark.slow
def test_a_controller_that_is_away_for_several_looks_costs_no_job(cluster):
    """Nor is sacct asked then: without accounting it would be asked for ever."""
    process = cluster.snakemake()
    cluster.submitted()
    cluster.polled()
    asked = len(cluster.slurm.calls("sacct"))
    cluster.slurm.set("fails", {name: {"message": GONE, "code": 1, "seconds": 0} for name in ("squeue", "scontrol")})
    cluster.polled(more=3)
    cluster.slurm.set("fails", {})
    cluster.train("1")
    assert cluster.finish(process) == 0
    assert len(cluster.slurm.calls("sbatch")) == 1
    assert len(cluster.slurm.calls("sacct")) == asked


@pytest.mark.slow
@pytest.mark.parametrize("state", ["CANCELLED", "TIMEOUT", "OUT_OF_MEMORY"])
def test_a_job_that_was_ended_is_submitted_again_and_asks_for_more(cluster, state):
    process = cluster.snakemake()
    cluster.submitted()
    cluster.becomes("1", state)
    cluster.submitted(2)
    cluster.train("2")
    assert cluster.finish(process) == 0
    first, second = cluster.slurm.calls("sbatch")
    assert [words[words.index("-t") + 1] for words in (first, second)] == ["120", "240"]
    assert [words[words.index("--mem") + 1] for words in (first, second)] == ["4500", "8500"]
    assert [words[words.index("--job-name") + 1].rpartition("_")[0] for words in (first, second)] == ["gode-x"] * 2


@pytest.mark.slow
def test_a_judgement_takes_no_gpu_where_the_site_says_so(cluster):
    cluster.site(BY_RULE)
    process = cluster.snakemake(target=cluster.judgement)
    cluster.submitted()
    cluster.train("1")
    cluster.submitted(2)
    cluster.judge("2")
    assert cluster.finish(process) == 0
    train, evaluate = cluster.slurm.calls("sbatch")
    assert [words[words.index("-p") + 1] for words in (train, evaluate)] == ["main", "low"]
    assert [[word for word in words if word.startswith("--gres")] for words in (train, evaluate)] == [
        ["--gres=gpu:1"],
        [],
    ]
    assert [[word for word in words if "signal" in word] for words in (train, evaluate)] == [["--signal=USR1@30"], []]


@pytest.mark.slow
def test_a_submission_that_is_refused_once_is_made_again(cluster):
    cluster.slurm.fail("sbatch", "sbatch: error: Batch job submission failed: Socket timed out on send/recv operation")
    process = cluster.snakemake()
    cluster.polled("sbatch")
    cluster.slurm.set("fails", {})
    cluster.submitted()
    cluster.train("1")
    assert cluster.finish(process) == 0
    assert len(cluster.slurm.calls("sbatch")) == 2


RESUME = """
import sys, threading, time
from argparse import Namespace
from pathlib import Path
from pipeline import resume

def patience():
    while True:  # none while the test says so: Snakemake's start takes as long as the machine lets it
        resume.LOST = 1.0 if Path("impatient").exists() else 600.0
        time.sleep(0.05)

resume.POLL, resume.PAUSE = 0.2, 0.1
threading.Thread(target=patience, daemon=True).start()
plain = {{"results": "results", "data": "", "device": "", "dry_run": False, "wait": False, "cancel": False}}
more = [{model!r}, "--config", "together=1", *{OFTEN!r}]
sys.exit(resume.main(Namespace(experiment="x.yaml", where="slurm", more=more, **plain)))
"""


@pytest.mark.slow
@pytest.mark.parametrize("how", ["PREEMPTED", "vanished"])
def test_a_wait_for_nothing_ends_and_the_job_goes_on(cluster, how):
    """The executor takes a job that SLURM preempted, or has forgotten, for one that runs."""
    process = cluster.start(sys.executable, "-c", RESUME.format(model=cluster.model, OFTEN=OFTEN))
    cluster.submitted()
    cluster.polled()
    rows = Path(cluster.paths.training_so_far(cluster.job))
    rows.parent.mkdir(parents=True)
    row = TrainingRecord(cluster.job, "c", 3, 63, 0.1, 1, 1, 1, 1, 4, "ok")
    write_records(rows, [row])
    if how == "PREEMPTED":
        cluster.becomes("1", "PREEMPTED")
    else:
        cluster.slurm.set("jobs", {"10": cluster.slurm.read()["jobs"]["1"] | {"id": "10", "name": "other"}})
    (cluster.folder / "impatient").touch()
    cluster.await_that(lambda: "for SLURM jobs that are no more" in cluster.output.read_text(), "Snakemake is ended")
    (cluster.folder / "impatient").unlink()
    number = {"PREEMPTED": "2", "vanished": "11"}[how]
    cluster.await_that(lambda: number in cluster.slurm.read()["jobs"], "the job is submitted again")
    cluster.train(number)
    assert cluster.finish(process) == 0
    assert cluster.slurm.calls("scancel") == []
