"""Ladders: one model trained with one method at three step counts or more, coarse to fine.

The critical step of a ladder lies between the largest count at which some seed is not shown to be an ODE and the next
one, from which on all are (gode_core.validity).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from gode_core.solvers import Fixed, Implicit, parse_solver
from gode_core.validity import Critical, critical_step

MIN_RUNGS = 3  # step counts of a ladder


@dataclass(frozen=True)
class Ladder:
    """One model trained with one method at the step counts `counts`, which rise."""

    label: str
    method: str
    counts: tuple[int, ...]
    critical: Critical  # of all seeds together
    by_seed: dict[int, Critical]
    verdicts: dict[int, list[str]]  # by count
    evals: dict[int, int]  # by count: of the field, in a solve; empty where that is found only when it runs


def find_ladders(verdicts: Any, margin: float | None = None) -> dict[tuple[str, str], Ladder]:
    """All ladders among rows of validity.csv, by model and method. Beside its columns they have `num_evals`: field
    evaluations of a solve through all blocks of the net. margin: gaps allowed, instead of the margin of the
    verdicts; what is no ODE then is `discrete`."""
    if margin is not None:
        ode = verdicts["ode_within"] <= margin
        verdicts = verdicts.assign(verdict=["ode" if each else "discrete" for each in ode])
    parsed = verdicts["train.solver"].map(parse_solver)
    verdicts = verdicts[parsed.map(lambda solver: isinstance(solver, Fixed | Implicit)).astype(bool)]
    parsed = parsed[verdicts.index]
    verdicts = verdicts.assign(
        trained_method=[solver.method for solver in parsed], count=[solver.num_steps for solver in parsed]
    )
    groups = verdicts.groupby(["label", "trained_method"], sort=False)
    found = {(label, method): _ladder(label, method, rows) for (label, method), rows in groups}
    return {key: ladder for key, ladder in found.items() if len(ladder.counts) >= MIN_RUNGS}


def _ladder(label: str, method: str, rows: Any) -> Ladder:
    by_count = _by_count(rows)
    critical = critical_step(by_count)
    by_seed = {int(seed): critical_step(_by_count(some)) for seed, some in rows.groupby("seed")}
    fixed = isinstance(parse_solver(f"{method}@{min(by_count)}"), Fixed)
    evals = {int(n): int(each) for n, each in rows.groupby("count")["num_evals"].first().items()} if fixed else {}
    return Ladder(label, method, tuple(by_count), critical, by_seed, by_count, evals)


def _by_count(rows: Any) -> dict[int, list[str]]:
    return {int(n): list(each) for n, each in rows.groupby("count")["verdict"]}
