"""What the verdicts of single models come to: over seeds, and along a ladder of step counts (pipeline.ladders)."""

from __future__ import annotations

import math

import pandas as pd

from gode_core.solvers import parse_solver
from gode_core.validity import next_count
from pipeline.ladders import Ladder
from pipeline.tables import GROUP, Frame, Results, counted, percent, points

VERDICTS = ("ode", "discrete", "undecided")


def verdict_table(results: Results) -> Frame:
    """One row per (model, training solver): num_jobs; how many are `ode`, `discrete`, `undecided`; over their seeds the
    mean gap and the outermost ends gap_low and gap_high of its intervals; the mean agreement; the finer solver with the
    worst gap of any seed; the median observed order and that of the method; the mean shares folded and crossing."""
    rows = []
    for (solver, label), jobs in results.validity.groupby(GROUP, sort=False):
        row = {"label": label, "train.solver": solver, "num_jobs": len(jobs)}
        row |= {verdict: int((jobs["verdict"] == verdict).sum()) for verdict in VERDICTS}
        row |= {"gap": jobs["gap"].mean(), "gap_low": jobs["gap_low"].min(), "gap_high": jobs["gap_high"].max()}
        finer = jobs[jobs["worst_gap"].notna()]
        worst = finer.loc[finer["worst_gap"].abs().idxmax()] if len(finer) else None
        row["worst_solver"] = None if worst is None else worst["worst_solver"]
        row["worst_gap"] = math.nan if worst is None else worst["worst_gap"]
        row["agreement"] = jobs["agreement"].mean()
        row["order"] = jobs["order"].astype(float).median()
        row["method_order"] = getattr(parse_solver(str(solver)), "order", math.nan)
        row |= {name: jobs[name].astype(float).mean() for name in ("share_folded", "share_crossing")}
        rows.append(row)
    return pd.DataFrame(rows)


def sentences(results: Results) -> list[str]:
    """The verdicts in plain sentences. None if no job has one."""
    if results.validity.empty:
        return []
    verdicts, first = results.validity["verdict"], results.validity.iloc[0]
    ode, discrete, undecided = (int((verdicts == verdict).sum()) for verdict in VERDICTS)
    found = [
        f"Of {counted(len(verdicts), 'trained model')}, {ode} {'is an ODE' if ode == 1 else 'are ODEs'}, "
        f"{counted(discrete, 'discrete net')} in disguise and {undecided} undecided: an ODE has the same accuracy "
        f"under {first['limit']} and every other finer solver within {points(first['margin'])} points, by intervals "
        f"that hold together with {percent(first['confidence'])} confidence.",
        "No model is judged by a solver that is coarser than its own: such a solver may always fail.",
    ]
    return found + [
        _of_ladder(ladder) + " ".join(["", *_wider(results, ladder)]).rstrip() for ladder in results.ladders().values()
    ]


def margins_in_print(results: Results) -> list[float]:
    """The margins that published numbers are compared at, beside that of the verdicts."""
    return sorted({each.margin for each in results.experiment.published if each.margin is not None})


def _wider(results: Results, ladder: Ladder) -> list[str]:
    """Where the critical step would lie with the margins of published numbers."""
    found = []
    for margin in margins_in_print(results):
        critical = results.ladders(margin)[ladder.label, ladder.method].critical
        coarser, enough = critical.coarser, critical.num_steps
        where = f"above 1/{coarser}" if enough is None else f"at 1/{enough}"
        where += f", not at 1/{coarser}" if enough is not None and coarser is not None else ""
        found.append(f"With gaps of up to {points(margin)} points allowed, every seed is one {where}.")
    return found


def _of_ladder(ladder: Ladder) -> str:
    critical, begin = ladder.critical, f"{ladder.label} trained with {ladder.method}: "
    seeds = _of_seeds(ladder) if len(ladder.by_seed) > 1 else ""
    if critical.coarser is None:
        text = f"already the coarsest step, 1/{ladder.counts[0]}, gives an ODE: the critical step is no finer"
    elif critical.num_steps is None:
        text = f"not even the finest step, 1/{ladder.counts[-1]}, gives an ODE for every seed ({_below(ladder)})"
    else:
        evals = [ladder.evals.get(n) for n in (critical.coarser, critical.num_steps)]
        cost = "" if None in evals else f", {evals[0]} and {evals[1]} field evaluations per solve"
        text = (
            f"the critical step lies between 1/{critical.coarser} and 1/{critical.num_steps}{cost}; at the coarser "
            f"one, {_below(ladder)}{_narrower(ladder, critical.coarser, critical.num_steps)}"
        )
    early = [n for n in ladder.counts if n < (critical.coarser or 0) and set(ladder.verdicts[n]) == {"ode"}]
    if early:
        text += f"; coarser yet, {', '.join(f'1/{n}' for n in early)} gave an ODE, which does not count"
    if not critical.whole:
        text += "; not every step has equally many seeds"
    return f"{begin}{text}{seeds}."


def _narrower(ladder: Ladder, coarser: int, enough: int) -> str:
    """What to train with next, by bisection; nothing where no power of two lies between."""
    highest = 1 << (enough - 1).bit_length()
    n = next_count({coarser: "discrete", enough: "ode"}, 1, highest)
    return "" if n is None else f"; to narrow it, train with {ladder.method}@{n}"


def _below(ladder: Ladder) -> str:
    """The verdicts at the largest count where not all are `ode`."""
    found = ladder.verdicts[ladder.critical.coarser or 0]
    words = [f"{found.count(name)} {name}" for name in VERDICTS[1:] if name in found]
    return f"of {counted(len(found), 'seed')} {' and '.join(words)}"


def _of_seeds(ladder: Ladder) -> str:
    """Each seed has a critical step of its own."""
    found = [critical.num_steps for critical in ladder.by_seed.values()]
    known = sorted(n for n in found if n is not None)
    words = []
    if known:
        words.append(f"from 1/{known[0]}" + (f" to 1/{known[-1]}" if known[0] < known[-1] else "") + " on")
    if len(known) < len(found):
        words.append(f"{len(found) - len(known)} of {len(found)} nowhere on the ladder")
    return f"; taken one by one, the seeds are ODEs {', '.join(words)}"
