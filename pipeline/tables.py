"""What the collected tables of an experiment say: means over seeds, losses under another solver, failures.

A *cell* is one (model, training solver, evaluation solver); its jobs differ in nothing but the seed. Accuracies lie in
[0, 1]; a loss of accuracy is that under the training solver minus that under the finest solver, per job.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd

from gode_core.solvers import Adaptive, Layers, parse_solver
from pipeline.experiment import Experiment
from pipeline.paths import Paths

Frame = Any  # a pandas table or column: pandas itself annotates each as table, column or number at once

GROUP = ["train.solver", "label"]  # what a mean over seeds is taken within


@dataclass(frozen=True)
class Results:
    """The tables that `collect` wrote, of the jobs of one experiment. Labels tell apart all that is no seed."""

    experiment: Experiment
    table: Frame  # one row per (job, solver)
    curves: Frame  # one row per (job, epoch)
    weights: Frame  # one row per (job, weight, entry, depth)

    @cached_property
    def labels(self) -> list[str]:
        return list(self.table["label"].unique())

    @cached_property
    def training_solvers(self) -> list[str]:
        return list(self.table["train.solver"].unique())

    @cached_property
    def solvers(self) -> list[str]:
        """Those judged with, in the order of the experiment file; behind them the discrete nets' own layers."""
        asked = list(self.experiment.evaluate_with.solvers)
        return asked + [solver for solver in self.table["solver"].unique() if solver not in asked]

    @cached_property
    def finest(self) -> str:
        """The nearest to the exact solution: the adaptive solver with the smallest tolerance (the last of several),
        else the fixed one with most steps times its order. Empty if there are discrete nets alone."""
        parsed = [parse_solver(solver) for solver in self.experiment.evaluate_with.solvers]
        if adaptive := [solver for solver in parsed if isinstance(solver, Adaptive)]:
            return str(min(reversed(adaptive), key=lambda solver: max(solver.rtol, solver.atol)))
        stepping = [solver for solver in parsed if not isinstance(solver, Adaptive | Layers)]
        return str(max(stepping, key=lambda solver: solver.num_steps * solver.order, default=""))

    @cached_property
    def num_samples(self) -> int:
        return int(self.table["num_samples"].max())

    @cached_property
    def varied(self) -> list[str]:
        """The parameters that are not the same in all jobs, the label's and the training solver apart."""
        known = ["train.solver", "model.family", *(c for c in self.table if c.startswith("model.basis."))]
        return [c for c in _parameters(self.table) if c not in known and self.table[c].nunique(dropna=False) > 1]

    @cached_property
    def shared(self) -> dict[str, str]:
        """The parameters that all jobs share, as text; those without a value left out."""
        first = self.table.iloc[0]
        same = [c for c in _parameters(self.table) if self.table[c].nunique(dropna=False) == 1]
        return {c: str(first[c]) for c in same if not pd.isna(first[c])}

    @cached_property
    def cells(self) -> Frame:
        """One row per cell: mean, std, min, max of the accuracy over seeds; num_jobs, num_failed (jobs with a failed
        sample or a training that stopped) and the mean num_evals."""
        table = self.table.assign(failed=(self.table["status"] != "ok") | (self.table["train_status"] != "ok"))
        grouped = table.groupby([*GROUP, "solver"], sort=False)
        cells = grouped["accuracy"].agg(["mean", "std", "min", "max"])
        cells["num_jobs"] = grouped.size()
        cells["num_failed"] = grouped["failed"].sum()
        cells["num_evals"] = grouped["num_evals"].mean()
        return cells.reset_index()

    @cached_property
    def jobs(self) -> Frame:
        """One row per job: its parameters, and its rows under the training solver (columns ending in `_own`; empty if
        that was not among those judged with) and under the finest (ending in `_finest`)."""
        measures = ["accuracy", "loss", "agreement", "logit_gap_mean", "logit_gap_max", "num_evals", "status"]
        table = self.table.set_index("job")
        own = table.loc[table["solver"] == table["train.solver"], measures]
        finest = table.loc[table["solver"] == self.finest, measures]
        jobs = self.table.drop_duplicates("job").set_index("job").drop(columns=measures)
        jobs = jobs.join(own.add_suffix("_own")).join(finest.add_suffix("_finest"))
        jobs["accuracy_lost"] = jobs["accuracy_own"] - jobs["accuracy_finest"]
        return jobs.reset_index()

    @cached_property
    def stopped(self) -> Frame:
        """The jobs whose training did not end `ok`."""
        return self.jobs[self.jobs["train_status"] != "ok"]

    @cached_property
    def failed(self) -> Frame:
        """The rows of the table whose solves did not all end `ok`."""
        return self.table[(self.table["status"] != "ok") | (self.table["num_failed"] > 0)]


def read_results(experiment: Experiment, paths: Paths) -> Results:
    """Raises ValueError if the tables are not there, or not of this experiment file as it stands now."""
    name = experiment.name
    table = _read_csv(paths.table(name))
    judging = experiment.evaluate_with
    solvers = {solver for config in experiment.jobs.values() for solver in judging.solvers_of(config)}
    if set(table["job"]) != set(experiment.jobs) or set(table["solver"]) != solvers:
        raise ValueError(
            f"{paths.table(name)}: holds other jobs or solvers than the experiment file asks for; run "
            "`python -m pipeline.collect` with this file first"
        )
    table["label"] = _full_labels(table)
    labels = table.drop_duplicates("job").set_index("job")["label"]
    curves, weights = _read_csv(paths.curves(name)), _read_csv(paths.weight_paths(name))
    for rows in (curves, weights):
        rows["label"] = rows["job"].map(labels)
    return Results(experiment, table, curves, weights)


def standard_error(accuracy: float, num_samples: int) -> float:
    """Of a share that was counted in independent samples (binomial)."""
    return math.sqrt(accuracy * (1 - accuracy) / num_samples)


def summary(results: Results) -> list[str]:
    """The numbers in plain sentences, in the order in which one would ask for them."""
    cells, jobs, n = results.cells, results.jobs, results.num_samples
    seeds = cells["num_jobs"]
    each = f"{seeds.min()}" if seeds.min() == seeds.max() else f"{seeds.min()} to {seeds.max()}"
    sentences = [
        f"{counted(len(jobs), 'job')} ({counted(len(results.labels), 'model')}, "
        f"{counted(len(results.training_solvers), 'training solver')}, "
        f"{each} {'seed' if seeds.max() == 1 else 'seeds'} each) "
        f"{'was' if len(jobs) == 1 else 'were'} judged on the {n} samples of the "
        f"{results.experiment.evaluate_with.split} split with {counted(len(results.solvers), 'solver')}.",
    ]
    own = cells[cells["solver"] == cells["train.solver"]]
    if len(own):
        best = own.loc[own["mean"].idxmax()]
        sentences.append(
            f"The highest mean accuracy under its own training solver is {percent(best['mean'])} "
            f"({best['label']}, trained with {best['train.solver']}; {counted(best['num_jobs'], 'seed')}); at that "
            f"accuracy, the binomial standard error of one job is {points(standard_error(best['mean'], n))} points."
        )
    if results.finest:
        sentences.append(f"The finest solver judged with is {results.finest}.")
    for solver in results.training_solvers:
        sentences += _losses(results, solver)
        sentences += _speed(results, solver)
    sentences += _conversions(results)
    if (jobs["accuracy_lost"] < 0).any():
        sentences.append("A negative loss is a gain.")
    return sentences


def _losses(results: Results, solver: str) -> list[str]:
    """What the models trained with `solver` lose under the finest solver, by family."""
    if isinstance(parse_solver(solver), Layers):
        return [f"The nets of {solver} are discrete: between their layers is no ODE, and they are judged as they are."]
    if solver == results.finest:
        return [f"{solver} is a training solver itself: nothing finer was judged with."]
    if solver not in results.solvers:
        return [f"The training solver {solver} was not among those judged with: no loss of accuracy can be given."]
    jobs = results.jobs[results.jobs["train.solver"] == solver]
    lost, agree = [], []
    for family, rows in jobs.groupby("model.family", sort=False):
        change = rows["accuracy_lost"]
        spread = f"; {points(change.min())} to {points(change.max())}" if len(rows) > 1 else ""
        lost.append(f"{family} {points(change.mean())} (mean of {counted(len(rows), 'job')}{spread})")
        gap = rows["logit_gap_mean_finest"].mean()
        words = "not finite" if pd.isna(gap) else f"{gap:.2g}"
        agree.append(f"{family} {percent(rows['agreement_finest'].mean())} and {words}")
    return [
        f"Trained with {solver} and then solved with {results.finest}, the loss of accuracy in points is, by family: "
        f"{', '.join(lost)}; the share of samples that keep their class, and the mean logit gap: {', '.join(agree)}."
    ]


def _speed(results: Results, solver: str) -> list[str]:
    """How soon the models reach the loss that all of them reach, if there are several."""
    curves = results.curves[(results.curves["train.solver"] == solver) & results.curves["train_loss"].notna()]
    lowest = curves.groupby(["label", "job"])["train_loss"].min()
    if lowest.index.get_level_values("label").nunique() < 2 or not results.jobs["train_status"].eq("ok").all():
        return []
    reached = curves[curves["train_loss"] <= lowest.max()].groupby(["label", "job"], sort=False)["epoch"].min()
    means = reached.groupby("label", sort=False).mean().sort_values()
    words = ", ".join(f"{label} {epochs:.1f}" for label, epochs in means.items())
    return [
        f"Trained with {solver}, every job comes to a training loss of {lowest.max():.2g} at some time; the mean "
        f"number of epochs until then is, by model: {words}."
    ]


def _conversions(results: Results) -> list[str]:
    """What was lost at the moment when one phase of a training gave way to the next."""
    curves, sentences = results.curves, []
    rows = curves[curves["converted_accuracy"].notna()]
    for (label, solver), group in rows.groupby(["label", "solver"], sort=False):
        lost, repaired = [], []
        for row in group.to_dict("records"):
            epochs = curves[curves["job"] == row["job"]]
            before = epochs[epochs["epoch"] < row["epoch"]].iloc[-1]["validation_accuracy"]
            later = epochs[(epochs["epoch"] >= row["epoch"]) & (epochs["validation_accuracy"] >= before)]
            lost.append(before - row["converted_accuracy"])
            repaired.append(later["epoch"].min() - row["epoch"] + 1 if len(later) else math.nan)
        never = sum(map(math.isnan, repaired))
        known = [int(x) for x in repaired if not math.isnan(x)]
        words = [f"after {_span(known)}"] if known else []
        words += [f"not by the end in {counted(never, 'job')}"] if never else []
        sentences.append(
            f"{label}, carried over to {solver}: at once {points(sum(lost) / len(lost))} points of validation accuracy "
            f"are lost (mean of {counted(len(lost), 'job')}; {points(min(lost))} to {points(max(lost))}), the largest "
            f"relative error of a weight is {group['converted_error'].max():.2g}, and the accuracy of before is "
            f"reached again {' and '.join(words)}."
        )
    return sentences


def _span(epochs: list[int]) -> str:
    low, high = min(epochs), max(epochs)
    return counted(high, "epoch") if low == high else f"{low} to {high} epochs"


def percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def points(share: float) -> str:
    """A difference of accuracies, in points of per cent."""
    text = f"{100 * share:.1f}".replace("-", "\N{MINUS SIGN}")
    return "0.0" if text == "\N{MINUS SIGN}0.0" else text


def counted(number: int, noun: str) -> str:
    return f"{number} {noun}" + ("" if number == 1 else "s")


def _read_csv(path: str) -> Frame:
    if not Path(path).exists():
        raise ValueError(f"{path}: no such file; run `python -m pipeline.collect` first")
    # only empty cells are missing: a folder may be called `NA`
    return pd.read_csv(path, keep_default_na=False, na_values=[""])


def _parameters(table: Frame) -> list[str]:
    """The columns that are fields of a job, the seed apart."""
    return [column for column in table if "." in column]


def _full_labels(table: Frame) -> Frame:
    """The label, and behind it each parameter that varies between jobs of one label and training solver: without
    it, a mean over them would be taken for one over seeds. A value that most jobs of the label have goes without
    saying."""
    jobs = table.drop_duplicates("job").set_index("job")
    columns = [column for column in _parameters(table) if column != "train.solver"]
    varies = jobs.groupby(GROUP)[columns].nunique(dropna=False).gt(1).groupby("label").any()
    labels = jobs["label"].copy()
    for column in varies.columns[varies.any()]:
        values = jobs[column].map(lambda value: "none" if pd.isna(value) else str(value))
        usual = values.groupby([jobs["label"], values]).transform("size") * 2 > jobs.groupby("label")[
            "label"
        ].transform("size")
        key = "" if column == "data.name" else column.rpartition(".")[2] + "="
        labels += (" " + key + values).where(jobs["label"].map(varies[column]) & ~usual, "")
    return table["job"].map(labels)
