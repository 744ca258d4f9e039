"""What an experiment found, in plain sentences."""

from __future__ import annotations

import math

import pandas as pd

from gode_core.solvers import Layers, parse_solver
from pipeline import judgement
from pipeline.tables import GROUP, Frame, Results, counted, percent, points, standard_error


def summary(results: Results) -> list[str]:
    """The numbers in plain sentences, in the order in which one would ask for them."""
    cells, jobs, (fewest, most) = results.cells, results.jobs, results.num_samples
    samples = f"{fewest}" if fewest == most else f"{fewest} to {most}"
    seeds = cells["num_jobs"]
    each = f"{seeds.min()}" if seeds.min() == seeds.max() else f"{seeds.min()} to {seeds.max()}"
    sentences = [
        f"{counted(len(jobs), 'job')} ({counted(len(results.labels), 'model')}, "
        f"{counted(len(results.training_solvers), 'training solver')}, "
        f"{each} {'seed' if seeds.max() == 1 else 'seeds'} each) "
        f"{'was' if len(jobs) == 1 else 'were'} judged on the {samples} samples of the "
        f"{results.experiment.evaluate_with.split} split with {counted(len(results.solvers), 'solver')}.",
    ]
    grouped = jobs.groupby(GROUP, sort=False)
    own = grouped["accuracy_own"].agg(["mean", "size"]).assign(n=grouped["num_samples"].min())
    own = own.reset_index().dropna(subset="mean")
    if len(own):  # else nothing was judged with its training solver
        best = own.loc[own["mean"].idxmax()]
        sentences.append(
            f"The highest mean accuracy under its own training solver is {percent(best['mean'])} "
            f"({best['label']}, trained with {results.trained(best['train.solver'])}; "
            f"{counted(best['size'], 'seed')}); at that accuracy, the binomial "
            f"standard error of one job is {points(standard_error(best['mean'], best['n']))} points."
        )
    if results.finest:
        sentences.append(f"The finest solver judged with is {results.finest}; it stands for the limit.")
    sentences += judgement.sentences(results)
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
    if solver == results.finest and solver not in results.adapted:
        return [f"{solver} is a training solver itself: nothing finer was judged with."]
    steps = {(found.label, f"{found.method}@{n}") for found in results.ladders().values() for n in found.counts}
    jobs = results.jobs[results.jobs["train.solver"] == solver]
    jobs = jobs[[(label, solver) not in steps for label in jobs["label"]]]  # of a ladder, the verdicts say it
    if jobs.empty:
        return []
    lost, agree = [], []
    for family, rows in jobs.groupby("model.family", sort=False):
        change = rows["accuracy_lost"]
        spread = f"; {points(change.min())} to {points(change.max())}" if len(rows) > 1 else ""
        lost.append(f"{family} {points(change.mean())} (mean of {counted(len(rows), 'job')}{spread})")
        gap = rows["logit_gap_mean_finest"].mean()
        words = "not finite" if pd.isna(gap) else f"{gap:.2g}"
        agree.append(f"{family} {percent(rows['agreement_finest'].mean())} and {words}")
    return [
        f"Trained with {results.trained(solver)} and then solved with {results.finest}, the loss of accuracy in points "
        f"is, by family: {', '.join(lost)}; the share of samples that keep their class, and the mean logit "
        f"gap: {', '.join(agree)}."
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
        f"Trained with {results.trained(solver)}, every job comes to a training loss of {lowest.max():.2g} at some "
        f"time; the mean number of epochs until then is, by model: {words}."
    ]


def _conversions(results: Results) -> list[str]:
    """What was lost at the moment when one phase of a training gave way to the next, where there are validation
    images."""
    curves = results.curves
    validated = curves.groupby("job")["validation_accuracy"].transform("count") > 0
    rows = curves[curves["converted_error"].notna() & validated]
    rows = rows.assign(number=rows.groupby("job").cumcount() + 1)
    several = rows.groupby(["label", "solver"])["number"].transform("nunique") > 1  # the solver stays, the basis grows
    rows = rows.assign(which=rows["number"].map(" (conversion {})".format).where(several, ""))
    return [
        _conversion(f"{label}, carried over to {solver}{which}", group, results)
        for (label, solver, which), group in rows.groupby(["label", "solver", "which"], sort=False)
    ]


def _conversion(what: str, rows: Frame, results: Results) -> str:
    """rows: the first of the later phase, of each job."""
    lost, repaired = [], []
    for place, row in rows[rows["converted_accuracy"].notna()].iterrows():
        epochs = results.curves[results.curves["job"] == row["job"]]
        before = epochs.loc[: place - 1].iloc[-1]  # the end of the phase is always recorded
        later = epochs.loc[place:]
        again = later.loc[later["validation_accuracy"] >= before["validation_accuracy"], "epoch"]
        lost.append(before["validation_accuracy"] - row["converted_accuracy"])
        repaired.append(again.min() - before["epoch"] if len(again) else math.nan)
    text, failed = f"{what}: ", len(rows) - len(lost)
    if failed:
        of = f"{failed} of {counted(len(rows), 'job')}"
        text += f"in {of} the solve right after it fails, and the training ends; " + ("else " if lost else "")
    if lost:
        text += f"at once {points(sum(lost) / len(lost))} points of validation accuracy are lost (mean of "
        text += f"{counted(len(lost), 'job')}; {points(min(lost))} to {points(max(lost))}), "
    text += f"the largest relative error of a weight is {rows['converted_error'].max():.2g}"
    every = results.experiment.jobs[rows["job"].iloc[0]].train.record_every
    if lost:
        never = sum(map(math.isnan, repaired))
        known = [int(x) for x in repaired if not math.isnan(x)]
        words = [f"after {_span(known)}"] if known else []
        words += [f"not by the end in {counted(never, 'job')}"] if never else []
        text += f", and the accuracy of before is {'reached' if every == 1 else 'seen'} again {' and '.join(words)}"
        text += f" (records are {every} epochs apart)" if every > 1 else ""
    return f"{text}."


def _span(epochs: list[int]) -> str:
    low, high = min(epochs), max(epochs)
    return counted(high, "epoch") if low == high else f"{low} to {high} epochs"
