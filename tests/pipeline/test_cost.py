"""What an experiment has cost and will cost, and what its budget allows: laws over attempts that were never made."""

from __future__ import annotations

import dataclasses
import json
import re
import time
from pathlib import Path
from typing import Any

import pytest

from pipeline import past
from pipeline.config import canonical, job_id
from pipeline.cost import (
    FORWARD,
    START_UP,
    estimate,
    keep_budget,
    overspent,
    spent,
    to_spend,
    untrained,
)
from pipeline.counting import judging_evals, training_evals, training_steps
from pipeline.experiment import Budget, Experiment, load_experiment
from pipeline.guess import CORES_OF_A_GPU, PER_CALL, PER_PIXEL
from pipeline.past import DeviceSeconds
from pipeline.paths import Paths
from pipeline.plan import describe, describe_cost
from pipeline.records import AttemptRecord, EvaluationRecord, append_record, write_records
from pipeline.stacks import batches_of

TEXT = """\
question: What does it cost?
job:
  data: {name: digits, num_validation: 437}
  model: {network: raw, family: neural_ode, width: 8}
  train: {optimiser: adam, lr: 0.1, epochs: 3, batch_size: 100, solver: euler@4}
sweep:
  seed: [0, 1, 2]
evaluate_with: {solvers: [euler@2, rk4@8]}
"""
STEPS = 30  # of each of these jobs


class Made:
    """An experiment, and a results folder with what the tests put there."""

    def __init__(self, folder: Path):
        self.folder, self.paths = folder, Paths(str(folder / "results"))

    def load(self, *changes: tuple[str, str], name: str = "x.yaml") -> Experiment:
        text = TEXT
        for old, new in changes:
            assert old in text
            text = text.replace(old, new)
        (self.folder / name).write_text(text)
        return load_experiment(self.folder / name)

    def attempt(self, job: str, seconds: float, to_step: int = STEPS, **fields: Any) -> None:
        values = {"device": "cpu", "from_step": 0, "outcome": "finished", "reason": ""} | fields
        append_record(
            self.paths.attempts(job),
            AttemptRecord(
                job=job, code="c", commit="c", host="h", pid=1, to_step=to_step, started="", seconds=seconds, **values
            ),
        )

    def trained(self, job: str) -> None:
        for path in map(Path, self.paths.trained(job)):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()

    def judged(self, experiment: Experiment, job: str, *seconds: float) -> None:
        judging = experiment.evaluate_with
        for path in map(Path, self.paths.judged(job, judging.id)):
            path.touch()
        rows = [
            EvaluationRecord(job, "c", "euler@2", "test", 9, 0, 1.0, 0.0, 1.0, 0.0, 0.0, 2.0, 2.0, 0.0, s, "ok")
            for s in seconds
        ]
        write_records(self.paths.evaluation(job, judging.id), rows)

    def config_of(self, experiment: Experiment) -> None:
        for job, config in experiment.jobs.items():
            Path(self.paths.config(job)).parent.mkdir(parents=True, exist_ok=True)
            Path(self.paths.config(job)).write_text(json.dumps(canonical(config)))


@pytest.fixture
def made(tmp_path) -> Made:
    return Made(tmp_path)


def train_seconds(experiment: Experiment, paths: Paths, device: str = "auto") -> DeviceSeconds:
    """Known to be spent on training, without the starts of processes."""
    train, _ = estimate(experiment, paths, device)
    assert train.guessed == DeviceSeconds()
    starts = (train.num_jobs - train.num_done) * START_UP
    kind = "gpu" if train.known.gpu else "core"
    return dataclasses.replace(train.known, **{kind: getattr(train.known, kind) - starts})


def test_what_is_spent_adds_up_over_all_attempts_of_all_jobs(made):
    experiment = made.load()
    assert spent(experiment, made.paths) == DeviceSeconds()
    one, two, _ = experiment.jobs
    made.attempt(one, 10.0, 10, outcome="interrupted")
    made.attempt(one, 20.0, from_step=10, threads=4)
    made.attempt(two, 6.0, 0, outcome="failed", share=4, threads=2)  # no step, and yet it has cost something
    made.attempt(two, 50.0, device="cuda", share=2, threads=8)
    made.attempt(two, 7.0, device="cuda:1", outcome="killed")
    made.attempt("of-another-experiment", 1000.0)
    assert spent(experiment, made.paths) == DeviceSeconds(gpu=25 + 7, core=10 + 80 + 3)


def test_a_row_that_cannot_be_read_is_no_sum_and_the_others_are_not_to_be_deleted(made):
    experiment = made.load()
    one = next(iter(experiment.jobs))
    made.attempt(one, 10.0)
    with open(made.paths.attempts(one), "a") as file:
        file.write('{"job": ')
    with pytest.raises(ValueError, match=r"attempts\.jsonl:2: a broken row.*delete that row alone"):
        spent(experiment, made.paths)
    train, _ = estimate(experiment, made.paths)
    assert not train.past  # an estimate can do without


def test_jobs_that_differ_in_the_seed_alone_cost_what_one_has_cost(made):
    experiment = made.load()
    one, *_ = experiment.jobs
    made.attempt(one, 70.0, 20, outcome="interrupted")
    made.attempt(one, 30.0, from_step=20, threads=2)
    made.trained(one)
    assert train_seconds(experiment, made.paths).core == pytest.approx(2 * (70 + 60))
    train, _ = estimate(experiment, made.paths)
    assert (train.num_jobs, train.num_done, train.past) == (3, 1, {one})


def test_of_several_the_median_tells_and_one_cut_short_tells_by_its_steps(made):
    experiment = made.load(("[0, 1, 2]", "[0, 1, 2, 3]"))
    one, two, three, _ = experiment.jobs
    made.attempt(one, 100.0)
    made.attempt(two, 20.0, STEPS // 3)  # ended as not finite: 60 for the whole
    made.attempt(three, 5000.0)
    for job in (one, two, three):
        made.trained(job)
    assert train_seconds(experiment, made.paths).core == pytest.approx(100)


@pytest.mark.parametrize(
    ("changes", "ratio"),
    [
        ([("euler@4", "rk4@5")], 5),  # 20 evaluations a solve and not 4
        ([("euler@4", "euler@2"), ("epochs: 3", "epochs: 12")], 2),
        ([("euler@4", "dopri5@1e-3"), ("lr: 0.1", "lr: 0.2")], 15),  # ten steps, of 6 stages each, are assumed
        (
            [("width: 8", "width: 9"), ("batch_size: 100", "batch_size: 50")],
            2,
        ),  # another model: its network is the same
    ],
)
def test_other_solvers_and_lengths_cost_in_proportion_to_their_evaluations(made, changes, ratio):
    first = made.load(name="first.yaml")
    made.config_of(first)
    for job in first.jobs:
        made.attempt(job, 100.0)
    other = made.load(*changes)
    assert not other.jobs.keys() & first.jobs.keys()
    config = next(iter(other.jobs.values()))
    evals = training_evals(next(iter(first.jobs.values())))
    assert training_evals(config) == ratio * evals
    assert train_seconds(other, made.paths).core == pytest.approx(3 * ratio * 100)


def test_the_nearest_likeness_decides(made):
    experiment = made.load(
        ("sweep:", "sweep:\n  train.lr: [0.1, 0.2]\n  model.width: [8, 16]"), ("[0, 1, 2]", "[0, 1]")
    )
    costs = {(0.1, 8): 10.0, (0.2, 8): 20.0, (0.1, 16): 40.0}
    done = {(c.train.lr, c.model.width): j for j, c in experiment.jobs.items() if c.seed == 0}
    for key, seconds in costs.items():
        made.attempt(done[key], seconds)
    for job in done.values():
        made.trained(job)
    # the last one takes that of its model, though three jobs have its network
    assert train_seconds(experiment, made.paths).core == pytest.approx(10 + 20 + 40 + 40)


def test_other_networks_and_other_data_tell_nothing(made):
    first = made.load(("{name: digits, num_validation: 437}", "{name: mnist}"), name="first.yaml")
    made.config_of(first)
    for job in first.jobs:
        made.attempt(job, 100.0)
    train, evaluate = estimate(made.load(), made.paths)
    assert not train.past
    assert train.known == evaluate.known == DeviceSeconds()
    assert train.guessed.core > 0


@pytest.mark.parametrize("content", [None, "", "{}", "[]", '{"data": 1}', "\xff"])
def test_a_folder_that_cannot_be_read_tells_nothing(made, content):
    experiment = made.load()
    folder = Path(made.paths.config("older")).parent
    folder.mkdir(parents=True)
    made.attempt("older", 9.0)
    if content is not None:
        (folder / "config.json").write_text(content, encoding="latin-1")
    (folder.parent / "a file").touch()
    assert not estimate(experiment, made.paths)[0].past


def test_what_is_done_is_not_counted(made):
    experiment = made.load()
    for job in experiment.jobs:
        made.attempt(job, 100.0)
        made.trained(job)
    train, evaluate = estimate(experiment, made.paths)
    assert (train.num_done, train.known, train.guessed) == (3, DeviceSeconds(), DeviceSeconds())
    assert (evaluate.num_done, evaluate.guessed.core > 0) == (0, True)
    assert untrained(experiment, made.paths) == []
    first = next(iter(experiment.jobs))
    made.judged(experiment, first, 1.0)
    assert estimate(experiment, made.paths)[1].num_done == 1
    Path(made.paths.weights(first)).unlink()
    assert untrained(experiment, made.paths) == [first]


def test_of_a_training_with_a_checkpoint_the_rest_is_counted_and_without_one_all(made):
    experiment = made.load(("[0, 1, 2]", "[0]"))
    (job,) = experiment.jobs
    made.attempt(job, 40.0, STEPS // 3, outcome="interrupted")
    assert train_seconds(experiment, made.paths).core == pytest.approx(120)
    Path(made.paths.resume(job)).touch()
    assert train_seconds(experiment, made.paths).core == pytest.approx(80)


def test_gpu_hours_are_asked_for_where_the_past_ran_on_one(made):
    experiment = made.load()
    one, two, _ = experiment.jobs
    made.attempt(one, 100.0)
    made.attempt(two, 10.0, device="cuda", threads=8)
    assert train_seconds(experiment, made.paths) == DeviceSeconds(gpu=pytest.approx(30))
    assert train_seconds(experiment, made.paths, "cuda:0") == DeviceSeconds(gpu=pytest.approx(30))
    assert train_seconds(experiment, made.paths, "cpu") == DeviceSeconds(core=pytest.approx(300))


def test_without_a_past_the_cost_is_a_guess_on_the_device_that_is_named(made):
    experiment = made.load()
    config = next(iter(experiment.jobs.values()))
    for device, kind, speed in (("auto", "core", 1), ("cpu", "core", 1), ("cuda", "gpu", CORES_OF_A_GPU)):
        each = PER_CALL[kind] + 100 * 64 * PER_PIXEL["raw"] / speed
        train, _ = estimate(experiment, made.paths, device)
        assert (train.known, train.past) == (DeviceSeconds(), frozenset())
        expected = 3 * ((training_evals(config) or 0) * each + START_UP)
        assert train.guessed == DeviceSeconds(**{kind: pytest.approx(expected)})


def test_a_judgement_costs_what_those_of_other_seeds_have_cost(made):
    experiment = made.load()
    one, two, _ = experiment.jobs
    for job, seconds in ((one, (1.0, 3.0)), (two, (5.0, 1.0))):
        made.attempt(job, 100.0, threads=2)
        made.trained(job)
        made.judged(experiment, job, *seconds)
    _, evaluate = estimate(experiment, made.paths)
    assert evaluate.known.core == pytest.approx(START_UP + 2 * 5)
    other = made.load(("rk4@8", "rk4@4"))  # judged otherwise: a guess
    assert estimate(other, made.paths)[1].known == DeviceSeconds()


def test_a_judgement_is_guessed_by_its_evaluations_on_a_machine_as_fast_as_in_training(made):
    experiment = made.load()
    one = next(iter(experiment.jobs))
    config = experiment.jobs[one]
    evals = judging_evals(config, experiment.evaluate_with)
    assert evals == 1 * (2 + 32 + 4)  # one batch of 360; the training solver is asked too
    guess = PER_CALL["core"] + 1000 * 64 * PER_PIXEL["raw"]
    _, evaluate = estimate(experiment, made.paths)
    assert evaluate.guessed.core == pytest.approx(3 * (evals * FORWARD * guess + START_UP))
    slow = 7 * (training_evals(config) or 0) * (PER_CALL["core"] + 100 * 64 * PER_PIXEL["raw"])
    made.attempt(one, slow)
    _, evaluate = estimate(experiment, made.paths)
    assert evaluate.guessed.core == pytest.approx(3 * (7 * evals * FORWARD * guess + START_UP))


def test_jobs_that_are_trained_side_by_side_start_once(made):
    points = ("{name: digits, num_validation: 437}", "{name: spheres, dimension: 2}")
    experiment = made.load(points, ("[0, 1, 2]", "[0, 1, 2, 3]"))
    one, two, *_ = experiment.jobs
    for job in (one, two):
        made.attempt(job, 60.0, 60, share=4)
    made.trained(one)
    config = experiment.jobs[one]
    assert training_steps(config) == 60
    train, _ = estimate(experiment, made.paths)
    assert train.known.core == pytest.approx(3 * 15 + START_UP)


def test_a_folder_s_images_cost_what_they_have_cost_and_else_nobody_knows(made):
    folder = "{name: imagefolder, folder: b, image_size: 8, num_classes: 3}"
    experiment = made.load(("{name: digits, num_validation: 437}", folder))
    train, evaluate = estimate(experiment, made.paths)
    assert (train.num_unknown, evaluate.num_unknown) == (3, 3)
    assert "and more" in describe_cost([train, evaluate], "results")[-1]
    one, two, _ = experiment.jobs
    made.attempt(two, 7.0, 5, outcome="interrupted")  # of how many?
    assert estimate(experiment, made.paths)[0].num_unknown == 3
    made.attempt(one, 100.0)
    made.trained(one)
    assert train_seconds(experiment, made.paths).core == pytest.approx(200)


def test_the_attempts_of_a_bounded_number_of_jobs_are_read(made, monkeypatch):
    experiment = made.load(("[0, 1, 2]", str(list(range(60)))))
    for job in experiment.jobs:
        made.attempt(job, 100.0)
    read: list[str] = []
    attempts = past.read_attempts
    monkeypatch.setattr(past, "read_attempts", lambda job, paths: [read.append(job), *attempts(job, paths)][1:])
    train, _ = estimate(experiment, made.paths)
    assert len(read) == len(train.past) == past.MOST_ALIKE
    read.clear()
    for job in experiment.jobs:
        made.trained(job)
        made.judged(experiment, job, 1.0)
    estimate(experiment, made.paths)
    assert read == []  # nothing to be estimated


HOUR = 3600.0


@pytest.fixture
def begun(made) -> tuple[Experiment, Made]:
    """One of three jobs is trained, in two hours; two are to come."""
    experiment = made.load(("sweep:", "budget: {core_hours: 8}\nsweep:"))
    one = next(iter(experiment.jobs))
    made.attempt(one, 2 * HOUR)
    made.trained(one)
    made.judged(experiment, one, 1.0)
    return experiment, made


def kept(begun: tuple[Experiment, Made], **budget: float) -> str | None:
    experiment, made = begun
    rules = estimate(experiment, made.paths)
    return keep_budget(Budget(**budget), spent(experiment, made.paths), rules, "there", "x.yaml")


def test_a_budget_that_suffices_is_silent(begun):
    assert kept(begun, core_hours=6.1, gpu_hours=0.1) is None
    assert kept(begun, gpu_hours=0.1) is None


def test_a_budget_that_past_jobs_say_is_too_small_is_refused_in_one_line(begun):
    with pytest.raises(ValueError) as refused:
        kept(begun, core_hours=5.9)
    assert str(refused.value) == (
        "x.yaml: budget: 2 core-hours are spent and 4 more are needed (by past jobs in there: 1), which exceeds 5.9: "
        "raise `budget`, or take jobs out of the experiment"
    )


def test_a_guess_warns_and_refuses_nothing(made):
    experiment = made.load(("epochs: 3", "epochs: 3000000"))
    warning = kept((experiment, made), core_hours=1)
    assert warning
    assert warning.startswith("x.yaml: budget: 0 core-hours are spent and ~")
    assert "may exceed 1;" in warning
    assert "\n" not in warning


def test_what_is_known_refuses_beside_what_is_guessed(made):
    """Two networks, of which one has a past: its own hours count, and no guess beside them."""
    both = "{network: raw}\n    - {network: stem, field: preactivation}"
    experiment = made.load(
        ("sweep:", f"sweep:\n  model:\n    - {both}"), ("epochs: 3", "epochs: 3000000"), ("[0, 1, 2]", "[0, 1]")
    )
    one = next(iter(experiment.jobs))
    made.attempt(one, HOUR, 30_000_000)
    made.trained(one)
    assert "(a guess)" in (kept((experiment, made), core_hours=2.1) or "")
    with pytest.raises(ValueError, match="1 core-hours are spent and 1 more are needed"):
        kept((experiment, made), core_hours=1.9)


@pytest.mark.parametrize("hours", [2.0, 1.9])
def test_a_budget_that_is_spent_stops_trainings_even_if_the_rest_is_a_guess(begun, hours):
    experiment, made = begun
    line = rf"x\.yaml: budget of {hours:.2g} core-hours is spent \(2\): raise `budget`, or take jobs out"
    with pytest.raises(ValueError, match=line):
        kept(begun, core_hours=hours)
    assert re.search(line, f"x.yaml: {overspent(Budget(core_hours=hours), spent(experiment, made.paths))}")


def test_a_gpu_s_hours_have_a_budget_of_their_own(begun):
    experiment, made = begun
    made.attempt(list(experiment.jobs)[1], 3 * HOUR, device="cuda", outcome="failed", to_step=0)
    with pytest.raises(ValueError, match=r"budget of 2\.5 GPU-hours is spent \(3\)"):
        kept(begun, core_hours=100, gpu_hours=2.5)
    assert kept(begun, core_hours=100, gpu_hours=3.5) is None


def test_what_is_trained_may_be_judged_whatever_it_has_cost(begun):
    experiment, made = begun
    for job in experiment.jobs:
        made.trained(job)
    assert kept(begun, core_hours=0.1) is None


@pytest.mark.slow
def test_ten_thousand_jobs_with_a_budget_are_planned_in_seconds(made):
    """Half of them with attempts. Seconds of the processor, not of a busy machine."""
    sweep = f"sweep:\n  train.lr: [1, 2, 3, 4, 5]\n  model.width: {list(range(1, 21))}"
    wide = ("[0, 1, 2]", str(list(range(100))))
    changes = [("sweep:", f"budget: {{core_hours: 100000}}\n{sweep}"), wide, ("epochs: 3", "epochs: 300")]
    for number, job in enumerate(made.load(*changes).jobs):
        if number % 2:
            made.attempt(job, 60.0, 3000)
            made.trained(job)
    begin = time.process_time()
    experiment = made.load(*changes)
    assert len(experiment.jobs) == 10_000
    describe(experiment)
    rules = estimate(experiment, made.paths)
    used = spent(experiment, made.paths)
    assert keep_budget(experiment.budget or Budget(1), used, rules, "", "") is None
    assert time.process_time() - begin < 20
    assert used.hours("core") == pytest.approx(5000 / 60)
    assert rules[0].num_done == 5000
    left = set(untrained(experiment, made.paths))
    batches = [left & set(batch.jobs) for batch in batches_of(experiment.jobs, made.paths, experiment.evaluate_with.id)]
    starts = sum(map(bool, batches)) + len(left.difference(*batches))  # of processes
    assert starts < 1000
    assert to_spend(rules[:1], "core") == (pytest.approx((5000 * 60 + starts * START_UP) / HOUR), 0)


def test_a_job_keeps_its_name_with_a_budget(made):
    with_budget = made.load(("sweep:", "budget: {gpu_hours: 1}\nsweep:"))
    without = made.load()
    assert list(with_budget.jobs) == list(without.jobs) == [job_id(config) for config in without.jobs.values()]
    assert with_budget.evaluate_with.id == without.evaluate_with.id
