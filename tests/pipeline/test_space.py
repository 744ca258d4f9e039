"""What a search may vary, and how mistakes in it are answered."""

from __future__ import annotations

import math
import random

import pytest

from pipeline.experiment import load_experiment
from pipeline.space import Condition, Domain, laid_over

FILE = """
question: Which is best?
job:
  data: {name: digits, num_validation: 144}
  model: {network: raw, family: gode, width: 8, basis: {degree: 1, num_coefficients: 4}}
  train: {solver: euler@4, optimiser: adam, lr: 5e-3, epochs: 4, batch_size: 64}
search:
  space:
    model.basis.num_coefficients: {choice: [1, 2, 4]}
    model.basis.degree: {integer: [0, 3]}
    train.lr: {log_uniform: [1e-3, 1e-1]}
  conditions: [model.basis.degree < model.basis.num_coefficients]
  num_trials: 5
evaluate_with: {solvers: [euler@4]}
"""
SPACE = FILE[FILE.index("    model.basis.num_coefficients: {c") : FILE.index("  conditions")]


def search_of(folder, text=FILE):
    (folder / "x.yaml").write_text(text)
    return load_experiment(folder / "x.yaml").search


def changed(*pairs):
    text = FILE
    for old, new in pairs:
        assert old in text, old
        text = text.replace(old, new)
    return text


TRIALS, DEGREE, RATE = "num_trials: 5", "{integer: [0, 3]}", "{log_uniform: [1e-3, 1e-1]}"


@pytest.mark.parametrize(
    ("pairs", "answer"),
    [
        ([(SPACE, "    {}\n")], "search: space: must map fields of a job to what they may be, got {}"),
        ([(DEGREE, "3")], "search: space: model.basis.degree: write one of `grid: ...`, `choice: ...`, "),
        ([(DEGREE, "{integer: 3}")], "space: model.basis.degree: integer must be a list, got 3"),
        ([(DEGREE, "{intger: [0, 3]}")], "space: model.basis.degree: unknown key `intger`. Did you mean `integer`?"),
        ([(DEGREE, "{integer: [0, 1, 2]}")], "integer must be two numbers, got [0, 1, 2]"),
        ([(DEGREE, "{integer: [0, 1.5]}")], "integer: must be two whole numbers, got 1.5"),
        ([(DEGREE, "{integer: [3, 0]}")], "integer: the first number must be below the second, got 3 and 0"),
        ([(RATE, "{uniform: [a, 1]}")], "train.lr: uniform: must be two numbers, got 'a'"),
        ([(RATE, "{uniform: [true, 1]}")], "train.lr: uniform: must be two numbers, got True"),
        ([(RATE, "{log_uniform: [0, 1]}")], "train.lr: log_uniform: both numbers must be positive, got 0.0"),
        ([("[1, 2, 4]", "[]")], "num_coefficients: choice must be a list of values, got []"),
        ([("[1, 2, 4]", "[1, 2, 2]")], "num_coefficients: choice: 2 stands twice"),
        ([("choice", "grid")], "search: space: model.basis.num_coefficients: `grid` goes with the algorithm grid"),
        ([("train.lr: {", "train.rl: {")], "train.rl = "),
        ([("  conditions: [model.basis.degree <", "  conditions: [model.basis.degree")], "conditions: write `field < "),
        ([("  conditions: [", "  conditions: x #")], "conditions: must be a list, got 'x'"),
        ([("[model.basis.degree <", "[model.basis.degre <")], "Did you mean `model.basis.degree`?"),
        ([("[model.basis.degree <", "[9 <")], "search: conditions: not one of 1000 combinations fulfils them"),
        ([("[model.basis.degree <", "[train.solver <")], "'euler@4' and "),
        ([("  conditions: [", "  conditions: [] # [")], "degree < number of coefficients is needed"),
        ([(TRIALS, "num_trails: 5")], "search: unknown key `num_trails`. Did you mean `num_trials`?"),
        ([(TRIALS, "")], "search: num_trials is missing"),
        ([(RATE, "{choice: [0.1]}"), (TRIALS, "num_trials: 8")], "num_trials: 8 are more than the 7 jobs of the space"),
        ([(TRIALS, "num_trials: 0")], "num_trials must be at least 1, got 0"),
        ([(TRIALS, TRIALS + "\n  at_once: 0")], "at_once must be at least 1, got 0"),
        ([(TRIALS, TRIALS + "\n  algorithm: grid")], "a grid is of lists and whole numbers"),
        ([(TRIALS, TRIALS + "\n  goals: [accuracy]")], "search: goals[0]: `accuracy` is not known."),
        ([(TRIALS, TRIALS + "\n  goals: []")], "goals: give one or two, got []"),
        ([(TRIALS, TRIALS + "\n  goals: [validation_loss, validation_loss]")], "validation_loss stands twice"),
        ([(TRIALS, TRIALS + "\n  goals: [num_evals]")], "goals: num_evals can only stand second"),
        ([(", num_validation: 144", "")], "goals: validation_accuracy needs `num_validation` in the data of each job"),
        (
            [(TRIALS, TRIALS + "\n  scheduler: ahsa")],
            "scheduler: name: `ahsa` is not known. Did you mean `asha`?",
        ),
        ([(TRIALS, TRIALS + "\n  scheduler: {name: asha, reduction: 1}")], "reduction must be at least 2, got 1"),
        ([(TRIALS, TRIALS + "\n  scheduler: {name: asha, grace_epochs: 0}")], "grace_epochs must be at least 1"),
        ([(TRIALS, TRIALS + "\n  scheduler: {name: pbt, interval: 0}")], "interval must be at least 1, got 0"),
        ([(TRIALS, TRIALS + "\n  scheduler: {name: pbt, quantile: 0.6}")], "quantile must lie in (0, 0.5], got 0.6"),
        ([(TRIALS, TRIALS + "\n  scheduler: {name: pbt, factor: 1}")], "factor must be above 1, got 1.0"),
        ([(TRIALS, TRIALS + "\n  scheduler: pbt")], "pbt varies `train.lr` and `train.weight_decay` alone"),
        (
            [(SPACE, "    train: {choice: [{lr: 1e-2}, {lr: 1e-3}]}\n"), ("  conditions: [", "  conditions: [] # [")]
            + [(TRIALS, "num_trials: 2\n  scheduler: pbt")],
            "pbt varies `train.lr` and `train.weight_decay` alone",
        ),
        ([(TRIALS, TRIALS + "\n  scheduler: pbt\n  algorithm: tpe")], "algorithm: pbt goes with random"),
        ([(TRIALS, TRIALS + "\n  scheduler: hyperband\n  synchronous: true")], "synchronous: hyperband gives the same"),
        ([(TRIALS, TRIALS + "\n  scheduler: hyperband\n  algorithm: tpe")], "hyperband compares trials that are all"),
        ([(TRIALS, TRIALS + "\n  winners: {count: 0}")], "winners: count must be at least 1, got 0"),
        ([(TRIALS, TRIALS + "\n  winners: {seeds: [1, 1]}")], "seeds: one stands twice in [1, 1]"),
        ([(TRIALS, TRIALS + "\n  budget: {}")], "budget: give `minutes`, `gpu_hours` or `core_hours`"),
        ([(TRIALS, TRIALS + "\n  budget: {minutes: 0}")], "budget: minutes must be positive, got 0.0"),
        ([(TRIALS, TRIALS + "\n  per_trial: {cpus: 0}")], "per_trial: cpus must be at least 1, got 0"),
        ([(TRIALS, TRIALS + "\n  per_trial: {gpus: 1.5}")], "gpus must lie in [0, 1], or be a whole number, got 1.5"),
    ],
)
def test_mistakes_are_answered_in_one_line_that_names_the_place(tmp_path, pairs, answer):
    with pytest.raises(ValueError) as error:
        search_of(tmp_path, changed(*pairs))
    assert answer in str(error.value)
    assert "\n" not in str(error.value)
    assert str(error.value).startswith(str(tmp_path / "x.yaml"))


def test_random_trials_are_a_function_of_their_number_and_keep_the_conditions(tmp_path):
    one, other = search_of(tmp_path), search_of(tmp_path)
    drawn = [one.drawn(number) for number in range(200)]
    assert [other.drawn(number) for number in reversed(range(200))] == drawn[::-1]
    assert all(v["model.basis.degree"] < v["model.basis.num_coefficients"] for v, _ in drawn)
    assert {v["model.basis.num_coefficients"] for v, _ in drawn} == {1, 2, 4}
    assert all(config.train.lr == values["train.lr"] for values, config in drawn)
    assert search_of(tmp_path, changed((TRIALS, TRIALS + "\n  seed: 1"))).drawn(0) != drawn[0]


def test_no_job_is_tried_twice(tmp_path):
    """7 jobs, 7 trials: each once, whatever is drawn; and then there are no more."""
    search = search_of(tmp_path, changed((RATE, "{choice: [0.1]}"), (TRIALS, "num_trials: 7")))
    first = search.first(7)
    assert len({repr(values) for values, _ in first}) == 7
    assert search.first(3) == first[:3]
    with pytest.raises(ValueError, match="the space holds nothing more that was not tried, after 7 trials"):
        search.first(8)


def test_a_log_uniform_number_is_as_often_below_as_above_the_geometric_mean():
    """1,000 draws: the share's standard error is 0.016. None leaves the range, whose ends are rounded to."""
    domain, generator = Domain("log_uniform", (1e-3, 1e-1)), random.Random(0)
    drawn = [domain.draw(generator) for _ in range(1000)]
    assert 0.45 < sum(x < 1e-2 for x in drawn) / 1000 < 0.55
    assert all(1e-3 <= x <= 1e-1 for x in drawn)
    assert Domain("uniform", (0.12344, 0.2)).rounded(0.123441) == 0.12344


def test_a_wide_range_of_whole_numbers_is_not_written_out():
    domain = Domain("integer", (0, 10**15))
    assert len(domain.all()) == 10**15 + 1
    assert 0 <= domain.draw(random.Random(0)) <= 10**15


def test_a_grid_is_every_combination_that_the_conditions_leave(tmp_path):
    whole = "train.solver: {choice: [euler@2, rk4@2]}"
    text = changed((f"train.lr: {RATE}", whole), (TRIALS, "algorithm: grid"), ("choice: [1, 2, 4]", "grid: [1, 2, 4]"))
    search = search_of(tmp_path, text)
    assert search.num_trials == len(search.grid()) == 2 * (1 + 2 + 4)
    assert len({repr(config) for _, config in search.grid()}) == 14
    assert search_of(tmp_path, text.replace("algorithm: grid", "algorithm: grid\n  num_trials: 5")).num_trials == 5


def test_what_asks_for_more_is_the_same_search_and_another_result(tmp_path):
    """So that it goes on; and what changes which trials there are is another search."""
    base = search_of(tmp_path)
    for new in ("num_trials: 9", TRIALS + "\n  winners: {count: 2}", TRIALS + "\n  budget: {minutes: 9}"):
        more = search_of(tmp_path, changed((TRIALS, new)))
        assert more.id == base.id
        assert more.result_id != base.result_id
    for pair in ((DEGREE, "{integer: [0, 2]}"), ("width: 8", "width: 16"), (TRIALS, TRIALS + "\n  algorithm: tpe")):
        assert search_of(tmp_path, changed(pair)).id != base.id
    for same in (TRIALS + "\n  at_once: 2", TRIALS + "\n  per_trial: {cpus: 2}"):
        assert search_of(tmp_path, changed((TRIALS, same))).result_id == base.result_id


@pytest.mark.parametrize(
    ("text", "holds"),
    [("a.b < 2", True), ("a.b >= 2", False), ("a.b == 1", True), ("a.b != 1.0", False), ("c == x", True)]
    + [("1e0 <= a.b", True), ("a.q < 0", True), ("a.b.c > 5", True)]  # without the field: says nothing
    + [("a.d != 1e-4", False), ("a.d < a.b", True)],
)
def test_a_condition(text, holds):
    """To YAML, 1e-4 is text."""
    assert Condition.parse(text).holds({"a": {"b": 1, "d": "1e-4"}, "c": "x"}) is holds


def test_a_condition_on_a_number_of_a_whole_section(tmp_path):
    """1e-2 is text in the base job, and within an option that is a mapping."""
    whole = "    train: {choice: [{lr: 1e-2}, {lr: 2e-2, weight_decay: 1e-4}]}\n"
    old, new = "[model.basis.degree < model.basis.num_coefficients]", "[train.lr > 1e-2, train.weight_decay != 1e-3]"
    text = changed((SPACE, whole), (old, new), (TRIALS, "num_trials: 1"))
    search = search_of(tmp_path, text)
    assert [config.train.lr for _, config in search.grid()] == [0.02]
    other = search_of(tmp_path, text.replace("!= 1e-3", "!= 1e-4").replace("> 1e-2", "> 1e-3"))
    assert [config.train.lr for _, config in other.grid()] == [0.01]


def test_values_are_laid_over_a_job_without_touching_it():
    job = {"model": {"family": "gode", "width": 8}, "seed": 0}
    assert laid_over(job, {"model.width": 9, "job": {"seed": 1}}) == {
        "model": {"family": "gode", "width": 9},
        "seed": 1,
    }
    assert job == {"model": {"family": "gode", "width": 8}, "seed": 0}
    assert math.isclose(laid_over({}, {"a.b": 1.5})["a"]["b"], 1.5)
