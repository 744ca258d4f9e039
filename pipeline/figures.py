"""Results -> figures, one function each. Accuracies are drawn in per cent. Some have modules of their own.

A function returns a `Drawing`: the figure and its caption, or no figure and the sentence that says why.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import cycle
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes

from gode_core.solvers import Fixed, parse_solver
from pipeline.curves import draw_decisions, draw_training, draw_weights
from pipeline.drawing import (
    GREY,
    MARKERS,
    STYLE,
    Drawing,
    band,
    handles,
    label_accuracy,
    label_bottom,
    left_out,
    legend,
    log_ticks,
    mark,
    panels,
    set_title,
    some_solvers,
    styles,
)
from pipeline.evidence import draw_order, draw_trajectories, draw_validity
from pipeline.maps import draw_cross_solver
from pipeline.search_figures import SEARCH_FIGURES
from pipeline.tables import GROUP, OWN, Frame, Results

TRAINED_AT: dict[str, Any] = {"color": GREY, "linestyle": (0, (1, 1.5)), "linewidth": 1.2}


def draw_step(results: Results) -> Drawing:
    """Accuracy against the step at test: a row of panels per training solver, one panel per fixed-step method."""
    cells = results.cells
    parsed = {text: parse_solver(text) for text in results.solvers if text != OWN}
    fixed = {text: solver for text, solver in parsed.items() if isinstance(solver, Fixed)}
    if len({solver.num_steps for solver in fixed.values()}) < 2:
        return Drawing(None, "No fixed-step solver was judged with at two step sizes: there is no curve to draw.")
    cells = cells[cells["solver"].isin(list(fixed))]
    cells = cells.assign(
        method=cells["solver"].map(lambda text: fixed[text].method),
        step=cells["solver"].map(lambda text: 1 / fixed[text].num_steps),
    )
    methods = list(dict.fromkeys(solver.method for solver in fixed.values()))
    with_time = [solver for solver in results.training_solvers if not solver.startswith("layers@")]
    training_solvers, more = some_solvers(with_time, len(methods))
    names = [(solver, method) for solver in training_solvers for method in methods]
    figure, axes = panels(len(names), len(methods), 2.1, sharex=True, sharey=True)
    for ax, (solver, method) in zip(axes, names):
        panel = cells[(cells["train.solver"] == solver) & (cells["method"] == method)]
        for label, style in styles(results.labels).items():
            band(ax, panel[panel["label"] == label].sort_values("step"), "step", style)
        trained = parse_solver(solver)
        if isinstance(trained, Fixed) and solver not in results.adapted:
            ax.axvline(1 / trained.num_steps, zorder=1, **TRAINED_AT)
        set_title(ax, f"trained with {results.trained(solver)},\ntested with {method}", len(methods))
        ax.set_xscale("log", base=2)
        log_ticks(ax, lambda x: f"1/{round(1 / x)}")
    label_bottom(axes, len(methods), "step at test (1 / number of steps)")
    label_accuracy(figure, results)
    legend(figure, [*handles(results.labels), mark("training step", **TRAINED_AT)])
    return Drawing(figure, "Means over seeds; bands span the seeds." + left_out(results) + more)


def draw_coefficients(results: Results) -> Drawing:
    """Accuracy against the number of coefficients, under the training solver and under the finest."""
    jobs, finest = results.jobs, results.finest
    if jobs["num_coefficients"].nunique() < 2:
        return Drawing(None, "All models have equally many coefficients: there is no curve to draw.")
    jobs = jobs.assign(series=[_series(row) for row in jobs.to_dict("records")])
    series = sorted(jobs["series"].unique(), key=lambda name: (name.startswith("degree"), name))
    solvers, more = some_solvers(results.training_solvers)
    figure, axes = panels(len(solvers), 2, 3.0, sharex=True, sharey=True)
    for ax, solver in zip(axes, solvers):
        panel = jobs[jobs["train.solver"] == solver]
        dodges = _dodges(panel, series)
        for name, style in styles(series).items():
            rows = panel[panel["series"] == name]
            x = [dodges[name, count] for count in rows["num_coefficients"]]
            rows = rows.assign(x=x)
            _points_and_mean(ax, rows["x"], rows["accuracy_own"], style, True)
            if finest:
                apart = rows[rows["trained_with"] != finest]
                _points_and_mean(ax, apart["x"], apart["accuracy_finest"], style, False)
        set_title(ax, f"trained with {results.trained(solver)}", 2)
        ax.set_xscale("log", base=2)
        log_ticks(ax, lambda x: f"{x:g}")
    label_bottom(axes, 2, "coefficients (sets of weights over depth)")
    label_accuracy(figure, results)
    kinds = [mark("under the training solver", marker="o")]
    caption = "Filled: under the training solver"
    if finest:
        kinds.append(mark(f"under {finest}, the finest", marker="o", linestyle="--", markerfacecolor="white"))
        caption += f"; hollow: under {finest}, the finest solver judged with"
    legend(figure, [*handles(series, linestyle="none"), *kinds])
    return Drawing(
        figure,
        "Large markers are means over seeds, the points beside them the seeds; models with equally many coefficients "
        "stand side by side. "
        "A Neural ODE has 1, a ResNet as many as its training steps. "
        f"{caption}.{more}",
    )


def _series(row: dict[str, Any]) -> str:
    """What a model shares with those that differ in the number of coefficients alone."""
    name, _, further = row["label"].partition(" ")
    if row["model.family"] == "gode":
        degree = row["model.basis.degree"]
        name = row["model.basis.kind"] if degree is None or np.isnan(degree) else f"degree {degree:.0f}"
        name += "" if row["model.basis.knots"] == "clamped" else f", {row['model.basis.knots']} knots"
    return f"{name} {further}".strip()


def _dodges(panel: Frame, series: list[str]) -> dict[tuple[str, int], float]:
    """Where each series stands at each number of coefficients: beside the others that have as many."""
    places = {}
    for count, rows in panel.groupby("num_coefficients"):
        names = [name for name in series if name in set(rows["series"])]
        for i, name in enumerate(names):
            places[name, count] = count * 2 ** (0.14 * (i - (len(names) - 1) / 2))
    return places


def _points_and_mean(ax: Axes, x: Frame, accuracy: Frame, style: dict[str, Any], filled: bool) -> None:
    colour = style["color"]
    face = colour if filled else "white"
    seeds = {"linestyle": "none", "marker": ".", "markersize": 4, "color": colour, "markerfacecolor": face}
    beside = 2**0.06  # where the mean does not hide them
    ax.plot(x * beside, 100 * accuracy, markeredgewidth=0.7, **seeds)
    mean = accuracy.groupby(x).mean()
    line = {"color": colour, "marker": style["marker"], "markerfacecolor": face, "linestyle": "-" if filled else "--"}
    ax.plot(mean.index, 100 * mean, markersize=5, linewidth=1, zorder=3, **line)


def draw_cost(results: Results) -> Drawing:
    """Accuracy against field evaluations per solve: colour is the model, marker the method at test."""
    cells = results.cells.assign(method=results.cells["solver"].map(lambda text: text.partition("@")[0]))
    methods = dict(zip(cells["method"].unique(), cycle(MARKERS)))
    own = results.jobs.groupby(GROUP)[["num_evals_own", "accuracy_own"]].mean()
    solvers, more = some_solvers(results.training_solvers)
    figure, axes = panels(len(solvers), 2, 3.0, sharex=True, sharey=True)
    for ax, solver in zip(axes, solvers):
        panel = cells[cells["train.solver"] == solver]
        for label, style in styles(results.labels).items():
            line = {"color": style["color"], "linestyle": style["linestyle"]}
            for method, rows in panel[panel["label"] == label].groupby("method", sort=False):
                rows = rows.sort_values("num_evals")
                ax.plot(
                    rows["num_evals"], 100 * rows["mean"], marker=methods[method], linewidth=0.7, alpha=0.85, **line
                )
            if (solver, label) in own.index:
                ring = {"markersize": 9, "markerfacecolor": "none", "markeredgewidth": 1.0, "linestyle": "none"}
                evals, accuracy = own.loc[(solver, label)]
                ax.plot([evals], [100 * accuracy], marker="o", color=style["color"], **ring)
        set_title(ax, f"trained with {results.trained(solver)}", 2)
        ax.set_xscale("log", base=2)
        log_ticks(ax, lambda x: f"{x:g}")
    label_bottom(axes, 2, "field evaluations per solve")
    label_accuracy(figure, results)
    kinds = [mark(method, marker=marker, linestyle="none") for method, marker in methods.items()]
    ring = mark("training solver", marker="o", linestyle="none", markersize=9, markerfacecolor="none")
    legend(figure, [*handles(results.labels, marker="none"), *kinds, ring])
    return Drawing(figure, "Means over seeds; ringed: the training solver." + left_out(results) + more)


FIGURES: dict[str, tuple[str, Callable[[Results], Drawing]]] = {
    "cross_solver": ("Accuracy under other solvers", draw_cross_solver),
    "validity": ("The gap to the limit", draw_validity),
    "order": ("The way to the limit", draw_order),
    "trajectories": ("Paths through the plane", draw_trajectories),
    "step": ("Accuracy against the step at test", draw_step),
    "coefficients": ("Accuracy against the number of coefficients", draw_coefficients),
    "cost": ("Accuracy against cost", draw_cost),
    "decisions": ("The solver over the training", draw_decisions),
    "weights": ("Learned weights over depth", draw_weights),
    "training": ("Training", draw_training),
}


def draw(name: str, results: Results) -> Drawing:
    """The figure called `name` in FIGURES or SEARCH_FIGURES, in our style."""
    with mpl.rc_context(STYLE):
        return (FIGURES | SEARCH_FIGURES)[name][1](results)
