"""When a training has to leave: the margin before the end of its allocation, and what SLURM says of that."""

import logging
import os

import pytest

from pipeline import slurm
from pipeline.deadline import Allocation, Deadline


class Clock:
    def __init__(self, now=1000.0):
        self.now = now

    def __call__(self):
        return self.now

    def near(self, deadline, *, at):
        """The answer at that time, with no longer pause before it than between the questions so far."""
        self.now = deadline.last = at
        return deadline.near()


def lasting(seconds, begun=0.0):
    """An allocation of that length, seen `begun` seconds after its start, with its clock."""
    clock = Clock()
    start = clock.now - begun
    return Deadline(Allocation("7", "run", start, start + seconds), clock), clock, start + seconds


def test_without_an_end_it_is_never_near():
    clock = Clock()
    deadline = Deadline(Allocation(), clock)
    for _ in range(5):
        clock.now += 1e8
        assert not deadline.near()


@pytest.mark.parametrize(
    ("length", "margin"), [(86400, 60), (600, 60), (599, 59.9), (100, 10), (1, 0.1)], ids=lambda number: f"{number}"
)
def test_the_margin_is_a_minute_or_a_tenth_of_a_short_allocation(length, margin):
    for begun in (0, 0.3 * length):  # the tenth is of the whole, however late the process comes
        deadline, clock, end = lasting(length, begun)
        assert not clock.near(deadline, at=end - margin - 1e-3)
        assert clock.near(deadline, at=end - margin + 1e-3)


def test_where_the_start_is_not_known_the_tenth_is_of_what_is_left():
    clock = Clock()
    deadline = Deadline(Allocation("7", "run", None, clock.now + 100), clock)
    assert not clock.near(deadline, at=clock.now + 89.9)
    assert clock.near(deadline, at=clock.now + 0.2)


@pytest.mark.parametrize(("longest", "margin"), [(20, 60), (200, 400), (4000, 5000)])
def test_the_margin_is_twice_the_longest_step_and_at_most_half(longest, margin):
    deadline, clock, end = lasting(10_000)
    for pause in (1, longest, 2):  # the longest is kept in mind
        clock.now += pause
        deadline.near()
    assert not clock.near(deadline, at=end - margin - 1)
    assert clock.near(deadline, at=end - margin + 1)


def test_the_time_before_the_first_question_counts_too():
    """Loading data and building the network is what the next attempt begins with."""
    deadline, clock, end = lasting(10_000)
    clock.now += 300
    assert not deadline.near()
    assert clock.near(deadline, at=end - 599)


@pytest.mark.parametrize("start", [None, 0.0])
@pytest.mark.parametrize("late", [1, 1000])
def test_after_the_end_it_is_near(start, late):
    clock = Clock()
    assert Deadline(Allocation("7", "run", start, clock.now - late), clock).near()


@pytest.fixture
def squeue(tmp_path, monkeypatch):
    """Put a stand-in on the path: a shell script that notes its arguments and runs these lines."""
    monkeypatch.setenv("SLURM_JOB_ID", "4711")
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")

    def put(*lines):
        file, asked = tmp_path / "squeue", tmp_path / "asked"
        file.write_text("\n".join(["#!/bin/sh", f'echo "$@" > "{asked}"', *lines]) + "\n")
        file.chmod(0o755)
        return asked

    return put


def row(start, end, name="run-b2e1"):
    """Times as they are asked for: in seconds since 1970."""
    fields = ["4711", name, "RUNNING", "rule_train_wildcards_a b", "/home/me", "n1", "None", start, end]
    return f"printf '{slurm.BETWEEN.join(fields)}{slurm.END}\\n'"


def test_slurm_says_when_it_ends(squeue):
    asked = squeue(row("1772359200", "1772364600"))
    found = Allocation.here()
    assert (found.slurm_job, found.campaign) == ("4711", "run-b2e1")
    assert (found.start, found.end) == (1772359200, 1772364600)
    assert "--jobs 4711" in asked.read_text()


@pytest.mark.parametrize("none", ["N/A", "NONE", "Unknown"])
def test_a_partition_without_a_limit_has_no_end(squeue, none):
    squeue(row("1772359200", none))
    found = Allocation.here()
    assert (found.campaign, found.end) == ("run-b2e1", None)
    assert not Deadline(found).near()


AWAY = {
    "controller away": ("echo 'slurm_load_jobs error: Unable to contact slurm controller' >&2", "exit 1"),
    "other answer": ("echo what is this",),
    "no answer": ("exec sleep 30",),
}


@pytest.mark.parametrize("kind", AWAY)
def test_without_an_answer_the_number_is_known_and_the_end_is_not(squeue, monkeypatch, caplog, kind):
    monkeypatch.setattr(slurm, "TIMEOUT", 0.3)
    squeue(*AWAY[kind])
    with caplog.at_level(logging.WARNING):
        found = Allocation.here()
    assert found == Allocation("4711")
    (warning,) = caplog.messages
    assert warning.startswith("SLURM does not say until when this job may run: ")
    assert "\n" not in warning


def test_without_the_commands_too(monkeypatch, tmp_path, caplog):
    """A container on a node of SLURM: the variable came in, the commands did not."""
    monkeypatch.setenv("SLURM_JOB_ID", "4711")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert Allocation.here() == Allocation("4711")
    assert "not on the path" in caplog.text


def test_outside_slurm_nobody_is_asked(squeue, monkeypatch, caplog):
    asked = squeue("exit 1")
    monkeypatch.delenv("SLURM_JOB_ID")
    assert Allocation.here() == Allocation()
    assert not asked.exists()
    assert not caplog.messages
