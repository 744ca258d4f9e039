"""How many processes a fleet has, and what becomes of one that is sick: without Ray, which a stand-in plays."""

from __future__ import annotations

import contextlib
import logging
import os
import subprocess
from argparse import Namespace
from collections import Counter
from pathlib import Path

import pytest
import stand_in_ray
import torch
from ray.exceptions import RayError
from searched import Searched
from small import on_cpu, small_job, write_job

from pipeline import fleet, fleet_worker, search
from pipeline.config import canonical, job_id
from pipeline.crew import MOST_FAULTS, TRIES, Crew, processes, run_fleet
from pipeline.deadline import Allocation
from pipeline.fleet import main
from pipeline.fleet_worker import Outcome, Worker
from pipeline.ledger import Ledger
from pipeline.paths import Paths
from pipeline.private_ray import NoRay, RayFacts
from pipeline.stacks import LARGEST
from pipeline.tuning import Place
from pipeline.watching import Live

ROOT = Path(__file__).parents[2]
JOBS = {job_id(config): config for config in map(small_job, range(7))}
UNITS = [{job: config} for job, config in JOBS.items()]
PATHS, RUN = Paths("results"), on_cpu(data_root="none")


def never() -> bool:
    return False


def finished(jobs: tuple[str, ...]) -> Outcome:
    return Outcome(jobs, "finished")


def sick(jobs: tuple[str, ...]) -> Outcome:
    return Outcome(jobs, "failed", "AcceleratorError: device-side assert", by_place=True)


def states(outcomes: list[Outcome]) -> dict[str, str]:
    assert Counter(job for outcome in outcomes for job in outcome.jobs).most_common(1)[0][1] == 1
    return {job: outcome.state for outcome in outcomes for job in outcome.jobs}


# ---------------------------------------------------------------------- a sick process


def test_a_sick_process_is_replaced_and_what_it_failed_is_trained(monkeypatch):
    """After one error of a GPU all further calls of its process fail, in no time: it would drain the queue."""
    ray = stand_in_ray.install(monkeypatch, lambda process, jobs: sick(jobs) if process == 1 else finished(jobs))
    assert states(run_fleet(UNITS, PATHS, RUN, never, crew=Crew(1))) == dict.fromkeys(JOBS, "finished")
    assert ray.killed == [1, 2]


def test_a_sick_node_takes_no_more_work_and_the_others_go_on(monkeypatch):
    """Its processes, with odd numbers here, are replaced a few times; then it is left alone. No job fails by it."""
    tried: list[tuple[int, str]] = []
    on_it = {1}

    def work(process, jobs):
        tried.append((process, jobs[0]))
        if process in on_it:
            on_it.add(ray.started + 1)  # in its place, another comes
            return sick(jobs)
        return finished(jobs)

    ray = stand_in_ray.install(monkeypatch, work)
    jobs = {job_id(config): config for config in map(small_job, range(40))}
    outcomes = run_fleet([{job: config} for job, config in jobs.items()], PATHS, RUN, never, crew=Crew(2))
    assert states(outcomes) == dict.fromkeys(jobs, "finished")
    assert sum(process in on_it for process, _ in tried) == MOST_FAULTS
    assert ray.started == 1 + MOST_FAULTS


def test_errors_with_successes_between_them_are_no_sign_of_a_sick_machine(monkeypatch):
    """Each second unit finds its process sick, at its first try."""
    tried: list[tuple[str, ...]] = []

    def work(process, jobs):
        tried.append(jobs)
        return sick(jobs) if len(tried) % 2 and tried.count(jobs) == 1 else finished(jobs)

    ray = stand_in_ray.install(monkeypatch, work)
    units = {job_id(config): config for config in map(small_job, range(4 * MOST_FAULTS))}
    outcomes = run_fleet([{job: config} for job, config in units.items()], PATHS, RUN, never, crew=Crew(1))
    assert states(outcomes) == dict.fromkeys(units, "finished")
    assert ray.started == 1 + 2 * MOST_FAULTS


def test_where_all_is_sick_it_ends_and_says_why(monkeypatch):
    """No job is called failed: what is wrong with the machine is not the jobs' fault."""
    ray = stand_in_ray.install(monkeypatch, lambda process, jobs: sick(jobs))
    told: list[Outcome] = []
    with pytest.raises(NoRay, match=rf"{MOST_FAULTS} errors in a row.*the last: AcceleratorError: device-side assert"):
        run_fleet(UNITS, PATHS, RUN, never, told.append, Crew(1))
    assert told == []
    assert ray.started == MOST_FAULTS


def test_an_error_that_follows_a_unit_is_its_own_and_several_are_tried_alone_before(monkeypatch):
    (bad, one), (other, two), *rest = JOBS.items()
    tried: list[tuple[str, ...]] = []

    def work(process, jobs):
        tried.append(jobs)
        return sick(jobs) if bad in jobs else finished(jobs)

    ray = stand_in_ray.install(monkeypatch, work)
    units = [{bad: one, other: two}, *({job: config} for job, config in rest)]
    found = states(run_fleet(units, PATHS, RUN, never, crew=Crew(2)))
    assert found == {job: "failed" if job == bad else "finished" for job in JOBS}
    assert Counter(tried)[bad, other] == Counter(tried)[bad,] == TRIES
    assert ray.started == 2 + 2 * TRIES


def test_a_unit_over_which_processes_die_is_given_up_and_the_others_are_trained(monkeypatch):
    bad, *good = JOBS

    def work(process, jobs):
        if bad in jobs:
            raise RayError("out of memory")
        return finished(jobs)

    ray = stand_in_ray.install(monkeypatch, work)
    outcomes = run_fleet(UNITS, PATHS, RUN, never, crew=Crew(1))
    assert states(outcomes) == dict.fromkeys(good, "finished") | {bad: "failed"}
    assert {outcome.reason for outcome in outcomes} == {"", f"{TRIES} processes died over it, the last: out of memory"}
    assert ray.started == 1 + TRIES


def test_an_error_of_the_job_itself_costs_no_process(monkeypatch):
    ray = stand_in_ray.install(monkeypatch, lambda process, jobs: Outcome(jobs, "failed", "lr: must be positive"))
    assert states(run_fleet(UNITS, PATHS, RUN, never, crew=Crew(1))) == dict.fromkeys(JOBS, "failed")
    assert ray.started == 1


@pytest.mark.parametrize("dies", [False, True])
def test_asked_to_stop_what_is_lost_after_that_is_interrupted(dies, monkeypatch):
    """And no process comes in the place of the one that was lost."""
    tried: list[tuple[str, ...]] = []

    def work(process, jobs):
        tried.append(jobs)
        if dies:
            raise RayError("killed")
        return sick(jobs)

    ray = stand_in_ray.install(monkeypatch, work)
    answers = iter(["", "enough"])  # after the second process is ready the first one is at work
    outcomes = run_fleet(UNITS, PATHS, RUN, lambda: next(answers), crew=Crew(2))
    assert states(outcomes) == dict.fromkeys(JOBS, "interrupted")
    assert len(tried) == 1
    assert ray.started == 2


@pytest.mark.parametrize(
    ("error", "by_place"),
    [
        (ValueError("lr: must be positive"), False),
        (torch.OutOfMemoryError("CUDA out of memory"), False),  # the process can go on with a smaller one
        (RuntimeError("CUDA error: device-side assert triggered"), True),
        (OSError(28, "No space left on device"), True),
    ],
)
def test_a_worker_says_whose_fault_it_may_be(error, by_place, monkeypatch):
    def fail(*_):
        raise error

    monkeypatch.setattr(fleet_worker, "set_threads", lambda number: None)
    monkeypatch.setattr(fleet_worker, "train", fail)
    worker = Worker(PATHS, RUN, Allocation())
    job, config = next(iter(JOBS.items()))
    outcome = worker.train({job: canonical(config)})
    logging.getLogger().removeHandler(worker.said)
    assert (outcome.state, outcome.by_place) == ("failed", by_place)


# ---------------------------------------------------------------------- how many


@pytest.mark.parametrize(
    ("asked", "threads", "gpus", "number"),
    [(0, 1, 0.0, 32), (3, 1, 0.0, 3), (99, 4, 0.0, 8), (0, 1, 0.25, 4), (99, 1, 0.25, 4)],
)
def test_no_more_processes_than_fit(asked, threads, gpus, number, monkeypatch):
    """One more would wait for its place for ever."""
    ray = stand_in_ray.install(monkeypatch, lambda process, jobs: finished(jobs), resources=[{"CPU": 32.0, "GPU": 1.0}])
    assert processes(asked, threads, gpus) == number
    jobs = {job_id(config): config for config in map(small_job, range(40))}
    units = [{job: config} for job, config in jobs.items()]
    run_fleet(units, PATHS, on_cpu(threads=threads), never, crew=Crew(asked, gpus))
    assert ray.started == number
    assert (ray.asked["num_cpus"], ray.asked["num_gpus"]) == (threads, gpus)


@pytest.mark.parametrize("asked", [0, 1])
def test_where_none_fits_it_says_so(asked, monkeypatch):
    stand_in_ray.install(monkeypatch, lambda process, jobs: finished(jobs), resources=[{"CPU": 8.0}, {"CPU": 8.0}])
    with pytest.raises(NoRay, match="no process fits: each needs 16 CPUs and 0 of a GPU"):
        run_fleet(UNITS, PATHS, on_cpu(threads=16), never, crew=Crew(asked))


def arguments(**given) -> Namespace:
    plain = {"configs": [], "experiment": None, "results": "results", "done": None, "data": "none", "device": "auto"}
    plain |= {"cpus": 0, "threads": 1, "workers": 0, "gpus_per_job": 0.25, "checkpoint_seconds": 60.0, "campaign": ""}
    return Namespace(**(plain | {"stop_with_parent": None} | given))


def test_on_gpus_the_places_there_say_how_many_are_trained_side_by_side(tmp_path, monkeypatch):
    """32 CPUs and one GPU have four places: enough jobs to keep all of them busy with eight each."""
    stand_in_ray.install(monkeypatch, lambda process, jobs: None, resources=[{"CPU": 32.0, "GPU": 1.0}])
    monkeypatch.setattr(fleet, "private_ray", lambda *_: contextlib.nullcontext(RayFacts(32, 1.0)))
    monkeypatch.setattr(fleet, "Stop", lambda *_: never)
    seen = []
    monkeypatch.setattr(fleet, "run_fleet", lambda units, *_, **__: seen.extend(units) or [])
    configs = [small_job(seed) for seed in range(4 * LARGEST)]
    written = [write_job(tmp_path, config) for config in configs]
    assert main(arguments(configs=[paths.config(job) for paths, job in written])) == 0
    assert [len(unit) for unit in seen] == [LARGEST] * 4


@pytest.mark.parametrize("option", ["threads", "workers", "cpus"])
def test_a_count_that_is_none_is_one_line(option, monkeypatch):
    monkeypatch.setattr(fleet, "private_ray", lambda *_: pytest.fail("Ray is started"))
    number = 0 if option == "threads" else -1
    with pytest.raises(ValueError, match=rf"--{option}: must be at least {number + 1}, got {number}"):
        main(arguments(**{option: number}))


# ---------------------------------------------------------------------- one submission


def test_a_job_of_ray_sbatch_is_a_campaign_of_its_own(tmp_path):
    """By the name alone, which all have, a job that failed twice would be refused for ever."""
    python = tmp_path / "python"
    python.write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    python.chmod(0o755)
    environment = os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
    environment |= {"SLURM_JOB_NAME": "gode-fleet", "SLURM_JOB_ID": "7"}
    script = ["bash", str(ROOT / "cluster/ray.sbatch"), "--experiment", "x y.yaml"]
    said = subprocess.run(script, env=environment, capture_output=True, text=True, check=True).stdout.splitlines()
    assert said == ["-m", "pipeline.fleet", "--campaign", "gode-fleet-7", "--experiment", "x y.yaml"]


@pytest.mark.parametrize(("given", "campaign"), [("gode-fleet-7", "gode-fleet-7"), ("", "of-slurm")])
def test_the_campaign_is_the_one_given_or_slurms(given, campaign):
    assert fleet._run(arguments(campaign=given), Allocation("7", "of-slurm")).campaign == campaign


def test_the_fleet_of_a_search_heeds_the_end_of_the_allocation_in_each_of_its_processes(tmp_path, monkeypatch):
    """Who starts it asks between steps of nobody: a long one would be cut off at the limit."""
    here, seen = Allocation("7", "run", 0.0, 1.0), []
    monkeypatch.setattr(Allocation, "here", lambda: here)
    monkeypatch.setattr(search, "run_fleet", lambda *given: seen.extend(x for x in given if isinstance(x, Crew)))
    found = Searched(tmp_path)
    ledger = Ledger(found.search, found.paths, lambda: None, False)
    search.fleet_trials(ledger, Place(RUN, 1, 0.0, 2), lambda: "", Live(), lambda: None)
    assert seen == [Crew(2, 0.0, here)]
