"""A search as a program: by Ray Tune, and by the fleet."""

from __future__ import annotations

from pathlib import Path

import pytest
from searching_program import Program
from small import on_cpu

from pipeline.config import job_id, load_job
from pipeline.describe import write_config
from pipeline.train import train
from pipeline.trials import rows_of
from pipeline.winners import load_whole

TUNED = """num_trials: 6
algorithm: tpe
scheduler: {name: asha, reduction: 2}
synchronous: true
winners: {count: 1, seeds: [0, 1]}"""  # two at once, in luck's own order, might all be better than the one before
RANDOM = "num_trials: 4\nwinners: {count: 2}"


@pytest.fixture(scope="module")
def tuned(tmp_path_factory):
    program = Program(tmp_path_factory.mktemp("tuned"), TUNED)
    program.run()
    yield program
    program.end()


def test_a_search_ends_with_as_many_trials_as_asked_and_leaves_its_winners(tuned):
    assert len(tuned.trials) == tuned.found["trials"] == 6
    assert tuned.found["failed"] == 0
    assert tuned.found["finished"] + tuned.found["stopped"] == 6
    assert tuned.found["stopped"] >= 1
    finished = [trial for trial in tuned.trials if trial.outcome == "finished"]
    best = max(finished, key=lambda trial: rows_of(trial.job, tuned.paths)[-1].validation_accuracy)
    assert {job["trial"] for job in tuned.found["jobs"].values()} == {best.number}
    whole = load_whole(tuned.file, tuned.paths)
    assert [config.seed for config in whole.jobs.values()] == [0, 1]
    assert all(Path(tuned.paths.config(job)).exists() for job in whole.jobs)
    assert best.job in whole.jobs


def test_a_trial_that_was_stopped_can_be_taken_up(tuned):
    """Its rows are there as far as it came, and it goes on behind them."""
    stopped = next(trial for trial in tuned.trials if trial.outcome == "stopped")
    rows = rows_of(stopped.job, tuned.paths)
    assert rows[-1].epoch >= stopped.epoch >= 1
    config = load_job(tuned.paths.config(stopped.job), stopped.job)
    assert train({stopped.job: config}, tuned.paths, on_cpu(), lambda: "")
    assert rows_of(stopped.job, tuned.paths)[: len(rows)] == rows
    assert tuned.attempts(stopped.job)[-1].from_step == rows[-1].step


def test_each_step_is_made_once_and_nothing_is_left(tuned):
    tuned.assert_counted_once()
    tuned.assert_nothing_is_left()


def test_a_search_that_is_done_is_not_done_again(tuned):
    events, found = tuned.events, tuned.found
    tuned.run()
    assert tuned.events == events
    assert tuned.found == found


@pytest.mark.slow
def test_trials_that_are_known_beforehand_go_by_the_fleet_and_not_twice(tmp_path):
    """One of them was trained by somebody else before."""
    program = Program(tmp_path, RANDOM)
    _, config = program.search.drawn(2)
    write_config(config, program.paths)
    job = job_id(config)
    assert train({job: config}, program.paths, on_cpu(), lambda: "")
    model = Path(program.paths.model(job)).read_bytes()
    try:
        program.run()
        assert [trial.outcome for trial in program.trials] == ["finished"] * 4
        assert [trial.values for trial in program.trials] == [program.search.drawn(k)[0] for k in range(4)]
        assert len(program.attempts(job)) == 1
        assert Path(program.paths.model(job)).read_bytes() == model
        assert len(program.found["jobs"]) == 2
        program.assert_counted_once()
        program.assert_nothing_is_left()
    finally:
        program.end()
