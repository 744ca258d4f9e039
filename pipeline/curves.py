"""Results -> figures of the trainings themselves: learned weights over depth, accuracy by epoch, changes of solver."""

from __future__ import annotations

from itertools import cycle
from typing import Any

from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, NullLocator

from gode_core.intervals import best_guess
from gode_core.solvers import Adaptive, parse_solver
from pipeline.drawing import (
    COLOURS,
    GREY,
    LINES,
    MAX_COLUMNS,
    ORANGE,
    Drawing,
    band,
    handles,
    label_bottom,
    left_out,
    legend,
    mark,
    panels,
    set_title,
    some_solvers,
    styles,
)
from pipeline.tables import RULE, Frame, Results

MAX_ENTRIES = 6  # of weights
SMOOTH = ("hat", "fourier", "legendre", "chebyshev")  # bases without jumps, whatever their degree


def draw_weights(results: Results) -> Drawing:
    """Learned theta(t): a row of panels per weight entry, a column per training solver."""
    weights = results.weights[results.weights["value"].notna()]
    if weights.empty:
        return Drawing(None, "The jobs wrote no values of weights over depth.")
    seed = weights["seed"].min()
    weights = weights[weights["seed"] == seed]
    models = results.table.drop_duplicates("label").set_index("label")
    smooth = (models["model.basis.degree"] > 0) | models["model.basis.kind"].isin(SMOOTH)
    smooth |= models["model.family"] == "evolving"
    entries = list(weights[["weight", "entry"]].drop_duplicates().itertuples(index=False, name=None))
    solvers = results.training_solvers[:MAX_COLUMNS]
    names = [(*entry, solver) for entry in entries[:MAX_ENTRIES] for solver in solvers]
    columns = len(solvers) if len(solvers) > 1 else 3
    figure, axes = panels(len(names), columns, 1.7, sharex=True)
    for ax, (weight, entry, solver) in zip(axes, names):
        chosen = (weights["weight"] == weight) & (weights["entry"] == entry) & (weights["train.solver"] == solver)
        for label, style in styles(results.labels).items():
            rows = weights[chosen & (weights["label"] == label)].sort_values("depth")
            # degree 0 holds its value up to the next knot: a slanted line would be another function
            steps = "default" if smooth[label] else "steps-post"
            ax.plot(rows["depth"], rows["value"], drawstyle=steps, **{**style, "marker": "none"})
        name = weight if len(weight) <= 26 else "…" + weight[-25:]
        set_title(ax, f"{name}[{entry}], {results.trained(solver)}", columns)
        ax.set_xlim(0, 1)
    label_bottom(axes, columns, "depth t")
    figure.supylabel("weight θ(t)", fontsize=8.5)
    legend(figure, handles(results.labels, marker="none"))
    caption = f"Seed {seed}. Above each panel: the weight, its entry, and the training solver."
    if len(entries) > MAX_ENTRIES or len(results.training_solvers) > MAX_COLUMNS:
        caption += (
            f" The first {len(solvers)} training solvers and {MAX_ENTRIES} entries are drawn; weights.csv holds all."
        )
    return Drawing(figure, caption + left_out(results))


def draw_training(results: Results) -> Drawing:
    """Validation accuracy by epoch; a cross where a training stopped."""
    curves = results.curves[results.curves["validation_accuracy"].notna()]
    if curves.empty:
        return Drawing(None, "No job has validation images: there are no validation curves.")
    grouped = curves.groupby(["train.solver", "label", "epoch"])["validation_accuracy"]
    bands = grouped.agg(["mean", "min", "max"]).reset_index()
    solvers, more = some_solvers(results.training_solvers)
    figure, axes = panels(len(solvers), 2, 2.7, sharex=True, sharey=True)
    ends = curves[curves["job"].isin(results.stopped["job"])].drop_duplicates("job", keep="last")
    converted = curves.assign(before=curves.groupby("job")["epoch"].shift())  # the end of the phase before
    converted = converted[converted["converted_accuracy"].notna()]
    for ax, solver in zip(axes, solvers):
        for label, style in styles(results.labels).items():
            chosen = (bands["train.solver"] == solver) & (bands["label"] == label)
            band(ax, bands[chosen], "epoch", {**style, "marker": "none"})
            rows = converted[(converted["train.solver"] == solver) & (converted["label"] == label)]
            hollow = {"marker": "o", "linestyle": "none", "markersize": 5, "markerfacecolor": "white"}
            ax.plot(rows["before"], 100 * rows["converted_accuracy"], color=style["color"], zorder=4, **hollow)
        rows = ends[ends["train.solver"] == solver]
        cross = {"marker": "x", "linestyle": "none", "color": ORANGE, "markersize": 8, "markeredgewidth": 2}
        ax.plot(rows["epoch"], 100 * rows["validation_accuracy"], **cross)
        set_title(ax, f"trained with {results.trained(solver)}", 2)
    label_bottom(axes, 2, "epoch")
    figure.supylabel("validation accuracy (%)", fontsize=8.5)
    legend(figure, handles(results.labels, marker="none"))
    caption = "Means over seeds; bands span the seeds."
    if len(converted):
        caption += " Hollow: a seed at the moment when one phase gave way to the next."
    if len(results.stopped):
        caption += " Crosses: a training that stopped here."
    return Drawing(figure, caption + left_out(results) + more)


def draw_decisions(results: Results) -> Drawing:
    """What a rule made of the solver: steps, or tolerance, over the training, and the accuracy that the checks saw
    beneath. A column per model and training solver, a line per seed."""
    decisions = results.decisions
    if decisions.empty:
        return Drawing(None, "No training changed its solver.")
    groups = list(decisions.groupby(["label", "train.solver"], sort=False))
    columns = min(len(groups), MAX_COLUMNS)
    figure, axes = panels(2 * columns, columns, 2.2, sharex="col")
    rules = results.table.drop_duplicates("job").set_index("job")[RULE]
    looks = _looks(sorted(decisions["seed"].unique()))
    for above, below, ((label, solver), rows) in zip(axes[:columns], axes[columns:], groups):
        for number, seed in rows.groupby("seed"):
            style = {**looks[number], "linewidth": 0.9}
            size = seed["next_solver"].map(_size)
            ends = results.curves.loc[results.curves["job"].isin(seed["job"]), "step"].max()
            above.plot([*seed["step"], ends], [*size, size.iloc[-1]], drawstyle="steps-post", **style)
            below.plot(seed["step"], 100 * seed["accuracy"].astype(float), **style)
            limit = seed[seed["action"] == "limit"]
            above.plot(limit["step"], limit["next_solver"].map(_size), "x", color=style["color"], markersize=4)
        for ax in (above, below):
            _shade_chance(ax, rows, results)
        rule = "" if "rule=" in label else f" rule={rules[rows['job'].iloc[0]]}"
        set_title(above, f"{label}{rule}\nbegun with {solver}", columns)
        _size_axis(above, solver)
        below.set_ylim(0, 102)
    label_bottom(axes, columns, "optimiser step")
    axes[columns].set_ylabel("accuracy at the check (%)")
    named = list(looks)[: len(COLOURS) * len(LINES)]
    entries = [mark(f"seed {seed}", **looks[seed]) for seed in named]
    shade = mark("accuracy at chance", color=GREY, alpha=0.3, linewidth=6)
    legend(figure, [*entries, shade, mark("held at its limit", marker="x", linestyle="none")])
    more = f" The first {columns} of {len(groups)} are drawn." if len(groups) > columns else ""
    more += f" The {len(looks) - len(named)} last seeds look like the first." if len(named) < len(looks) else ""
    return Drawing(
        figure,
        "What each training solved with. Shaded: checks at which the accuracy, in the mean over seeds, is that of a "
        f"guess, where two solvers agree whatever they are.{more}",
    )


def _looks(seeds: list[int]) -> dict[int, dict[str, Any]]:
    """A colour and a kind of line for each, the same in all panels."""
    styles = [{"linestyle": line, "color": colour} for line in LINES for colour in COLOURS]
    return dict(zip(seeds, cycle(styles)))


def _size(text: str) -> float:
    """The number of steps, or the tolerance."""
    solver = parse_solver(text)
    return solver.rtol if isinstance(solver, Adaptive) else getattr(solver, "num_steps", float("nan"))


def _size_axis(ax: Axes, solver: str) -> None:
    adaptive = isinstance(parse_solver(solver), Adaptive)
    ax.set_yscale("log", base=10 if adaptive else 2)
    ax.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:.0e}" if adaptive else f"{y:g}"))
    ax.yaxis.set_minor_locator(NullLocator())
    ax.set_ylabel("tolerance" if adaptive else "steps of a solve")


def _shade_chance(ax: Axes, rows: Frame, results: Results) -> None:
    """Where a check, of at least a batch of each seed, saw no more than the accuracy of a guess."""
    config = results.experiment.jobs[rows["job"].iloc[0]]
    checks = rows[rows["accuracy"].notna()].groupby("step")["accuracy"]
    seen, images = checks.mean().astype(float), checks.size() * config.train.batch_size
    guess = seen <= best_guess(1 / config.data.classes, images, results.experiment.evaluate_with.confidence)
    where = {"transform": ax.get_xaxis_transform(), "color": GREY, "alpha": 0.2, "linewidth": 0, "step": "post"}
    ax.fill_between(seen.index, 0, 1, where=guess.to_numpy(), **where)
