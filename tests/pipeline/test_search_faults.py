"""What may happen to a search: nothing finished is lost, nothing counts twice, and it ends with all of its trials."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
from searching_program import RATE, Program
from small import on_cpu

from pipeline.config import job_id, load_job
from pipeline.describe import write_config
from pipeline.holder import read_holder
from pipeline.paths import Paths
from pipeline.train import train
from pipeline.trials import rows_of

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]
GUIDED = """num_trials: 8
algorithm: tpe
synchronous: true
at_once: 2
scheduler: none"""
ASHA = "num_trials: 6\nscheduler: {name: asha, reduction: 2}\nat_once: 2"
LONG = 60  # epochs: some seconds a trial


@pytest.fixture
def program(tmp_path, request):
    search, epochs = request.param
    made = Program(tmp_path / "it", search, epochs)
    yield made
    made.end()


def model_of(program, trial):
    return Path(program.paths.model(trial.job)).read_bytes()


def under_way(program):
    """A trial that is being trained, and by whom."""
    for trial in program.trials:
        holder = read_holder(program.paths.lease(trial.job))
        if holder is not None and holder.from_step is not None and trial.outcome == "running":
            return trial, holder
    return None


@pytest.mark.parametrize("program", [(GUIDED, 20)], indirect=True)
def test_a_driver_that_was_killed_goes_on_and_a_synchronous_search_gives_the_same_again(program, tmp_path):
    """Killed twice, in the middle: the same choices, and the same bits, as without. No process of it lives on."""
    undisturbed = Program(tmp_path / "undisturbed", GUIDED, 20)
    undisturbed.run()
    for number in (2, 5):
        process = program.start("--checkpoint-seconds", "1")
        program.wait_for(lambda n=number: len(program.trials) > n and under_way(program), f"trial {number} runs")
        process.send_signal(signal.SIGKILL)
        process.wait()
    program.run()
    assert [trial.values for trial in program.trials] == [trial.values for trial in undisturbed.trials]
    for one, other in zip(program.trials, undisturbed.trials):
        assert one.outcome == other.outcome == "finished"
        assert model_of(program, one) == model_of(undisturbed, other)
    assert program.found["jobs"] == undisturbed.found["jobs"]
    program.assert_counted_once()
    undisturbed.end()


@pytest.mark.parametrize("program", [(ASHA, LONG)], indirect=True)
def test_a_process_that_dies_is_replaced_and_its_trial_goes_on(program):
    """As the kernel does it where memory is short."""
    process = program.start("--checkpoint-seconds", "0.5")
    trial, holder = program.wait_for(lambda: under_way(program), "a trial runs")
    os.kill(holder.pid, signal.SIGKILL)
    assert process.wait(300) == 0, program.output
    assert program.found["trials"] == 6
    assert program.found["failed"] == 0
    assert [attempt.outcome for attempt in program.attempts(trial.job)].count("killed") == 1
    program.assert_counted_once()
    program.assert_nothing_is_left()


def spoil_the_second_trial(program):
    """Its job has a checkpoint that is none: it raises, before its first step."""
    _, config = program.search.drawn(1)
    write_config(config, program.paths)
    broken = Path(program.paths.resume(job_id(config)))
    broken.parent.mkdir(parents=True)
    broken.write_bytes(b"no checkpoint")


@pytest.mark.parametrize("program", [(ASHA, 4), ("num_trials: 6", 4)], indirect=True, ids=["tune", "fleet"])
def test_a_trial_that_raises_takes_nobody_along(program):
    spoil_the_second_trial(program)
    program.run()
    failed = [trial for trial in program.trials if trial.outcome == "failed"]
    assert [trial.number for trial in failed] == [1]
    assert "not a whole checkpoint of ours" in failed[0].reason
    assert program.found["trials"] == 6
    assert program.found["failed"] == 1
    events = program.events
    program.run()
    assert program.events == events  # what has failed is not tried again by itself


HUGE = 200_000  # whose weights have six terabytes
SICK = f"model.width: {{choice: [8, {HUGE}]}}, train.lr: {{choice: [5e-3, 1e-2, 1e30]}}"


@pytest.mark.parametrize("rest", ["scheduler: {name: asha, reduction: 2}", "scheduler: none"], ids=["tune", "fleet"])
def test_trials_for_which_there_is_no_memory_and_one_that_is_not_finite_take_nobody_along(tmp_path, rest):
    """Of six, two can be trained to their end; one of them wins."""
    program = Program(tmp_path, f"num_trials: 6\nalgorithm: grid\n{rest}", 4, SICK)
    program.run()
    assert (program.found["trials"], program.found["failed"]) == (6, 3)
    (winner,) = program.found["jobs"].values()
    for trial in program.trials:
        if trial.values["model.width"] == HUGE:
            assert trial.outcome == "failed"
            assert "can't allocate memory" in trial.reason
            assert rows_of(trial.job, program.paths) == []
        elif trial.values["train.lr"] == 1e30:
            assert (trial.outcome, trial.reason) == ("finished", "nonfinite")
            assert rows_of(trial.job, program.paths)[-1].status == "nonfinite"
            assert trial.number != winner["trial"]
    program.assert_counted_once()
    program.assert_nothing_is_left()
    program.end()


@pytest.mark.parametrize("program", [(ASHA + "\nbudget: {minutes: 0.1}", 2000)], indirect=True)
def test_a_budget_that_is_spent_ends_the_search_with_what_there_is_and_a_greater_one_goes_on(program):
    program.run()
    assert program.found["ended"] == "its budget is spent: 0.1 minutes"
    assert 1 <= program.found["trials"] < 6
    assert len(program.found["jobs"]) == 1
    before = [trial.values for trial in program.trials]
    more = Program(program.folder, ASHA + "\nbudget: {minutes: 0.2}", 2000)
    more.run()
    assert more.found["ended"] == "its budget is spent: 0.2 minutes"
    assert [trial.values for trial in more.trials][: len(before)] == before
    assert any(len(more.attempts(trial.job)) > 1 for trial in more.trials)
    more.assert_counted_once()
    more.end()


PBT = """num_trials: 4
scheduler: {name: pbt, interval: 3}
synchronous: true"""


def test_a_population_ends_in_jobs_that_can_be_trained_from_their_first_step(tmp_path):
    """A trial that took over another's weights is the job that its schedule says, to the bit; and all comes out the
    same in a second run."""
    one, other = (Program(tmp_path / turn, PBT, 9, RATE) for turn in ("one", "other"))
    for program in (one, other):
        program.run()
        assert program.found["finished"] == 4
        program.end()
    assert [trial.job for trial in one.trials] == [trial.job for trial in other.trials]
    changed = [trial for trial in one.trials if trial.changes]
    assert changed
    alone = Paths(str(tmp_path / "alone"))
    for trial in changed:
        config = load_job(one.paths.config(trial.job), trial.job)
        assert config.train.changes
        write_config(config, alone)
        assert train({trial.job: config}, alone, on_cpu(), lambda: "")
        assert Path(alone.model(trial.job)).read_bytes() == model_of(one, trial) == model_of(other, trial)
        assert Path(alone.training(trial.job)).read_bytes() == Path(one.paths.training(trial.job)).read_bytes()


@pytest.mark.parametrize("rule", ["hyperband", "median"])
def test_the_other_rules_stop_the_weak_and_what_was_decided_stands(tmp_path, rule):
    """Half of the trials learn nothing. A search that asks for one more trains none of the former again."""
    search = f"num_trials: {{n}}\nscheduler: {{{{name: {rule}, reduction: 3, grace_epochs: 2}}}}\nat_once: 2"
    rate = "train.lr: {choice: [1e-2, 9e-3, 8e-3, 7e-3, 6e-3, 1e-6, 2e-6, 3e-6, 4e-6, 5e-6]}"
    program = Program(tmp_path, search.format(n=9), 9, rate)
    program.run()
    assert program.found["trials"] == 9
    assert program.found["stopped"] >= 1
    before, attempts = program.trials, {trial.job: program.attempts(trial.job) for trial in program.trials}
    more = Program(tmp_path, search.format(n=10), 9, rate)
    more.run()
    assert more.trials[:9] == before
    assert {trial.job: more.attempts(trial.job) for trial in before} == attempts
    assert more.found["trials"] == 10
    more.assert_counted_once()
    for each in (program, more):
        each.end()


BANDS = "num_trials: 14\nscheduler: {name: hyperband, reduction: 3}"  # groups of 3, 5 and (of nine) 6


def test_bands_that_were_interrupted_decide_as_if_they_had_not_been(tmp_path):
    """Asked to end, and killed; one of the trials fails, for which its group must not wait."""
    one, other = (Program(tmp_path / turn, BANDS, 9, RATE) for turn in ("one", "other"))
    for program in (one, other):
        spoil_the_second_trial(program)
    one.run()
    for number, end in ((5, signal.SIGTERM), (9, signal.SIGKILL)):
        process = other.start("--checkpoint-seconds", "0")
        other.wait_for(
            lambda n=number: sum(len(other.attempts(trial.job)) for trial in other.trials) > n and under_way(other),
            "some",
        )
        process.send_signal(end)
        process.wait()
    other.run()
    found = [[(trial.job, trial.outcome, trial.epoch) for trial in program.trials] for program in (one, other)]
    assert found[0] == found[1]
    assert {outcome for _, outcome, _ in found[0]} == {"finished", "stopped", "failed"}
    for program in (one, other):
        program.assert_counted_once()
        program.end()


def test_bands_give_the_same_twice(tmp_path):
    search = "num_trials: 8\nscheduler: {name: hyperband, reduction: 3}"
    found = []
    for turn in ("one", "other"):
        program = Program(tmp_path / turn, search, 9)
        program.run()
        found.append([(trial.job, trial.outcome, trial.epoch) for trial in program.trials])
        program.end()
    assert found[0] == found[1]
    assert {outcome for _, outcome, _ in found[0]} == {"finished", "stopped"}
