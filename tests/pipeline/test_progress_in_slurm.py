"""Where jobs stand, by what SLURM says of them."""

from pathlib import Path

import pytest
from places import STACKED, Places, grow_old, row
from searched import SEARCH, Searched
from test_progress import first, found

from pipeline import slurm
from pipeline.holder import Holder
from pipeline.lease import STALE
from pipeline.progress import standing
from pipeline.run import Run
from pipeline.stacks import batches_of
from pipeline.why import examine


@pytest.fixture
def places(tmp_path):
    return Places(tmp_path)


@pytest.mark.parametrize(
    ("queue", "state"),
    [
        (None, "training"),
        ([], "failed"),
        ([row("train", "x", "COMPLETED")], "failed"),
        ([row("train", "x", "RUNNING")], "training"),
        ([row("train", "x", "COMPLETING")], "training"),
        ([row("train", "x", "PENDING")], "failed"),
    ],
)
def test_a_silent_holder_is_dead_if_slurm_says_that_its_job_is_over(places, queue, state):
    places.hold(places.jobs[0], slurm_job="7")
    grow_old(places.paths.lease(places.jobs[0]), STALE / 2)
    assert first(places, queue).state == "training"  # it has just shown life: on the far side of a cut network, say
    grow_old(places.paths.lease(places.jobs[0]), STALE + 5)
    assert first(places, queue).state == state


def test_a_requeued_job_waits_again_when_its_lease_is_silent(places):
    places.hold(places.jobs[0], slurm_job="7")
    grow_old(places.paths.lease(places.jobs[0]), 2 * STALE)
    place = first(places, [row("train", places.jobs[0], "PENDING", reason="BeginTime")])
    assert (place.state, place.note) == ("queued", "SLURM job 7 waits: BeginTime")
    assert len(place.all_attempts) == 1


@pytest.mark.parametrize(
    ("rule", "trained", "fields", "state", "note"),
    [
        ("train", False, {"state": "PENDING", "reason": "Priority"}, "queued", "SLURM job 7 waits: Priority"),
        ("train", False, {"state": "PENDING", "reason": "None"}, "queued", "SLURM job 7 waits"),
        ("train", False, {"state": "CONFIGURING"}, "queued", "SLURM job 7 waits"),
        ("train", False, {}, "training", "SLURM job 7 on node1, begins or ends"),
        ("train", False, {"state": "SUSPENDED"}, "training", "SLURM job 7 on node1, suspended, begins or ends"),
        ("train", False, {"state": "FAILED"}, "waiting", ""),
        ("train", False, {"folder": "/elsewhere"}, "waiting", ""),
        ("train", False, {"comment": "(null)"}, "waiting", ""),
        ("evaluate", False, {}, "waiting", ""),
        ("train", True, {}, "trained", ""),
        ("evaluate", True, {}, "judging", "SLURM job 7 on node1"),
        (
            "evaluate",
            True,
            {"state": "PENDING", "reason": "Resources"},
            "queued",
            "SLURM job 7 waits: Resources, to judge",
        ),
        ("evaluate", True, {"state": "TIMEOUT"}, "trained", ""),
    ],
)
def test_what_slurm_says_of_a_job_without_a_lease(places, rule, trained, fields, state, note):
    job = places.jobs[0]
    if trained:
        places.train(job)
    place, *others = found(places, [row(rule, job, **fields)])
    assert (place.state, place.note) == (state, note)
    assert {other.state for other in others} == {"waiting"}


@pytest.mark.parametrize("turn", [1, -1])
def test_of_two_slurm_jobs_for_one_the_running_one_counts(places, turn):
    rows = [row("train", places.jobs[0], "PENDING", "8"), row("train", places.jobs[0], "RUNNING", "7")]
    assert first(places, rows[::turn]).note.startswith("SLURM job 7 on")


def test_a_done_job_is_done_whatever_waits(places):
    places.judge(places.jobs[0])
    assert first(places, [row("evaluate", places.jobs[0], "PENDING")]).state == "done"


def test_the_jobs_of_a_batch_share_its_slurm_job_and_its_log(tmp_path):
    places = Places(tmp_path, STACKED)
    (batch,) = batches_of(places.experiment.jobs, places.paths, places.judging)
    assert batch.jobs == tuple(places.jobs)
    assert {p.state for p in found(places, [row(batch.train, "", "PENDING")])} == {"queued"}
    places.hold(places.jobs[0], slurm_job="7")
    states = [(p.state, p.note) for p in found(places, [row(batch.train, "")])]
    assert [state for state, _ in states] == ["training", *["queued"] * 3]
    assert states[1][1] == "SLURM job 7 on node1, comes to it"
    places.log("train", batch.name, "error: cannot be\n")
    assert [p.state for p in found(places)] == ["training", *["failed"] * 3]
    places.train(*places.jobs)
    assert [p.state for p in found(places, [row(batch.evaluate, "")])] == ["training", *["judging"] * 3]


def test_how_many_share_a_process_is_known_from_the_run(places):
    """`--config together=4` of images, which else have a process each."""
    run = Run.of({"results": places.paths.root, "together": "4"}, [places.file])
    (batch,) = run.batches
    queue = [row(batch.train, "", "PENDING", reason="Priority")]
    assert {p.state for p in found(places, queue)} == {"waiting"}
    run.note_company()
    assert {p.state for p in found(places, queue)} == {"queued"}
    log = places.log("train", batch.name, "error: cannot be\n")
    assert {p.state for p in found(places)} == {"failed"}
    case = examine(places.jobs[0], places.paths, [places.experiment], str(places.slurm_logs))
    assert (case.failure.kind, case.logs) == ("config", (log,))
    plain = Run.of({"results": places.paths.root}, [places.file])
    plain.note_company()
    assert {p.state for p in found(places, queue)} == {"waiting"}


OURS = {"name": "gode-four_uuid-1"}


@pytest.mark.parametrize(
    ("fields", "note"),
    [
        ({"state": "PENDING", "reason": "Priority"}, "SLURM job 7 waits: Priority, in the fleet"),
        ({"state": "PENDING", "reason": "None"} | OURS, "SLURM job 7 waits, in the fleet"),
        (OURS, "SLURM job 7 on node1, comes to it"),
        ({"state": "SUSPENDED"}, "SLURM job 7 on node1, suspended, comes to it"),
        ({"state": "COMPLETED"}, None),
        ({"folder": "/elsewhere"}, None),
        ({"name": "gode-four-b_uuid-1"}, None),  # another experiment's of this folder
        ({"comment": "rule_search"}, None),
        ({"comment": "rule_fleet_wildcards_x"}, None),
    ],
)
def test_a_fleet_that_waits_or_runs_is_what_its_jobs_wait_for(places, fields, note):
    done, trained, stopped, untouched = places.jobs
    places.judge(done)
    places.train(trained)
    places.attempt(stopped, "interrupted", "SIGTERM", to_step=42)
    states = {p.job: (p.state, p.note) for p in found(places, [row("fleet", "", **fields)])}
    assert (states[done], states[trained]) == (("done", ""), ("trained", ""))
    assert states[stopped] == (("queued", note) if note else ("stopped", "SIGTERM"))
    assert states[untouched] == (("queued", note) if note else ("waiting", ""))


def test_what_has_failed_in_a_fleet_that_runs_has_failed(places):
    """One that waits, or is another, tries it again."""
    here, before, lost, own = places.jobs
    places.attempt(here, "failed", "RuntimeError: no", slurm_job="7")
    places.attempt(before, "failed", "RuntimeError: no", slurm_job="6")
    places.attempt(lost, "failed", "RuntimeError: no", slurm_job="7")
    me = Holder.me(code="c", device="cpu", threads=1, share=1, slurm_job="", campaign="")
    places.hold(lost, slurm_job="7", host=me.host, born=f"{me.born}9")  # killed: the fleet takes it up again
    rows = [row("fleet", ""), row("train", own, number="8")]
    assert [p.state for p in found(places, rows)] == ["failed", "queued", "queued", "training"]
    rows = [row("fleet", "", "PENDING"), row("train", own, number="8")]
    assert [p.state for p in found(places, rows)] == ["queued", "queued", "queued", "training"]


@pytest.mark.parametrize("turn", [1, -1])
def test_of_two_fleets_the_running_one_counts(places, turn):
    rows = [row("fleet", "", "PENDING", "8"), row("fleet", "", "RUNNING", "7")]
    assert first(places, rows[::turn]).note == "SLURM job 7 on node1, comes to it"


def test_winners_are_trained_in_no_fleet(tmp_path):
    made = Searched(tmp_path, SEARCH.replace("evaluate_with", "sweep: {seed: [7]}\nevaluate_with"))
    made.try_all()
    whole = made.end()
    for job in whole.jobs:
        Path(made.paths.model(job)).unlink()
    states = {p.job: p.state for p in standing(made.experiment, made.paths, [row("fleet", "")]).places}
    assert {job for job, state in states.items() if state == "queued"} == set(made.experiment.jobs)
    assert len(states) > len(made.experiment.jobs)


def test_why_knows_of_the_fleet_that_a_job_waits_for(stand_in, places):
    stand_in.add("7", "PENDING", comment="rule_fleet", name="gode-four_uuid-1", reason="Priority")
    case = examine(places.jobs[0], places.paths, [places.experiment], str(places.slurm_logs))
    assert (case.place.state, case.place.note) == ("queued", "SLURM job 7 waits: Priority, in the fleet")


@pytest.mark.usefixtures("stand_in")
def test_what_squeue_says_is_understood(places, stand_in):
    """Through the door, from the text of the command."""
    one, two, three, _ = places.jobs
    stand_in.add("7", comment=f"rule_train_wildcards_{one}")
    stand_in.add("8", "PENDING", comment=f"rule_train_wildcards_{two}", reason="(Nodes are DOWN, drained)")
    stand_in.add("9", "OUT_OF_MEMORY", comment=f"rule_train_wildcards_{three}")
    states = [place.state for place in found(places, slurm.queue(finished=True))]
    assert states == ["training", "queued", "waiting", "waiting"]
