"""What the collected tables of an experiment say: means over seeds, losses under another solver, failures.

A *cell* is one (model, training solver, evaluation solver); its jobs differ in nothing but the seed. Accuracies lie in
[0, 1]; a loss of accuracy is that under the training solver minus that under the finest solver, per job.

A job whose solver changed in training ends with one of its own, euler@37, say, and another seed with another. So that
these are one cell, their solver is called `own` in the table.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd

from pipeline.counting import evals_per_solve
from pipeline.experiment import Experiment
from pipeline.ladders import Ladder, find_ladders
from pipeline.paths import Paths
from pipeline.search_table import column_of

Frame = Any  # a pandas table or column: pandas itself annotates each as table, column or number at once

GROUP = ["train.solver", "label"]  # what a mean over seeds is taken within
OWN = "own"  # stands for the solver that a training with `train.adapt` ended with
RULE = "train.adapt.rule"
TEXT: Any = {"code": str, "commit": str}  # hexadecimal, and a hash of digits alone is no number


@dataclass(frozen=True)
class Results:
    """The tables that `collect` wrote, of the jobs of one experiment. Labels tell apart all that is no seed."""

    experiment: Experiment
    table: Frame  # one row per (job, solver); trained_with: `own`, or train.solver; solved_with: no `own`, but its name
    curves: Frame  # one row per (job, epoch)
    weights: Frame  # one row per (job, weight, entry, depth)
    validity: Frame  # one row per job that has a path through time
    decisions: Frame  # one row per (job, check of its solver)
    trajectories: Frame  # one row per (job, solver, path, depth); target: the class of the point
    trials: Frame = None  # of an experiment with a search: one row per trial, and
    trial_curves: Frame = None  # one row per (trial, epoch)

    @cached_property
    def labels(self) -> list[str]:
        return list(self.table["label"].unique())

    @cached_property
    def training_solvers(self) -> list[str]:
        return list(self.table["train.solver"].unique())

    @cached_property
    def adapted(self) -> set[str]:
        """The training solvers that all their jobs changed in training."""
        fixed = self.table.loc[self.table["trained_with"] != OWN, "train.solver"]
        return set(self.training_solvers) - set(fixed)

    def trained(self, solver: str) -> str:
        """A training solver in words: one that was changed in training is only what the training began with, or the
        most that it could come to."""
        return f"{solver}, adapted" if solver in self.adapted else solver

    @cached_property
    def solvers(self) -> list[str]:
        """Those judged with, in the order of the experiment file; behind them `own`, and the discrete nets' layers."""
        asked = list(self.experiment.evaluate_with.solvers)
        return asked + sorted(set(self.table["solver"]) - set(asked), key=lambda solver: (solver != OWN, solver))

    @cached_property
    def finest(self) -> str:
        """The one that stands for the limit h -> 0. Empty if there are discrete nets alone."""
        return self.experiment.evaluate_with.finest

    @cached_property
    def num_samples(self) -> tuple[int, int]:
        """The least and the most that a job was judged on: data sets may vary."""
        return int(self.table["num_samples"].min()), int(self.table["num_samples"].max())

    @cached_property
    def varied(self) -> list[str]:
        """The parameters that are not the same in all jobs, the label's and the training solver apart."""
        known = ["train.solver", "model.family", *(c for c in self.table if c.startswith("model.basis."))]
        varies = [c for c in _parameters(self.table) if c not in known and self.table[c].nunique(dropna=False) > 1]
        rules = self.table.groupby(RULE)
        return [c for c in varies if not c.startswith("train.adapt.") or c == RULE or rules[c].nunique().gt(1).any()]

    @cached_property
    def shared(self) -> dict[str, str]:
        """The parameters that all jobs share, as text; those without a value left out."""
        first = self.table.iloc[0]
        same = [c for c in _parameters(self.table) if self.table[c].nunique(dropna=False) == 1]
        return {c: str(first[c]) for c in same if not pd.isna(first[c])}

    def ladders(
        self, margin: float | None = None, among: frozenset[str] | None = None
    ) -> dict[tuple[str, str], Ladder]:
        """See find_ladders; of the jobs `among` if that is given. A job whose solver changed in training stands on
        none."""
        if (margin, among) not in self._ladders:
            adapted = self.table.loc[self.table["trained_with"] == OWN, "job"]
            chosen = ~self.validity["job"].isin(adapted)
            if among is not None:
                chosen &= self.validity["job"].isin(among)
            rows = self.validity[chosen]
            configs = [self.experiment.jobs[job] for job in rows["job"]]
            evals = [evals_per_solve(config, config.phase(config.train.epochs)) for config in configs]
            self._ladders[margin, among] = find_ladders(rows.assign(num_evals=evals), margin)
        return self._ladders[margin, among]

    @cached_property
    def _ladders(self) -> dict[Any, dict[tuple[str, str], Ladder]]:
        """Those found so far: figures and sentences ask for the same ones again and again."""
        return {}

    @cached_property
    def cells(self) -> Frame:
        """One row per cell: mean, std, min, max of the accuracy over seeds; num_jobs, num_failed (jobs with a failed
        sample or a training that stopped) and the mean num_evals."""
        table = self.table.assign(failed=(self.table["status"] != "ok") | (self.table["train_status"] != "ok"))
        grouped = table.groupby([*GROUP, "solver"], sort=False)
        cells = grouped["accuracy"].agg(["mean", "std", "min", "max"])
        cells["trained_with"] = grouped["trained_with"].first()
        cells["num_jobs"] = grouped.size()
        cells["num_failed"] = grouped["failed"].sum()
        cells["num_evals"] = grouped["num_evals"].mean()
        return cells.reset_index()

    @cached_property
    def jobs(self) -> Frame:
        """One row per job: its parameters, and its rows under the training solver (columns ending in `_own`) and under
        the finest (ending in `_finest`). Of a training solver that was not among those judged with there are the
        accuracy, which each verdict holds, and the field evaluations, as in the last epoch; its other columns are
        empty."""
        measures = [
            "accuracy",
            "loss",
            "agreement",
            "logit_gap_mean",
            "logit_gap_max",
            "num_evals",
            "status",
            "solved_with",
        ]
        table = self.table.set_index("job")
        own = table.loc[table["solver"] == table["trained_with"], measures]
        finest = table.loc[table["solver"] == self.finest, measures]
        jobs = self.table.drop_duplicates("job").set_index("job").drop(columns=measures)
        jobs = jobs.join(own.add_suffix("_own")).join(finest.add_suffix("_finest"))
        judged = self.validity.drop_duplicates("job").set_index("job")["accuracy"]
        trained = self.curves.drop_duplicates("job", keep="last").set_index("job")["num_evals"]
        jobs["accuracy_own"] = jobs["accuracy_own"].fillna(judged)
        jobs["num_evals_own"] = jobs["num_evals_own"].fillna(trained)
        jobs["accuracy_lost"] = jobs["accuracy_own"] - jobs["accuracy_finest"]
        return jobs.reset_index()

    @cached_property
    def stopped(self) -> Frame:
        """The jobs whose training did not end `ok`."""
        return self.jobs[self.jobs["train_status"] != "ok"]

    @cached_property
    def failed(self) -> Frame:
        """The rows of the table whose solves did not all end `ok`."""
        return self.evaluations[(self.evaluations["status"] != "ok") | (self.evaluations["num_failed"] > 0)]

    @cached_property
    def evaluations(self) -> Frame:
        """The rows of the table, each once: one that a training ended with may have been asked for too."""
        return self.table.drop_duplicates(["job", "solved_with"])


def read_results(experiment: Experiment, paths: Paths) -> Results:
    """Raises ValueError if the tables are not there, or not of this experiment file as it stands now."""
    name = experiment.name
    judging = experiment.evaluate_with
    curves = _read_csv(paths.curves(name))
    table = _with_own(_read_csv(paths.table(name)), curves, judging.solvers)
    solvers = {solver for config in experiment.jobs.values() for solver in judging.solvers_of(config)}
    if set(table["job"]) != set(experiment.jobs) or set(table["solver"]) - {OWN} != solvers:
        raise ValueError(
            f"{paths.table(name)}: holds other jobs or solvers than the experiment file asks for; run "
            "`python -m pipeline.collect` with this file first"
        )
    table["label"] = _full_labels(table, by_method=experiment.search is not None)
    labels = table.drop_duplicates("job").set_index("job")["label"]
    files = (paths.weight_paths, paths.verdicts, paths.decision_table, paths.trajectory_table)
    more = [_read_csv(file(name)) for file in files]
    for rows in (curves, *more):
        rows["label"] = rows["job"].map(labels)
    return Results(experiment, table, curves, *more, *_read_trials(experiment, paths))


def _read_trials(experiment: Experiment, paths: Paths) -> list[Frame]:
    """None without a search."""
    if experiment.search is None:
        return []
    domains = experiment.search.space.domains
    lists = {column_of(path): str for path, domain in domains.items() if domain.is_list}
    trials = _read_csv(paths.trial_table(experiment.name), lists)
    if not set(map(column_of, domains)) <= set(trials):
        raise ValueError(
            f"{paths.trial_table(experiment.name)}: of another search than the experiment file asks for; run "
            "`python -m pipeline.collect` with this file first"
        )
    return [trials, _read_csv(paths.trial_curves(experiment.name))]


def _with_own(table: Frame, curves: Frame, asked: tuple[str, ...]) -> Frame:
    """The table with `trained_with` and `solved_with`. The row of a job under the solver that its training came to is
    called `own`; it stands there twice if that solver was asked for too."""
    ends = curves.drop_duplicates("job", keep="last").set_index("job")["solver"].dropna()
    ended = [ends.get(job, begun) for job, begun in zip(table["job"], table["train.solver"])]
    adapted = table[RULE].notna()
    came_to = adapted & (table["solver"] == ended)
    table = table.assign(trained_with=table["train.solver"].mask(adapted, OWN), solved_with=table["solver"])
    asked_too = table[came_to & table["solver"].isin(asked)]
    table["solver"] = table["solver"].mask(came_to, OWN)
    return pd.concat([table, asked_too], ignore_index=True) if len(asked_too) else table


def standard_error(accuracy: float, num_samples: int) -> float:
    """Of a share that was counted in independent samples (binomial)."""
    return math.sqrt(accuracy * (1 - accuracy) / num_samples)


def percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def points(share: float) -> str:
    """A difference of accuracies, in points of per cent."""
    text = f"{100 * share:.1f}".replace("-", "\N{MINUS SIGN}")
    return "0.0" if text == "\N{MINUS SIGN}0.0" else text


def counted(number: int, noun: str) -> str:
    return f"{number} {noun}" + ("" if number == 1 else "s")


def _read_csv(path: str, types: Any = None) -> Frame:
    if not Path(path).exists():
        raise ValueError(f"{path}: no such file; run `python -m pipeline.collect` first")
    # only empty cells are missing: a folder may be called `NA`
    return pd.read_csv(path, keep_default_na=False, na_values=[""], dtype=TEXT | (types or {}))


def _word(value: Any) -> str:
    """A whole number stands as a float beside empty cells."""
    return "none" if pd.isna(value) else f"{value:g}" if isinstance(value, float) else str(value)


def _parameters(table: Frame) -> list[str]:
    """The columns that are fields of a job, the seed apart."""
    return [column for column in table if "." in column]


def _full_labels(table: Frame, by_method: bool = False) -> Frame:
    """The label, and behind it each parameter that varies between jobs of one label and training solver: without
    it, a mean over them would be taken for one over seeds. A value that most jobs of the label have goes without
    saying.

    by_method: between those of one method, too. A net that a search has found, with another learning rate and as many
    steps as it liked, is no rung of the sweep's ladder; what a sweep alone lets go with its steps was meant so."""
    jobs = table.drop_duplicates("job").set_index("job")
    columns = [column for column in _parameters(table) if column != "train.solver"]
    solvers = jobs["train.solver"].str.partition("@")[0] if by_method else jobs["train.solver"]
    varies = jobs.groupby([solvers, "label"])[columns].nunique(dropna=False).gt(1).groupby("label").any()
    for column in (c for c in columns if c.startswith("train.adapt.")):
        within = ["label"] if column == RULE else [*GROUP, RULE]  # a rule shows, and what goes with it does not
        varies[column] = jobs.groupby(within)[column].nunique(dropna=column != RULE).gt(1).groupby("label").any()
    varies = varies.fillna(False).astype(bool)
    labels = jobs["label"].copy()
    for column in varies.columns[varies.any()]:
        values = jobs[column].map(_word)
        usual = values.groupby([jobs["label"], values]).transform("size") * 2 > jobs.groupby("label")[
            "label"
        ].transform("size")
        key = "" if column == "data.name" else column.rpartition(".")[2] + "="
        if column.startswith("train.adapt."):  # a label without a rule has none
            usual = jobs[RULE].isna() | (usual & (column != RULE))
        labels += (" " + key + values).where(jobs["label"].map(varies[column]) & ~usual, "")
    return table["job"].map(labels)
