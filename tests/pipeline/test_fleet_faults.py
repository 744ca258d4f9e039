"""A fleet as a program, and what may happen to it: processes killed, asked to end, and begun again."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from searching_program import Program
from small import on_cpu, small_job, write_job

from pipeline.config import job_id
from pipeline.crew import TRIES
from pipeline.holder import Holder, read_holder
from pipeline.paths import Paths
from pipeline.private_ray import private_ray
from pipeline.ray_node import descendants
from pipeline.records import AttemptRecord, read_records
from pipeline.train import train

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]
ROOT = Path(__file__).parents[2]
LONG = small_job(9, epochs=300)  # some seven seconds: longer than a Ray lives that lost its driver
SHORT = [small_job(seed) for seed in range(3)]
LONG_ID = job_id(LONG)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory) -> Paths:
    paths = Paths(str(tmp_path_factory.mktemp("undisturbed")))
    for config in (LONG, *SHORT):
        assert train({job_id(config): config}, paths, on_cpu(data_root="none"), lambda: False)
    return paths


class Fleet:
    """A run of the program in a folder of its own. Its Ray's files lie in a short one."""

    def __init__(self, folder: Path):
        self.folder, self.paths = folder, Paths(str(folder / "results"))
        self.jobs = [write_job(folder / "results", config)[1] for config in (LONG, *SHORT)]
        self.done = folder / "all.done"
        self.short = Path(f"/tmp/t{os.getpid()}-{time.monotonic_ns() % 10**6}")
        self.short.mkdir()
        self.processes: list[subprocess.Popen[str]] = []

    def start(self, *options: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "pipeline.fleet", *(self.paths.config(job) for job in self.jobs)]
        command += ["--done", str(self.done), "--device", "cpu", "--cpus", "2", "--data", "none", *options]
        process = subprocess.Popen(
            [*command, "--checkpoint-seconds", "0.5"],
            cwd=self.folder,
            env=os.environ | {"PYTHONPATH": str(ROOT), "RAY_TMPDIR": str(self.short)},
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        self.processes.append(process)
        return process

    def finish(self, process: subprocess.Popen[str], seconds: float = 120) -> tuple[int, str]:
        _, errors = process.communicate(timeout=seconds)
        return process.returncode, errors

    def begun(self, job: str = LONG_ID, after: str = "") -> Holder:
        """Wait until a process, other than that of the token `after`, has taken steps and kept some."""

        def look() -> Holder | None:
            holder = read_holder(self.paths.lease(job))
            kept = Path(self.paths.resume(job)).exists()
            there = holder is not None and holder.token != after and holder.from_step is not None and kept
            return holder if there else None

        return awaited(look, f"{job} is trained")

    def attempts(self, job: str) -> list[AttemptRecord]:
        return read_records(AttemptRecord, self.paths.attempts(job))

    def assert_whole(self, undisturbed: Paths) -> None:
        """All files are those of an undisturbed run, and each job was finished once."""
        for job in self.jobs:
            pairs = zip(self.paths.trained(job), undisturbed.trained(job))
            assert all(Path(mine).read_bytes() == Path(whole).read_bytes() for mine, whole in pairs), job
            assert [attempt.outcome for attempt in self.attempts(job)].count("finished") == 1

    def down(self) -> None:
        for process in self.processes:
            if process.poll() is None:
                process.kill()
            process.communicate()


def awaited(look: Callable, what: str, seconds: float = 60):
    deadline = time.monotonic() + seconds
    while not (found := look()):
        assert time.monotonic() < deadline, f"not within {seconds:.0f} s: {what}"
        time.sleep(0.02)
    return found


@pytest.fixture
def running(tmp_path):
    fleet = Fleet(tmp_path)
    yield fleet
    fleet.down()
    awaited(lambda: not rays(fleet.short), "all of its Ray have ended")
    for left in sorted(fleet.short.rglob("*"), reverse=True):
        left.rmdir() if left.is_dir() and not left.is_symlink() else left.unlink()
    fleet.short.rmdir()


def rays(short: Path) -> list[int]:
    """Processes that were started with files in that folder."""
    found = []
    for file in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if str(short) in file.read_text():
                found.append(int(file.parent.name))
        except OSError:
            continue
    return found


def test_a_killed_process_is_replaced_and_its_job_goes_on(running, undisturbed):
    process = running.start()
    os.kill(running.begun().pid, signal.SIGKILL)
    code, errors = running.finish(process)
    assert code == 0, errors
    assert "its process died" in errors
    assert running.done.exists()
    running.assert_whole(undisturbed)
    killed, finished = running.attempts(LONG_ID)
    assert killed.outcome == "killed"
    assert finished.from_step > 0
    assert list(running.short.iterdir()) == []


def test_a_job_that_kills_its_processes_is_given_up_and_the_others_are_trained(running):
    process, token = running.start(), ""
    for _ in range(TRIES):
        holder = running.begun(after=token)
        token = holder.token
        os.kill(holder.pid, signal.SIGKILL)
    code, errors = running.finish(process)
    assert code == 1, errors
    lines = [line for line in errors.splitlines() if "error: " in line]
    assert len(lines) == 1
    assert f"error: {LONG_ID}: {TRIES} processes died over it" in lines[0]
    assert not running.done.exists()
    assert [job for job in running.jobs if Path(running.paths.model(job)).exists()] == running.jobs[1:]


def test_killed_itself_the_same_command_goes_on(running, undisturbed):
    process = running.start()
    running.begun()
    process.kill()
    running.finish(process)
    awaited(lambda: not rays(running.short), "its Ray has ended with it")
    former = {job: len(running.attempts(job)) for job in running.jobs if Path(running.paths.model(job)).exists()}
    code, errors = running.finish(running.start())
    assert code == 0, errors
    running.assert_whole(undisturbed)
    assert [attempt.outcome for attempt in running.attempts(LONG_ID)] == ["killed", "finished"]
    assert running.attempts(LONG_ID)[1].from_step > 0
    assert {job: len(running.attempts(job)) for job in former} == former


def to_all(pid: int, number: int) -> None:
    """To a process and all that it has started, those first."""
    for each in (*descendants(pid), pid):
        with contextlib.suppress(ProcessLookupError):
            os.kill(each, number)


@pytest.mark.parametrize(
    ("number", "send"),
    [(signal.SIGTERM, os.kill), (signal.SIGTERM, to_all), (signal.SIGUSR1, to_all), (signal.SIGINT, os.killpg)],
)
def test_asked_to_end_it_writes_checkpoints_and_says_so(number, send, running, undisturbed):
    """SIGTERM as Snakemake sends it, or SLURM, to all that the program has started too; so is Ctrl-C by a terminal."""
    process = running.start("--workers", "1")
    running.begun()
    send(process.pid, number)
    code, errors = running.finish(process, 30)
    assert code == 85, errors
    assert f"{number.name}: not finished; the same command goes on" in errors
    assert not running.done.exists()
    (attempt,) = running.attempts(LONG_ID)
    assert (attempt.outcome, attempt.reason) == ("interrupted", number.name)
    assert list(running.short.iterdir()) == []
    if number == signal.SIGTERM:
        code, errors = running.finish(running.start())
        assert code == 0, errors
        running.assert_whole(undisturbed)
        assert running.attempts(LONG_ID)[1].from_step == attempt.to_step


@pytest.mark.parametrize("search", ["num_trials: 4\nscheduler: {name: asha, reduction: 2}", "num_trials: 4"])
def test_a_search_whose_processes_are_all_asked_to_end_goes_on_from_its_checkpoints(tmp_path, search):
    """By Tune, and by a fleet."""
    program = Program(tmp_path, search, epochs=60)
    try:
        process = program.start("--checkpoint-seconds", "1000")
        leases = [program.paths.lease(job_id(program.search.drawn(number)[1])) for number in range(4)]

        def trained() -> bool:
            return any(holder and holder.from_step is not None for holder in map(read_holder, leases))

        program.wait_for(trained, "a trial is trained")
        to_all(process.pid, signal.SIGTERM)
        assert process.wait(30) == 85, program.output
        ended = [attempt for trial in program.trials for attempt in program.attempts(trial.job)]
        assert any(attempt.outcome == "interrupted" and attempt.to_step > 0 for attempt in ended)
        assert not any(attempt.outcome in ("failed", "killed") for attempt in ended)
        program.run()
        assert program.found["finished"] + program.found["stopped"] == 4
        program.assert_counted_once()
        program.assert_nothing_is_left()
    finally:
        program.end()


def test_asked_to_end_while_ray_starts_it_leaves_nothing(running):
    process = running.start()
    awaited(lambda: any("gcs_server" in command(pid) for pid in rays(running.short)), "Ray is starting")
    process.terminate()
    code, errors = running.finish(process, 30)
    assert code == 85, errors
    assert "Traceback" not in errors
    assert list(running.short.iterdir()) == []


def command(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text()
    except OSError:
        return ""


def test_a_damaged_job_is_one_line_and_the_others_are_trained(running):
    bad, *good = running.jobs
    Path(running.paths.state(bad)).mkdir(parents=True)
    Path(running.paths.resume(bad)).write_bytes(b"half")
    code, errors = running.finish(running.start())
    assert code == 1, errors
    assert "Traceback" not in errors
    assert sum("error: " in line for line in errors.splitlines()) == 1
    assert f"error: {bad}: " in errors
    assert all(Path(running.paths.model(job)).exists() for job in good)


def test_another_ray_of_the_same_user_is_left_in_peace(running, monkeypatch):
    """It is found in every way in which Ray looks for one."""
    import ray

    class Counter:
        number = 0

        def count(self) -> int:
            self.number += 1
            return self.number

    running.jobs = running.jobs[1:]
    with private_ray(cpus=1, gpus=0):
        counter = ray.remote(num_cpus=0)(Counter).remote()
        assert ray.get(counter.count.remote()) == 1
        monkeypatch.setenv("RAY_ADDRESS", ray.get_runtime_context().gcs_address)
        code, errors = running.finish(running.start())
        assert code == 0, errors
        assert ray.get(counter.count.remote()) == 2, "what it held is gone"
        assert len(ray.nodes()) == 1
        jobs = {job["JobID"] for job in ray._private.state.jobs() if not job["IsDead"]}
        assert len(jobs) == 1, "the fleet has come to it"
