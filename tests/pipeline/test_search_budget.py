"""What a budget does to a search: its own, and that of its experiment. No Ray is started."""

from __future__ import annotations

import logging
from argparse import Namespace

import pytest
from searched import SEARCH, Searched
from test_ledger import ledger_of
from test_space import SPACE, TRIALS, changed

from pipeline import crew
from pipeline import search as search_module
from pipeline.cost import spent
from pipeline.records import AttemptRecord, append_record
from pipeline.search import End, fleet_trials
from pipeline.stage import NOT_FINISHED
from pipeline.training import RunSettings
from pipeline.tried import trial_jobs
from pipeline.tuning import Place
from pipeline.watching import Live

SOLVERS = [
    (SPACE, "    train.solver: {choice: [euler@2, euler@4, rk4@4, rk4@16]}\n    seed: {integer: [0, 99]}\n"),
    ("  conditions: [", "  conditions: [] # ["),
]


class Given:
    """In place of a fleet: what it is given."""

    units: list

    def __init__(self, units, *args):
        Given.units = [list(unit) for unit in units]
        self.ended = []

    def outcomes(self, should_stop):
        return []

    def dismiss(self):
        pass


@pytest.mark.parametrize("limited", [True, False])
def test_what_a_budget_leaves_is_not_the_dearest_of_the_trials(tmp_path, monkeypatch, limited):
    """Trained in the order in which they were drawn, those that have ended by then are a sample like any other. Where
    all are trained, the longest come first: begun last, they would end alone."""
    monkeypatch.setattr(crew, "_Fleet", Given)
    budget = "\n  budget: {minutes: 5}" if limited else ""
    ledger = ledger_of(tmp_path, changed(*SOLVERS, (TRIALS, f"num_trials: 24{budget}")))
    fleet_trials(ledger, Place(RunSettings(), 1, 0.0, 2), lambda: "", Live(), lambda: None)
    number_of = {trial.job: trial.number for trial in ledger.trials.values()}
    solvers = {job: ledger.trials[number].values["train.solver"] for job, number in number_of.items()}
    assert sorted(number_of[job] for unit in Given.units for job in unit) == [*range(24)]
    first = [min(number_of[job] for job in unit) for unit in Given.units]
    assert (first == sorted(first)) is limited
    assert (solvers[Given.units[0][0]] == "rk4@16") is not limited


class Nobody:
    """Who asks for nothing."""

    received = ""

    def __init__(self, *args):
        pass

    def __call__(self):
        return ""


@pytest.mark.parametrize(("hours", "said"), [("1e-4", "budget of 0.0001 core-hours is spent"), ("100", "all is well")])
def test_a_search_heeds_the_budget_of_its_experiment(tmp_path, monkeypatch, caplog, hours, said):
    """It is not done then: nobody could train its winners. A greater budget goes on with it."""
    made = Searched(tmp_path, SEARCH + f"budget: {{core_hours: {hours}}}\n")
    made.finish(0, made.begin(0))
    monkeypatch.setattr(search_module, "Stop", Nobody)
    monkeypatch.setattr(search_module, "search", lambda e, ledger, run, stop, cpus: End(stop() or "all is well", False))
    facts = {"experiment": made.file, "results": made.paths.root, "data": "data", "device": "cpu", "cpus": 1}
    with caplog.at_level(logging.INFO):
        code = search_module.main(
            Namespace(**facts, checkpoint_seconds=60.0, stop_with_parent=None, retry_failed=False)
        )
    assert code == NOT_FINISHED
    assert caplog.messages[-1].startswith(said)


def test_what_winners_have_cost_is_spent_whoever_asks(tmp_path):
    """Those with seeds of their own are neither jobs of the sweep nor trials."""
    made = Searched(tmp_path)
    made.try_all()
    before = spent(made.experiment, made.paths)
    whole = made.end()
    trials = set(trial_jobs(made.search, made.paths))
    won = [job for job in whole.jobs if job not in trials]
    assert won
    for job in won:
        attempt = AttemptRecord(job, "c", "c", "h", 1, "cpu", 0, 1, "2026-01-02T04:00:00+00:00", 3600.0, "finished", "")
        append_record(made.paths.attempts(job), attempt)
    for experiment in (made.experiment, whole):
        assert spent(experiment, made.paths).core - before.core == pytest.approx(3600 * len(won))
