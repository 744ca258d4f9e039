"""Results -> figures of what the verdicts rest on: the gaps to the limit h -> 0, the way to it, paths in the plane."""

from __future__ import annotations

import math
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from gode_core.solvers import Adaptive, Fixed, Implicit, parse_solver
from pipeline.drawing import (
    COLOURS,
    GREEN,
    GREY,
    ORANGE,
    Drawing,
    label_bottom,
    legend,
    log_ticks,
    mark,
    panels,
    set_title,
)
from pipeline.ladders import MIN_RUNGS
from pipeline.tables import Frame, Results, percent

VERDICT_STYLES: dict[str, dict[str, Any]] = {
    "ode": {"color": GREEN, "marker": "o"},
    "discrete": {"color": ORANGE, "marker": "X"},
    "undecided": {"color": GREY, "marker": "s", "markerfacecolor": "white"},
}
MAX_PANELS = 12
MAX_MODELS = 6  # whose paths are drawn


def draw_validity(results: Results) -> Drawing:
    """The gap to the limit, with its interval, against the step trained with: a panel per model and method."""
    validity = results.validity
    if validity.empty:
        return Drawing(None, "No model was judged to be an ODE or none: there is no gap to the limit to draw.")
    validity = validity.assign(method=validity["train.solver"].map(_method), step=validity["solver"].map(_step))
    groups = list(validity.groupby(["label", "method"], sort=False))
    critical = {key: ladder.critical for key, ladder in results.ladders().items()}
    figure, axes = panels(len(groups[:MAX_PANELS]), 2, 2.5, sharey=True)
    margin = 100 * validity["margin"].max()
    for ax, (key, rows) in zip(axes, groups):
        ax.axhspan(-margin, margin, color=GREEN, alpha=0.13, linewidth=0)
        _gaps(ax, rows)
        bracket = critical.get(key)
        if bracket is not None and bracket.coarser is not None and bracket.num_steps is not None:
            ax.axvspan(1 / bracket.coarser, 1 / bracket.num_steps, color=GREY, alpha=0.22, linewidth=0)
        set_title(ax, f"{key[0]}, trained with {key[1]}", 2)
        ax.set_yscale("symlog", linthresh=2 * margin)
        ax.yaxis.set_major_locator(FixedLocator(_gap_ticks(margin)))
        ax.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:g}".replace("-", "\N{MINUS SIGN}")))
        ax.yaxis.set_minor_locator(NullLocator())
        _step_axis(ax, list(rows["solver"]))
    label_bottom(axes, 2, "step, or tolerance, at the end of the training")
    figure.supylabel(f"gap to {results.finest}\n(points; logarithmic beyond ±{2 * margin:g})", fontsize=8.5)
    entries = [mark(name, linestyle="none", **style) for name, style in VERDICT_STYLES.items()]
    entries.append(mark(f"margin: ±{margin:g}", color=GREEN, alpha=0.3, linewidth=6))
    if any(bracket.coarser and bracket.num_steps for bracket in critical.values()):
        entries.append(mark("critical step", alpha=0.4, linewidth=6))
    legend(figure, entries)
    confidence = percent(validity["confidence"].max())
    return Drawing(
        figure,
        "Accuracy under the training solver minus that in the limit, one mark per seed, with the interval that holds "
        f"together with those of all finer solvers with {confidence} confidence. A verdict needs all of them; those of "
        "the finer solvers are not drawn." + _panels_left(len(groups)),
    )


def _gap_ticks(margin: float) -> list[float]:
    """Enough of them to read a number off a scale that is linear near 0 and logarithmic beyond."""
    above = [margin, *(y for y in (2.0, 5.0, 10.0, 20.0, 50.0, 100.0) if y > 1.5 * margin)]
    return [*(-y for y in reversed(above)), 0.0, *above]


def _gaps(ax: Axes, rows: Frame) -> None:
    """Seeds of one step side by side."""
    for step, seeds in rows.groupby("step"):
        for i, row in enumerate(seeds.sort_values("seed").to_dict("records")):
            x = step * 2 ** (0.13 * (i - (len(seeds) - 1) / 2))
            style = VERDICT_STYLES[row["verdict"]]
            ends = [100 * row["gap_low"], 100 * row["gap_high"]]
            ax.plot([x, x], ends, color=style["color"], linewidth=0.9)
            ax.plot([x], [100 * row["gap"]], linestyle="none", zorder=3, markersize=4, **style)


def draw_order(results: Results) -> Drawing:
    """Distance of the logits to the limit against the step at test: a row per model and training method, a column per
    method at test, a line per training solver."""
    rows = _distances(results)
    if rows.empty:
        return Drawing(None, "No method was judged with at three steps whose logits are apart from those in the limit.")
    groups = list(rows.groupby(["label", "trained_method", "method"], sort=False))
    columns = rows["method"].nunique()
    figure, axes = panels(len(groups[:MAX_PANELS]), columns, 2.3, sharex=True, sharey=True)
    colours = _by_fineness(list(rows["train.solver"].unique()))
    own = _own_distances(results)
    for ax, ((label, trained_method, method), panel) in zip(axes, groups):
        for solver, line in panel.groupby("train.solver", sort=False):
            line = line.sort_values("step")
            ax.plot(line["step"], line["limit_gap"], marker=".", color=colours[solver], linewidth=1)
            if (label, solver, method) in own.index:
                ring = {"marker": "o", "markersize": 8, "markerfacecolor": "none", "linestyle": "none"}
                step, gap = own.loc[(label, solver, method)]
                ax.plot([step], [gap], color=colours[solver], **ring)
        _reference(ax, panel, parse_solver(f"{method}@1").order)  # type: ignore[union-attr]
        set_title(ax, f"{label}, trained with {trained_method},\ntested with {method}", columns)
        ax.set_xscale("log", base=2)
        ax.set_yscale("log")
        ax.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:.0e}".replace("e-0", "e-").replace("e+0", "e+")))
        ax.yaxis.set_minor_locator(NullLocator())
        log_ticks(ax, _fraction)
        ax.tick_params(axis="x", labelsize=7)
    label_bottom(axes, columns, "step at test")
    figure.supylabel(f"mean logit gap to {results.finest}", fontsize=8.5)
    entries = [mark(results.trained(solver), color=colour) for solver, colour in colours.items()]
    ring = mark("training solver", marker="o", markersize=8, markerfacecolor="none", linestyle="none")
    legend(figure, [*entries, ring, mark("order", linestyle="--")])
    return Drawing(
        figure,
        "Means over seeds, a line per training solver; dashed: the slope of the method's order. A flow is approached "
        "with the order of the method, once steps are fine enough; the curve bends where the limit itself is no more "
        "exact." + _panels_left(len(groups)),
    )


def _distances(results: Results) -> Frame:
    """Mean limit_gap by (model, training solver, solver at test) with fixed steps, where a line has three points."""
    table = results.table.assign(limit_gap=results.table["limit_gap"].astype(float))
    table = table[(table["limit_gap"] > 0) & table["solved_with"].map(lambda text: not math.isnan(_fixed_step(text)))]
    table = table[table["solver"] != results.finest]
    table = table.assign(
        step=table["solved_with"].map(_fixed_step).astype(float),
        method=table["solved_with"].map(_method),
        trained_method=table["train.solver"].map(_method),
    )
    line = ["label", "trained_method", "method", "train.solver"]
    at = ["solver", "trained_with"]
    means = table.groupby([*line, *at], sort=False)[["limit_gap", "step"]].mean().reset_index()
    enough = means.groupby(line)["step"].transform("nunique") >= MIN_RUNGS
    return means[enough]


def _own_distances(results: Results) -> Frame:
    """The same under the training solver, whether or not it was among those judged with."""
    rows = results.validity.assign(logit_gap=results.validity["logit_gap"].astype(float))
    rows = rows[(rows["logit_gap"] > 0) & rows["solver"].map(lambda text: not math.isnan(_fixed_step(text)))]
    rows = rows.assign(step=rows["solver"].map(_fixed_step).astype(float), method=rows["solver"].map(_method))
    return rows.groupby(["label", "train.solver", "method"])[["step", "logit_gap"]].mean()


def _reference(ax: Axes, panel: Frame, order: int) -> None:
    """A slope, below the lines' finest ends."""
    fine, coarse = panel["step"].min(), panel["step"].max()
    start = panel.loc[panel["step"] == fine, "limit_gap"].min() / 2.5
    end = min(coarse, fine * (panel["limit_gap"].max() / start) ** (1 / order))
    ax.plot([fine, end], [start, start * (end / fine) ** order], color=GREY, linestyle="--", linewidth=1)


def draw_trajectories(results: Results) -> Drawing:
    """Paths of points in the plane, under the training solver and in the limit, side by side."""
    points = results.trajectories
    if points.empty:
        return Drawing(None, "No paths of points in the plane were followed.")
    jobs = points.sort_values("seed").drop_duplicates(["label", "train.solver"])
    keys = [(label, solver) for label in results.labels for solver in results.training_solvers]
    by_key = {(row["label"], row["train.solver"]): row for row in jobs.to_dict("records")}
    drawn = _some([by_key[key] for key in keys if key in by_key], results)
    figure, axes = panels(2 * len(drawn), 4, 2.15)
    shares = results.validity.drop_duplicates("job").set_index("job")["share_crossing"].astype(float)
    for (own, limit), row in zip(zip(axes[::2], axes[1::2]), drawn):
        paths = points[points["job"] == row["job"]]
        solver = paths["solver"].iloc[0]  # the training's stands first
        share = shares.get(row["job"], math.nan)
        crossing = "" if math.isnan(share) else f"\n{percent(share)} of pairs cross"
        _draw_paths(own, paths[paths["solver"] == solver], f"{row['label']}, {solver}{crossing}")
        _draw_paths(limit, paths[paths["solver"] == results.finest], f"in the limit\n({results.finest})")
    label_bottom(axes, 4, "x")
    figure.supylabel("y", fontsize=8.5)
    classes = sorted(points["target"].unique())
    entries = [mark(f"class {c:g}", color=COLOURS[2 + i % 5]) for i, c in enumerate(classes)]
    start = mark("start", marker="o", linestyle="none", markerfacecolor="white", markersize=4)
    legend(figure, [*entries, start, mark("end", marker="o", linestyle="none", markersize=4)])
    left = f" {len(drawn)} of {len(by_key)} models are drawn." if len(drawn) < len(by_key) else ""
    return Drawing(
        figure,
        "The first seed of each model. Through a point of the plane goes one solution of an autonomous ODE: where "
        f"paths cross, they are no solutions. The share is that of all pairs that were followed.{left}",
    )


def _some(jobs: list[Any], results: Results) -> list[Any]:
    """At most MAX_MODELS: both sides of each critical step, then the ends, then those in between."""
    if len(jobs) <= MAX_MODELS:
        return jobs
    brackets = {
        (ladder.label, f"{ladder.method}@{n}")
        for ladder in results.ladders().values()
        for n in (ladder.critical.coarser, ladder.critical.num_steps)
    }
    first = [i for i, row in enumerate(jobs) if (row["label"], row["train.solver"]) in brackets]
    spread = [round(i * (len(jobs) - 1) / (MAX_MODELS - 1)) for i in range(MAX_MODELS)]
    ends_first = sorted(spread, key=lambda i: i not in (0, len(jobs) - 1))
    chosen = list(dict.fromkeys([*first, *ends_first]))[:MAX_MODELS]
    return [jobs[i] for i in sorted(chosen)]


def _draw_paths(ax: Axes, rows: Frame, title: str) -> None:
    classes = sorted(rows["target"].unique())
    for i, target in enumerate(classes):
        colour = COLOURS[2 + i % 5]
        paths = [path.sort_values("depth") for _, path in rows[rows["target"] == target].groupby("path")]
        lines = [path[["x", "y"]].to_numpy() for path in paths]
        ax.add_collection(LineCollection(lines, colors=colour, linewidths=0.6, alpha=0.7))
        ends: dict[int, dict[str, Any]] = {0: {"markerfacecolor": "white", "zorder": 3}, -1: {"zorder": 4}}
        for place, style in ends.items():
            x, y = zip(*(line[place] for line in lines))
            ax.plot(x, y, linestyle="none", marker="o", markersize=2.6, markeredgewidth=0.6, color=colour, **style)
    ax.autoscale_view()
    ax.set_aspect("equal", adjustable="datalim")
    ax.locator_params(nbins=4)
    ax.ticklabel_format(scilimits=(-3, 4))  # the flow of a discrete net may end anywhere
    set_title(ax, title, 4)


def _panels_left(count: int) -> str:
    return f" The first {MAX_PANELS} of {count} panels are drawn; the tables hold all." if count > MAX_PANELS else ""


def _by_fineness(solvers: list[str]) -> dict[str, Any]:
    """A colour each: dark is coarse, light is fine, among those of one method."""
    colours = {}
    for solver in solvers:
        same = sorted((s for s in solvers if _method(s) == _method(solver)), key=_step, reverse=True)
        colours[solver] = mpl.colormaps["viridis"](0.9 * same.index(solver) / max(len(same) - 1, 1))
    return colours


def _method(solver: str) -> str:
    return solver.partition("@")[0]


def _step(text: str) -> float:
    """The step, or the tolerance of a solver that chooses its steps."""
    solver = parse_solver(text)
    return max(solver.rtol, solver.atol) if isinstance(solver, Adaptive) else _fixed_step(text)


def _fixed_step(text: str) -> float:
    solver = parse_solver(text)
    return 1 / solver.num_steps if isinstance(solver, Fixed | Implicit) else math.nan


def _step_axis(ax: Axes, solvers: list[str]) -> None:
    adaptive = isinstance(parse_solver(solvers[0]), Adaptive)
    ax.set_xscale("log", base=10 if adaptive else 2)
    if adaptive:
        ax.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:.0e}"))
        ax.xaxis.set_minor_locator(NullLocator())
    else:
        log_ticks(ax, _fraction)


def _fraction(x: float) -> str:
    return "1" if x >= 1 else f"1/{round(1 / x)}"
