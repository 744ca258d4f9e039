"""Many jobs by a few warm processes: the same files as one by one, whatever happens to one of them."""

from __future__ import annotations

import json
import logging
from argparse import Namespace
from pathlib import Path

import pytest
from small import on_cpu, small_job, write_job

from pipeline import crew, fleet, fleet_worker
from pipeline.config import canonical, job_id
from pipeline.crew import Crew, run_fleet
from pipeline.deadline import Allocation
from pipeline.fleet import main
from pipeline.fleet_worker import Outcome, Worker
from pipeline.paths import Paths
from pipeline.private_ray import private_ray
from pipeline.records import AttemptRecord, read_records
from pipeline.stacks import units_of
from pipeline.train import train

JOBS = {job_id(config): config for config in (*map(small_job, range(4)), small_job(optimiser="sgd"))}
LONG = small_job(9, epochs=150)
RUN = on_cpu(data_root="none")


def never() -> bool:
    return False


def files(paths: Paths, job: str) -> list[bytes]:
    """All that `train` declares."""
    return [Path(file).read_bytes() for file in paths.trained(job)]


def attempts(paths: Paths, job: str) -> list[AttemptRecord]:
    return read_records(AttemptRecord, paths.attempts(job))


@pytest.fixture(scope="module")
def two_cpus():
    with private_ray(cpus=2, gpus=0) as facts:
        yield facts


@pytest.fixture(scope="module")
def one_by_one(tmp_path_factory) -> Paths:
    """The jobs, trained in this process."""
    paths = Paths(str(tmp_path_factory.mktemp("one-by-one")))
    for job, config in (JOBS | {job_id(LONG): LONG}).items():
        assert train({job: config}, paths, RUN, never)
    return paths


@pytest.mark.usefixtures("two_cpus")
def test_the_same_files_and_one_failure_is_one_jobs(tmp_path, one_by_one):
    """A damaged checkpoint ends its own job alone, whoever was to be trained beside it. No job is finished twice."""
    paths, told = Paths(str(tmp_path / "results")), []
    bad, *good = JOBS
    Path(paths.state(bad)).mkdir(parents=True)
    Path(paths.resume(bad)).write_bytes(b"half a checkpoi")
    *seeds, other = ({job: config} for job, config in JOBS.items())
    side_by_side = {job: config for each in seeds for job, config in each.items()}
    outcomes = run_fleet([side_by_side, other], paths, RUN, never, told.append)
    assert told == outcomes
    assert {job: outcome.state for outcome in outcomes for job in outcome.jobs} == (
        dict.fromkeys(good, "finished") | {bad: "failed"}
    )
    (failed,) = (outcome for outcome in outcomes if outcome.state == "failed")
    assert "not a whole checkpoint of ours" in failed.reason
    assert "\n" not in failed.reason
    assert [files(paths, job) for job in good] == [files(one_by_one, job) for job in good]
    assert {attempt.outcome for attempt in attempts(paths, bad)} == {"failed"}
    assert [[attempt.outcome for attempt in attempts(paths, job)] for job in good] == [["finished"]] * len(good)
    assert len({attempt.pid for job in JOBS for attempt in attempts(paths, job)}) <= 2


@pytest.mark.slow
@pytest.mark.usefixtures("two_cpus")
def test_asked_to_stop_it_keeps_what_was_done_and_goes_on_to_the_same_bits(tmp_path, one_by_one):
    """The long one is begun first, though it comes last; the others were not begun."""
    paths, long = Paths(str(tmp_path / "results")), job_id(LONG)
    units = units_of(JOBS | {long: LONG})

    def once_it_trains() -> str:
        lease = Path(paths.lease(long))
        begun = lease.exists() and json.loads(lease.read_bytes() or b"{}").get("from_step") is not None
        return "enough" if begun else ""

    outcomes = run_fleet(units, paths, RUN, once_it_trains, crew=Crew(1))
    assert {outcome.state for outcome in outcomes} == {"interrupted"}
    assert outcomes[0] == Outcome((long,), "interrupted", "enough")
    assert not any(Path(paths.state(job)).exists() for job in JOBS)
    (attempt,) = attempts(paths, long)
    assert (attempt.outcome, attempt.reason) == ("interrupted", "enough")
    assert 0 < attempt.to_step < 4 * 150
    assert train({long: LONG}, paths, RUN, never)
    assert files(paths, long) == files(one_by_one, long)
    assert attempts(paths, long)[1].from_step == attempt.to_step


# ---------------------------------------------------------------------- without Ray


@pytest.mark.parametrize(("processes", "sizes"), [(0, [1] * 16), (2, [8, 8]), (3, [1] * 16)])
def test_images_are_trained_side_by_side_where_all_processes_are_busy_with_it(processes, sizes):
    units = units_of({job_id(config): config for config in map(small_job, range(16))}, processes)
    assert [len(unit) for unit in units] == sizes


@pytest.mark.parametrize(
    ("node", "cpus", "gpus", "number"),
    [
        ({"CPU": 8.0}, 1, 0.0, 8),
        ({"CPU": 8.0}, 3, 0.0, 2),
        ({"CPU": 8.0, "GPU": 2.0}, 1, 0.25, 8),
        ({"CPU": 16.0, "GPU": 2.0}, 1, 0.25, 8),
        ({"CPU": 16.0, "GPU": 1.0}, 1, 0.1, 10),
        ({"CPU": 16.0}, 1, 0.25, 0),
    ],
)
def test_as_many_as_fit(node, cpus, gpus, number):
    assert crew._fitting(node, cpus, gpus) == number


def test_a_worker_heeds_the_end_of_the_allocation(tmp_path, monkeypatch):
    monkeypatch.setattr(fleet_worker, "set_threads", lambda number: None)  # that can be done once in a process
    paths, job = Paths(str(tmp_path / "results")), job_id(LONG)
    worker = Worker(paths, RUN, Allocation("7", "gode", start=0.0, end=1.0))  # in 1970
    outcome = worker.train({job: canonical(LONG)})
    logging.getLogger().removeHandler(worker.said)
    assert (outcome.state, outcome.reason) == ("interrupted", "the time limit is near")
    assert attempts(paths, job)[0].to_step == 1


def arguments(**given) -> Namespace:
    plain = {"configs": [], "experiment": None, "results": "results", "done": None, "data": "none", "device": "cpu"}
    plain |= {"cpus": 2, "threads": 1, "workers": 0, "gpus_per_job": 0.25, "checkpoint_seconds": 60.0, "campaign": ""}
    return Namespace(**(plain | {"stop_with_parent": None} | given))


@pytest.fixture
def no_ray(monkeypatch):
    monkeypatch.setattr(fleet, "private_ray", lambda *_: pytest.fail("Ray is started"))


@pytest.mark.usefixtures("no_ray")
def test_what_is_finished_needs_no_ray(tmp_path, one_by_one):
    done = tmp_path / "all.done"
    for config in JOBS.values():
        write_job(Path(one_by_one.root), config)
    assert main(arguments(configs=[one_by_one.config(job) for job in JOBS], done=str(done))) == 0
    assert done.exists()


@pytest.mark.usefixtures("no_ray")
def test_nothing_to_train_is_one_line():
    with pytest.raises(ValueError, match="which jobs"):
        main(arguments())


def test_the_exit_code_says_what_became_of_it(tmp_path, caplog):
    good, bad, left = (Outcome((name,), name, "why") for name in ("finished", "failed", "interrupted"))
    done = tmp_path / "done"
    assert fleet._end([good, bad], str(done)) == 1
    assert caplog.messages == ["error: failed: why"]
    assert fleet._end([good, bad, left], str(done)) == 85
    assert not done.exists()
    assert fleet._end([good], str(done)) == 0
    assert done.exists()
