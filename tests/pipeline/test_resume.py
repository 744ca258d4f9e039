"""Taking up an experiment again: what Snakemake is told, jobs left behind, other processes, and what nodes see."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from driven import Snakemake, arguments, driver, left, soon, states
from places import Places, call

from pipeline import resume, slurm
from pipeline.resume import main, need_shared, other_snakemake, settle
from pipeline.site import Site

AWAY = "Unable to contact slurm controller"


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A working directory, in which two looks are close together."""
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    monkeypatch.delenv("GODE_SITE", raising=False)
    monkeypatch.setattr(resume, "POLL", 0.01)
    return here


@pytest.fixture
def places(folder):
    return Places(folder)


# ---------------------------------------------------------------------- what Snakemake is told


def test_a_cluster_has_its_profile_and_this_machine_its_own():
    assert driver("slurm").command[3:] == [
        *("--workflow-profile", "cluster/slurm", "--configfile", "four.yaml", "--config", "results=results")
    ]
    assert driver("local").command[3:5] == ["--profile", "cluster/local"]
    assert driver().name == "gode-four"


def test_more_settings_are_added_to_ours():
    """Snakemake takes the last `--config` alone: results would go elsewhere."""
    words = driver("slurm", "--config", "together=1", "mix_code=true", "--jobs", "3", "--config=x=y").command
    assert words.count("--config") == 1
    assert words[words.index("--config") + 1 :] == ["results=results", "together=1", "mix_code=true", "x=y"]
    assert words[3:5] == ["--jobs", "3"]


def test_a_target_is_no_setting():
    words = driver("slurm", "results/x.html").command
    assert words.index("results/x.html") < words.index("--configfile")


def test_a_setting_of_ours_is_refused_among_those_of_snakemake():
    with pytest.raises(ValueError, match="--config results=there: give it to this command, before the `--`"):
        driver("slurm", "--config", "results=there")


@pytest.mark.usefixtures("no_slurm")
def test_words_for_snakemake_follow_two_dashes_also_after_options(places):
    command = [sys.executable, "-m", "pipeline.resume", "four.yaml", "--where", "local", "-n"]
    done = subprocess.run(
        [*command, "--", "--no-such-option"],
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])},
        capture_output=True,
        text=True,
    )
    assert "pipeline.resume: error" not in done.stderr
    assert "four: 4 jobs: 4 waiting" in done.stdout
    assert done.returncode != 0  # Snakemake has no such option, and no profile in this folder


def test_an_experiment_that_does_not_exist_is_one_line():
    done = call("resume", "none.yaml")
    assert done.returncode == 2
    assert done.stderr.startswith("error: none.yaml")
    assert len(done.stderr.splitlines()) == 1


# ---------------------------------------------------------------------- jobs left behind


def test_nothing_is_started_beside_jobs_left_behind(stand_in, places, monkeypatch, capsys):
    monkeypatch.setattr(subprocess, "Popen", forbid(subprocess.Popen, "-m"))
    left(stand_in, "7")
    left(stand_in, "8", "PENDING", reason="Priority", comment="rule_evaluate_wildcards_y")
    assert main(arguments()) == resume.STILL_RUNNING == 3
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("2 SLURM jobs of this experiment")
    assert lines[1].split() == ["7", "running", "node1", "rule_train_wildcards_x"]
    assert lines[2].split() == ["8", "pending", "Priority", "rule_evaluate_wildcards_y"]
    assert stand_in.calls("scancel") == stand_in.calls("srun") == []


def forbid(real, word):
    """A process whose command holds the word is a failure: Snakemake was started."""

    class Watched(real):
        def __init__(self, command, *rest, **options):
            assert word not in command, command
            super().__init__(command, *rest, **options)

    return Watched


def test_a_dry_run_cancels_and_asks_nothing_of_nodes(stand_in, places, monkeypatch):
    left(stand_in, "7")
    assert main(arguments(dry_run=True, cancel=True)) == 3
    assert main(arguments(dry_run=True, wait=True)) == 3
    assert stand_in.calls("scancel") == stand_in.calls("srun") == []


def test_only_jobs_of_this_experiment_and_folder_are_cancelled(stand_in, folder, tmp_path):
    (tmp_path / "link").symlink_to(folder)
    left(stand_in, "1")
    left(stand_in, "2", "PENDING", name="gode-four_uuid-2")
    left(stand_in, "3", "COMPLETING", folder=str(tmp_path / "link"))  # a cluster's disks have several names
    left(stand_in, "4", "COMPLETED")
    left(stand_in, "5", name="gode-four-b_uuid")
    left(stand_in, "6", name="gode-fou_uuid")
    left(stand_in, "7", name="gode-four")
    left(stand_in, "8", folder=str(tmp_path))
    left(stand_in, "9", user="31337")
    assert settle(driver(), wait=False, cancel=True)
    assert stand_in.calls("scancel") == [["1", "2", "3"]]
    assert [number for number, state in states(stand_in).items() if state == "CANCELLED"] == ["1", "2", "3"]


def test_to_wait_ends_when_the_jobs_are_gone(stand_in, folder):
    left(stand_in, "7")
    thread = soon(lambda: left(stand_in, "7", "COMPLETED"))
    began = time.monotonic()
    assert settle(driver(), wait=True, cancel=False)
    assert time.monotonic() - began >= 0.25
    thread.join()
    assert stand_in.calls("scancel") == []


def test_to_wait_outlasts_a_controller_that_is_away(stand_in, folder):
    left(stand_in, "7")
    waits = driver()
    real, answers = waits.left_behind, [slurm.Away(AWAY), slurm.Away(AWAY), []]

    def look():
        answer = answers.pop(0) if states(stand_in) == {"7": "DONE"} else real()
        if isinstance(answer, Exception):
            raise answer
        stand_in.set("jobs", {"7": stand_in.read()["jobs"]["7"] | {"state": "DONE"}})
        return answer

    waits.left_behind = look
    assert settle(waits, wait=True, cancel=False)
    assert answers == []


def test_a_controller_that_is_away_at_the_start_is_one_line(stand_in, places):
    stand_in.fail("squeue", AWAY)
    with pytest.raises(slurm.Away, match=AWAY):
        main(arguments())


# ---------------------------------------------------------------------- locks and other processes


def test_only_a_folder_that_is_locked_is_unlocked(folder):
    work = driver("local")
    fake = Snakemake(work)
    work.unlock()
    Path(".snakemake/locks").mkdir(parents=True)
    work.unlock()
    assert fake.calls == []
    Path(".snakemake/locks/0.input.lock").touch()
    work.unlock()
    assert ["--unlock" in words for words in fake.calls] == [True]
    assert not list(Path(".snakemake/locks").iterdir())


def test_an_unlock_that_fails_says_why(folder):
    work = driver("local")
    Snakemake(work)
    work.command[2] = "none.py"
    Path(".snakemake/locks").mkdir(parents=True)
    Path(".snakemake/locks/0.input.lock").touch()
    with pytest.raises(ValueError, match=r"`snakemake --unlock` failed: .*none\.py.*No such file"):
        work.unlock()


@pytest.mark.parametrize(
    ("name", "words", "counts"),
    [
        ("snakemake", ["-n"], True),
        ("pipeline.resume", ["x.yaml"], True),  # which may be between two runs
        ("snakemake", ["--mode", "remote"], False),  # a SLURM job's, on a node that is also this machine
        ("other", ["snakemake"], True),
        ("other", ["a", "b", "c", "d", "snakemake"], False),
    ],
)
def test_a_snakemake_of_this_folder_is_seen(folder, tmp_path, name, words, counts):
    script = tmp_path / name
    script.write_text("import time; print('', flush=True); time.sleep(60)")
    with subprocess.Popen([sys.executable, str(script), *words], stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout
            process.stdout.readline()
            assert other_snakemake() == (process.pid if counts else None)
            os.chdir(tmp_path)
            assert other_snakemake() is None
        finally:
            process.kill()


def test_a_terminal_that_is_called_snakemake_is_none(folder):
    """`screen -S snakemake`."""
    with subprocess.Popen(["sh", "-c", "read x", "snakemake"], stdin=subprocess.PIPE) as process:
        assert other_snakemake() is None
        process.kill()


@pytest.mark.usefixtures("no_slurm")
def test_another_snakemake_is_refused_by_its_number(places, monkeypatch):
    monkeypatch.setattr(resume, "other_snakemake", lambda: 4711)
    with pytest.raises(ValueError, match=r"runs in this folder already \(process 4711\)"):
        main(arguments())


# ---------------------------------------------------------------------- what nodes see


@pytest.mark.parametrize(
    ("answer", "line"),
    [
        ("hidden\nseen\nseen\n", "results: the nodes do not see this folder; take one that they share"),
        ("seen\nhidden\nseen\n", "here: the nodes do not see this folder; start from one"),
        ("seen\nseen\nhidden\n", "the nodes do not see this Python"),
        ("seen\nseen\nseen\n", ""),
        ("", ""),
        ("Welcome to node1!\n", ""),
    ],
)
def test_what_nodes_do_not_see_is_said_before_any_job(stand_in, folder, answer, line):
    (stand_in.bin / "srun").write_text(f"#!/bin/sh\nprintf '{answer}'\n")
    if line:
        with pytest.raises(ValueError, match=line):
            need_shared("results", Site())
    else:
        need_shared("results", Site())
    assert list(Path("results").iterdir()) == []


def test_the_question_itself_is_right(stand_in, folder, tmp_path):
    """Asked of this machine, which sees all; names that a shell takes apart are whole."""
    srun = stand_in.bin / "srun"
    srun.write_text('#!/bin/sh\nwhile [ "$1" != sh ]; do shift; done\n"$@" | tee answer\n')
    need_shared("it's $HOME results", Site())
    assert Path("answer").read_text() == "seen\n" * 3
    srun.write_text(f'#!/bin/sh\nwhile [ "$1" != sh ]; do shift; done\nrm -r {tmp_path}/gone/.seen*\nexec "$@"\n')
    with pytest.raises(ValueError, match="gone: the nodes do not see this folder"):
        need_shared(str(tmp_path / "gone"), Site())


@pytest.mark.parametrize("how", ["no node", "no srun", "slow"])
def test_not_to_know_is_no_reason_to_begin_nothing(stand_in, folder, how, monkeypatch, caplog):
    caplog.set_level("INFO")
    if how == "no node":
        stand_in.fail("srun", "srun: error: Unable to allocate resources: Requested nodes are busy")
    elif how == "no srun":
        (stand_in.bin / "srun").unlink()
        monkeypatch.setenv("PATH", str(stand_in.bin))
    else:
        monkeypatch.setattr(slurm, "TIMEOUT", 0.3)
        stand_in.fail("srun", seconds=20)
    need_shared("results", Site(partition="main"))
    assert "whether nodes see results is not known" in caplog.text
    assert list(Path("results").iterdir()) == []
