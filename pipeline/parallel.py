"""Parallel coordinates: an upright axis for each varied field and one for the goal, and a line for each trial."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from matplotlib.ticker import MaxNLocator

from pipeline.drawing import ORANGE
from pipeline.search_config import GOALS, Goal
from pipeline.search_table import column_of
from pipeline.space import Domain
from pipeline.tables import Frame
from pipeline.tried import option_texts

MAP = mpl.colormaps["viridis"]
BRIGHTEST = 0.92  # of the map: yellow is lost on white
SPREAD = 0.06  # of an axis, over which lines that share a value of a list are spread, at most
TICK = 22  # letters of a line of a value's name


def draw_axes(figure: Figure, domains: Mapping[str, Domain], trials: Frame, goals: Mapping[Goal, str]) -> Any:
    """Into an empty figure; returns a colour that stands for any line. trials: those that have a value of each goal;
    goals: with their names, the one that colours the lines first."""
    ax = figure.add_subplot()
    columns = [column_of(path) for path in domains]
    places = [_places(domain, trials[column].to_numpy()) for column, domain in zip(columns, domains.values())]
    scales = [_Scale.of(goal, trials[goal].astype(float).to_numpy()) for goal in reversed(list(goals))]
    heights = np.column_stack([*places, *(scale.heights for scale in scales)])
    first, goal = scales[-1].heights, next(iter(goals))
    order = np.argsort(first if GOALS[goal] == "max" else -first, kind="stable")  # the best are drawn last
    whole, won = (trials["outcome"] == "finished").to_numpy(), trials["winner"].to_numpy()
    for rank, i in enumerate(order):
        _line(ax, heights[i], MAP(BRIGHTEST * first[i]), bool(whole[i]), bool(won[i]), rank)
    for x, domain in enumerate(domains.values()):
        _name_ticks(ax, x, domain)
    for x, scale in enumerate(scales, len(columns)):
        _upright(ax, x, scale.ticks)
    end = len(columns) + len(scales) - 1
    strip = MAP(BRIGHTEST * np.linspace(0, 1, 256))[:, None]
    ax.imshow(strip, extent=(end - 0.025, end + 0.025, 0, 1), origin="lower", aspect="auto", zorder=2.9)
    names = [name.replace(" (", "\n(") for name in reversed(list(goals.values()))]
    ax.set_xticks(range(end + 1), [*map(_wrapped, columns), *names], fontsize=8)
    ax.tick_params(axis="x", length=0, pad=8)
    ax.set_xlim(-0.25, end + 0.35)
    ax.set_ylim(-0.06, 1.06)
    ax.set_yticks([])
    ax.grid(visible=False)
    for side in ax.spines.values():
        side.set_visible(False)
    return MAP(0.5 * BRIGHTEST)


@dataclass(frozen=True)
class _Scale:
    """The axis of a goal: where each trial crosses it, from 0 to 1, and its ticks."""

    heights: np.ndarray
    ticks: list[tuple[float, str]]

    @staticmethod
    def of(goal: Goal, values: np.ndarray) -> _Scale:
        if goal == "validation_accuracy":
            values = 100 * values
        low, high = float(values.min()), float(values.max())
        if goal == "num_evals" and 0 < 2 * low <= high:
            numbers = 2.0 ** np.arange(math.ceil(math.log2(low)), math.floor(math.log2(high)) + 1)
            turn = np.log2
        else:
            low, high = (low, high) if high > low else (low - 0.5, high + 0.5)
            numbers = np.array([n for n in MaxNLocator(5).tick_values(low, high) if low <= n <= high])
            turn = np.asarray

        def place(x: Any) -> Any:
            return (turn(x) - turn(low)) / (turn(high) - turn(low))

        return _Scale(place(values), [(float(place(n)), f"{n:.4g}") for n in numbers])


def _line(ax: Axes, heights: np.ndarray, colour: Any, whole: bool, winner: bool, rank: int) -> None:
    style: dict[str, Any] = {"linewidth": 1.4} if whole else {"linewidth": 0.9, "linestyle": (0, (2, 1.2))}
    ax.plot(range(len(heights)), heights, color=colour, zorder=2 + 0.001 * rank, **style)
    if winner:
        ring = {"linestyle": "none", "marker": "o", "markersize": 7, "markerfacecolor": "none", "markeredgewidth": 1.5}
        ax.plot(range(len(heights)), heights, color=ORANGE, zorder=4, **ring)


def _places(domain: Domain, cells: Any) -> np.ndarray:
    """Where each trial crosses the axis, from 0 to 1."""
    if domain.is_list:
        texts = list(option_texts(domain).values())
        steps = max(len(texts) - 1, 1)
        at = np.array([texts.index(cell) for cell in cells]) / steps if len(texts) > 1 else np.full(len(cells), 0.5)
        return at + _spread(at, min(SPREAD, 0.5 / steps))
    low, high = domain.options
    if domain.kind == "log_uniform":
        return np.log(cells.astype(float) / low) / np.log(high / low)
    at = (cells.astype(float) - low) / (high - low)
    return at + _spread(at, min(SPREAD, 0.5 / (high - low))) if domain.kind == "integer" else at


def _spread(at: np.ndarray, width: float) -> np.ndarray:
    """Small steps apart for those at one place."""
    found = np.zeros(len(at))
    for place in np.unique(at):
        same = np.flatnonzero(at == place)
        if len(same) > 1:
            found[same] = np.linspace(-width / 2, width / 2, len(same))
    return found


def _name_ticks(ax: Axes, x: int, domain: Domain) -> None:
    if domain.is_list:
        texts = list(option_texts(domain).values())
        places = np.linspace(0, 1, len(texts)) if len(texts) > 1 else [0.5]
        _upright(ax, x, [(float(place), _short(text)) for place, text in zip(places, texts)])
        return
    low, high = domain.options
    if domain.kind == "integer":
        numbers = np.unique(np.round(np.linspace(low, high, min(high - low + 1, 6))).astype(int))
        _upright(ax, x, [((n - low) / (high - low), str(n)) for n in numbers])
    elif domain.kind == "log_uniform":
        middle = (low * high) ** 0.5
        _upright(ax, x, [(0.0, f"{low:.3g}"), (0.5, f"{middle:.2g}"), (1.0, f"{high:.3g}")])
    else:
        _upright(ax, x, [(0.0, f"{low:.4g}"), (0.5, f"{(low + high) / 2:.4g}"), (1.0, f"{high:.4g}")])


def _upright(ax: Axes, x: int, ticks: list[tuple[float, str]]) -> None:
    """An axis with its values beside it."""
    ax.plot([x, x], [0, 1], color="black", linewidth=0.9, zorder=3)
    halo = [withStroke(linewidth=2.5, foreground="white")]
    for y, text in ticks:
        ax.plot([x - 0.015, x + 0.015], [y, y], color="black", linewidth=0.9, zorder=3)
        ax.text(x + 0.03, y, text, fontsize=7, va="center", ha="left", zorder=6, path_effects=halo, linespacing=0.95)


def _short(text: str) -> str:
    """In two lines at most."""
    lines = [
        line if len(line) <= TICK else f"{line[: TICK - 1]}…"
        for line in textwrap.wrap(text, TICK, break_long_words=False)
    ]
    return "\n".join(lines if len(lines) < 3 else [lines[0], f"{lines[1][: TICK - 1]}…"])


def _wrapped(path: str) -> str:
    """`model.basis.degree` in two lines."""
    section, dot, name = path.rpartition(".")
    return f"{section}{dot}\n{name}" if dot else name
