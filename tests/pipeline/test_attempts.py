"""A training that is stopped, killed or followed by another: it ends with the bits of an undisturbed one, and its
attempts add up to its steps. One whose attempts come to nothing is not begun again and again."""

import argparse
import itertools
import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import asdict, replace
from datetime import datetime
from functools import cache
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from small import on_cpu, small_job, write_job
from test_side_by_side import job as stackable
from test_side_by_side import written

from pipeline import attempt, checkpoint, lease, stage, train
from pipeline.deadline import Allocation, Deadline
from pipeline.holder import Holder, read_holder
from pipeline.lease import Lease
from pipeline.records import AttemptRecord, append_record, read_records

STEPS = 8  # of a small job
SLURM_JOBS = itertools.count(1)
FACTS = {"code": "c0de", "device": "cpu", "threads": 1, "share": 1, "slurm_job": "", "campaign": ""}
ASKED_TO_STOP = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)
CHILD = "import runpy; from pipeline import lease; lease.BEAT, lease.GRACE = 0.05, 0; "
CHILD += "runpy.run_module('pipeline.train', run_name='__main__')"


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """As outside SLURM, without long waits; what `main` does with signals ends with the test."""
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    monkeypatch.setattr(lease, "BEAT", 0.05)
    monkeypatch.setattr(lease, "GRACE", 0.0)
    monkeypatch.setattr(train, "set_threads", lambda number: None)  # once in a process, and conftest was first
    before = {number: signal.getsignal(number) for number in ASKED_TO_STOP}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture
def events(monkeypatch):
    """What happens at the n-th question whether to stop: after the n-th step, or while waiting."""
    planned, count = {}, itertools.count(1)

    class Questions(Deadline):
        def near(self):
            planned.pop(next(count), lambda: None)()
            return False

    monkeypatch.setattr(train, "Deadline", Questions)
    return planned


def run(paths, *jobs, **over):
    """`python -m pipeline.train`, in this process. Its exit code."""
    options = {"data": "data", "device": "cpu", "compile": False, "threads": 1, "stop_with_parent": None}
    options |= {"checkpoint_seconds": 60.0, "checkpoint_epochs": 0, "experiment": None, "done": None} | over
    return train.main(argparse.Namespace(configs=[paths.config(job) for job in jobs], **options))


def command(paths, job, *options):
    return [sys.executable, "-c", CHILD, paths.config(job), "--device", "cpu", *options]


def results(paths, job):
    return [Path(path).read_bytes() for path in paths.trained(job)]


@cache
def undisturbed(root, config):
    paths, job = write_job(root / "undisturbed", config)
    assert train.train({job: config}, paths, on_cpu(), lambda: False)
    return paths, job


def attempts(paths, job):
    file = Path(paths.attempts(job))
    return read_records(AttemptRecord, file) if file.exists() else []


def check_whole(paths, job, config, root):
    """Finished, as if nothing had happened; each step is counted in one attempt; nothing is left of leases."""
    assert results(paths, job) == results(*undisturbed(root, config))
    steps = checkpoint.load(paths.resume(job), config)["step"]
    assert sum(a.to_step - a.from_step for a in attempts(paths, job)) == steps
    assert all(a.to_step >= a.from_step for a in attempts(paths, job))
    left = sorted(path.name for path in Path(paths.state(job)).iterdir() if path.suffix != ".part")
    assert left == ["attempts.jsonl", "resume.pt", "training.jsonl"]  # a kill may leave a part of a file


def write_lease(paths, job, **over):
    """The lease of this process, which lives, under another token."""
    holder = replace(Holder.me(**FACTS), **over)
    Path(paths.state(job)).mkdir(parents=True, exist_ok=True)
    Path(paths.lease(job)).write_text(json.dumps(asdict(holder)).ljust(lease.SIZE))
    return holder


def killed(paths, job, **over):
    """The lease of a process that has ended."""
    return write_lease(paths, job, **{"born": f"{Holder.me(**FACTS).born}0", "seconds": 3.5} | over)


def release(paths, job):
    Path(paths.lease(job)).unlink()


def content(folder):
    return {path: path.read_bytes() for path in Path(folder).rglob("*") if path.is_file()}


def outcomes(paths, job):
    return [(a.outcome, a.from_step, a.to_step) for a in attempts(paths, job)]


def test_near_its_deadline_it_leaves_and_the_next_goes_on(tmp_path, monkeypatch):
    """The clock goes on by a second with each question; the margin is then the two seconds of two steps."""
    seconds = itertools.count(1000.0)
    monkeypatch.setattr(Allocation, "here", staticmethod(lambda: Allocation("7", "run", 1000.0, 1006.5)))
    monkeypatch.setattr(train, "Deadline", lambda allocation: Deadline(allocation, lambda: next(seconds)))
    config = small_job()
    paths, job = write_job(tmp_path, config)
    assert run(paths, job) == 85
    (first,) = attempts(paths, job)
    assert (first.outcome, first.reason) == ("interrupted", "the time limit is near")
    assert (first.slurm_job, first.campaign) == ("7", "run")
    assert (first.from_step, first.to_step) == (0, 5)
    monkeypatch.setattr(Allocation, "here", staticmethod(Allocation))
    assert run(paths, job) == 0
    check_whole(paths, job, config, tmp_path)


@pytest.mark.parametrize("number", ASKED_TO_STOP)
def test_signals_are_named_and_the_next_goes_on(tmp_path, events, number):
    config = small_job()
    paths, job = write_job(tmp_path, config)
    events[3] = lambda: os.kill(os.getpid(), number)
    assert run(paths, job) == 85
    (first,) = attempts(paths, job)
    assert (first.outcome, first.reason) == ("interrupted", number.name)
    assert first.to_step in (3, 4)  # Python runs a handler in its own time
    assert run(paths, job) == 0
    check_whole(paths, job, config, tmp_path)


def test_killed_in_the_middle_it_is_recorded_once_and_goes_on(tmp_path):
    config = small_job(epochs=400)
    paths, job = write_job(tmp_path, config)
    with subprocess.Popen(command(paths, job, "--checkpoint-epochs", "1"), stderr=subprocess.PIPE) as process:
        until = time.monotonic() + 60
        while not ((found := read_holder(paths.lease(job))) and found.step and Path(paths.resume(job)).exists()):
            assert process.poll() is None, process.stderr and process.stderr.read()
            assert time.monotonic() < until
        process.kill()
    at = checkpoint.load(paths.resume(job), config)["step"]
    assert 0 < at < 1600
    assert run(paths, job) == 0
    assert run(paths, job) == 0
    assert outcomes(paths, job) == [("killed", 0, at), ("finished", at, 1600)]
    first = attempts(paths, job)[0]
    assert (first.pid, first.device, first.code) == (process.pid, "cpu", attempts(paths, job)[1].code)
    assert first.seconds > 0
    check_whole(paths, job, config, tmp_path)


def interrupt(config, paths, job, step):
    count = itertools.count(1)
    assert not train.train({job: config}, paths, on_cpu(), lambda: next(count) == step)


def test_killed_before_its_first_step_it_adds_none(tmp_path):
    """Those of the checkpoint that it was to go on from belong to the attempt that made them."""
    config = small_job()
    paths, job = write_job(tmp_path, config)
    interrupt(config, paths, job, 3)
    killed(paths, job)
    assert run(paths, job) == 0
    assert outcomes(paths, job) == [("interrupted", 0, 3), ("killed", 3, 3), ("finished", 3, 8)]
    version = str(torch.__version__)
    assert [each.torch for each in attempts(paths, job)] == [version, "", version]  # of the killed one nobody knows
    check_whole(paths, job, config, tmp_path)


def test_killed_after_its_record_was_written_it_is_not_recorded_again(tmp_path):
    config = small_job()
    paths, job = write_job(tmp_path, config)
    interrupt(config, paths, job, 3)
    (first,) = attempts(paths, job)
    killed(paths, job, host=first.host, pid=first.pid, started=first.started, from_step=0, step=3)
    assert run(paths, job) == 0
    assert outcomes(paths, job) == [("interrupted", 0, 3), ("finished", 3, 8)]
    check_whole(paths, job, config, tmp_path)


def test_one_that_dies_while_it_is_built_was_recorded_before(tmp_path, monkeypatch):
    """Out of memory, say: the killed one before it is recorded first, and it itself where it can still say so."""
    config = small_job()
    paths, job = write_job(tmp_path, config)
    killed(paths, job, from_step=0, started="2026-01-01T00:00:00+00:00")
    assert Lease(paths.lease(job), killed(paths, job, from_step=0)).try_take()  # and he was killed before he had noted
    with monkeypatch.context() as patch:
        patch.setattr(attempt, "Training", lambda *_: (_ for _ in ()).throw(MemoryError("no room")))
        with pytest.raises(MemoryError):
            run(paths, job)
    assert [a.outcome for a in attempts(paths, job)] == ["killed", "failed"]
    assert attempts(paths, job)[1].reason == "MemoryError: no room"
    assert run(paths, job) == 0
    check_whole(paths, job, config, tmp_path)


def test_told_to_stop_while_it_waits_it_forgets_no_killed_one(tmp_path, events):
    """Of two jobs, one of a dead process, one of a living."""
    configs = [stackable(seed) for seed in range(2)]
    paths, jobs = written(tmp_path, configs)
    first, second = sorted(jobs)
    killed(paths, first)
    write_lease(paths, second)
    events[1] = lambda: os.kill(os.getpid(), signal.SIGUSR1)
    assert run(paths, first, second) == 85
    assert not attempts(paths, first)
    release(paths, second)
    assert run(paths, first, second) == 0
    assert outcomes(paths, first) == [("killed", 0, 0), ("finished", 0, 8)]
    assert outcomes(paths, second) == [("finished", 0, 8)]


def test_told_to_wait_it_writes_nothing_and_then_finds_the_work_done(tmp_path, events, monkeypatch):
    """Even where the checkpoint was deleted: once judged, nobody needs it."""
    config = small_job()
    paths, job = write_job(tmp_path, config)
    write_lease(paths, job)
    before = content(tmp_path / "jobs")
    done = undisturbed(tmp_path, config)

    def finish():
        assert content(tmp_path / "jobs") == before
        for theirs, here in zip(done[0].trained(job), paths.trained(job)):
            shutil.copy(theirs, here)
        release(paths, job)

    events[1] = events[2] = lambda: None
    events[3] = finish
    monkeypatch.setattr(attempt, "Training", None)  # nothing is trained
    assert run(paths, job) == 0
    assert not events
    assert results(paths, job) == results(*done)
    assert not list(Path(paths.state(job)).iterdir())


def test_beside_one_that_was_finished_meanwhile_the_other_shows_life(tmp_path, events):
    configs = [stackable(seed) for seed in range(2)]
    paths, jobs = written(tmp_path, configs)
    done, _ = written(tmp_path / "undisturbed", configs)
    first, second = jobs
    assert train.train(jobs, done, on_cpu(), lambda: False)
    write_lease(paths, first)

    def finish():
        for theirs, here in zip(done.trained(first), paths.trained(first)):
            shutil.copy(theirs, here)
        release(paths, first)

    def beat():
        """Three signs of life from here on, or a failure."""
        begun, until = read_holder(paths.lease(second)), time.monotonic() + 5
        while begun and (now := read_holder(paths.lease(second))) and now.beat < begun.beat + 3:
            assert time.monotonic() < until, "no sign of life"

    events[1], events[3] = finish, beat
    assert run(paths, first, second) == 0
    assert not events
    assert outcomes(paths, second) == [("finished", 0, 8)]
    assert not attempts(paths, first)
    assert results(paths, second) == results(done, second)


def steal(paths, job, events):
    """Another takes the lease and says no more; it waits for him, and SIGTERM does not make it leave; he lets go."""
    release(paths, job)
    write_lease(paths, job)
    before = content(paths.state(job))
    events[6] = lambda: os.kill(os.getpid(), signal.SIGTERM)

    def let_go():
        found = content(paths.state(job))
        assert found.pop(Path(paths.attempts(job)))
        assert found == before
        release(paths, job)

    events[7] = let_go


def test_one_that_lost_its_lease_waits_and_then_goes_on(tmp_path, events):
    """Stolen after the fifth step, so that the sixth question comes while it waits."""
    config = small_job()
    paths, job = write_job(tmp_path, config)
    events[5] = lambda: steal(paths, job, events)
    assert run(paths, job, checkpoint_epochs=1, checkpoint_seconds=-1.0) == stage.NOT_FINISHED
    assert not events
    assert outcomes(paths, job) == [("interrupted", 0, 5), ("interrupted", 5, 6)]  # what was asked meanwhile holds then
    assert run(paths, job) == 0
    assert outcomes(paths, job)[2:] == [("finished", 6, 8)]
    assert f"process {os.getpid()} on" in attempts(paths, job)[0].reason
    check_whole(paths, job, config, tmp_path)


def finished_elsewhere(root, paths, job, config):
    """Another process has trained the job, it was judged, and what a resume needs was forgotten."""
    done, name = undisturbed(root, config)
    for mine, his in zip(paths.trained(job), done.trained(name)):
        shutil.copy(his, mine)
    Path(paths.resume(job)).unlink(missing_ok=True)


def test_one_that_wakes_when_all_is_done_trains_nothing(tmp_path, events):
    """Its successor has let go of the lease already."""
    config = small_job()
    paths, job = write_job(tmp_path, config)

    def all_is_done():
        finished_elsewhere(tmp_path, paths, job, config)
        release(paths, job)

    events[5] = all_is_done
    assert run(paths, job, checkpoint_seconds=-1.0) == 0
    assert outcomes(paths, job) == [("interrupted", 0, 5)]
    assert results(paths, job) == results(*undisturbed(tmp_path, config))
    assert not Path(paths.resume(job)).exists()


def test_a_job_of_a_batch_that_another_has_finished_meanwhile_is_not_trained(tmp_path, events):
    configs = [small_job(), small_job(optimiser="sgd")]
    (paths, first), (_, second) = (write_job(tmp_path, config) for config in configs)
    events[3] = lambda: finished_elsewhere(tmp_path, paths, second, configs[1])
    assert run(paths, first, second) == 0
    assert [len(attempts(paths, job)) for job in (first, second)] == [1, 0]


def test_one_that_was_followed_is_counted_once(tmp_path, events, monkeypatch):
    """He who took over records him as killed; he himself, who still lives, does not do so again."""
    config = small_job()
    paths, job = write_job(tmp_path, config)

    def follow():
        with monkeypatch.context() as patch:
            patch.setattr(lease, "STALE", 0)
            other = Lease(paths.lease(job), Holder.me(**FACTS))
            while not other.try_take():  # a sign of life may come between its two looks
                pass
        events[6] = other.release

    events[5] = follow
    assert run(paths, job, checkpoint_seconds=-1.0) == 0
    assert not events
    assert outcomes(paths, job) == [("killed", 0, 5), ("finished", 5, 8)]
    check_whole(paths, job, config, tmp_path)


@pytest.mark.slow
def test_of_two_processes_one_trains_and_one_waits(tmp_path):
    config = small_job(epochs=400)
    paths, job = write_job(tmp_path, config)
    with subprocess.Popen(command(paths, job), stderr=subprocess.PIPE) as first:
        until = time.monotonic() + 60
        while not ((found := read_holder(paths.lease(job))) and found.step):
            assert first.poll() is None
            assert time.monotonic() < until
        os.kill(first.pid, signal.SIGSTOP)  # until the other has come
        with subprocess.Popen(command(paths, job), stderr=subprocess.PIPE, text=True) as second:
            assert second.stderr is not None
            assert any(f"waiting for it: process {first.pid} on" in line for line in second.stderr)
            os.kill(first.pid, signal.SIGCONT)
            second.communicate(timeout=60)
        first.communicate(timeout=60)
    assert (first.returncode, second.returncode) == (0, 0)
    assert [(a.pid, a.outcome) for a in attempts(paths, job)] == [(first.pid, "finished")]
    check_whole(paths, job, config, tmp_path)


@pytest.mark.slow
def test_it_asks_slurm_for_its_deadline(tmp_path):
    """A whole process, with a stand-in for squeue that gives it eight seconds from its first question."""
    config = small_job(epochs=100_000)
    paths, job = write_job(tmp_path, config)
    asked, row = tmp_path / "asked", "\x1f".join(["4711", "run", "RUNNING", "", "/", "n1", "None", "%s", "%s"]) + "\x1e"
    first = f"test -e {asked} || date +%s > {asked}\nread start < {asked}"
    (tmp_path / "squeue").write_text(f"#!/bin/sh\n{first}\nprintf '{row}\\n' $start $((start + 8))\n")
    (tmp_path / "squeue").chmod(0o755)
    slurm = {"SLURM_JOB_ID": "4711", "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    found = subprocess.run(command(paths, job), env=os.environ | slurm, stderr=subprocess.PIPE, text=True, timeout=60)
    assert found.returncode == 85, found.stderr
    (only,) = attempts(paths, job)
    left, end = datetime.fromisoformat(only.started).timestamp() + only.seconds, int(asked.read_text()) + 8
    assert end - 4 < left < end  # half of its time, at most, is for the checkpoint
    assert (only.reason, only.slurm_job, only.campaign) == ("the time limit is near", "4711", "run")
    assert only.to_step == checkpoint.load(paths.resume(job), config)["step"] > 0


def past(job, outcome, from_step=3, to_step=3, campaign="run", slurm_job=""):
    """slurm_job: of its own, if it is not said."""
    numbers = ("n1", 7, "cpu", from_step, to_step, "2026-01-02T03:00:00+00:00", 9.0)
    facts = {"campaign": campaign, "slurm_job": slurm_job or str(next(SLURM_JOBS))}
    return AttemptRecord(job, "c0de", "abc", *numbers, outcome, "the node burnt", **facts)


GUARDED = {
    "two failed": ([("failed",)] * 2, True),
    "one failed": ([("failed",)], False),
    "four killed": ([("killed",)] * 4, False),
    "five killed": ([("killed",)] * 5, True),
    "five of all kinds": ([("killed",), ("interrupted",), ("failed",), ("killed",), ("interrupted",)], True),
    "two failed, others between": ([("failed",), ("killed",), ("failed",)], True),
    "progress since": ([("failed",), ("failed",), ("interrupted", 3, 4)], False),
    "progress before": ([("interrupted", 0, 3), ("failed",), ("failed",)], True),
    "progress between": ([("failed",), ("failed", 3, 4), ("failed", 4, 4)], False),
    "another campaign's": ([("failed", 3, 3, "yesterday")] * 5, False),
    "another campaign's among them": ([("failed",), ("interrupted", 0, 3, "yesterday"), ("failed",)], True),
    "a person's": ([("failed", 3, 3, "")] * 5, False),
}


@pytest.mark.parametrize("kind", GUARDED)
def test_attempts_that_come_to_nothing_end(tmp_path, kind):
    rows, refused = GUARDED[kind]
    config = small_job()
    paths, job = write_job(tmp_path, config)
    for row in rows:
        append_record(paths.attempts(job), past(job, *row))
    before = content(tmp_path)
    if refused:
        with pytest.raises(ValueError, match="attempts without a step forward") as found:
            train.train({job: config}, paths, on_cpu(campaign="run"), lambda: False)
        for word in (job, "n1", "the node burnt", rows[-1][0]):
            assert word in str(found.value)
        assert "\n" not in str(found.value)
        assert content(tmp_path) == before
    else:
        assert train.train({job: config}, paths, on_cpu(campaign="run"), lambda: False)


def test_what_fails_in_a_stack_and_again_alone_has_failed_once(tmp_path):
    """By one SLURM job, two notes."""
    config = small_job()
    paths, job = write_job(tmp_path, config)
    for _ in range(2):
        append_record(paths.attempts(job), past(job, "failed", slurm_job="7"))
    run = on_cpu(campaign="run")
    lease = SimpleNamespace(holder=SimpleNamespace(campaign="run"), killed=list)
    attempt.Attempt(config, job, paths, lease, run).check_progress()
    append_record(paths.attempts(job), past(job, "failed", slurm_job="8"))
    with pytest.raises(ValueError, match="3 attempts without a step forward"):
        attempt.Attempt(config, job, paths, lease, run).check_progress()


def test_outside_slurm_each_start_is_a_persons_own(tmp_path):
    config = small_job()
    paths, job = write_job(tmp_path, config)
    for _ in range(9):
        append_record(paths.attempts(job), past(job, "failed", campaign=""))
    assert train.train({job: config}, paths, on_cpu(), lambda: False)


@pytest.mark.parametrize("where", ["Training", "SideBySide"])
def test_errors_are_counted_wherever_they_come(tmp_path, monkeypatch, where):
    """While it is built, or in its first step."""
    config = stackable()
    paths, job = write_job(tmp_path, config)

    def broken(*_):
        raise RuntimeError("CUDA error: no such device")

    monkeypatch.setattr(attempt if where == "Training" else train, where, broken)
    for number in ("7", "8"):
        with pytest.raises(RuntimeError, match="no such device"):
            train.train({job: config}, paths, on_cpu(campaign="run", slurm_job=number), lambda: False)
    with pytest.raises(ValueError, match=rf"{job}: 2 attempts .* failed, RuntimeError: CUDA error: no such device; "):
        train.train({job: config}, paths, on_cpu(campaign="run"), lambda: False)


def test_a_row_cut_off_by_a_full_disk_is_no_reason_not_to_train(tmp_path, caplog):
    config = small_job()
    paths, job = write_job(tmp_path, config)
    append_record(paths.attempts(job), past(job, "failed"))
    file = Path(paths.attempts(job))
    file.write_bytes(file.read_bytes()[:-20])
    with caplog.at_level(logging.WARNING):
        assert train.train({job: config}, paths, on_cpu(campaign="run"), lambda: False)
    assert "attempts.jsonl:1: a broken row" in caplog.text
