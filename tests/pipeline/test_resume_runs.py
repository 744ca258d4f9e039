"""Snakemake is run again as long as work goes forward, and ended when it waits for nothing."""

import os
import signal
import time
from itertools import chain
from pathlib import Path
from unittest.mock import MagicMock

import pytest
from driven import Snakemake, arguments, driver, finishing, left, run_on, soon, states
from places import Places

from pipeline import resume
from pipeline.resume import Driver, go_on, main

ENDS_WHEN_ASKED = """
signal.signal(signal.SIGTERM, lambda *_: sys.exit(7))
Path("ready").touch()
time.sleep(60)
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A working directory, in which two looks are close together."""
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    monkeypatch.setattr(resume, "POLL", 0.01)
    monkeypatch.setattr(resume, "LOST", 0.3)
    return here


@pytest.fixture
def places(folder):
    return Places(folder)


def test_runs_again_as_long_as_work_goes_forward(places):
    code, fake, slept = run_on(places, finishing(places))
    assert (code, fake.runs, slept) == (1, 5, [resume.PAUSE] * 4)  # four jobs, and one run that brought nothing


def test_a_budget_that_is_spent_begins_nothing_more(places, monkeypatch):
    """SIGTERM: Snakemake lets end what runs. It is not started again, though work went forward."""
    monkeypatch.setattr(resume, "PAUSE", 0.05)
    monkeypatch.setattr(resume, "is_spent", lambda *_: Path("ready").exists())
    code, fake, slept = run_on(places, finishing(places, ENDS_WHEN_ASKED))
    assert (code, fake.runs, slept) == (7, 1, [])


@pytest.mark.parametrize("error", [ValueError("a broken row"), OSError("no such host")])
def test_a_budget_of_which_nothing_is_known_is_asked_for_again(places, monkeypatch, caplog, error):
    """And Snakemake, which runs, is not left alone."""
    monkeypatch.setattr(resume, "PAUSE", 0.05)
    answers = chain([error, error], iter(Path("ready").exists, None))
    monkeypatch.setattr(resume, "is_spent", MagicMock(side_effect=answers))
    assert run_on(places, ENDS_WHEN_ASKED)[0] == 7
    assert f"whether the budget is spent is not known ({error}); asking again" in caplog.messages


def test_killed_before_its_first_step_it_is_started_again(places):
    """By a login node that is short of memory, say, while all jobs wait."""
    died = "if len(Path('calls.jsonl').read_text().splitlines()) < 3: os.kill(os.getpid(), signal.SIGKILL)"
    code, fake, slept = run_on(places, f"{died}\nsys.exit(0)")
    assert (code, fake.runs, slept) == (0, 3, [resume.PAUSE] * 2)


def test_killed_again_and_again_it_is_given_up(places):
    code, fake, _ = run_on(places, "os.kill(os.getpid(), signal.SIGKILL)")
    assert (code, fake.runs) == (137, 1 + resume.MOST_KILLED)


def test_after_ctrl_c_a_killed_one_is_not_started_again(places):
    work = driver("local")
    fake = Snakemake(work, "os.kill(os.getpid(), signal.SIGKILL)")
    work.interrupted = True
    assert go_on(work, places.experiment, places.paths, lambda _: None) == 137
    assert fake.runs == 1


def test_nothing_gained_is_the_end(places):
    assert run_on(places, "sys.exit(3)")[0::2] == (3, [])


def test_nothing_lost_counts_as_gained(places):
    """Snakemake deletes what a failed rule declares: that there is less is no progress."""
    places.train(*places.jobs)
    code, fake, _ = run_on(places, f"os.unlink({places.paths.model(places.jobs[len(places.jobs) - 1])!r}); sys.exit(1)")
    assert (code, fake.runs) == (1, 1)


def test_a_run_that_succeeds_is_the_last(places):
    code, fake, _ = run_on(places, finishing(places, "sys.exit(0)"))
    assert (code, fake.runs) == (0, 1)


def test_a_checkpoint_is_progress(places):
    rows = f"""
file = Path({places.paths.training_so_far(places.jobs[0])!r})
if not file.exists():
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(Path("rows").read_bytes())
sys.exit(1)
"""
    places.so_far(places.jobs[1], 3)
    Path("rows").write_bytes(Path(places.paths.training_so_far(places.jobs[1])).read_bytes())
    assert run_on(places, rows)[1].runs == 2


def test_a_lock_left_by_a_killed_run_is_opened_before_the_next(places):
    body = "Path('.snakemake/locks').mkdir(parents=True, exist_ok=True); Path('.snakemake/locks/0.lock').touch()"
    killed = finishing(places, f"{body}\nos.kill(os.getpid(), signal.SIGKILL)")
    code, fake, _ = run_on(places, killed)
    assert code == 137  # as a shell says SIGKILL
    assert ["--unlock" in words for words in fake.calls] == [False, True] * (4 + resume.MOST_KILLED) + [False]


def test_another_snakemake_that_came_in_the_pause_is_left_alone(places, monkeypatch):
    monkeypatch.setattr(resume, "other_snakemake", lambda: 4711)
    with pytest.raises(ValueError, match="process 4711"):
        run_on(places, finishing(places))
    assert len(Path("calls.jsonl").read_text().splitlines()) == 1


@pytest.mark.parametrize("code", [1, 130])
def test_ctrl_c_ends_it_also_when_work_went_forward(places, code):
    """Snakemake says 1, as for any failure."""
    body = f"""
signal.signal(signal.SIGINT, lambda *_: sys.exit({code}))
os.kill(os.getppid(), signal.SIGINT)  # as the terminal does, to both
os.kill(os.getpid(), signal.SIGINT)
"""
    found, fake, slept = run_on(places, finishing(places, body))
    assert (found, fake.runs, slept) == (code, 1, [])


def test_ctrl_c_while_slurm_is_asked_waits_for_snakemake(places, monkeypatch):
    asked = []

    def ask(*_):
        asked.append(1)
        if len(asked) == 1:
            os.kill(os.getpid(), signal.SIGINT)
            return True
        Path("go").touch()
        return True

    monkeypatch.setattr(Driver, "_busy", ask)
    body = "while not Path('go').exists(): time.sleep(0.01)\nsys.exit(1)"
    code, fake, _ = run_on(places, finishing(places, body))
    assert (code, fake.runs) == (1, 1)


def test_ctrl_c_while_nothing_runs_is_no_traceback(places, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(resume, "go_on", interrupted)
    assert main(arguments(where="local")) == 130


# ---------------------------------------------------------------------- a Snakemake that waits for nothing


def test_one_that_waits_for_jobs_that_are_no_more_is_ended(stand_in, places, monkeypatch):
    left(stand_in, "7", "PREEMPTED")
    began = time.monotonic()
    monkeypatch.setattr(resume, "LOST", 2.0)  # long enough for a Python to start and write its file
    waits_once = "if not Path('once').exists():\n    Path('once').touch()\n    time.sleep(60)"
    code, fake, _ = run_on(places, finishing(places, waits_once), "slurm")
    assert time.monotonic() - began < 20
    assert (code, fake.runs) == (0, 2)  # its jobs had gone forward: it went on


@pytest.mark.parametrize("what", ["a live job", "a controller that is away", "a child", "a thread that ends"])
def test_one_that_may_wait_for_something_is_left(stand_in, places, what, monkeypatch):
    body = "time.sleep(1.5)"
    if what == "a live job":
        left(stand_in, "7")
    elif what == "a controller that is away":
        stand_in.fail("squeue", "Unable to contact slurm controller")
    elif what == "a child":
        monkeypatch.setattr(resume, "LOST", 2.0)  # long enough for a Python to start and have it
        body = "import subprocess; subprocess.run(['sleep', '3.5'])"
    else:
        monkeypatch.setattr(resume, "_works", lambda pid: Path("/proc/0/task/0/children").read_text())
    code, fake, _ = run_on(places, body, "slurm")
    assert (code, fake.runs) == (0, 1)


def test_one_that_only_asks_slurm_waits_for_nothing(stand_in, places, tmp_path, monkeypatch):
    """However slow the answers are."""
    monkeypatch.setattr(resume, "LOST", 2.0)  # long enough for a Python to start and ask
    monkeypatch.setattr(resume, "MOST_KILLED", 0)
    (tmp_path / "squeue").symlink_to("/bin/sleep")
    body = f"import subprocess; subprocess.run(['{tmp_path}/squeue', '60'])"
    code, fake, _ = run_on(places, body, "slurm")
    assert (code, fake.runs) == (137, 1)


def test_on_this_machine_slurm_is_not_asked(stand_in, places):
    left(stand_in, "7")
    assert run_on(places, "time.sleep(1)", "local")[0] == 0
    assert main(arguments(where="local", dry_run=True)) != resume.STILL_RUNNING
    assert [stand_in.calls(command) for command in ("squeue", "sinfo", "scancel", "srun")] == [[]] * 4


def test_jobs_of_a_run_that_was_ended_are_waited_for(stand_in, places, monkeypatch):
    monkeypatch.setattr(resume, "LOST", 2.0)  # long enough for a Python to start and end
    left(stand_in, "7")
    threads = []
    work = driver()
    fake = Snakemake(work, finishing(places, "sys.exit(1 if len(open('calls.jsonl').readlines()) < 2 else 0)"))

    def pause(_):
        assert fake.runs == 1
        threads.append(soon(lambda: left(stand_in, "7", "COMPLETED")))

    assert go_on(work, places.experiment, places.paths, pause) == 0
    assert fake.runs == 2
    assert states(stand_in) == {"7": "COMPLETED"}
    threads[0].join()


def test_a_signal_ends_snakemake_by_its_own_number(places):
    assert run_on(places, "os.kill(os.getpid(), signal.SIGTERM)")[0] == 128 + signal.SIGTERM
