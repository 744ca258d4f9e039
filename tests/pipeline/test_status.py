"""The table of an experiment's jobs, as it is printed."""

import os
import pty
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from places import Places, call

from pipeline import slurm, status
from pipeline.status import duration, fitted, look, render


@pytest.fixture
def places(tmp_path):
    return Places(tmp_path)


def lines(places, whole=False):
    return render(*look(places.experiment, places.paths), whole)


def shown(places, whole=False):
    """Of each row: the state and the job."""
    table = [line for line in lines(places, whole) if "digits-gode" in line]
    return [tuple(line.split()[:2]) for line in table]


def test_failed_ones_come_first_and_what_is_done_or_waits_is_only_counted(stand_in, places):
    done, queued, running, failed = places.jobs
    places.judge(done)
    places.attempt(failed, "failed", "RuntimeError: no")
    places.hold(running, slurm_job="8")
    stand_in.add("7", "PENDING", comment=f"rule_train_wildcards_{queued}", reason="Resources")
    assert shown(places) == [("failed", failed), ("training", running), ("queued", queued)]
    assert shown(places, whole=True) == [*shown(places), ("done", done)]
    text = "\n".join(lines(places))
    used = "0.19 core-hours"  # 100 s, and 300 s of two threads
    assert lines(places)[0] == f"four: 4 jobs: 1 failed, 1 training, 1 queued, 1 done. Used: {used}."
    assert "SLURM job 7 waits: Resources" in text
    assert "on node2, SLURM job 8, since" in text
    assert "2/10" in text
    assert "python -m pipeline.why JOB" in text


@pytest.mark.usefixtures("no_slurm")
def test_columns_stand_below_their_heads(places):
    places.attempt(places.jobs[0], "failed", "RuntimeError: no", to_step=63, seconds=4000.0)
    places.attempt(places.jobs[1], "interrupted", "SIGTERM", to_step=0, seconds=7.0)
    head, *rows = [line for line in lines(places) if line.startswith(("state ", "failed ", "stopped "))]
    for row, cells in zip(rows, [("3/10", "1", "67 min", "RuntimeError: no"), ("0/10", "1", "7 s", "SIGTERM")]):
        for name, cell in zip(("epoch", "attempts", "time"), cells):
            assert row[head.index(name) :].startswith(cell)
        assert row.endswith(cells[-1])


@pytest.mark.usefixtures("no_slurm")
def test_a_machine_without_slurm_is_told_by_files(places):
    places.hold(places.jobs[0])
    assert lines(places)[1] == "No SLURM on this machine: this is what the files say."
    assert shown(places) == [("training", places.jobs[0])]


def test_slurm_away_is_one_line_and_the_rest_comes_from_files(stand_in, places, monkeypatch):
    places.hold(places.jobs[0])
    stand_in.fail("squeue", "slurm_load_jobs error: Unable to contact slurm controller (connect failure)\n")
    remark = lines(places)[1]
    assert remark.startswith("SLURM does not answer (`squeue` failed: slurm_load_jobs error: Unable to contact")
    assert shown(places) == [("training", places.jobs[0])]
    monkeypatch.setattr(slurm, "TIMEOUT", 0.2)
    stand_in.fail("squeue", seconds=20)
    assert "`squeue` did not answer" in lines(places)[1]


@pytest.mark.usefixtures("no_slurm")
def test_trainings_that_ended_early_are_said(places):
    places.judge(*places.jobs)
    for job in places.jobs[:2]:
        places.attempt(job, reason="nonfinite")
    assert "Of those done, 2 ended early (nonfinite)." in lines(places)
    assert shown(places) == []


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0 s"), (99.4, "99 s"), (100, "2 min"), (5999, "100 min"), (6000, "1.7 h"), (360000, "100.0 h")],
)
def test_times_for_people(seconds, text):
    assert duration(seconds) == text


def test_a_screen_gets_what_it_can_hold():
    text = [f"line {i}" for i in range(10)]
    assert fitted(text, 80, 11) == text
    assert fitted(text, 80, 10) == [*text[:8], "... 2 lines more"]
    assert fitted(["x" * 100], 80, 5) == ["x" * 80]


def test_printed_once_where_nobody_looks_on(places):
    places.judge(*places.jobs)
    for options in ([], ["--watch", "5"]):
        done = call("status", places.file, "--results", places.paths.root, *options)
        assert (done.returncode, done.stderr) == (0, "")
        assert done.stdout.startswith("four: 4 jobs: 4 done. Used: nothing.\n")
        assert "\x1b" not in done.stdout


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["no-such.yaml"], "no such experiment file"),
        (["--watch", "0"], "error: --watch: at least 1 second, got 0"),
        (["--watch", "nan"], "error: --watch: at least 1 second, got nan"),
    ],
)
def test_bad_input_is_one_line(arguments, said):
    done = call("status", *arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert said in done.stderr
    assert done.stderr.count("\n") == 1


def test_a_results_folder_that_is_not_there_yet_is_all_waiting(places, tmp_path):
    done = call("status", places.file, "--results", tmp_path / "nowhere")
    assert done.stdout.startswith("four: 4 jobs: 4 waiting. Used: nothing.\n")


class Screen:
    """`status --watch` on a terminal."""

    def __init__(self, places):
        self.master, slave = pty.openpty()
        command = [sys.executable, "-m", "pipeline.status", str(places.file), "--results", places.paths.root]
        root = Path(__file__).parents[2]
        self.process = subprocess.Popen([*command, "--watch", "1"], stdout=slave, stderr=slave, cwd=root)
        os.close(slave)
        self.text = ""

    def wait_for(self, what, seconds=20):
        deadline = time.monotonic() + seconds
        while what not in self.text:
            assert time.monotonic() < deadline, self.text
            self.text += os.read(self.master, 65536).decode()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.kill()
        self.process.wait()
        os.close(self.master)


def test_a_terminal_is_drawn_again_until_all_is_done(places):
    with Screen(places) as screen:
        screen.wait_for("4 waiting")
        assert screen.text.startswith(status.HOME)
        places.attempt(places.jobs[0], "failed", "RuntimeError: no")
        screen.wait_for("1 failed, 3 waiting")
        places.judge(*places.jobs)
        screen.wait_for("4 done")
        assert screen.process.wait(20) == 0
        assert screen.text.count(status.HOME) >= 3


def test_ctrl_c_ends_it_without_a_traceback(places):
    with Screen(places) as screen:
        screen.wait_for("Ctrl-C ends")
        screen.process.send_signal(signal.SIGINT)
        assert screen.process.wait(20) == 0
        assert "Traceback" not in screen.text
