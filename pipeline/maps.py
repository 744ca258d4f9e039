"""Results -> the heat map: models under other solvers than that of their training.

Where one model was trained with a method at three step counts or more, a *ladder*, the rows of its panel are the
training solvers, from coarse to fine, with their verdicts and the critical step between them. All other rows stand in
panels by training solver.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import groupby
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle
from matplotlib.patheffects import withStroke
from matplotlib.transforms import ScaledTranslation

from gode_core.solvers import parse_solver
from gode_core.validity import may_be_finer
from pipeline.drawing import GREEN, GREY, ORANGE, WIDTH, Drawing
from pipeline.judgement import margins_in_print
from pipeline.ladders import Ladder
from pipeline.tables import OWN, Frame, Results

MAX_NUMBERED_ROWS = 60  # beyond these (or these columns) cells have no room for numbers
MAX_NUMBERED_COLUMNS = 28
MAX_DECIMAL_COLUMNS = 16  # beyond these, numbers are whole, and without their deviation
FADED = 0.62  # how white lies on what says nothing


@dataclass(frozen=True)
class Row:
    """One model under all solvers. trained: its training solver; cells: one mapping per column that is there."""

    name: str
    label: str
    trained: str
    cells: list[dict[str, Any]]


@dataclass(frozen=True)
class Panel:
    title: str
    rows: list[Row]
    ladder: Ladder | None


def draw_cross_solver(results: Results) -> Drawing:
    """Heat map: models (rows) against the solver at test (columns)."""
    cells = results.cells.assign(faded=_faded(results))
    found = _panels(results, cells)
    num_rows, num_columns = sum(len(panel.rows) for panel in found), len(results.solvers)
    numbered = num_rows <= MAX_NUMBERED_ROWS and num_columns <= MAX_NUMBERED_COLUMNS
    decimals = num_columns <= MAX_DECIMAL_COLUMNS
    height = (0.34 if decimals else 0.265) if numbered else min(0.16, 40 / num_rows)  # inches of a row
    figure = Figure((WIDTH, 1.45 + 0.36 * len(found) + height * num_rows), layout="constrained")
    figure.get_layout_engine().set(w_pad=0.02, h_pad=0.03)  # type: ignore[union-attr]
    heights = [len(panel.rows) for panel in found]
    axes = list(figure.subplots(len(found), 1, sharex=True, squeeze=False, height_ratios=heights)[:, 0])
    low, high = 100 * cells["mean"].min(), 100 * cells["mean"].max()
    image: Any = None
    for ax, panel in zip(axes, found):
        limits = {"vmin": min(low, high - 1), "vmax": high}
        image = _draw_panel(ax, panel, results.solvers, limits, None if numbered else 64 * height)
        for y, row in enumerate(panel.rows):
            for cell in row.cells:
                x = results.solvers.index(cell["solver"])
                if cell["faded"]:
                    ax.add_patch(Rectangle((x, y), 1, 1, facecolor="white", alpha=FADED, linewidth=0))
                if numbered:
                    _write_cell(ax, cell, x, y, image, decimals)
        _outline(ax, panel, results.solvers)
        _write_verdicts(ax, panel, results)
    _name_columns(axes[-1], results.solvers)
    split = results.experiment.evaluate_with.split
    bar = {"label": f"{split} accuracy (%)", "location": "bottom", "aspect": 60, "pad": 0.01, "shrink": 0.5}
    figure.colorbar(image, ax=axes, **bar)
    if cells["faded"].any():
        pale = Patch(facecolor="#d9d9d9", label="pale: coarser than the training, says nothing")
        axes[0].legend(handles=[pale], loc="lower right", bbox_to_anchor=(1, 1), borderaxespad=0, handlelength=1)
    return Drawing(figure, _caption(results, cells, found, numbered, decimals))


def _panels(results: Results, cells: Frame) -> list[Panel]:
    """Ladders, one panel each; then what stands on none, by training solver."""
    rows = {key: some.to_dict("records") for key, some in cells.groupby(["label", "train.solver"], sort=False)}
    found = []
    for ladder in results.ladders().values():
        names = [f"{ladder.method}@{n}" for n in ladder.counts]
        steps = [Row(name, ladder.label, name, rows.pop((ladder.label, name))) for name in names]
        found.append(Panel(f"{ladder.label}, trained with {ladder.method}", steps, ladder))
    rest = [Row(label, label, solver, some) for (label, solver), some in rows.items()]
    for solver in results.training_solvers:
        if some := [row for row in rest if row.trained == solver]:
            found.append(Panel(f"trained with {results.trained(solver)}", some, None))
    return found


def _faded(results: Results) -> Frame:
    """For each cell, whether its solver is coarser than that of the training: it cannot be finer, or it is farther from
    the limit, for most seeds. Such a cell is no evidence."""
    table = results.table
    own = results.validity.drop_duplicates("job").set_index("job")["logit_gap"].astype(float)
    farther = table["limit_gap"].astype(float) - table["job"].map(own) > 0
    cannot = [not may_be_finer(*map(parse_solver, pair)) for pair in zip(table["solved_with"], _ended_with(results))]
    table = table.assign(coarser=[a or b for a, b in zip(farther, cannot)])
    shares = table.groupby(["train.solver", "label", "solver"], sort=False)["coarser"].mean()
    keys = results.cells[["train.solver", "label", "solver", "trained_with"]].itertuples(index=False, name=None)
    return [solver != trained and shares[train, label, solver] > 0.5 for train, label, solver, trained in keys]


def _ended_with(results: Results) -> list[str]:
    """For each row of the table the solver of the training, at its end."""
    table, ended = results.table, results.curves.drop_duplicates("job", keep="last").set_index("job")["solver"]
    rows = zip(table["job"], table["trained_with"], table["train.solver"])
    return [str(ended[job]) if trained == OWN else solver for job, trained, solver in rows]


def _draw_panel(ax: Axes, panel: Panel, solvers: list[str], limits: dict[str, Any], size: float | None) -> Any:
    values = np.full((len(panel.rows), len(solvers)), np.nan)
    for y, row in enumerate(panel.rows):
        for cell in row.cells:
            values[y, solvers.index(cell["solver"])] = 100 * cell["mean"]
    image = ax.pcolormesh(values, cmap="cividis", edgecolors="white", linewidth=0.8, **limits)
    ax.set_yticks(np.arange(len(panel.rows)) + 0.5, [row.name for row in panel.rows], fontsize=size)
    ax.set_title(panel.title, loc="left", fontweight="bold")
    ax.invert_yaxis()
    ax.grid(False)
    ax.tick_params(length=0)
    for side in ("left", "bottom"):
        ax.spines[side].set_visible(False)
    return image


def _write_cell(ax: Axes, cell: dict[str, Any], x: int, y: int, image: Any, decimals: bool) -> None:
    mean = 100 * cell["mean"]
    colour = "#555555" if cell["faded"] else "white" if image.norm(mean) < 0.6 else "black"
    style: dict[str, Any] = {"color": colour, "ha": "center", "va": "center", "in_layout": False}
    several = cell["num_jobs"] > 1 and decimals
    text = (f"{mean:.1f}" if decimals else f"{mean:.0f}") + ("†" if cell["num_failed"] else "")
    ax.text(x + 0.5, y + (0.36 if several else 0.52), text, fontsize=8.5 if decimals else 7.6, **style)
    if several:
        ax.text(x + 0.5, y + 0.74, f"±{100 * cell['std']:.1f}", fontsize=6.5, **style)


def _outline(ax: Axes, panel: Panel, solvers: list[str]) -> None:
    """The cells of the training solver: neighbours of one column in one frame."""
    names = [row.cells[0]["trained_with"] for row in panel.rows]
    y = 0
    for name, same in groupby(names):
        height = len(list(same))
        if name in solvers:
            style = {"fill": False, "edgecolor": ORANGE, "linewidth": 2.2, "clip_on": False, "zorder": 5}
            ax.add_patch(Rectangle((solvers.index(name), y), 1, height, **style))
        y += height


def _write_verdicts(ax: Axes, panel: Panel, results: Results) -> None:
    """How many seeds are an ODE, at each row's end; the critical step between two rows."""
    right = len(results.solvers)
    for y, row in enumerate(panel.rows):
        chosen = (results.validity["label"] == row.label) & (results.validity["train.solver"] == row.trained)
        verdicts = list(results.validity.loc[chosen, "verdict"])
        if verdicts:
            ode, open_ = verdicts.count("ode"), verdicts.count("undecided")
            text = f"ode {ode}/{len(verdicts)}" + (f", ? {open_}" if open_ else "")
            style: dict[str, Any] = {"color": GREEN, "fontweight": "bold"} if ode == len(verdicts) else {"color": GREY}
            ax.text(right + 0.25, y + 0.52, text, va="center", fontsize=7.6, **style)
    if panel.ladder is None:
        return
    lines = {"critical step": panel.ladder.critical}
    for margin in margins_in_print(results):
        critical = results.ladders(margin)[panel.ladder.label, panel.ladder.method].critical
        if critical.num_steps != panel.ladder.critical.num_steps:
            lines[f"{100 * margin:g} points allowed"] = critical
    for name, critical in lines.items():
        if critical.num_steps is not None and critical.coarser is not None:
            _draw_line(ax, panel.ladder.counts.index(critical.num_steps), right, name)


def _draw_line(ax: Axes, y: int, right: int, name: str) -> None:
    halo = [withStroke(linewidth=4.4, foreground="white")]
    line = "-" if name == "critical step" else (0, (3, 1.2))
    ax.plot(
        [0, right], [y, y], color="black", linewidth=2.6, linestyle=line, clip_on=False, zorder=6, path_effects=halo
    )
    ax.text(right + 0.25, y, name, va="center", fontsize=7.6, fontweight="bold", fontstyle="italic")


def _name_columns(ax: Axes, solvers: list[str]) -> None:
    """Step counts below the columns and the method below those of one method; full names where that has no room."""
    parts = [solver.partition("@") for solver in solvers]
    runs = [(method, len(list(same))) for method, same in groupby(method for method, _, _ in parts)]
    places = np.arange(len(solvers)) + 0.5
    if not _has_room(runs, [rest for _, _, rest in parts], 0.8 * WIDTH / len(solvers)):
        ax.set_xticks(places, solvers, rotation=40, ha="right", rotation_mode="anchor")
        ax.set_xlabel("solver at test (outlined: that of the training)")
        return
    ax.set_xticks(places, [rest or method for method, _, rest in parts], fontsize=7.2)
    figure, start = ax.get_figure(), 0
    assert isinstance(figure, Figure)
    below, under = (
        ax.get_xaxis_transform() + ScaledTranslation(0, -points / 72, figure.dpi_scale_trans) for points in (16, 23)
    )
    for method, count in runs:
        ends = [start + 0.12, start + count - 0.12]
        start += count
        if method != OWN:
            ax.plot(ends, [0, 0], transform=below, color=GREY, linewidth=0.9, clip_on=False, in_layout=False)
            style = {"ha": "center", "va": "center", "fontsize": 7.8, "fontweight": "bold", "in_layout": False}
            ax.text(sum(ends) / 2, 0, method, transform=under, **style)
    ax.tick_params(axis="x", pad=3)
    ax.set_xlabel(
        "solver at test: its steps or tolerance, and its method (outlined: that of the training)", labelpad=21
    )


def _has_room(runs: list[tuple[str, int]], counts: list[str], width: float) -> bool:
    """Whether step counts fit below columns of `width` inches, and methods below their runs."""
    ends = np.cumsum([count for _, count in runs])
    middle = [width * (end - count / 2) for end, (_, count) in zip(ends, runs)]
    half = [0 if method == OWN else 0.034 * len(method) for method, _ in runs]  # inches; bold letters of 7.8 points
    apart = all(b - a >= x + y + 0.03 for a, b, x, y in zip(middle, middle[1:], half, half[1:]))
    return apart and len(runs) < len(counts) / 2 and max(map(len, counts)) * 0.062 <= width


def _caption(results: Results, cells: Frame, found: list[Panel], numbered: bool, decimals: bool) -> str:
    caption = f"Mean {results.experiment.evaluate_with.split} accuracy in % over seeds"
    if numbered and decimals:
        caption += "; below it, where there are several seeds, their standard deviation in points"
    if cells["num_failed"].any() and numbered:
        caption += "; †: for at least one seed the training or a solve failed"
    if any(solver.startswith("layers@") for solver in results.solvers) and len(results.solvers) > 1:
        caption += "; empty: a discrete net, which is judged by its own layers alone"
    if OWN in results.solvers:
        caption += "; own: the solver that a seed's training came to"
    caption += ". Outlined: the training solver."
    if cells["faded"].any():
        caption += (
            " Pale: a solver farther from the limit than that of the training, which says nothing about the model."
        )
    if len(results.validity):
        caption += " At the right: how many seeds are an ODE (?: undecided)."
    return caption
