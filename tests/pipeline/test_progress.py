"""Where jobs stand, by the files that they leave and by what SLURM says."""

import dataclasses
import gc
import os
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from places import PER_EPOCH, STACKED, STARTED, Places, grow_old, row

from pipeline.experiment import Experiment
from pipeline.holder import Holder
from pipeline.past import DeviceSeconds
from pipeline.progress import JUDGING, LONG_SILENT, SILENT, standing, summary
from pipeline.stacks import batches_of


@pytest.fixture
def places(tmp_path):
    return Places(tmp_path)


def found(places, queue=None):
    return standing(places.experiment, places.paths, queue).places


def ago(seconds):
    return (datetime.now(UTC) - timedelta(seconds=seconds)).isoformat(timespec="milliseconds")


def first(places, queue=None):
    return found(places, queue)[0]


def test_before_anything_is_done_all_wait(places):
    assert [(p.job, p.state, p.note) for p in found(places)] == [(job, "waiting", "") for job in places.jobs]


def test_each_state_by_its_files(places):
    done, trained, stopped, failed = places.jobs
    places.judge(done)
    places.attempt(done, to_step=210)
    places.train(trained)
    places.attempt(trained, to_step=210)
    places.attempt(stopped, "interrupted", "SIGTERM", to_step=42)
    places.attempt(failed, "interrupted", "SIGTERM", to_step=21)
    places.attempt(failed, "failed", "RuntimeError: no", from_step=21, to_step=21)
    states = [(p.state, p.note, p.step, p.epoch) for p in found(places)]
    assert states == [
        ("done", "", 210, 10),
        ("trained", "", 210, 10),
        ("stopped", "SIGTERM", 42, 2),
        ("failed", "RuntimeError: no", 21, 1),
    ]


@pytest.mark.parametrize("kind", range(7))
def test_a_job_is_not_done_while_one_of_its_files_lacks(places, kind):
    job = places.jobs[0]
    places.judge(job)
    places.attempt(job)
    assert first(places).state == "done"
    declared = [*places.paths.trained(job), *places.paths.judged(job, places.judging)]
    Path(declared[kind]).unlink()
    assert first(places).state == ("stopped" if kind < 4 else "trained")


def test_judged_by_other_solvers_is_not_judged(places):
    job = places.jobs[0]
    places.judge(job)
    other = dataclasses.replace(places.experiment.evaluate_with, solvers=("rk4@8",))
    assert (
        standing(dataclasses.replace(places.experiment, evaluate_with=other), places.paths).places[0].state == "trained"
    )


def test_a_training_shows_where_it_is_and_since_when(places):
    job = places.jobs[0]
    places.attempt(job, "interrupted", "SIGTERM", to_step=21)
    places.hold(job, slurm_job="7", started="2026-11-21T17:00:00+00:00")
    place = first(places)
    assert (place.state, place.step, place.epoch, place.epochs) == ("training", 50, 2, 10)
    assert place.note == "process 12 on node2, SLURM job 7, since 2026-11-21T17:00:00+00:00"
    assert place.silent < SILENT
    assert len(place.all_attempts) == 2


def test_a_silent_lease_is_said_and_left_alone(places):
    """By the file system's clock; whether its process lives cannot be known."""
    lease = places.paths.lease(places.jobs[0])
    places.hold(places.jobs[0])
    grow_old(lease, 2 * SILENT)
    before = Path(lease).read_bytes(), os.stat(lease).st_mtime_ns, sorted(os.listdir(Path(lease).parent))
    place = first(places)
    assert place.state == "training"
    assert place.silent == pytest.approx(2 * SILENT, abs=5)
    assert f"no sign of life for {place.silent:.0f} s" in place.note
    assert (Path(lease).read_bytes(), os.stat(lease).st_mtime_ns, sorted(os.listdir(Path(lease).parent))) == before


def test_a_lease_that_was_silent_for_long_is_a_dead_ones(places):
    """The power of a machine was gone: its processes cannot be asked for. In SLURM, SLURM knows."""
    job, other = places.jobs[:2]
    places.hold(job)
    places.hold(other, slurm_job="7")
    for each in (job, other):
        grow_old(places.paths.lease(each), LONG_SILENT + 60)
    states = {place.job: place.state for place in found(places)}
    assert (states[job], states[other]) == ("failed", "training")


def test_the_holder_of_a_lease_is_dead_if_this_machine_knows(places):
    job, mine = places.jobs[0], places.hold(places.jobs[0], host="here")
    assert not mine.gone
    here = type(mine).me(code="c", device="cpu", threads=1, share=1, slurm_job="", campaign="")
    places.hold(job, host=here.host, pid=here.pid, born=here.born)
    assert first(places).state == "training"
    places.hold(job, host=here.host, pid=here.pid, born=f"{here.born}9")  # a process of the same number, before
    place = first(places)
    assert place.state == "failed"
    assert place.note.startswith("killed, at step 50: process")
    assert place.seconds == 300


def test_a_broken_lease_is_none(places):
    places.log("train", "x", "")
    lease = Path(places.paths.lease(places.jobs[0]))
    lease.parent.mkdir(parents=True)
    lease.write_text('{"token": "cut o')
    assert first(places).state == "waiting"


def test_a_start_that_came_to_no_attempt_shows_in_its_log(places):
    """Whatever came before; and what its log says is over when somebody trains again."""
    job = places.jobs[0]
    places.attempt(job, "interrupted", "SIGTERM", to_step=42)
    places.log("train", job, "10:00:00 going on\nerror: data: is no folder\n")
    place = first(places)
    assert (place.state, place.note) == ("failed", "error: data: is no folder")
    places.hold(job)
    assert first(places).state == "training"


def test_what_a_log_from_before_the_newest_start_complains_of_is_over(places):
    """It failed under Snakemake, and was then trained in a fleet, or a search, whose log is another."""
    job = places.jobs[0]
    log = places.log("train", job, "error: disk full\n")
    places.attempt(job, "failed", "OSError: disk full", started=ago(3000), seconds=10.0)
    grow_old(log, 2985)
    assert (first(places).state, first(places).note) == ("failed", "error: disk full")
    places.attempt(job, "interrupted", "SIGTERM", started=ago(100), seconds=99.0, to_step=42)
    assert (first(places).state, first(places).note) == ("stopped", "SIGTERM")
    grow_old(log, 50)  # and failed again, before there was an attempt
    assert (first(places).state, first(places).note) == ("failed", "error: disk full")


@pytest.mark.parametrize("ahead", [-1000, 0, 1000])
def test_a_log_of_the_newest_start_counts_whatever_its_nodes_clock_says(places, ahead):
    """It was written 20 s after the start, which is recorded 30 s later; the clock was wrong by `ahead`."""
    job = places.jobs[0]
    places.attempt(job, "interrupted", "SIGTERM", started=ago(50 - ahead), seconds=50.0)
    log = places.log("train", job, "error: disk full\n")
    grow_old(log, 30)
    assert first(places).state == "failed"
    grow_old(log, 51)  # and where files are dated by whole seconds
    assert first(places).state == "failed"


def test_a_start_that_was_killed_is_not_told_by_the_log_of_one_before(places):
    """By its lease, which was written last when it was 300 s old."""
    job = places.jobs[0]
    me = Holder.me(code="c", device="cpu", threads=1, share=1, slurm_job="", campaign="")
    log = places.log("train", job, "error: disk full\n")
    places.hold(job, host=me.host, born=f"{me.born}9", started=ago(1300), seconds=300.0)
    grow_old(places.paths.lease(job), 1000)
    grow_old(log, 1310)
    assert first(places).note.startswith("killed, at step 50")
    grow_old(log, 1290)
    assert first(places).note == "error: disk full"


def test_jobs_of_a_batch_have_reasons_of_their_own(tmp_path):
    """Its log ends with the error of the last one that failed."""
    places = Places(tmp_path, STACKED)
    (batch,) = batches_of(places.experiment.jobs, places.paths, places.judging)
    recorded, said, last, never = batch.jobs
    text = f"10:00:00 {said}: {said}: 5 attempts\n10:00:01 {last}: is damaged\nerror: is damaged\n"
    places.log("train", batch.name, text)
    places.attempt(recorded, "failed", "RuntimeError: its own")
    places.attempt(said, "killed", "no sign of life")
    assert {place.job: (place.state, place.note) for place in found(places)} == {
        recorded: ("failed", "RuntimeError: its own"),
        said: ("failed", f"error: {said}: 5 attempts"),
        last: ("failed", "error: is damaged"),
        never: ("failed", "error: is damaged"),  # its process ended with that
    }


def test_an_evaluation_outside_slurm_shows_in_its_log(places):
    job = places.jobs[0]
    log = places.log("evaluate", job, "10:00:00 euler@4  accuracy 0.9\n")
    grow_old(log, 5)
    places.train(job)
    assert first(places).state == "trained"  # the log is of a judgement of another model
    places.log("evaluate", job, "10:00:00 euler@4  accuracy 0.9\n")
    assert first(places).state == "judging"
    grow_old(places.paths.model(job), 3 * JUDGING)
    grow_old(log, 2 * JUDGING)
    assert first(places).state == "trained"
    places.log("evaluate", job, "error: model.safetensors: cut off\n")
    assert (first(places).state, first(places).note) == ("failed", "error: model.safetensors: cut off")


def test_a_training_that_was_not_finite_is_done_and_says_so(places):
    places.judge(places.jobs[0])
    places.attempt(places.jobs[0], reason="nonfinite", to_step=30)
    place = first(places)
    assert (place.state, place.note, place.epoch) == ("done", "nonfinite", 1)


def test_what_was_kept_by_one_that_was_killed_is_found_beside_its_checkpoint(places):
    job = places.jobs[0]
    places.so_far(job, 4)
    places.attempt(job, "killed", "no sign of life", to_step=21)
    assert (first(places).step, first(places).epoch) == (4 * PER_EPOCH, 4)
    Path(places.paths.training_so_far(job)).write_text('{"epoch": 5, "st')
    assert (first(places).step, first(places).epoch) == (21, 1)


def test_time_and_devices_add_up_over_attempts_that_share_and_run(places):
    job, other, *_ = places.jobs
    places.attempt(job, "interrupted", seconds=100.0, share=4, threads=2)
    places.attempt(job, "killed", seconds=60.0, device="cuda:0", share=2)
    places.hold(job, seconds=30.0, threads=3, share=1)
    places.attempt(other, seconds=7.0)
    place = first(places)
    assert place.seconds == 190
    assert place.spent == DeviceSeconds(gpu=30.0, core=50.0 + 90.0)
    assert standing(places.experiment, places.paths).spent == DeviceSeconds(gpu=30.0, core=147.0)


def test_an_attempt_that_is_about_to_let_go_is_counted_once(places):
    """Its record is written before its lease goes."""
    holder = places.hold(places.jobs[0], started=STARTED)
    places.attempt(places.jobs[0], "interrupted", "SIGTERM", pid=holder.pid, started=STARTED, to_step=50)
    place = first(places)
    assert (place.state, len(place.all_attempts), place.seconds) == ("stopped", 1, 100.0)


def test_a_broken_row_of_attempts_is_said_and_hides_no_job(places):
    job = places.jobs[0]
    places.judge(job)
    places.attempt(job)
    with open(places.paths.attempts(job), "a") as file:
        file.write('{"job": "cut o')
    place = first(places)
    assert place.state == "done"
    assert "attempts.jsonl:2: a broken row" in place.note


def test_counts_in_one_line(places):
    places.judge(*places.jobs[:2])
    places.attempt(places.jobs[0], seconds=5400.0)
    places.attempt(places.jobs[2], "failed", "no", seconds=1800.0, device="cuda")
    text = summary(standing(places.experiment, places.paths))
    assert text == "four: 4 jobs: 1 failed, 1 waiting, 2 done. Used: 0.5 GPU-hours and 1.5 core-hours."


def test_progress_grows_with_each_step_forward_and_with_nothing_else(places):
    def progress():
        return standing(places.experiment, places.paths).progress

    job, other, *_ = places.jobs
    seen = [progress()]
    for forward in (
        lambda: places.attempt(job, "interrupted", "SIGTERM", to_step=42),
        lambda: places.so_far(job, 5),
        lambda: places.train(job),
        lambda: places.judge(job),
        lambda: places.attempt(other, "failed", "no", to_step=1),
    ):
        forward()
        seen.append(progress())
    assert seen == sorted(set(seen))
    places.attempt(other, "failed", "no", from_step=1, to_step=1)
    places.log("train", other, "error: no\n")
    assert progress() == seen[-1]


@pytest.mark.parametrize(("number", "limit"), [(1000, 0.5), pytest.param(10_000, 5.0, marks=pytest.mark.slow)])
def test_ten_thousand_jobs_are_looked_at_in_five_seconds(places, number, limit):
    """Half of them judged, each with two attempts; their files are hard links, so that the test is fast too."""
    config = places.experiment.jobs[places.jobs[0]]
    jobs = {f"{places.jobs[0]}-{i}": dataclasses.replace(config, seed=i) for i in range(number)}
    places.judge(places.jobs[0])
    for _ in range(2):
        places.attempt(places.jobs[0], "interrupted", "SIGTERM", to_step=42)
    files = [*places.paths.trained("{}"), *places.paths.judged("{}", places.judging)]
    for i, job in enumerate(jobs):
        os.makedirs(places.paths.state(job))
        os.link(places.paths.attempts(places.jobs[0]), places.paths.attempts(job))
        for file in files if i % 2 else ():
            os.link(file.replace("{}", places.jobs[0]), file.replace("{}", job))
    many = Experiment("many", "?", jobs, places.experiment.evaluate_with)
    queue = [row("train", job, "PENDING", str(i)) for i, job in enumerate(jobs) if i % 4 == 0]
    gc.collect()  # of what other tests have left
    began = time.process_time()
    counts = standing(many, places.paths, queue).counts
    seconds = time.process_time() - began
    print(f"\n{number} jobs: {seconds:.2f} s")
    assert counts == {"queued": number // 4, "stopped": number // 4, "done": number // 2}
    assert seconds < limit
