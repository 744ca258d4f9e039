"""What a search found -> figures: the front between accuracy and cost, all trials over their fields, what mattered.

A trial that was not trained to its last epoch is drawn with its last value, and hollow or pale: it might have changed.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from pipeline import search_words
from pipeline.drawing import COLOURS, GREY, ORANGE, WIDTH, Drawing, legend, log_ticks, mark, panels
from pipeline.importance import LEAST_FIELDS, LEAST_TRIALS, importances
from pipeline.markup import rows_of
from pipeline.parallel import draw_axes
from pipeline.search_config import GOALS, Goal, Search
from pipeline.search_table import column_of
from pipeline.tables import Frame, Results, counted
from pipeline.tried import front_goals

BLUE = COLOURS[2]
WHO = "sDv^P"  # markers of those who stop trials
NAMES: dict[Goal, str] = {
    "validation_accuracy": "validation accuracy (%)",
    "validation_loss": "validation loss (nats)",
    "num_evals": "field evaluations per solve",
}


def search_of(results: Results) -> Search:
    assert results.experiment.search is not None
    return results.experiment.search


def drawn_value(goal: Goal, value: Any) -> Any:
    """Accuracies in per cent."""
    return 100 * value if goal == "validation_accuracy" else value


def _samples(results: Results) -> str:
    """How many samples the goals rest on, if all jobs have as many."""
    found = {config.data.num_validation for config in results.experiment.jobs.values()}
    return f" ({found.pop()} validation samples)" if len(found) == 1 else ""


def _as_begun(results: Results) -> str:
    taken = int((results.trials["changes"] > 0).sum())
    return f" {counted(taken, 'trial')} took over weights and rates on the way: shown as begun." if taken else ""


def with_value(trials: Frame, *goals: Goal) -> Frame:
    """Trials that have come to something; a failed one has not."""
    return trials[trials[list(goals)].notna().all(axis=1) & (trials["outcome"] != "failed")]


def draw_front(results: Results) -> Drawing:
    """Every trial between the first goal and its cost; the line joins those that none outdoes."""
    first, second = front_goals(search_of(results).settings)
    trials = with_value(results.trials, first, second)
    if trials.empty:
        return Drawing(None, "No trial has come to a value: there is no front to draw.")
    figure, (ax,) = panels(1, 1, 3.4)
    x, y = drawn_value(second, trials[second]), drawn_value(first, trials[first])
    whole, won = trials["outcome"] == "finished", trials["winner"]
    dots = {"linestyle": "none", "marker": "o", "color": BLUE, "zorder": 3}
    ax.plot(x[~whole], y[~whole], markerfacecolor="white", **dots)
    ax.plot(x[whole], y[whole], **dots)
    ring = {"linestyle": "none", "marker": "o", "markersize": 11, "markerfacecolor": "none", "markeredgewidth": 1.6}
    ax.plot(x[won], y[won], color=ORANGE, zorder=4, **ring)
    for at, text in _numbers(trials.loc[won, "trial"], x[won], y[won], 0.03 * (y.max() - y.min())):
        ax.annotate(text, at, xytext=(7, 5), textcoords="offset points", fontsize=7.5, zorder=5)
    best = trials[trials["front"]].sort_values(second, ascending=GOALS[second] == "min")
    line = {"color": "black", "linewidth": 1.0, "linestyle": (0, (4, 1.5)), "zorder": 2}
    ax.plot(drawn_value(second, best[second]), drawn_value(first, best[first]), drawstyle="steps-post", **line)
    if second == "num_evals" and x.min() > 0 and x.max() >= 2 * x.min():
        ax.set_xscale("log", base=2)
        log_ticks(ax, lambda value: f"{value:g}")
    ax.set_xlabel(NAMES[second])
    ax.set_ylabel(NAMES[first])
    entries = [mark("trained to its last epoch", linestyle="none", marker="o", color=BLUE)]
    entries += [mark("not to its last epoch", linestyle="none", marker="o", color=BLUE, markerfacecolor="white")]
    entries.append(mark("winner, with its number", **{**ring, "color": ORANGE}))
    legend(figure, [*entries, *([mark("front", **line)] if len(best) > 1 else [])])
    lacking = len(results.trials) - len(trials)
    return Drawing(
        figure,
        f"{counted(len(trials), 'trial')} of one seed each, at the last epoch of each{_samples(results)}"
        + (f"; {lacking} more came to no value" if lacking else "")
        + f". Front: {counted(len(best), 'trial')} that no other outdoes in both"
        + (", among those that were trained to their last epoch" if whole.any() and not whole.all() else "")
        + ".",
    )


def _numbers(numbers: Frame, x: Frame, y: Frame, near: float) -> list[tuple[tuple[float, float], str]]:
    """Where winners are named; those that lie on each other by one text."""
    found: list[tuple[tuple[float, float], str]] = []
    for here, above, number in sorted(zip(x, y, numbers), key=lambda row: (row[0], -row[1])):
        if found and found[-1][0][0] == here and found[-1][0][1] - above <= near:
            found[-1] = found[-1][0], f"{found[-1][1]}, {number}"
        else:
            found.append(((here, above), str(number)))
    return found


def draw_parallel(results: Results) -> Drawing:
    """A line per trial over the axes of all varied fields, coloured by what it came to."""
    search = search_of(results)
    goals = search.settings.goals
    trials = with_value(results.trials, *goals)
    if trials.empty:
        return Drawing(None, "No trial has come to a value: there is nothing to colour a line by.")
    figure = Figure((WIDTH, 4.1), layout="constrained")
    colours = draw_axes(figure, search.space.domains, trials, {goal: NAMES[goal] for goal in goals})
    lacking = len(results.trials) - len(trials)
    kinds = [
        mark("trained to its last epoch", color=colours),
        mark("not to its last epoch", color=colours, linestyle=(0, (2, 1.2)), linewidth=0.9),
        mark("winner", color=ORANGE, linestyle="none", marker="o", markerfacecolor="none", markersize=7),
    ]
    legend(figure, kinds)
    whole = int((trials["outcome"] == "finished").sum())
    return Drawing(
        figure,
        f"A line for each of {counted(len(trials), 'trial')} that came to a value ({whole} at the last epoch), from "
        f"what was chosen to what it came to; colour: the {search_words.GOALS_IN_WORDS[goals[0]]}; better ones on top"
        + (f"; {lacking} more came to no value" if lacking else "")
        + ". Where many share a value of a list, their lines are spread a little."
        + _as_begun(results),
    )


def draw_importance(results: Results) -> Drawing:
    """The share of each field in the differences between trials, for each goal."""
    search = search_of(results)
    domains = {column_of(path): domain for path, domain in search.space.domains.items()}
    found = {}
    for goal in search.settings.goals:
        trials = with_value(results.trials, goal)
        shares = importances(domains, [{name: row[name] for name in domains} for row in rows_of(trials)], trials[goal])
        if shares:
            found[goal] = shares, len(trials)
    if not found:
        return Drawing(
            None,
            f"What each field matters is not drawn: that takes at least {LEAST_FIELDS} fields that varied and "
            f"{LEAST_TRIALS} trials with values that differ.",
        )
    names = list(next(iter(found.values()))[0])
    figure = Figure((WIDTH, 0.9 + 0.3 * len(names)), layout="constrained")
    axes = list(figure.subplots(1, len(found), sharey=True, squeeze=False)[0])
    for ax, (goal, (shares, _)) in zip(axes, found.items()):
        widths = [100 * shares.get(name, 0.0) for name in names]
        bars = ax.barh(range(len(names)), widths, color=BLUE, height=0.6)
        ax.bar_label(bars, [f"{width:.0f}" for width in widths], padding=3, fontsize=7.5)
        ax.set_xlim(0, 108)
        ax.set_xlabel(f"share (%) in {NAMES[goal].partition(' (')[0]}")
        ax.grid(visible=False, axis="y")
    axes[0].set_yticks(range(len(names)), names)
    axes[0].invert_yaxis()
    numbers = " and ".join(f"{count}" for count in dict.fromkeys(count for _, count in found.values()))
    return Drawing(
        figure,
        "How much of the differences between trials each field explains, alone and with others: functional analysis of "
        f"variance (fANOVA) over a random forest, from {numbers} trials, each at its last epoch; those that were "
        "stopped early had less time. From few trials it is a rough guess, and it holds in this space alone."
        + _as_begun(results),
    )


def draw_curves(results: Results) -> Drawing:
    """The first goal over the epochs: a line per trial, its end marked."""
    search = search_of(results)
    goal = search.settings.goals[0]
    curves = results.trial_curves[results.trial_curves[goal].notna() & (results.trial_curves["status"] == "ok")]
    if curves.empty:
        return Drawing(None, "No trial has finished an epoch: there are no curves to draw.")
    figure, (ax,) = panels(1, 1, 3.4)
    markers = _ends(results.trials)
    lines = dict(iter(curves.groupby("trial")))
    winners = [number for number in results.trials.loc[results.trials["winner"], "trial"] if number in lines]
    hues = {number: COLOURS[i % len(COLOURS)] for i, number in enumerate(winners)}
    for trial in rows_of(results.trials):
        if trial["trial"] in lines:
            _curve(ax, lines[trial["trial"]], goal, hues.get(trial["trial"]), markers[_end(trial)])
    ax.set_xlabel("epoch")
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.set_ylabel(NAMES[goal])
    named = [mark(f"winner: trial {number}", color=colour, linewidth=2) for number, colour in hues.items()]
    count = Counter(map(_end, rows_of(results.trials)))
    ends = [mark(f"{end}: {count[end]}", **{"linestyle": "none", **style}) for end, style in markers.items()]
    legend(figure, [*named[: len(COLOURS)], mark("another trial", color=GREY, alpha=0.5), *ends])
    absent = len(results.trials) - len(lines)
    return Drawing(
        figure,
        f"A curve for each of {counted(len(lines), 'trial')} of one seed each{_samples(results)}; a mark where it "
        "ended, and why"
        + (f". {absent} more finished no epoch" if absent else "")
        + (". A trial that took over weights shows the way of those weights" if results.trials["changes"].any() else "")
        + ".",
    )


def _curve(ax: Axes, rows: Frame, goal: Goal, colour: str | None, end: dict[str, Any]) -> None:
    values = drawn_value(goal, rows[goal].astype(float))
    style: dict[str, Any] = {"color": colour, "linewidth": 2, "zorder": 4} if colour else {"color": GREY, "alpha": 0.5}
    ax.plot(rows["epoch"], values, **{"linewidth": 0.9, **style})
    last = {"color": colour or GREY, **end}
    ax.plot(rows["epoch"].iloc[-1:], values.iloc[-1:], linestyle="none", zorder=5, **last)


def _ends(trials: Frame) -> dict[str, dict[str, Any]]:
    """How each kind of end is drawn."""
    kinds = list(dict.fromkeys(_end(row) for row in rows_of(trials)))
    styles: dict[str, dict[str, Any]] = {
        "finished": {"marker": "o", "markersize": 4},
        search_words.NOT_DECIDED: {"marker": ".", "markersize": 3},
    }
    stopped = [kind for kind in kinds if kind.startswith("stopped")]
    hollow = {"markerfacecolor": "white", "markersize": 5}
    styles |= {kind: {"marker": WHO[i % len(WHO)], **hollow} for i, kind in enumerate(stopped)}
    cross = {"marker": "x", "color": ORANGE, "markersize": 7, "markeredgewidth": 2}
    return {kind: styles.get(kind, cross) for kind in kinds}


def _end(trial: Any) -> str:
    """How a trial ended, in words for a legend."""
    return search_words.end(trial["outcome"], "" if pd.isna(trial["reason"]) else str(trial["reason"]))


SEARCH_FIGURES: dict[str, tuple[str, Callable[[Results], Drawing]]] = {
    "search_front": ("Accuracy against cost, all trials", draw_front),
    "search_parallel": ("All trials over what was varied", draw_parallel),
    "search_importance": ("What mattered", draw_importance),
    "search_curves": ("The trials, epoch by epoch", draw_curves),
}
