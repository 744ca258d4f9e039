"""Results -> figures, one function each. Accuracies are drawn in per cent.

A function returns a `Drawing`: the figure and its caption, or no figure and the sentence that says why.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from gode_core.solvers import Fixed, parse_solver
from pipeline.curves import draw_training, draw_weights
from pipeline.drawing import (
    GREY,
    MARKERS,
    ORANGE,
    STYLE,
    WIDTH,
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
    styles,
)
from pipeline.tables import Frame, Results

MAX_NUMBERED_ROWS = 60  # of the heat map; beyond these (or these columns) cells have no room for numbers
MAX_NUMBERED_COLUMNS = 16
TRAINED_AT: dict[str, Any] = {"color": GREY, "linestyle": (0, (1, 1.5)), "linewidth": 1.2}


def draw_cross_solver(results: Results) -> Drawing:
    """Heat map: models trained with a solver (rows) against the solver at test (columns)."""
    cells, solvers = results.cells, results.solvers
    blocks = dict(iter(cells.groupby("train.solver", sort=False)))
    num_rows = [rows["label"].nunique() for rows in blocks.values()]
    numbered = sum(num_rows) <= MAX_NUMBERED_ROWS and len(solvers) <= MAX_NUMBERED_COLUMNS
    row_height = 0.34 if numbered else min(0.16, 40 / sum(num_rows))  # inches
    figure = Figure((WIDTH, 1.3 + 0.3 * len(blocks) + row_height * sum(num_rows)), layout="constrained")
    axes = figure.subplots(len(blocks), 1, sharex=True, squeeze=False, height_ratios=num_rows)[:, 0]
    low, high = 100 * cells["mean"].min(), 100 * cells["mean"].max()
    image: Any = None
    for ax, (solver, rows) in zip(axes, blocks.items()):
        labels = list(rows["label"].unique())
        table = rows.pivot(index="label", columns="solver", values="mean").reindex(index=labels, columns=solvers)
        limits = {"vmin": min(low, high - 1), "vmax": high}
        image = ax.pcolormesh(100 * table.to_numpy(), cmap="cividis", edgecolors="white", linewidth=0.8, **limits)
        ax.set_yticks(np.arange(len(labels)) + 0.5, labels, fontsize=None if numbered else 64 * row_height)
        ax.set_title(f"trained with {solver}", loc="left", fontweight="bold")
        ax.invert_yaxis()
        ax.grid(False)
        ax.tick_params(length=0)
        for side in ("left", "bottom"):
            ax.spines[side].set_visible(False)
        for row in rows.to_dict("records") if numbered else ():
            _write_cell(ax, row, solvers.index(row["solver"]), labels.index(row["label"]), image)
        if solver in solvers:
            place = (solvers.index(solver), 0.0)
            outline = {"fill": False, "edgecolor": ORANGE, "linewidth": 2.2, "clip_on": False, "zorder": 5}
            ax.add_patch(Rectangle(place, 1, len(labels), **outline))
    axes[-1].set_xticks(np.arange(len(solvers)) + 0.5, solvers, rotation=40, ha="right", rotation_mode="anchor")
    axes[-1].set_xlabel("solver at test (outlined: the solver that the models were trained with)")
    split = results.experiment.evaluate_with.split
    figure.colorbar(image, ax=axes, label=f"{split} accuracy (%)", aspect=40, pad=0.01, fraction=0.04)
    caption = f"Mean {split} accuracy in % over seeds"
    if numbered:
        caption += "; below it, where there are several seeds, their standard deviation in points"
    if cells["num_failed"].any() and numbered:
        caption += "; †: for at least one seed the training or a solve failed"
    if len(cells) < sum(num_rows) * len(solvers):
        caption += "; empty: a discrete net, which is judged by its own layers alone"
    return Drawing(figure, caption + ". Outlined: the training solver.")


def _write_cell(ax: Axes, row: dict[str, Any], x: int, y: int, image: Any) -> None:
    mean = 100 * row["mean"]
    colour = "white" if image.norm(mean) < 0.6 else "black"
    style: dict[str, Any] = {"color": colour, "ha": "center", "va": "center", "in_layout": False}
    text = f"{mean:.1f}" + ("†" if row["num_failed"] else "")
    several = row["num_jobs"] > 1
    ax.text(x + 0.5, y + (0.36 if several else 0.5), text, fontsize=8.5, **style)
    if several:
        ax.text(x + 0.5, y + 0.74, f"±{100 * row['std']:.1f}", fontsize=6.5, **style)


def draw_step(results: Results) -> Drawing:
    """Accuracy against the step at test: a row of panels per training solver, one panel per fixed-step method."""
    cells = results.cells
    parsed = {text: parse_solver(text) for text in results.solvers}
    fixed = {text: solver for text, solver in parsed.items() if isinstance(solver, Fixed)}
    if len({solver.num_steps for solver in fixed.values()}) < 2:
        return Drawing(None, "No fixed-step solver was judged with at two step sizes: there is no curve to draw.")
    cells = cells[cells["solver"].isin(list(fixed))]
    cells = cells.assign(
        method=cells["solver"].map(lambda text: fixed[text].method),
        step=cells["solver"].map(lambda text: 1 / fixed[text].num_steps),
    )
    methods = list(dict.fromkeys(solver.method for solver in fixed.values()))
    training_solvers = [solver for solver in results.training_solvers if not solver.startswith("layers@")]
    names = [(solver, method) for solver in training_solvers for method in methods]
    figure, axes = panels(len(names), len(methods), 2.1, sharex=True, sharey=True)
    for ax, (solver, method) in zip(axes, names):
        panel = cells[(cells["train.solver"] == solver) & (cells["method"] == method)]
        for label, style in styles(results.labels).items():
            band(ax, panel[panel["label"] == label].sort_values("step"), "step", style)
        trained = parse_solver(solver)
        if isinstance(trained, Fixed):
            ax.axvline(1 / trained.num_steps, zorder=1, **TRAINED_AT)
        set_title(ax, f"trained with {solver},\ntested with {method}", len(methods))
        ax.set_xscale("log", base=2)
        log_ticks(ax, lambda x: f"1/{round(1 / x)}")
    label_bottom(axes, len(methods), "step at test (1 / number of steps)")
    label_accuracy(figure, results)
    legend(figure, [*handles(results.labels), mark("training step", **TRAINED_AT)])
    return Drawing(figure, "Means over seeds; bands span the seeds." + left_out(results))


def draw_coefficients(results: Results) -> Drawing:
    """Accuracy against the number of coefficients, under the training solver and under the finest."""
    table, finest = results.table, results.finest
    if table["num_coefficients"].nunique() < 2:
        return Drawing(None, "All models have equally many coefficients: there is no curve to draw.")
    table = table.assign(series=[_series(row) for row in table.to_dict("records")])
    series = sorted(table["series"].unique(), key=lambda name: (name.startswith("degree"), name))
    figure, axes = panels(len(results.training_solvers), 2, 3.0, sharex=True, sharey=True)
    for ax, solver in zip(axes, results.training_solvers):
        panel = table[table["train.solver"] == solver]
        dodges = _dodges(panel, series)
        for name, style in styles(series).items():
            rows = panel[panel["series"] == name]
            x = [dodges[name, count] for count in rows["num_coefficients"]]
            for under, filled in ((solver, True), *([(finest, False)] if finest and finest != solver else [])):
                _points_and_mean(ax, rows.assign(x=x)[rows["solver"] == under], style, filled)
        set_title(ax, f"trained with {solver}", 2)
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
        f"{caption}.",
    )


def _series(row: dict[str, Any]) -> str:
    """What a model shares with those that differ in the number of coefficients alone."""
    further = row["label"].partition(" ")[2]
    name = row["model.family"]
    if name == "gode":
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


def _points_and_mean(ax: Axes, rows: Frame, style: dict[str, Any], filled: bool) -> None:
    colour = style["color"]
    face = colour if filled else "white"
    seeds = {"linestyle": "none", "marker": ".", "markersize": 4, "color": colour, "markerfacecolor": face}
    beside = 2**0.06  # where the mean does not hide them
    ax.plot(rows["x"] * beside, 100 * rows["accuracy"], markeredgewidth=0.7, **seeds)
    mean = rows.groupby("x")["accuracy"].mean()
    line = {"color": colour, "marker": style["marker"], "markerfacecolor": face, "linestyle": "-" if filled else "--"}
    ax.plot(mean.index, 100 * mean, markersize=5, linewidth=1, zorder=3, **line)


def draw_cost(results: Results) -> Drawing:
    """Accuracy against field evaluations per solve: colour is the model, marker the method at test."""
    cells = results.cells.assign(method=results.cells["solver"].map(lambda text: text.partition("@")[0]))
    methods = dict(zip(cells["method"].unique(), MARKERS * 2))
    figure, axes = panels(len(results.training_solvers), 2, 3.0, sharex=True, sharey=True)
    for ax, solver in zip(axes, results.training_solvers):
        panel = cells[cells["train.solver"] == solver]
        for label, style in styles(results.labels).items():
            line = {"color": style["color"], "linestyle": style["linestyle"]}
            for method, rows in panel[panel["label"] == label].groupby("method", sort=False):
                rows = rows.sort_values("num_evals")
                ax.plot(
                    rows["num_evals"], 100 * rows["mean"], marker=methods[method], linewidth=0.7, alpha=0.85, **line
                )
                own = rows[rows["solver"] == solver]
                ring = {"markersize": 9, "markerfacecolor": "none", "markeredgewidth": 1.0, "linestyle": "none"}
                ax.plot(own["num_evals"], 100 * own["mean"], marker="o", color=style["color"], **ring)
        set_title(ax, f"trained with {solver}", 2)
        ax.set_xscale("log", base=2)
        log_ticks(ax, lambda x: f"{x:g}")
    label_bottom(axes, 2, "field evaluations per solve")
    label_accuracy(figure, results)
    kinds = [mark(method, marker=marker, linestyle="none") for method, marker in methods.items()]
    ring = mark("training solver", marker="o", linestyle="none", markersize=9, markerfacecolor="none")
    legend(figure, [*handles(results.labels, marker="none"), *kinds, ring])
    return Drawing(figure, "Means over seeds; ringed: the training solver." + left_out(results))


FIGURES: dict[str, tuple[str, Callable[[Results], Drawing]]] = {
    "cross_solver": ("Accuracy under other solvers", draw_cross_solver),
    "step": ("Accuracy against the step at test", draw_step),
    "coefficients": ("Accuracy against the number of coefficients", draw_coefficients),
    "cost": ("Accuracy against cost", draw_cost),
    "weights": ("Learned weights over depth", draw_weights),
    "training": ("Training", draw_training),
}


def draw(name: str, results: Results) -> Drawing:
    """The figure called `name` in FIGURES, in our style."""
    with mpl.rc_context(STYLE):
        return FIGURES[name][1](results)
