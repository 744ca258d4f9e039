"""Numbers in print beside ours.

Either is an interval: ours is mean +- standard deviation over seeds, or the bracket of the critical step. They agree
where the two overlap.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
import pandas as pd

from gode_core.intervals import best_guess
from gode_core.solvers import Fixed, parse_solver
from pipeline.experiment import Published
from pipeline.ladders import MIN_RUNGS, Ladder
from pipeline.model_config import NUM_BLOCKS
from pipeline.tables import GROUP, Frame, Results, counted, percent, points, standard_error

IN_EVALS = ("critical_evals", "training_evals")  # measures in field evaluations; the others are shares


@dataclass(frozen=True)
class Found:
    """Our number: an interval, and how it reads. above: the lower end itself lies outside (a bracket (low, high])."""

    low: float
    high: float
    text: str
    above: bool = False

    def agrees(self, low: float, high: float) -> bool:
        if self.above:
            return self.low < high and (low < self.high or low == high == self.high)
        return self.low <= high and low <= self.high


@dataclass(frozen=True)
class Comparison:
    """A number in print beside ours. agrees: None where ours cannot be given, and `ours` says why."""

    published: Published
    in_print: str
    ours: str
    agrees: bool | None
    verdict: str  # `agrees`, or by how much it does not
    remark: str  # on trainings that failed; may be empty

    @property
    def sentence(self) -> str:
        remark = f" {self.remark}" if self.remark else ""
        if self.agrees is None:
            return f"{self.published.claim}: {self.published.source} gives {self.in_print}; ours: {self.ours}.{remark}"
        return (
            f"{self.published.claim}: {self.published.source} gives {self.in_print}, and we find {self.ours}: "
            f"{self.verdict}.{remark}"
        )


def comparisons(results: Results) -> list[Comparison]:
    """One for each number in print. Raises ValueError for a column in `of` that is not there."""
    return [compare(results, published) for published in results.experiment.published]


def compare(results: Results, published: Published) -> Comparison:
    """All jobs count, those that stopped or learned nothing too; what comes of the others alone is remarked."""
    jobs, in_print = chosen(results, published), _in_print(published)
    if jobs.empty:
        return Comparison(published, in_print, f"no job has {' and '.join(published.of)}", None, "", "")
    measure = MEASURES[published.measure]
    found = measure(results, jobs, published.margin)
    stopped = jobs["train_status"] != "ok"
    lost, remark = stopped | ~jobs["learned"], ""
    if lost.any():
        ends = {"stopped": stopped.sum(), "learned nothing": (lost & ~stopped).sum()}
        words = " and ".join(f"{number} {end}" for end, number in ends.items() if number)
        rest = "" if lost.all() else measure(results, jobs[~lost], published.margin)
        without = f"; without them we find {rest.text}." if isinstance(rest, Found) else "."
        remark = f"Of {counted(len(jobs), 'training')} {words}{without}"
    if isinstance(found, str):
        return Comparison(published, in_print, found, None, "", remark)
    agrees = found.agrees(published.low, published.high)
    if agrees and math.isinf(found.high):  # a ladder without an upper end agrees with anything above it
        return Comparison(published, in_print, f"{found.text}: the ladder ends too soon to tell", None, "", remark)
    return Comparison(published, in_print, found.text, agrees, _how_far(found, published), remark)


def _in_print(published: Published) -> str:
    low, high = (
        f"{x:.4g}" if published.measure in IN_EVALS else f"{100 * x:.1f}" for x in (published.low, published.high)
    )
    unit = "evaluations" if published.measure in IN_EVALS else "%"
    return f"{low} {unit}" if low == high else f"{low} to {high} {unit}"


def _how_far(found: Found, published: Published) -> str:
    if found.agrees(published.low, published.high):
        return "they agree"
    above = found.low >= published.high
    by = found.low - published.high if above else published.low - found.high
    amount = f" by {by:.4g} evaluations" if published.measure in IN_EVALS else f" by {points(by)} points"
    return f"ours lies {'above' if above else 'below'} it" + (amount if by > 0 else "")


def chosen(results: Results, published: Published) -> Frame:
    """The jobs that `of` selects: columns of table.csv, or `method`, that of the training solver; `none` stands for an
    empty place. One row per job, with `accuracy` under its own solver, and whether it `learned`: more than a guess has,
    of classes that are equally frequent."""
    jobs = results.jobs.assign(method=results.jobs["train.solver"].map(lambda text: text.partition("@")[0]))
    for text in published.of:
        column, _, value = text.partition("=")
        if column not in jobs:
            near = difflib.get_close_matches(column, jobs.columns, n=1)
            hint = f" Did you mean `{near[0]}`?" if near else ""
            raise ValueError(f"published: {published.claim}: of: {text}: no column `{column}` in the table.{hint}")
        jobs = jobs[jobs[column].map(partial(_is, value)).astype(bool)]
    accuracy = jobs["accuracy_own"]
    chance = jobs["job"].map(lambda job: 1 / results.experiment.jobs[job].data.classes).astype(float)
    guess = best_guess(chance, jobs["num_samples"], results.experiment.evaluate_with.confidence)
    return jobs.assign(accuracy=accuracy, learned=accuracy > guess)


def _is(value: str, found) -> bool:
    if pd.isna(found):
        return value == "none"
    if isinstance(found, bool | np.bool_):
        return str(found).lower() == value.lower()  # `true`, as the experiment file has it
    try:
        return float(found) == float(value)  # 32.0 is 32
    except ValueError:
        return str(found) == value


def _ladder_of(results: Results, jobs: Frame, margin: float | None) -> Ladder | str:
    found = list(results.ladders(margin, frozenset(jobs["job"])).values())
    if not found:
        return f"no model was trained with one method at {MIN_RUNGS} step counts"
    if len(found) > 1:
        return f"there are {len(found)} ladders; `of` must choose one, by `method=...` or `label=...`"
    return found[0]


def _critical_evals(results: Results, jobs: Frame, margin: float | None) -> Found | str:
    ladder = _ladder_of(results, jobs, margin)
    if isinstance(ladder, str):
        return ladder
    coarser, count = ladder.critical.coarser, ladder.critical.num_steps
    if not ladder.evals:
        return f"{ladder.method} has no fixed number of evaluations"
    low, high = (0 if coarser is None else ladder.evals[coarser]), (math.inf if count is None else ladder.evals[count])
    words = f"more than {low:g} evaluations" if count is None else f"more than {low:g}, at most {high:g} evaluations"
    each = [critical.num_steps for critical in ladder.by_seed.values()]
    evals = sorted(ladder.evals[n] for n in each if n is not None)
    seeds = counted(len(each), "seed")
    if evals and len(each) > 1:
        seeds += f"; one by one {evals[0]}" + ("" if evals[0] == evals[-1] else f" to {evals[-1]}") + " are enough"
        seeds += "" if len(evals) == len(each) else f", for {len(each) - len(evals)} none are"
    return Found(low, high, f"{words} ({seeds})", above=True)


def _critical_accuracy(results: Results, jobs: Frame, margin: float | None) -> Found | str:
    ladder = _ladder_of(results, jobs, margin)
    if isinstance(ladder, str):
        return ladder
    if ladder.critical.num_steps is None:
        return "no step was fine enough"
    at = f"{ladder.method}@{ladder.critical.num_steps}"
    return _spread(jobs[jobs["train.solver"] == at], "accuracy", percent, f", {at}")


def _spread(jobs: Frame, column: str, show: Callable[[float], str], more: str = "") -> Found | str:
    """Mean +- standard deviation over the jobs that have a value."""
    jobs = jobs[jobs[column].notna()]
    if jobs.empty:
        return "not measured"
    values = jobs[column].astype(float)
    mean, std = values.mean(), values.std() if len(values) > 1 else 0.0
    text = f"{show(mean).removesuffix(' %')} ± {show(std)}" if len(values) > 1 else show(mean)
    of = "seed" if len(jobs[GROUP].drop_duplicates()) == 1 else "job"
    return Found(mean - std, mean + std, f"{text} ({counted(len(values), of)}{more})")


def _accuracy(results: Results, jobs: Frame, _margin: float | None) -> Found | str:
    return _spread(jobs, "accuracy", percent)


def _training_evals(results: Results, jobs: Frame, _margin: float | None) -> Found | str:
    jobs = jobs.assign(evals=jobs["job"].map(training_evals(results)))
    return _spread(jobs, "evals", lambda value: f"{value:.1f}", ", evaluations")


def training_evals(results: Results) -> Frame:
    """Field evaluations of a training step, those of checks of its solver with them; mean over the training, by job.
    Exact where a rule chose step counts; elsewhere a record stands for all steps since the one before."""
    curves = results.curves
    steps = curves.groupby("job")["step"].diff().fillna(curves["step"])
    evals = curves["num_evals"] + curves["check_evals"].astype(float).fillna(0.0)
    steps_of, evals_of = (each.groupby(curves["job"]).sum() for each in (steps, evals * steps))
    means = evals_of / steps_of.where(steps_of > 0)
    last = curves.groupby("job")["step"].max()
    for job, decisions in results.decisions.groupby("job"):
        if last[job] > 0 and all(isinstance(parse_solver(text), Fixed) for text in decisions["next_solver"]):
            blocks = NUM_BLOCKS[results.experiment.jobs[str(job)].model.network]
            means[job] = _chosen_evals(decisions.sort_values("step"), int(last[job]), blocks) / last[job]
    return means


def _chosen_evals(decisions: Frame, num_steps: int, blocks: int) -> int:
    """Of `num_steps` steps through so many blocks, and all checks. The first decision comes before step 0, a later one
    after the step that has its number."""
    begins = [0, *(int(step) + 1 for step in decisions["step"].iloc[1:])]
    ends = [*(min(begin, num_steps) for begin in begins[1:]), num_steps]
    evals = [blocks * parse_solver(text).num_evals for text in decisions["next_solver"]]  # type: ignore[union-attr]
    made = sum(max(0, end - begin) * each for begin, end, each in zip(begins, ends, evals))
    return made + int(decisions["num_evals"].sum())


def _share_ode(results: Results, jobs: Frame, _margin: float | None) -> Found | str:
    verdicts = _validity_of(results, jobs)["verdict"]
    if verdicts.empty:
        return "no verdicts"
    ode, total = int((verdicts == "ode").sum()), len(verdicts)
    error = standard_error(ode / total, total)
    return Found(ode / total - error, ode / total + error, f"{ode} of {total}")


def _share_crossing(results: Results, jobs: Frame, _margin: float | None) -> Found | str:
    return _spread(_validity_of(results, jobs), "share_crossing", percent)


def _share_folded(results: Results, jobs: Frame, _margin: float | None) -> Found | str:
    return _spread(_validity_of(results, jobs), "share_folded", percent)


def _validity_of(results: Results, jobs: Frame) -> Frame:
    return results.validity[results.validity["job"].isin(jobs["job"])]


MEASURES: dict[str, Callable[[Results, Frame, float | None], Found | str]] = {
    "critical_evals": _critical_evals,
    "critical_accuracy": _critical_accuracy,
    "accuracy": _accuracy,
    "training_evals": _training_evals,
    "share_ode": _share_ode,
    "share_crossing": _share_crossing,
    "share_folded": _share_folded,
}
