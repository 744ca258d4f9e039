"""The trials of a search -> tables, in long form.

    trials.csv             one row per trial: what was chosen, what it came to, what it cost
    trial_training.csv     one row per (trial, epoch)

A field that was varied is a column, named by its dotted path; values of a list stand there in few words.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import pandas as pd

from pipeline.experiment import Experiment
from pipeline.paths import Paths
from pipeline.records import TrainingRecord
from pipeline.search_config import GOALS, Search
from pipeline.tried import Found, Tried, on_front, option_text, read_found, read_tried

BEFORE = ("trial", "job", "outcome", "epochs", "reason", "begun", "ended", "seconds", "evals", "changes")
BEHIND = (*GOALS, "winner", "became", "front")


def read_search(experiment: Experiment, paths: Paths) -> tuple[list[Tried], Found]:
    """The trials of a search that is done. Raises ValueError, in one line, if it is not, or for a broken file."""
    assert experiment.search is not None
    found, file = read_found(experiment, paths), paths.found(experiment.name, experiment.search.result_id)
    if found is None:
        raise ValueError(
            f"{file}: no such file: the search of {experiment.name} is not done. Run the experiment first (`snakemake` "
            "goes on with it; `python -m pipeline.status` says where it stands)"
        )
    tried = read_tried(experiment.search, paths, found)
    if lacking := set(found.winners) - {each.number for each in tried}:
        raise ValueError(
            f"{paths.trials(experiment.search.id)}: lacks the trial {min(lacking)}, which {file} says has won; delete "
            "that file to have it made again"
        )
    return tried, found


def trial_table(search: Search, tried: list[Tried], found: Found) -> pd.DataFrame:
    """A row per trial. seconds: of training; evals: field evaluations of its training; became: the jobs of a winner;
    front: see `on_front`."""
    best = on_front(search, tried)
    rows = []
    for each in tried:
        trial = each.trial
        row: dict[str, Any] = {"trial": trial.number, "job": trial.job, "outcome": trial.outcome, "epochs": each.epoch}
        row |= {"reason": trial.reason, "begun": trial.begun, "ended": trial.ended or None}
        row |= {"seconds": round(each.seconds, 3), "evals": round(each.evals), "changes": len(trial.changes)}
        for path, domain in search.space.domains.items():
            value = trial.values.get(path)
            row[column_of(path)] = option_text(domain, value) if domain.is_list else value
        row |= {goal: each.value(goal) for goal in GOALS}
        became = " ".join(found.winners.get(trial.number, ()))
        row |= {"winner": bool(became), "became": became or None, "front": trial.number in best}
        rows.append(row)
    return pd.DataFrame(rows, columns=[*BEFORE, *map(column_of, search.space.domains), *BEHIND])


def trial_curves(tried: list[Tried]) -> pd.DataFrame:
    """A row per (trial, epoch)."""
    names = [f.name for f in dataclasses.fields(TrainingRecord)]
    rows = [{"trial": each.number} | vars(row) for each in tried for row in each.rows]
    return pd.DataFrame(rows, columns=["trial", *names])


def column_of(path: str) -> str:
    """The column of a field that was varied; one of choices of the whole job is not that of its name."""
    return "job (chosen)" if path == "job" else path
