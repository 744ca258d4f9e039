"""The class of each failure, by the words that SLURM, the shell, Python and a training really leave."""

from typing import get_args

import pytest
from places import STARTED

from pipeline.failure import ADVICE, Evidence, complaint, end_of, failure_of, on_job
from pipeline.records import AttemptRecord, Status

# As slurmd of SLURM 22.05, srun, the shell and Snakemake write them into a job's log.
SNAKEMAKE = """
SNAKEMAKE
=========
  Date: 2026-11-21 16:21:17
  Host: node2

Building DAG of jobs...
Execute 1 jobs...

[Sat Nov 21 16:21:17 2026]
rule train:
    input: results/jobs/x/config.json
    log: results/logs/train/x.log
"""
ABORTED = "srun: Job step aborted: Waiting up to 5 seconds for job step to finish.\n"
AT = "ON node2 CANCELLED AT 2026-11-21T16:20:12"
OOM = (
    "slurmstepd-node1: error: Detected 1 oom-kill event(s) in StepId=4.0. Some of your processes may have been killed "
    "by the cgroup out-of-memory handler.\n"
)
SLURM_LINES = {
    "out of memory, batch step": ("out of memory", f"/spool/slurm_script: line 2:   576 Killed   python x.py\n{OOM}"),
    "out of memory, srun": ("out of memory", "srun: error: node1: task 0: Out Of Memory\n"),
    "out of memory, newer": (
        "out of memory",
        OOM.replace("oom-kill event(s)", "oom_kill event"),
    ),
    "time": ("time", f"slurmstepd-node1: error: *** JOB 19 {AT} DUE TO TIME LIMIT ***\n"),
    "time, step": ("time", f"slurmstepd-node1: error: *** STEP 20.0 {AT} DUE TO TIME LIMIT ***\n{ABORTED}"),
    "preempted": ("preempted", f"{ABORTED}slurmstepd-node2: error: *** JOB 7 {AT} DUE TO PREEMPTION ***\n"),
    "node": ("node", f"slurmstepd: error: *** JOB 2 {AT} DUE TO NODE FAILURE, SEE SLURMCTLD LOG FOR DETAILS ***\n"),
    "node, srun": ("node", "srun: error: Node failure on node1\n"),
    "scancel": ("signal", f"slurmstepd-node1: error: *** STEP 17.0 {AT} ***\n{ABORTED}"),
    "requeue": ("signal", f"slurmstepd-node1: error: *** JOB 27 {AT} DUE TO JOB REQUEUE ***\n{ABORTED}"),
    "budget": ("config", "error: budget of 40 GPU-hours is spent (40.3): raise it\n"),
}
EPOCH = "16:21:26 epoch 3/10  loss 0.3 / 0.4  accuracy 0.9000 / 0.8900  ok\n"
TRACEBACK = EPOCH + (
    'Traceback (most recent call last):\n  File "/x/train.py", line 7, in <module>\n    main()\n'
    "RuntimeError: CUDA error: device-side assert triggered\nCUDA kernel errors might be reported later.\n\n"
)


def attempt(outcome="interrupted", reason="SIGTERM", **facts):
    plain = {"job": "x", "code": "c", "commit": "c", "host": "node1", "pid": 7, "device": "cpu", "from_step": 0}
    plain |= {"to_step": 21, "started": STARTED, "seconds": 100.0, "slurm_job": "7"}
    return AttemptRecord(**(plain | {"outcome": outcome, "reason": reason} | facts))


@pytest.mark.parametrize("name", SLURM_LINES)
@pytest.mark.parametrize("how", ["stopped", "killed", "no attempt"])
def test_what_slurm_wrote_says_why(name, how):
    """To one that could still write its record, to one that could not, and to one that never began."""
    kind, text = SLURM_LINES[name]
    attempts = {"stopped": attempt(), "killed": attempt("killed", "no sign of life after 3 s"), "no attempt": None}
    found = failure_of(Evidence(attempts[how], how == "killed", EPOCH, SNAKEMAKE + text))
    assert found.kind == kind
    assert found.said in [line.strip() for line in text.splitlines()]


@pytest.mark.parametrize("first", SLURM_LINES)
@pytest.mark.parametrize("second", SLURM_LINES)
def test_the_last_event_counts_since_restarts_are_appended(first, second):
    text = SNAKEMAKE + SLURM_LINES[first][1] + SNAKEMAKE + SLURM_LINES[second][1]
    assert failure_of(Evidence(attempt(), slurm_log=text)).kind == SLURM_LINES[second][0]


@pytest.mark.parametrize(
    ("state", "kind"),
    [
        ("OUT_OF_MEMORY", "out of memory"),
        ("TIMEOUT", "time"),
        ("DEADLINE", "time"),
        ("NODE_FAIL", "node"),
        ("BOOT_FAIL", "node"),
        ("PREEMPTED", "preempted"),
        ("CANCELLED", "signal"),
        ("FAILED", "killed"),  # says nothing
        ("RUNNING", "killed"),
        ("", "killed"),
    ],
)
def test_without_a_log_the_state_in_slurm_says_why(state, kind):
    assert failure_of(Evidence(None, True, "", SNAKEMAKE, state)).kind == kind


@pytest.mark.parametrize(
    ("reason", "slurm_job", "kind"),
    [
        ("the time limit is near", "7", "time"),
        ("SIGUSR1", "7", "time"),
        ("SIGUSR1", "", "signal"),
        ("SIGTERM", "7", "signal"),
        ("SIGINT", "", "signal"),
        ("the process that started it is gone", "7", "signal"),
        ("asked to stop", "", "signal"),
        ("x: another process took over, since this one showed no life: process 9 on node2", "7", "another process"),
    ],
)
def test_why_a_training_stopped_by_itself(reason, slurm_job, kind):
    found = failure_of(Evidence(attempt(reason=reason, slurm_job=slurm_job), log=EPOCH))
    assert (found.kind, found.said) == (kind, reason)


def test_that_the_time_limit_was_near_is_no_matter_of_what_came_after():
    """Its SLURM job is ended by those who started it."""
    assert (
        failure_of(Evidence(attempt(reason="the time limit is near"), slurm_log=SLURM_LINES["scancel"][1])).kind
        == "time"
    )


@pytest.mark.parametrize(
    ("reason", "kind"),
    [
        ("ValueError: resume.pt: is damaged", "config"),
        ("FileNotFoundError: [Errno 2] data", "config"),
        ("RuntimeError: shape", "crash"),
        ("SomeError: not known here", "crash"),
        ("OutOfMemoryError: CUDA out of memory. Tried to allocate 2 GiB", "out of memory"),
        ("MemoryError: ", "out of memory"),
        ("RuntimeError: DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes", "out of memory"),
        ("OSError: [Errno 12] Cannot allocate memory", "out of memory"),
    ],
)
@pytest.mark.parametrize("logged", [True, False])
def test_why_an_attempt_failed(reason, kind, logged):
    """By its record; and by its log alone, where it failed before there was a record."""
    line = (
        f"error: {reason.partition(': ')[2]}\n"
        if kind == "config"
        else f"Traceback (most recent call last):\n{reason}\n"
    )
    found = failure_of(Evidence(None, log=EPOCH + line) if logged else Evidence(attempt("failed", reason)))
    assert found.kind == kind


@pytest.mark.parametrize(
    ("reason", "kind"),
    [
        ("ok", "none"),
        ("", "none"),
        ("nonfinite", "nonfinite"),
        ("budget", "solver"),
        ("underflow", "solver"),
        ("unconverged", "solver"),
    ],
)
def test_a_finished_training_has_not_failed_but_may_have_ended_early(reason, kind):
    found = failure_of(Evidence(attempt("finished", reason), log=EPOCH))
    assert (found.kind, found.said) == (kind, reason.replace("ok", ""))


def test_every_end_of_a_solve_has_advice_that_names_it():
    """As gode_core.solution and the records name them."""
    for status in get_args(Status):
        found = failure_of(Evidence(attempt("finished", status)))
        assert status in ("ok", "nonfinite") or f"`{status}`: " in found.advice


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("outcome", ["failed", "interrupted", "killed"])
@pytest.mark.parametrize("killed", [False, True])
def test_of_a_log_of_several_jobs_a_failed_one_does_not_take_over_the_error(shared, outcome, killed):
    """killed: after the attempt came another, so that its reason is not that of the newest start."""
    left = Evidence(attempt(outcome, "RuntimeError: its own"), killed, f"{EPOCH}error: another's\n", shared=shared)
    own = shared and outcome == "failed" and not killed
    assert failure_of(left).said == ("RuntimeError: its own" if own else "error: another's")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("10:00:00 a-1: cut off\n10:00:01 a-12: no room\nerror: no room\n", "error: cut off"),
        ("10:00:00 a-1: first\n10:00:00 a-1: cut off\n" + TRACEBACK, "error: cut off"),
        ("10:00:00 a-1, a-12: no; now one by one\nerror: no room\n", "error: no room"),
        ("10:00:00 xa-1: no\n10:00:00 b: a-1: no\nerror: no room\n", "error: no room"),
        ("10:00:00 a-1: another process took over; waiting for it\n" + EPOCH, ""),  # it went on
        ("", ""),
    ],
)
def test_of_the_log_of_a_batch_the_line_that_names_the_job_counts(text, said):
    assert complaint(on_job("a-1", text)) == said


def test_a_trial_that_was_given_up_before_there_was_an_attempt_says_why():
    given_up = Evidence(given_up="RuntimeError: CUDA out of memory")
    assert (failure_of(given_up).kind, failure_of(given_up).said) == ("out of memory", given_up.given_up)
    assert failure_of(Evidence(attempt(), given_up="RuntimeError: no")).kind == "signal"


def test_nothing_is_no_failure():
    assert failure_of(Evidence()).kind == "none"
    assert failure_of(Evidence(slurm_log=SNAKEMAKE, log=EPOCH)).kind == "none"


def test_every_class_has_advice_of_one_paragraph():
    for advice in ADVICE.values():
        assert advice.endswith(".")
        assert "\n" not in advice


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", ""),
        (EPOCH, ""),
        ("error: no room\n", "error: no room"),
        ("error: no room\n" + EPOCH, ""),  # it went on
        (TRACEBACK, "RuntimeError: CUDA error: device-side assert triggered"),
        (TRACEBACK.replace("CUDA error: device-side assert triggered", ""), "RuntimeError:"),
        ("Traceback (most recent call last):\n  cut o", "  cut o"),
        (
            "Traceback (most recent call last):\nKeyError: 'a'\n\nDuring ...\n\n" + TRACEBACK,
            "RuntimeError: CUDA error: dev",
        ),
    ],
)
def test_the_error_that_a_log_ends_with(text, said):
    found = complaint(text)
    assert found.startswith(said)
    assert bool(found) == bool(said)


def test_the_end_of_a_long_log_is_read_fast_and_whole(tmp_path):
    log = tmp_path / "long.log"
    log.write_bytes(b"\xff\xfe\n" + b"".join(b"line %d\n" % i for i in range(200_000)))
    assert end_of(log).endswith("line 199999\n")
    assert len(end_of(log)) <= 65536
    assert end_of(tmp_path / "none.log") == ""
