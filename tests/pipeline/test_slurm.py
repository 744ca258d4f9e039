"""The door to SLURM, before stand-ins that answer as the real one does, or not at all."""

import time
from datetime import datetime

import pytest

from pipeline import slurm
from pipeline.slurm import Away

LIVE = ("PENDING", "RUNNING", "SUSPENDED", "COMPLETING", "CONFIGURING", "REQUEUED", "STAGE_OUT")


@pytest.mark.parametrize("state", LIVE)
def test_a_job_that_is_not_over_is_live_and_in_the_queue(stand_in, state):
    stand_in.add("7", state)
    (job,) = slurm.queue()
    assert (job.id, job.state, job.live) == ("7", state, True)


@pytest.mark.parametrize("state", slurm.ENDED)
def test_a_job_that_is_over_is_in_the_queue_only_if_asked_for(stand_in, state):
    """A cancelled one by its bare state: `CANCELLED by 0` is said by sacct, which is never asked."""
    stand_in.add("7", state)
    stand_in.add("8")
    assert [job.id for job in slurm.queue()] == ["8"]
    both = {job.id: (job.state, job.live) for job in slurm.queue(finished=True)}
    assert both == {"7": (state, False), "8": ("RUNNING", True)}
    assert stand_in.calls("sacct") == []


def test_only_the_jobs_of_this_user_are_asked_for(stand_in):
    stand_in.add("7", user="31337")
    assert slurm.queue(finished=True) == []


def test_every_field_is_where_it_belongs(stand_in):
    times = {"start": "2026-11-21T16:21:04", "end": "2026-11-21T17:21:04"}
    stand_in.add("7", name="gode-x_uuid", comment="rule_train_wildcards_job-1", folder="/f", nodes="n[1-2]", **times)
    (job,) = slurm.queue()
    assert (job.name, job.folder, job.nodes, job.reason) == ("gode-x_uuid", "/f", "n[1-2]", "None")
    assert (job.rule, job.wildcards) == ("train", "job-1")
    assert job.start == datetime(2026, 11, 21, 16, 21, 4).timestamp()
    assert job.end is not None
    assert job.end - job.start == 3600


@pytest.mark.parametrize(
    ("comment", "rule", "wildcards"),
    [
        ("rule_train_wildcards_digits-gode-4c-1a2b", "train", "digits-gode-4c-1a2b"),
        ("rule_train_f55aa0082a", "train_f55aa0082a", ""),
        ("rule_train_wildcards_a_wildcards_b", "train", "a_wildcards_b"),
        ("(null)", "", ""),  # none was given, or the site drops them
        ("", "", ""),
        ('urgent, for | Friday\'s "talk" %i', "", ""),
        ("my rule_train_wildcards_x", "", "x"),
    ],
)
def test_comments_of_the_executor_are_understood_and_others_left(stand_in, comment, rule, wildcards):
    stand_in.add("7", comment=comment.replace("%i", "i"))
    (job,) = slurm.queue()
    assert (job.rule, job.wildcards) == (rule, wildcards)


@pytest.mark.parametrize("text", ["two\nlines", "a paragraph\u2029another", "next\x85line"])
def test_a_line_break_in_a_name_or_a_comment_hides_no_job(stand_in, text):
    """sbatch takes it, squeue prints it as it is."""
    stand_in.add("7", comment=text, name=text)
    stand_in.add("8", comment="rule_train_wildcards_x")
    assert [job.id for job in slurm.queue()] == ["7", "8"]


@pytest.mark.parametrize("text", ["N/A", "NONE", "Unknown", ""])
def test_a_time_that_slurm_does_not_know_is_none(stand_in, text):
    stand_in.add("7", start=text, end=text)
    (job,) = slurm.queue()
    assert job.start is None
    assert job.end is None


@pytest.mark.parametrize("offset", ["+02:00", "+01:00"])
def test_a_time_in_the_hour_that_comes_twice_is_that_of_its_own(stand_in, monkeypatch, offset):
    """When summer time ends, a local time alone does not say which of the two it means."""
    monkeypatch.setenv("TZ", "Europe/Berlin")
    time.tzset()
    try:
        end = f"2026-10-25T02:30:00{offset}"
        stand_in.add("7", start="2026-10-25T01:00:00+02:00", end=end)
        (job,) = slurm.queue()
        assert job.end == datetime.fromisoformat(end).timestamp()
    finally:
        monkeypatch.undo()
        time.tzset()


OF_USER = {
    "SQUEUE_STATES": "RUNNING",
    "SQUEUE_PARTITION": "main",
    "SQUEUE_FORMAT": "%i",
    "SINFO_PARTITION": "main",
    "SCANCEL_INTERACTIVE": "1",
    "SLURM_TIME_FORMAT": "relative",
}


def test_what_a_user_likes_to_see_hides_nothing(stand_in, monkeypatch):
    """Jobs that are not seen would be submitted a second time."""
    for name, value in OF_USER.items():
        monkeypatch.setenv(name, value)
    stand_in.add("7", start="2026-11-21T16:21:04+00:00")
    stand_in.add("8", "PENDING")
    stand_in.add("9", partition="low")
    assert [job.id for job in slurm.queue()] == ["7", "8", "9"]
    assert slurm.queue()[0].start == datetime.fromisoformat("2026-11-21T16:21:04+00:00").timestamp()


def test_what_a_user_has_to_say_of_where_jobs_go_stands(monkeypatch):
    kept = {"SBATCH_PARTITION": "low", "SLURM_CONF": "/etc/x", "SLURM_CLUSTERS": "big", "SRUN_X": "1"}
    for name, value in (OF_USER | kept).items():
        monkeypatch.setenv(name, value)
    left = slurm.environment()
    assert kept.items() <= left.items()
    assert not set(OF_USER) & set(left)


def test_own_is_the_job_that_this_process_is_part_of(stand_in, monkeypatch):
    stand_in.add("7")
    stand_in.add("8", "PENDING")
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    job = slurm.own()
    assert job is not None
    assert job.id == "7"
    monkeypatch.delenv("SLURM_JOB_ID")
    assert slurm.own() is None
    assert len(stand_in.calls("squeue")) == 1


def test_the_nodes_of_the_own_job(stand_in, monkeypatch):
    """Short lists of names are written out by SLURM itself."""
    assert slurm.nodes() == []
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    for text, names in (("", []), ("n1", ["n1"]), ("n2,other", ["n2", "other"])):
        stand_in.add("7", nodes=text)
        assert slurm.nodes() == names
    assert stand_in.calls("scontrol") == []
    (stand_in.bin / "scontrol").write_text('#!/bin/sh\n[ "$*" = "show hostnames n[1-2]" ] && printf "n1\\nn2\\n"\n')
    stand_in.add("7", nodes="n[1-2]")
    assert slurm.nodes() == ["n1", "n2"]


def test_a_job_is_begun_again_if_it_has_not_ended(stand_in):
    """SLURM would begin one that has ended, too: a search that was finished in this moment."""
    slurm.requeue("7")
    assert stand_in.calls("scontrol") == [["requeue", "incomplete", "7"]]


def test_a_job_that_slurm_has_forgotten_is_away(stand_in, monkeypatch):
    monkeypatch.setenv("SLURM_JOB_ID", "99")
    with pytest.raises(Away, match="Invalid job id"):
        slurm.own()


def test_a_controller_that_is_away_is_said_in_one_line(stand_in):
    message = "slurm_load_jobs error: Unable to contact slurm controller (connect failure)\n"
    stand_in.fail("squeue", message)
    with pytest.raises(Away) as away:
        slurm.queue()
    assert str(away.value) == f"`squeue` failed: {message.strip()}"
    stand_in.fail("squeue", "one\ntwo\n", code=2)
    with pytest.raises(Away, match="failed: one two"):
        slurm.queue()


def test_a_command_that_hangs_is_given_up(stand_in, monkeypatch):
    monkeypatch.setattr(slurm, "TIMEOUT", 0.5)
    stand_in.add("7")
    stand_in.fail("squeue", seconds=30)
    began = time.monotonic()
    with pytest.raises(Away, match="did not answer within"):
        slurm.queue()
    assert time.monotonic() - began < 10


def test_a_command_that_is_only_slow_is_heard(stand_in):
    stand_in.add("7")
    stand_in.fail("squeue", code=0, seconds=0.3)
    assert len(slurm.queue()) == 1


def test_an_answer_of_another_form_is_no_answer(stand_in):
    stand_in.add("7", nodes="a\x1fb")
    with pytest.raises(Away, match="10 fields, not 9"):
        slurm.queue()


@pytest.mark.usefixtures("no_slurm")
def test_a_machine_without_slurm_says_so():
    assert not slurm.installed()
    with pytest.raises(Away, match="`squeue` is not on the path"):
        slurm.queue()
    assert slurm.accounts() is None


def test_slurm_is_installed_with_all_commands_that_are_needed(stand_in, monkeypatch):
    monkeypatch.setenv("PATH", str(stand_in.bin))
    assert slurm.installed()
    (stand_in.bin / "scancel").unlink()
    assert not slurm.installed()


def test_all_are_cancelled_by_one_command(stand_in):
    for number in ("7", "8", "9"):
        stand_in.add(number)
    slurm.cancel(iter(["7", "9"]))
    slurm.cancel([])
    assert [job.id for job in slurm.queue()] == ["8"]
    assert stand_in.calls("scancel") == [["7", "9"]]
    with pytest.raises(Away, match="Invalid job id"):
        slurm.cancel(["31337"])


def test_the_limit_of_the_default_partition(stand_in):
    stand_in.set("partitions", {"day": "1-00:00:00", "main": "infinite"})
    assert slurm.default_limit() == 1440
    stand_in.set("partitions", {"main": "infinite", "day": "1-00:00:00"})
    assert slurm.default_limit() is None


def test_partitions_with_their_limits(stand_in):
    limits = {"main": "infinite", "day": "1-00:00:00", "short": "30:00", "long": "7-0"}
    stand_in.set("partitions", limits)
    assert slurm.partitions() == {"main": None, "day": 1440, "short": 30, "long": 7 * 1440}
    stand_in.fail("sinfo", "gone")
    with pytest.raises(Away):
        slurm.partitions()


@pytest.mark.parametrize(
    ("limit", "minutes"),
    [("30:00", 30), ("0:30", 0.5), ("1:00:00", 60), ("1-1", 25 * 60), ("1-01:30", 25.5 * 60), ("infinite", None)],
)
def test_limits_in_all_forms_of_slurm(limit, minutes):
    """That sinfo prints."""
    assert slurm.minutes(limit) == minutes


def test_accounts_where_a_database_keeps_them(stand_in):
    assert slurm.accounts() is None
    stand_in.set("accounts", ["Physics", "chem", "", "physics"])
    assert slurm.accounts() == {"physics", "chem"}
    stand_in.set("accounts", [])
    assert slurm.accounts() is None
