"""What is tried next: guided by former trials, and by nothing else."""

from __future__ import annotations

import math

import pytest
from test_space import DEGREE, TRIALS, changed, search_of

from pipeline.suggest import Suggestions, Told

GUIDED = changed((TRIALS, "num_trials: 30\n  algorithm: tpe"))
TWO = changed((TRIALS, "num_trials: 30\n  algorithm: tpe\n  goals: [validation_accuracy, num_evals]"))


NUMBER, DEGREES = "model.basis.num_coefficients", "model.basis.degree"


def score(values):
    """Best, 0, at 4 coefficients, degree 2, and a learning rate of 1e-2."""
    rate = math.log10(values["train.lr"]) + 2
    return -(rate**2) - (values[DEGREES] - 2) ** 2 - (values[NUMBER] - 4) ** 2


def run(search, number, result, told=()):
    """So many trials, one after the other."""
    suggestions, told = Suggestions(search), list(told)
    for k in range(len(told), number):
        values, _ = suggestions.suggest(k, told)
        told.append(Told(values, result(values)))
    return told


def test_results_guide_the_choice(tmp_path):
    """They are better on average than what random search draws, and the best of them is nearer."""
    told = run(search_of(tmp_path, GUIDED), 30, lambda v: (score(v),))
    found = [t.results[0] for t in told]
    drawn = [score(search_of(tmp_path).drawn(k)[0]) for k in range(30)]
    assert sum(found[7:]) > sum(drawn[7:])
    assert max(found) > -0.01 > max(drawn)


def test_two_goals_find_their_whole_front(tmp_path):
    """Accuracy and cost both grow with the number of coefficients, and the degree ought to be 0: the front has each
    number, at that degree. At random the mean degree is 1: 1, 2 and 4 coefficients allow 1, 2 and 4 degrees."""
    told = run(search_of(tmp_path, TWO), 30, lambda v: (v[NUMBER] - 3 * v[DEGREES], v[NUMBER]))
    last = [t.values for t in told[7:]]
    assert sum(values[DEGREES] for values in last) / len(last) < 0.8
    assert {(1, 0), (2, 0), (4, 0)} <= {(values[NUMBER], values[DEGREES]) for values in last}


@pytest.mark.parametrize("text", [GUIDED, TWO, changed()])
def test_a_choice_is_a_function_of_what_is_known(tmp_path, text):
    """An interrupted search goes on as it would have gone."""

    def result(values):
        return tuple(score(values) for _ in search_of(tmp_path, text).settings.goals)

    whole = run(search_of(tmp_path, text), 14, result)
    assert run(search_of(tmp_path, text), 14, result, told=whole[:11]) == whole


def test_conditions_hold_for_what_is_guided_too(tmp_path):
    """The best is where the condition forbids to be."""
    told = run(search_of(tmp_path, GUIDED), 30, lambda v: (v[DEGREES] - v[NUMBER],))
    assert all(t.values[DEGREES] < t.values[NUMBER] for t in told)
    assert len({str(t.values) for t in told}) > 10


def test_trials_that_run_failed_or_were_stopped_are_allowed_for(tmp_path):
    search = search_of(tmp_path, GUIDED)
    told = run(search, 12, lambda v: (score(v),))
    last = told[-1].values
    with_others = [*told, Told(last, None, running=True), Told(last, None), Told(last, (-9.0,), whole=False)]
    values, config = Suggestions(search).suggest(15, with_others)
    assert search.job_of(values) == config


def test_a_grid_is_gone_through_in_order(tmp_path):
    text = changed(
        ("train.lr: {log_uniform: [1e-3, 1e-1]}", ""), (TRIALS, "algorithm: grid"), (DEGREE, "{integer: [0, 1]}")
    )
    search = search_of(tmp_path, text)
    assert [Suggestions(search).suggest(k, []) for k in range(search.num_trials)] == search.grid()
