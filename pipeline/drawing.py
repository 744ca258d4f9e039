"""How figures look: colours, panels, legends, files.

Colours are those of Okabe and Ito (2008), readable by the colour-blind; markers or line styles repeat what they say,
for print.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from pipeline.tables import Frame, Results

COLOURS = ("#000000", "#E69F00", "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9")  # yellow is lost on white
GREY, ORANGE, GREEN = "#666666", "#D55E00", "#009E73"
MARKERS = "os^Dv<>PX"
LINES = ("-", (0, (5, 1.5)), (0, (1.5, 1)), (0, (5, 1.2, 1.2, 1.2)))
MAX_LINES = 16  # models that one panel can tell apart
MAX_COLUMNS = 4  # panels side by side
MAX_PANELS = 48  # matplotlib draws no more than 65,536 pixels upwards
WIDTH = 8.0  # inches
STYLE: dict[Any, Any] = {
    "font.size": 8.5,
    "axes.titlesize": 8.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#dddddd",
    "grid.linewidth": 0.6,
    "axes.axisbelow": True,
    "lines.linewidth": 1.3,
    "lines.markersize": 4.5,
    "legend.frameon": False,
    "text.parse_math": False,  # a `$` in a name is a `$`
}


@dataclass(frozen=True)
class Drawing:
    """A figure (None: there is nothing to draw) and the sentences below it."""

    figure: Figure | None
    caption: str


def render(figure: Figure) -> dict[str, bytes]:
    """The figure's files by suffix. The same figure gives the same bytes: no dates inside."""
    with mpl.rc_context(STYLE):
        files = {}
        if engine := figure.get_layout_engine():
            engine.execute(figure)
            figure.set_layout_engine(None)  # the places found hold for both files: half the time
        formats: dict[str, dict[str, Any]] = {
            "png": {"dpi": 200, "pil_kwargs": {"compress_level": 3}},
            "pdf": {"metadata": {"CreationDate": None}},
        }
        for suffix, options in formats.items():
            buffer = io.BytesIO()
            figure.savefig(buffer, format=suffix, **options)
            files[suffix] = buffer.getvalue()
        return files


def in_words(figure: Figure) -> str:
    """For who does not see it: its panels and axes."""
    axes = [ax for ax in figure.axes if ax.get_visible()]
    titles = [title for ax in axes if (title := ax.get_title() or ax.get_title(loc="left"))]
    across = dict.fromkeys(text for ax in axes if (text := ax.get_xlabel()))
    across = across or dict.fromkeys(text for ax in axes for tick in ax.get_xticklabels() if (text := tick.get_text()))
    upwards = dict.fromkeys(text for ax in axes if (text := ax.get_ylabel() or figure.get_supylabel()))
    parts = ["1 panel" + "".join(f": {title}" for title in titles)]
    if len(titles) > 1:
        parts = [f"{len(titles)} panels, from {titles[0]} to {titles[-1]}"]
    parts += [f"Across: {'; '.join(across)}"] if across else []
    parts += [f"Upwards: {'; '.join(upwards)}"] if upwards else []
    return " ".join(f"{part}.".replace("\n", " ") for part in parts)


def panels(count: int, columns: int, height: float, **share: Any) -> tuple[Figure, list[Axes]]:
    """`count` panels, in rows of `columns` (at most MAX_COLUMNS) and `height` inches."""
    columns = min(columns, MAX_COLUMNS, count)
    rows = math.ceil(count / columns)
    figure = Figure((WIDTH, rows * height + 0.9), layout="constrained")
    axes = list(figure.subplots(rows, columns, squeeze=False, **share).flat)
    for ax in axes[count:]:
        ax.set_visible(False)
    for ax in axes[max(count - columns, 0) : count]:
        ax.tick_params(labelbottom=True)  # the last panel of a column may stand above an empty place
    return figure, axes[:count]


def styles(names: list[str]) -> dict[str, dict[str, Any]]:
    """How the first MAX_LINES names are drawn, the same in every panel and figure."""
    return {
        name: {
            "color": COLOURS[i % len(COLOURS)],
            "marker": MARKERS[i % len(MARKERS)],
            "linestyle": LINES[i % len(LINES)],
        }
        for i, name in enumerate(names[:MAX_LINES])
    }


def left_out(results: Results) -> str:
    total = len(results.labels)
    return f" The first {MAX_LINES} of {total} models are drawn; the table holds all." if total > MAX_LINES else ""


def some_solvers(solvers: list[str], panels_each: int = 1) -> tuple[list[str], str]:
    """The training solvers that a figure has room for, and a sentence if they are not all."""
    shown, total = solvers[: max(1, MAX_PANELS // panels_each)], len(solvers)
    if len(shown) == total:
        return shown, ""
    return shown, f" The first {len(shown)} of {total} training solvers are drawn; the table holds all."


def band(ax: Axes, rows: Frame, x: str, style: dict[str, Any]) -> None:
    """The mean over seeds as a line, their range as a band."""
    ax.plot(rows[x], 100 * rows["mean"], **style)
    if (rows["min"] < rows["max"]).any():
        there_and_back = pd.concat([rows[x], rows[x][::-1]]), 100 * pd.concat([rows["min"], rows["max"][::-1]])
        ax.fill(*there_and_back, color=style["color"], alpha=0.15, linewidth=0)  # fill_between takes ten times as long


def log_ticks(ax: Axes, text: Callable[[float], str]) -> None:
    ax.xaxis.set_major_locator(LogLocator(base=2, numticks=9))
    ax.xaxis.set_major_formatter(FuncFormatter(lambda x, _: text(x)))
    ax.xaxis.set_minor_locator(NullLocator())


def set_title(ax: Axes, text: str, columns: int) -> None:
    """A title, smaller if it would run into that of the next of `columns` panels."""
    longest = max(len(line) for line in text.split("\n"))
    ax.set_title(text, fontsize=8.5 * min(1, 90 / min(columns, MAX_COLUMNS) / longest))


def label_bottom(axes: list[Axes], columns: int, text: str) -> None:
    """Name the x axis below the last panel of each column (figure.supxlabel would collide with the legend)."""
    for ax in axes[-min(columns, MAX_COLUMNS) :]:
        ax.set_xlabel(text)


def label_accuracy(figure: Figure, results: Results) -> None:
    figure.supylabel(f"{results.experiment.evaluate_with.split} accuracy (%)", fontsize=8.5)


def mark(label: str, **style: Any) -> Line2D:
    """An entry of a legend; grey stands for any colour."""
    return Line2D([], [], label=label, **{"color": GREY, **style})


def handles(names: list[str], **over: Any) -> list[Line2D]:
    """A legend's entries for names in their styles."""
    return [mark(name, **{**style, **over}) for name, style in styles(names).items()]


def legend(figure: Figure, entries: list[Line2D]) -> None:
    """Below the panels, in as many columns as the names leave room for."""
    longest = max(len(str(entry.get_label())) for entry in entries)
    columns = max(1, min(len(entries), int(110 / (longest + 7))))
    figure.legend(handles=entries, loc="outside lower center", ncols=columns)
