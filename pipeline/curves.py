"""Results -> figures of the trainings themselves: learned weights over depth, accuracy by epoch."""

from __future__ import annotations

from pipeline.drawing import (
    MAX_COLUMNS,
    ORANGE,
    Drawing,
    band,
    handles,
    label_bottom,
    left_out,
    legend,
    panels,
    set_title,
    styles,
)
from pipeline.tables import Results

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
        set_title(ax, f"{name}[{entry}], {solver}", columns)
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
    figure, axes = panels(len(results.training_solvers), 2, 2.7, sharex=True, sharey=True)
    ends = curves[curves["job"].isin(results.stopped["job"])].drop_duplicates("job", keep="last")
    converted = curves.assign(before=curves.groupby("job")["epoch"].shift())  # the end of the phase before
    converted = converted[converted["converted_accuracy"].notna()]
    for ax, solver in zip(axes, results.training_solvers):
        for label, style in styles(results.labels).items():
            chosen = (bands["train.solver"] == solver) & (bands["label"] == label)
            band(ax, bands[chosen], "epoch", {**style, "marker": "none"})
            rows = converted[(converted["train.solver"] == solver) & (converted["label"] == label)]
            hollow = {"marker": "o", "linestyle": "none", "markersize": 5, "markerfacecolor": "white"}
            ax.plot(rows["before"], 100 * rows["converted_accuracy"], color=style["color"], zorder=4, **hollow)
        rows = ends[ends["train.solver"] == solver]
        cross = {"marker": "x", "linestyle": "none", "color": ORANGE, "markersize": 8, "markeredgewidth": 2}
        ax.plot(rows["epoch"], 100 * rows["validation_accuracy"], **cross)
        set_title(ax, f"trained with {solver}", 2)
    label_bottom(axes, 2, "epoch")
    figure.supylabel("validation accuracy (%)", fontsize=8.5)
    legend(figure, handles(results.labels, marker="none"))
    caption = "Means over seeds; bands span the seeds."
    if len(converted):
        caption += " Hollow: a seed at the moment when one phase gave way to the next."
    if len(results.stopped):
        caption += " Crosses: a training that stopped here."
    return Drawing(figure, caption + left_out(results))
