"""Fixed-step solves by Runge-Kutta and linear multistep methods: a plain loop of exactly n steps, times from the step
number, no host read of a device value, one torch.compile graph."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from functools import partial
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from gode_core.bases import StageTimes
from gode_core.layers import Function
from gode_core.methods import MULTISTEPS, TABLEAUS, LinearMultistep, Tableau
from gode_core.solvers import Breaks, Fixed, phases

if TYPE_CHECKING:
    from gode_core.evolution import Path

Run = list[tuple[str, int, int]]  # (method, first, last): as `solvers.phases`
Past = tuple[Tensor, ...]  # states or slopes, the newest first


def fixed_solve(field: Any, h0: Tensor, solver: Fixed, recompute: bool, wanted: Sequence[int]) -> dict[int, Tensor]:
    """The states after the `wanted` numbers of steps, and after the last. recompute: see `integrate`'s `checkpoint`."""
    n = solver.num_steps
    ends = sorted({*run_ends(n, recompute), *wanted})
    runs = _runs(field, solver, ends)
    path = path_of(field, _all_times(solver, runs))
    states, slopes, found = (h0,), (), {0: h0}
    for run, last in zip(runs, ends[1:]):
        steps = partial(_steps, field, solver, run, path, len(states))
        past = (*states, *slopes)  # flat: checkpoint sees no tensor that stands within a tuple
        states, slopes = checkpoint(steps, *past, use_reentrant=False) if recompute else steps(*past)  # type: ignore[misc]
        found[last] = states[0]
    return found


def prepare(field: Any, solver: Fixed, recompute: bool) -> None:
    """Make the field's tables for a solve: once before torch.compile traces it."""
    field.prepare(*_all_times(solver, _runs(field, solver, run_ends(solver.num_steps, recompute))))


def run_ends(num_steps: int, recompute: bool) -> list[int]:
    """The steps where a run of steps begins or ends: one run, or about sqrt(num_steps) of them."""
    run = max(1, math.isqrt(num_steps)) if recompute else num_steps
    return [*range(0, num_steps, run), num_steps]


def breaks_of(field: Any) -> Breaks | None:
    """Where the field is not smooth in depth: as it says itself, or as the basis of its weights does. None of learnt
    knots: a step meets one by chance alone, and a method that restarted there would be another after each update."""
    if isinstance(getattr(field, "basis", None), nn.Module):
        return None
    return field if hasattr(field, "continuity") else getattr(field, "basis", None)


def path_of(field: Any, runs: tuple[StageTimes, ...]) -> Path | None:
    """The way of the field's evolving weights through the runs of a solve; None if it has none."""
    return field.path(runs) if getattr(field, "evolution", None) is not None else None


def functions_at(field: Any, times: StageTimes, path: Path | None = None) -> list[Function]:
    """The field at each stage time, as a function of h alone. path: see `path_of`."""
    if hasattr(field, "at"):
        return field.at(times) if path is None else field.at(times, path)
    return [partial(field, float(t)) for t, _ in times.points()]


def _runs(field: Any, solver: Fixed, ends: list[int]) -> list[Run]:
    """The phases of the solve, cut where a run ends."""
    whole = phases(solver, breaks_of(field))
    return [
        [(method, max(a, first), min(b, last)) for method, a, b in whole if max(a, first) < min(b, last)]
        for first, last in pairwise(ends)
    ]


def _stage_times(solver: Fixed, phase: tuple[str, int, int]) -> StageTimes:
    """A multistep method asks where Euler's does: at the beginning of each step."""
    method, first, last = phase
    return StageTimes(method if method in TABLEAUS else "euler", solver.num_steps, first, last)


def _all_times(solver: Fixed, runs: list[Run]) -> tuple[StageTimes, ...]:
    return tuple(_stage_times(solver, phase) for run in runs for phase in run)


def _steps(field: Any, solver: Fixed, run: Run, path: Path | None, known: int, *past: Tensor) -> tuple[Past, Past]:
    """The steps of a run, from the `known` states and the slopes so far, to those from which the next run goes on.
    A new start makes as many steps as the method looks back, so that nothing older is left of its past."""
    states, slopes = past[:known], past[known:]
    step, multistep = 1.0 / solver.num_steps, MULTISTEPS.get(solver.method)
    num_states, num_slopes = (len(multistep.alpha), len(multistep.beta) - 1) if multistep else (1, 0)
    for phase in run:
        method, first, last = phase
        functions = iter(functions_at(field, _stage_times(solver, phase), path))
        for _ in range(first, last):
            if method in TABLEAUS:
                h, slope = runge_kutta(TABLEAUS[method], functions, states[0], step)
            else:
                slope = next(functions)(states[0])
                h = _multistep(MULTISTEPS[method], states, (slope, *slopes), step)
            states, slopes = (h, *states)[:num_states], (slope, *slopes)[:num_slopes]
    return states, slopes


def runge_kutta(tableau: Tableau, functions: Iterator[Function], h: Tensor, step: float) -> tuple[Tensor, Tensor]:
    """The next state, and the slope at this one."""
    slopes: list[Tensor] = []
    for row in tableau.float_a:
        slopes.append(next(functions)(_sum(h, row, slopes, step)))
    return _sum(h, tableau.float_b, slopes, step), slopes[0]


def _multistep(method: LinearMultistep, states: Past, slopes: Past, step: float) -> Tensor:
    weighted = [(weight, state) for weight, state in zip(method.float_alpha, states) if weight]
    weight, h = weighted[0]
    h = h if weight == 1.0 else weight * h
    for weight, state in weighted[1:]:
        h = torch.add(h, state, alpha=weight)
    return _sum(h, method.float_beta, slopes, step)


def _sum(h: Tensor, weights: Sequence[float], slopes: Sequence[Tensor], step: float) -> Tensor:
    for weight, slope in zip(weights, slopes):
        if weight:
            h = torch.add(h, slope, alpha=weight * step)
    return h
