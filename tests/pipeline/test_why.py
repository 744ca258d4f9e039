"""What became of one job, by its records and the ends of its logs."""

import dataclasses
import subprocess
import sys
import time
from pathlib import Path

import pytest
from places import STACKED, Places, call, grow_old
from searched import Searched
from test_failure import EPOCH, OOM, SLURM_LINES, SNAKEMAKE, TRACEBACK
from test_progress import ago

from pipeline.failure import ADVICE
from pipeline.holder import Holder
from pipeline.past import read_attempts
from pipeline.records import append_record
from pipeline.stacks import batches_of
from pipeline.why import NUM_LINES, WIDTH, company, examine, find_job, render, shared_log, slurm_logs_of


@pytest.fixture
def places(tmp_path):
    return Places(tmp_path)


def examined(places, job=None):
    return examine(job or places.jobs[0], places.paths, [places.experiment], str(places.slurm_logs))


@pytest.mark.usefixtures("no_slurm")
def test_of_several_slurm_logs_the_newest_counts(places):
    job = places.jobs[0]
    places.attempt(job, slurm_job="8", outcome="interrupted", reason="SIGTERM")
    grow_old(places.slurm_log("train", job, "9", SLURM_LINES["time"][1]), 50)
    new = places.slurm_log("train", job, "8", SLURM_LINES["preempted"][1])
    case = examined(places)
    assert case.failure.kind == "preempted"
    assert case.logs == (new,)


@pytest.mark.usefixtures("no_slurm")
def test_a_slurm_log_from_before_the_last_attempt_tells_nothing_of_it(places):
    """It was made outside SLURM."""
    job = places.jobs[0]
    places.slurm_log("train", job, "9", SLURM_LINES["time"][1])
    places.attempt(job, "interrupted", "SIGINT", started="2199-01-01T00:00:00+00:00")
    assert examined(places).failure.kind == "signal"


def test_one_that_runs_again_is_told_by_the_attempt_before(stand_in, places):
    """And not by the log that it is writing."""
    job = places.jobs[0]
    places.attempt(job, "interrupted", "SIGTERM", slurm_job="8")
    places.slurm_log("train", job, "8", SLURM_LINES["preempted"][1])
    places.slurm_log("train", job, "9", SNAKEMAKE)
    places.log("train", job, "error: of long ago\n")
    places.hold(job, slurm_job="9")
    case = examined(places)
    assert (case.place.state, case.failure.kind) == ("training", "preempted")
    Path(places.slurm_logs / "rule_train" / job / "8.log").unlink()
    stand_in.add("8", "NODE_FAIL")
    assert examined(places).failure.kind == "node"


def test_one_that_was_killed_is_told_by_its_slurm_job(stand_in, places):
    job = places.jobs[0]
    me = Holder.me(code="c", device="cpu", threads=1, share=1, slurm_job="", campaign="")
    places.hold(job, slurm_job="8", host=me.host, born=f"{me.born}9")
    assert (examined(places).place.state, examined(places).failure.kind) == ("failed", "killed")
    stand_in.add("8", "OUT_OF_MEMORY")
    assert examined(places).failure.kind == "out of memory"


@pytest.mark.usefixtures("no_slurm")
def test_a_failed_judgement_is_told_by_its_own_logs(places):
    job = places.jobs[0]
    places.train(job)
    places.attempt(job)
    places.log("train", job, EPOCH)
    places.slurm_log("train", job, "7", SLURM_LINES["time"][1])
    own = places.log("evaluate", job, TRACEBACK)
    slurm_log = places.slurm_log("evaluate", job, "8", SNAKEMAKE)
    case = examined(places)
    assert (case.place.state, case.failure.kind, case.logs) == ("failed", "crash", (own, slurm_log))
    places.log("evaluate", job, "")
    places.slurm_log("evaluate", job, "8", SNAKEMAKE + OOM)
    assert examined(places).failure.kind == "out of memory"
    places.judge(job)
    assert (examined(places).place.state, examined(places).failure.kind) == ("done", "none")


@pytest.mark.usefixtures("no_slurm")
def test_the_logs_of_a_batch_are_those_of_its_jobs(tmp_path):
    places = Places(tmp_path, STACKED)
    (batch,) = batches_of(places.experiment.jobs, places.paths, places.judging)
    log = places.log("train", batch.name, "error: x: is damaged\n")
    slurm_log = places.slurm_log(batch.train, "", "7", SNAKEMAKE)
    for job in places.jobs:
        case = examined(places, job)
        assert (case.place.state, case.failure.kind, case.logs) == ("failed", "config", (log, slurm_log))


@pytest.mark.usefixtures("no_slurm")
def test_the_log_of_a_fleet_is_that_of_its_jobs_where_it_is_newer_than_their_own(places):
    """It ends a job's start with all others; of another job's error in it, this one has not failed."""
    job, other = places.jobs[:2]
    own = places.log("train", job, "error: of long ago\n")
    grow_old(own, 50)
    places.attempt(job, "interrupted", "SIGTERM")
    more = "".join(f"10:00:01 {n} of 100 finished\n" for n in range(NUM_LINES))
    log = places.log("fleet", places.experiment.name, f"10:00:00 {job}: is slow\n{more}10:00:02 error: {other}: bad\n")
    slurm_log = places.slurm_log("fleet", "", "7", SNAKEMAKE)
    case = examined(places)
    assert (case.failure.kind, case.logs) == ("signal", (log, slurm_log))
    printed = render(case)
    assert f"  10:00:00 {job}: is slow" in printed
    assert "  10:00:01 0 of 100 finished" not in printed
    places.log("fleet", places.experiment.name, "error: no process fits\n")
    assert examined(places).failure.said == "error: no process fits"
    grow_old(log, 60)
    assert examined(places).logs == (own,)
    places.log("fleet", "another", "error: no process fits\n")
    assert examined(places).logs == (own,)


@pytest.mark.usefixtures("no_slurm")
def test_jobs_of_a_batch_have_reasons_of_their_own(tmp_path):
    """Its log ends with the error of the last one that failed."""
    places = Places(tmp_path, STACKED)
    (batch,) = batches_of(places.experiment.jobs, places.paths, places.judging)
    recorded, said, last, never = batch.jobs
    text = f"10:00:00 {said}: cut off\n10:00:01 {last}: is damaged\nerror: is damaged\n"
    log = places.log("train", batch.name, text)
    places.attempt(recorded, "failed", "RuntimeError: its own")
    cases = {job: examined(places, job) for job in batch.jobs}
    assert {job: (case.failure.kind, case.failure.said) for job, case in cases.items()} == {
        recorded: ("crash", "RuntimeError: its own"),
        said: ("config", "error: cut off"),
        last: ("config", "error: is damaged"),
        never: ("config", "error: is damaged"),
    }
    for case in cases.values():
        assert case.logs == (log,)
        assert case.failure.said == case.place.note  # as `status` says it


@pytest.mark.usefixtures("no_slurm")
def test_a_log_from_before_the_newest_start_tells_nothing_of_it(places):
    """It failed under Snakemake, and was stopped in a fleet, of which only the record tells."""
    job = places.jobs[0]
    log = places.log("train", job, "error: disk full\n")
    places.attempt(job, "interrupted", "SIGTERM", started=ago(100), seconds=99.0)
    assert (examined(places).failure.said, examined(places).logs) == ("error: disk full", (log,))
    grow_old(log, 200)
    case = examined(places)
    assert (case.place.state, case.failure.kind, case.failure.said, case.logs) == ("stopped", "signal", "SIGTERM", ())


@pytest.mark.usefixtures("no_slurm")
def test_what_ended_a_search_is_no_failure_of_trials_that_were_decided_before(tmp_path):
    found = Searched(tmp_path)
    jobs = [found.begin(number) for number in range(5)]
    recorded, early, stopped, lost, open_ = jobs
    line = "Traceback (most recent call last):\n  File \"/x/search.py\", line 7\nKeyError: 'trial'\n"
    log = Path(found.paths.log("search", found.experiment.name))
    log.parent.mkdir(parents=True)
    log.write_text(line)
    slurm_logs = tmp_path / "slurm_logs"
    (slurm_logs / "rule_search").mkdir(parents=True)
    (slurm_logs / "rule_search" / "7.log").write_text(SLURM_LINES["time"][1])
    for number, job in enumerate(jobs):
        found.trained(number, job, 2)
    failed = read_attempts(recorded, found.paths)[-1]
    failed = dataclasses.replace(failed, outcome="failed", reason="MemoryError: its own", pid=8)
    append_record(found.paths.attempts(recorded), failed)
    Path(found.paths.attempts(early)).unlink()
    for number, reason in ((0, "its process died"), (1, "ValueError: no images"), (3, "its process died")):
        found.event(number, jobs[number], "failed", reason=reason)
    found.event(2, stopped, "stopped", epoch=2, reason="asha")
    kinds = {}
    for job in jobs:
        failure = examine(job, found.paths, [found.experiment], str(slurm_logs)).failure
        kinds[job] = (failure.kind, failure.said)
    assert kinds[recorded] == ("out of memory", "MemoryError: its own")
    assert kinds[early] == ("config", "ValueError: no images")
    assert kinds[stopped] == ("none", "the search has stopped it")
    assert kinds[lost][0] == "time"  # its own record says no more than that it was interrupted
    assert kinds[open_] == ("crash", "KeyError: 'trial'")


@pytest.mark.usefixtures("no_slurm")
def test_the_log_of_a_search_is_that_of_its_trials_only(tmp_path):
    found = Searched(tmp_path)
    log = Path(found.paths.log("search", found.experiment.name))
    log.parent.mkdir(parents=True)
    log.write_text("error: the machine is full\n")
    assert shared_log("job", found.paths, [found.experiment], [found.search.id]) == str(log)
    assert shared_log("job", found.paths, [found.experiment], ["another"]) == ""


def test_the_experiment_that_was_run_says_how_a_job_is_judged(places):
    job, ours = places.jobs[0], places.experiment
    judging = dataclasses.replace(ours.evaluate_with, solvers=("rk4@8",))
    other = dataclasses.replace(ours, name="other", evaluate_with=judging)
    Path(places.paths.judged(job, judging.id)[0]).parent.mkdir(parents=True, exist_ok=True)
    Path(places.paths.judged(job, judging.id)[0]).touch()
    assert company(job, places.paths, [ours, other]) == (judging.id, "")
    assert company("another", places.paths, [ours, other]) == ("none", "")
    Path(places.paths.judged(job, judging.id)[0]).unlink()
    places.judge(job)
    assert company(job, places.paths, []) == (places.judging, "")


def test_a_job_is_found_by_a_part_of_its_name():
    there = {"digits-gode-seed0-1a2b", "digits-gode-seed1-3c4d", "digits-gode-seed1"}
    assert find_job("1a2b", there) == "digits-gode-seed0-1a2b"
    assert find_job("seed0", there) == "digits-gode-seed0-1a2b"
    assert find_job("digits-gode-seed1", there) == "digits-gode-seed1"  # whole, though a part of another
    with pytest.raises(
        ValueError, match="seed: 3 jobs have this in their names; give more of one: digits-gode-seed0-1a2b,"
    ):
        find_job("seed", there)
    with pytest.raises(
        ValueError, match=r"digits-gode-sead0-1a2b: no such job here\. Did you mean digits-gode-seed0-1a2b"
    ):
        find_job("digits-gode-sead0-1a2b", there)
    with pytest.raises(ValueError, match=r"no such job here\. `python -m pipeline\.plan"):
        find_job("zzz", there)


def test_what_is_printed(stand_in, places):
    job = places.jobs[0]
    places.attempt(job, "killed", "no sign of life after 100 s", slurm_job="7", to_step=42)
    places.attempt(job, "interrupted", "SIGTERM", slurm_job="8", from_step=42, to_step=63, host="node2")
    log = places.log("train", job, "".join(f"line {i}\n" for i in range(30)))
    slurm_log = places.slurm_log("train", job, "8", f"{'c' * 999}\n" + SLURM_LINES["preempted"][1])
    stand_in.fail("squeue", "no answer")
    lines = render(examined(places))
    assert lines[0] == job
    assert lines[2] == "State: stopped, at epoch 3 of 10, step 63: SIGTERM"
    assert lines[3].startswith("SLURM does not answer (`squeue` failed: no answer)")
    first, second = [line.split() for line in lines if line.strip().startswith(("1  ", "2  "))]
    assert first[3:11] == ["UTC", "node1,", "SLURM", "job", "7", "0", "->", "42"]
    assert first[11:] == ["100", "killed", "no", "sign", "of", "life", "after", "100", "s"]
    assert second[4:] == ["node2,", "SLURM", "job", "8", "42", "->", "63", "100", "interrupted", "SIGTERM"]
    said = SLURM_LINES["preempted"][1].splitlines()[-1]
    assert f"Failure of the newest start: preempted ({said})" in lines
    assert f"What to do: {ADVICE['preempted']}" in lines
    assert [line for line in lines if line.startswith("  line ")] == [f"  line {i}" for i in range(30 - NUM_LINES, 30)]
    assert lines.index(f"{log}:") < lines.index(f"{slurm_log}:")
    assert "  " + "c" * WIDTH in lines


@pytest.mark.usefixtures("no_slurm")
def test_an_attempt_under_way_is_a_row_too(places):
    places.attempt(places.jobs[0], "interrupted", "SIGTERM", to_step=21)
    places.hold(places.jobs[0])
    rows = [line.split() for line in render(examined(places)) if line.strip().startswith("2  ")]
    assert rows == [["2", "2026-11-21", "16:20", "UTC", "node2", "21", "->", "50", "300", "runs"]]


def test_no_logs_is_no_error(places):
    assert slurm_logs_of(str(places.slurm_logs), "train", places.jobs[0], "") == []
    assert "Attempts:" not in render(examined(places))


def test_as_a_person_calls_it(places):
    job = places.jobs[2]
    places.attempt(job, "failed", "ValueError: resume.pt: is damaged")
    options = ["--results", places.paths.root, "--experiment", places.file, "--slurm-logs", places.slurm_logs]
    done = call("why", job[-6:], *options)
    assert (done.returncode, done.stderr) == (0, "")
    assert "Failure of the newest start: config (ValueError: resume.pt: is damaged)" in done.stdout
    for wrong, said in (("seed", "4 jobs have this in their names"), ("zzz", "no such job here")):
        done = call("why", wrong, *options)
        assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
        assert done.stderr.startswith(f"error: {wrong}: ")
        assert said in done.stderr


@pytest.mark.slow
@pytest.mark.usefixtures("no_slurm")
@pytest.mark.parametrize("cause", ["config", "nonfinite", "signal"])
def test_real_trainings_are_told_apart(places, cause):
    """By the files that `train` itself leaves."""
    text = places.file.read_text().replace("lr: 5e-3", "lr: 1e30") if cause == "nonfinite" else places.file.read_text()
    real = Places(places.file.parent, text.replace("epochs: 10", "epochs: 1000"))
    job = real.jobs[0]
    if cause == "config":
        Path(real.paths.state(job)).mkdir(parents=True)
        Path(real.paths.resume(job)).write_bytes(b"damaged")
    command = [sys.executable, "-m", "pipeline.train", real.paths.config(job), "--device", "cpu"]
    log = Path(real.log("train", job, ""))
    with open(log, "w") as file:
        process = subprocess.Popen(command, stderr=file, cwd=Path(__file__).parents[2])
        if cause == "signal":
            while "epoch 1/" not in log.read_text():
                assert process.poll() is None
                time.sleep(0.05)
            process.terminate()
        process.wait()
    case = examined(real, job)
    assert case.failure.kind == cause, log.read_text()
    states = {"config": "failed", "nonfinite": "trained", "signal": "stopped"}
    assert case.place.state == states[cause]
