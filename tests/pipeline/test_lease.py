"""Laws of the lease: one holder at a time, among processes that race, stall and die; nothing of a dead one is lost."""

import contextlib
import errno
import json
import math
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import asdict, replace
from pathlib import Path
from unittest.mock import MagicMock

import pytest

from pipeline import holder, lease
from pipeline.holder import Holder, read_holder
from pipeline.lease import Lease, LeaseLost, Leases
from pipeline.paths import Paths

spawn = multiprocessing.get_context("spawn")
RACERS = 8
JOB = "job"
FACTS = {"code": "c0de", "device": "cpu", "threads": 1, "share": 1, "slurm_job": "7", "campaign": "run"}
ELSEWHERE = "another-boot pid:[1] 1"


def never():
    return False


def me(**over) -> Holder:
    return replace(Holder.me(**FACTS), **over)


def holders(*jobs):
    return dict.fromkeys(jobs, me())


def write(path, holder: Holder) -> Path:
    """The file of a lease, as its holder writes it."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(asdict(holder)).ljust(lease.SIZE))
    return path


def files(path):
    return sorted(file.name for file in Path(path).parent.iterdir())


@pytest.fixture(scope="module")
def dead() -> Holder:
    """A process of this machine that has ended."""
    ended = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    born = holder._born(ended.pid)
    ended.communicate(b"\n")
    return me(token="dead", pid=ended.pid, born=born)


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    for name, seconds in {"STALE": 0.5, "BEAT": 0.1, "GRACE": 0.0}.items():
        monkeypatch.setattr(lease, name, seconds)


@pytest.fixture
def clock(monkeypatch):
    now = [100.0]
    monkeypatch.setattr("pipeline.lease.time.monotonic", lambda: now[0])
    return now


@pytest.fixture
def path(tmp_path):
    return Path(Paths(str(tmp_path)).lease(JOB))


def race(root, rounds, barrier):
    """In each round, count one further under the lease: read, let others run, write."""
    paths = Paths(root)
    for name in map(str, range(rounds)):
        own, counter = Lease(paths.lease(name), me()), Path(root, f"counter-{name}")
        barrier.wait(30)
        until = time.monotonic() + 20
        while not own.try_take():
            assert time.monotonic() < until
        count = int(counter.read_text())
        time.sleep(0.002)
        assert own.mine
        counter.write_text(str(count + 1))
        own.release()


def run_all(target, arguments, seconds=60):
    """Each in a process of its own; all must end well."""
    processes = [spawn.Process(target=target, args=each) for each in arguments]
    for process in processes:
        process.start()
    until = time.monotonic() + seconds
    for process in processes:
        process.join(max(0.0, until - time.monotonic()))
    codes = [process.exitcode for process in processes]
    for process in processes:
        process.kill()
    assert codes == [0] * len(processes)


@pytest.mark.parametrize("begin", ["fresh", "stale"])
def test_of_many_that_race_one_holds_it_at_a_time(tmp_path, dead, begin):
    """Counted without a lock of its own: an increment is lost when two hold the lease at once."""
    paths, rounds = Paths(str(tmp_path)), 12
    for name in map(str, range(rounds)):
        (tmp_path / f"counter-{name}").write_text("0")
        if begin == "stale":
            write(paths.lease(name), dead)
    run_all(race, [(str(tmp_path), rounds, barrier) for barrier in [spawn.Barrier(RACERS)] for _ in range(RACERS)])
    for name in map(str, range(rounds)):
        assert (tmp_path / f"counter-{name}").read_text() == str(RACERS)
        assert files(paths.lease(name)) == (["killed-dead.json"] if begin == "stale" else [])


def test_a_dead_holder_of_this_machine_is_followed_at_once(path, dead, monkeypatch):
    monkeypatch.setattr(lease, "STALE", math.inf)
    write(path, dead)
    own = Lease(str(path), me())
    assert own.try_take()
    assert own.mine
    assert read_holder(path) == own.holder
    assert own.killed() == [dead]
    own.forget(dead)
    own.release()
    assert files(path) == []


@pytest.mark.parametrize("started", [-1, -30])
def test_of_another_machine_only_silence_counts(path, clock, started):
    """Whatever the clocks of both say, the time is counted from the first look, and anew after each change."""
    there = me(token="there", born=ELSEWHERE, pid=2**30)
    write(path, there)
    own = Lease(str(path), me())
    assert not own.try_take()
    clock[0] += lease.STALE - 0.01
    assert not own.try_take()
    write(path, replace(there, beat=1))
    assert not own.try_take()
    clock[0] += lease.STALE - 0.01
    assert not own.try_take()
    clock[0] += 0.02
    assert own.try_take()
    assert own.killed() == [replace(there, beat=1)]
    own.release()


def test_a_holder_that_shows_life_is_never_taken_over_from(tmp_path, path, monkeypatch):
    """For four times the silence after which he would count as dead."""
    monkeypatch.setattr(lease.os, "fsync", lambda file: None)  # a busy disk may take longer than that silence,
    monkeypatch.setattr(lease, "STALE", 1.5)  # and a busy machine longer than a shorter one
    with Leases({JOB: me(born=ELSEWHERE)}, Paths(str(tmp_path)).lease) as held:
        assert held.take(never)
        other, until = Lease(str(path), me()), time.monotonic() + 4 * lease.STALE
        while time.monotonic() < until:
            assert not other.try_take()
            time.sleep(0.01)
        held.check()
        beats = held.of[JOB].holder.beat
    assert beats > 3
    assert files(path) == []


STALLED = """
import sys
from test_lease import *
lease.BEAT = 0.05
with Leases(holders(JOB), Paths(sys.argv[1]).lease) as held:
    held.take(never)
    for question in sys.stdin:
        try:
            held.check()
            print("held", held.of[JOB].holder.beat, flush=True)
        except LeaseLost as lost:
            print("lost", held.of[JOB].holder.beat, lost, flush=True)
    held.of[JOB].start(from_step=5)
"""


def test_a_stalled_holder_finds_that_he_was_followed_and_leaves_the_file_alone(tmp_path, path, monkeypatch):
    monkeypatch.setattr(lease, "BEAT", 60)  # so that nobody but the stalled one could change the file
    pipe, here = subprocess.PIPE, Path(__file__).parent
    command = [sys.executable, "-c", STALLED, str(tmp_path)]
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, cwd=here) as stalled:
        assert stalled.stdin is not None
        assert stalled.stdout is not None

        def ask():
            print("?", file=stalled.stdin, flush=True)
            return stalled.stdout.readline().split()

        assert ask()[0] == "held"
        os.kill(stalled.pid, signal.SIGSTOP)
        with Leases(holders(JOB), Paths(str(tmp_path)).lease) as held:
            assert held.take(never)
            content = path.read_bytes()
            os.kill(stalled.pid, signal.SIGCONT)
            answer, first, *words = ask()
            assert answer == "lost"
            assert f"process {os.getpid()} on" in " ".join(words)
            while int(ask()[1]) < int(first) + 3:  # he shows life, but no more here
                pass
            stalled.communicate()
            assert stalled.returncode == 0
            assert path.read_bytes() == content
            held.check()
            assert [former.pid for former in held.of[JOB].killed()] == [stalled.pid]


@pytest.mark.parametrize("content", [b"", b'{"token": "a', b"\xff\xfe", b"[]", b'{"token": "of another version"}'])
def test_a_file_that_says_nothing_is_taken_after_a_while(path, clock, content):
    path.parent.mkdir(parents=True)
    path.write_bytes(content)
    own = Lease(str(path), me())
    assert not own.try_take()
    clock[0] += lease.STALE + 0.01
    assert own.try_take()
    assert own.killed() == []
    own.release()
    assert files(path) == []


@pytest.mark.parametrize("event", ["he lives", "another took it", "let go"])
def test_what_changed_between_look_and_take_is_left_alone(path, dead, monkeypatch, event):
    write(path, dead)
    one_at_a_time = Lease._one_at_a_time

    @contextlib.contextmanager
    def changed(self):
        if event == "let go":
            path.unlink()
        else:
            write(path, replace(dead, beat=9) if event == "he lives" else me(token="another"))
        with one_at_a_time(self) as alone:
            yield alone

    monkeypatch.setattr(Lease, "_one_at_a_time", changed)
    own = Lease(str(path), me())
    assert not own.try_take()
    found = read_holder(path)
    assert (found and found.token) == {"he lives": "dead", "another took it": "another", "let go": None}[event]
    assert files(path) == ([] if event == "let go" else [path.name])


def test_one_that_died_in_the_taking_holds_nobody_up_for_ever(path, dead, clock):
    write(path, dead)
    path.with_name(f".{path.name}.taking").write_text("his token")
    own = Lease(str(path), me())
    assert not own.try_take()
    clock[0] += lease.STALE + 0.01
    assert not own.try_take()  # finds that he has died
    assert own.try_take()
    own.release()
    assert files(path) == ["killed-dead.json"]


def both(root, jobs, rounds, barrier):
    lease.GRACE = 0.0
    for _ in range(rounds):
        barrier.wait(30)
        with Leases(holders(*jobs), Paths(root).lease) as held:
            assert held.take(never)
            held.check()


def test_jobs_in_opposite_order_do_not_wait_in_a_ring(tmp_path):
    barrier = spawn.Barrier(2)
    jobs = [str(number) for number in range(40)]
    run_all(both, [(str(tmp_path), order, 3, barrier) for order in (jobs, [*reversed(jobs), "alone"])], 20)


def test_asked_to_stop_while_waiting_it_leaves_nothing_but_what_is_to_be_recorded(tmp_path, path, dead):
    paths = Paths(str(tmp_path))
    write(path, me(token="there", born=ELSEWHERE))
    write(paths.lease("a"), dead)
    before = path.read_bytes()
    with Leases(holders("a", "b", JOB), paths.lease) as held:
        assert not held.take(lambda: held.of["a"].file is not None)
    assert path.read_bytes() == before
    assert files(path) == [path.name]
    assert files(paths.lease("b")) == []
    assert files(paths.lease("a")) == ["killed-dead.json"]  # whoever trains it next has an attempt to record


def test_a_living_holder_that_let_go_is_given_time_to_be_cleaned_up_after(tmp_path, path, monkeypatch):
    slept = []
    monkeypatch.setattr(lease, "GRACE", 77)
    monkeypatch.setattr("pipeline.lease.time.sleep", lambda seconds: (slept.append(seconds), path.unlink(True)))
    write(path, me(token="there", born=ELSEWHERE))
    with Leases(holders(JOB), Paths(str(tmp_path)).lease) as held:
        assert held.take(never)
    assert slept[-1] == 77
    with Leases(holders(JOB), Paths(str(tmp_path)).lease) as held:  # nobody had it: no wait
        assert held.take(never)
    assert slept.count(77) == 1


def test_a_sign_of_life_forgets_nothing_that_a_start_has_said(tmp_path, path, monkeypatch):
    """Held up between reading and setting what is said, for as long as the start has not come to an end."""
    begun, done = threading.Event(), threading.Event()

    def slow(holder, **changes):
        found = replace(holder, **changes)
        if threading.current_thread() is not threading.main_thread() and not begun.is_set():
            begun.set()
            done.wait(0.3)
        return found

    with Leases(holders(JOB), Paths(str(tmp_path)).lease) as held:
        held.place = lambda job: (14, 3)
        assert held.take(never)
        monkeypatch.setattr(lease, "replace", slow)
        assert begun.wait(10)
        held.of[JOB].start(from_step=12)
        done.set()
        until, beat = time.monotonic() + 10, held.of[JOB].holder.beat
        while held.of[JOB].holder.beat < beat + 2:
            assert time.monotonic() < until
        found = read_holder(path)
    assert found is not None
    assert (found.step, found.epoch, found.from_step) == (14, 3, 12)


def test_a_start_is_told_at_once(path):
    """Killed before the next sign of life, its steps still count from the right one."""
    own = Lease(str(path), me())
    assert own.try_take()
    own.start(from_step=12, share=3, device="cuda")
    found = read_holder(path)
    assert found is not None
    assert (found.from_step, found.share, found.device) == (12, 3, "cuda")
    own.release()


def stale_handle(*_):
    raise OSError(errno.ESTALE, "Stale file handle")


@pytest.mark.parametrize("event", ["gone", "replaced", "stale handle"])
def test_a_lease_that_is_no_longer_there_is_lost(tmp_path, path, monkeypatch, event):
    with Leases(holders(JOB), Paths(str(tmp_path)).lease) as held:
        assert held.take(never)
        held.check()
        if event == "stale handle":  # what NFS answers for a file that another machine has replaced
            monkeypatch.setattr("pipeline.lease.os.path.samestat", stale_handle)
        else:
            path.unlink()
        if event == "replaced":
            write(path, me(token="there", slurm_job="12"))
        with pytest.raises(LeaseLost, match={"gone": "the file is gone", "replaced": "SLURM job 12"}.get(event, JOB)):
            held.check()
    assert path.exists() == (event != "gone")  # what another has written is not removed


@pytest.mark.parametrize(("readable", "gone"), [(False, False), (True, True)])
def test_another_users_process_that_is_hidden_is_not_gone(monkeypatch, readable, gone):
    """`/proc` with hidepid=2 shows only one's own. Where it shows all, and not this one, or as a zombie, it has
    ended."""
    born, refused = holder._born, MagicMock(side_effect=PermissionError)
    monkeypatch.setattr(holder, "_born", lambda pid: born(pid) if pid == os.getpid() else "")
    monkeypatch.setattr(holder.os, "kill", refused)
    monkeypatch.setattr(holder.os, "access", lambda path, mode: readable)
    assert replace(me(), pid=1).gone == gone
    refused.side_effect = ProcessLookupError
    assert replace(me(), pid=1).gone


def test_who_is_gone(dead):
    assert dead.gone
    assert not me().gone
    assert not replace(dead, born="").gone  # a machine that cannot tell
    assert not replace(dead, born=ELSEWHERE).gone
    assert replace(me(), born=dead.born).gone  # the number is in use again
