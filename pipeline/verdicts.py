"""Is this trained model an ODE? Its verdict, from what it says under many solvers (gode_core.validity), and the paths
of points of low dimension through it (gode_core.trajectories)."""

from __future__ import annotations

import dataclasses
import math
from copy import deepcopy
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from gode_core.fields import Field
from gode_core.integrate import integrate
from gode_core.intervals import best_guess
from gode_core.networks import Network
from gode_core.solvers import Adaptive, Fixed, Implicit, Solver, parse_solver
from gode_core.trajectories import flow_jacobian, paths, separation, share_crossing, share_folded, step_determinants
from gode_core.validity import Judgement, Order, Verdict, fitted_order, judge, may_be_finer
from pipeline.config import JobConfig
from pipeline.experiment import Judging
from pipeline.provenance import code_fingerprint
from pipeline.records import PathRecord, ValidityRecord

if TYPE_CHECKING:
    from pipeline.evaluate import Tally

MOST_DIMENSIONS = 3  # of points whose paths are followed
MOST_STEPS = 1000  # attempted, of an adaptive solver along the paths
NUM_DEPTHS = 64  # along a path in the limit
EXACT = 3.0  # errors count in an order of convergence if they are so many times the limit's own


def verdict_of(tallies: dict[str, Tally], own: str, judging: Judging, geometry: Geometry, job: str) -> ValidityRecord:
    """The row of a job. tallies: by solver, those of the training solver `own` and of the limit among them."""
    limit = judging.finest
    found, mine = tallies[limit], tallies[own]
    judged = {name: _judgement(name, tally) for name, tally in tallies.items()}
    verdict = judge(
        judged[own].error,
        judged[limit],
        [
            judged[name]
            for name in tallies
            if name not in (own, limit) and may_be_finer(parse_solver(name), parse_solver(own))
        ],
        margin=judging.margin,
        confidence=judging.confidence,
        limit_reached=not found.given_up,
    )
    if reason := _no_limit(limit, own, judging.margin):
        verdict = dataclasses.replace(verdict, verdict="undecided", reason=reason, ode_within=None)
    elif reason := _nothing_shown(tallies, own, judging):
        verdict = dataclasses.replace(verdict, ode_within=None)
        if verdict.verdict == "ode":
            verdict = dataclasses.replace(verdict, verdict="undecided", reason=reason)
    order = _order(tallies, own, verdict.limit_check_gap or 0.0)
    return ValidityRecord(
        job=job,
        code=code_fingerprint(),
        split=judging.split,
        solver=own,
        limit=limit,
        num_samples=mine.samples,
        accuracy=mine.correct / mine.samples,
        limit_accuracy=found.correct / found.samples,
        agreement=found.agreed / found.samples,
        logit_gap=judged[own].error,
        method=None if order is None else own.partition("@")[0],
        order=None if order is None else order.slope,
        order_error=None if order is None else order.standard_error,
        num_orders=0 if order is None else order.num_points,
        **vars(geometry.shares),
        **_fields_of(verdict),
    )


def _no_limit(limit: str, own: str, margin: float) -> str:
    """Why this solver cannot stand for h -> 0 beside the training solver; empty if it can. A tolerance is the share of
    themselves by which states may be off, and so about the share of samples that change sides: it must be well below
    the margin."""
    one, loosest = parse_solver(limit), margin / 10
    if limit == own or not _is_finer(one, parse_solver(own)):
        return f"{limit}, the finest solver judged with, is not known to be finer than {own}, that of the training"
    if isinstance(one, Adaptive) and max(one.rtol, one.atol) > loosest:
        text = f"of an adaptive limit the tolerance must be at most {loosest:g}, a tenth of the margin"
        return f"{limit}, the finest solver judged with, is too loose: {text}"
    return ""


def _is_finer(limit: Solver, own: Solver) -> bool:
    """How fine fixed steps are beside an adaptive solver is told by nothing but errors, and those are the limit's."""
    if isinstance(own, Adaptive):
        return isinstance(limit, Adaptive) and max(limit.rtol, limit.atol) <= max(own.rtol, own.atol)
    return may_be_finer(limit, own)


def _nothing_shown(tallies: dict[str, Tally], own: str, judging: Judging) -> str:
    """Why equal accuracies show nothing here; empty if they do."""
    mine = tallies[own]
    worst = max((own, judging.finest), key=lambda name: tallies[name].failed)
    if tallies[worst].failed > judging.margin * mine.samples:  # if the other has these wrong too, they agree
        return f"{tallies[worst].failed} of {mine.samples} solves failed under {worst}: of these nothing is known"
    guess = best_guess(max(mine.classes.values()) / mine.samples, mine.samples, judging.confidence)
    if mine.correct <= guess * mine.samples:
        accuracy = f"accuracy {mine.correct / mine.samples:.1%} under {own}"
        return f"no better than a guess: {accuracy}, where always the same class may have {guess:.1%}"
    return ""


def _judgement(name: str, tally: Tally) -> Judgement:
    return Judgement(name, tally.samples, tally.lost, tally.gained, tally.failed, tally.limit_gap)


def _fields_of(verdict: Verdict) -> dict:
    own = {field.name for field in dataclasses.fields(ValidityRecord)}
    return {name: value for name, value in vars(verdict).items() if name in own}


def _order(tallies: dict[str, Tally], own: str, limit_error: float) -> Order | None:
    """The order at which the output comes to the limit: from the training step on, by the training's method."""
    trained = parse_solver(own)
    if not isinstance(trained, Fixed):
        return None
    same = {parse_solver(name): tally.limit_gap for name, tally in tallies.items()}
    points = [
        (1 / solver.num_steps, gap)
        for solver, gap in same.items()
        if isinstance(solver, Fixed) and solver.method == trained.method and solver.num_steps >= trained.num_steps
        if gap is not None and gap > EXACT * limit_error
    ]
    return fitted_order([h for h, _ in points], [gap for _, gap in points])


@dataclass(frozen=True)
class Shares:
    """What the paths say: see ValidityRecord."""

    num_paths: int = 0
    share_folded: float | None = None
    share_crossing: float | None = None
    separation: float | None = None
    limit_separation: float | None = None


@dataclass(frozen=True)
class Geometry:
    shares: Shares
    drawn: list[PathRecord]


def geometry_of(
    network: Network, config: JobConfig, own: Solver, judging: Judging, batch: tuple[Tensor, Tensor], job: str
) -> Geometry:
    """Paths of the first points of the split, in float64, through a net whose field acts on the points themselves.
    Nothing for any other net."""
    points, labels = (tensor[: judging.num_paths].cpu() for tensor in batch)
    raw = config.model.network == "raw" and config.model.pad_channels is None
    low = len(config.data.shape) == 2 and config.data.shape[-1] <= MOST_DIMENSIONS
    if not (len(points) and raw and low and isinstance(own, Fixed)):
        return Geometry(Shares(), [])
    field, points, limit = deepcopy(network.fields[0]).cpu().double(), points.double(), parse_solver(judging.finest)
    walked, flat = paths(field, points, own), points.shape[-1] == 2
    autonomous = config.model.family == "neural_ode" and not config.model.time_channel
    shares = Shares(
        num_paths=len(points),
        share_folded=share_folded(step_determinants(field, points, own)),
        share_crossing=share_crossing(walked) if autonomous and flat and len(points) > 1 else None,
        separation=_separation(field, points, own),
        limit_separation=_separation(field, points, limit),
    )
    drawn: list[PathRecord] = []
    if flat and judging.num_drawn:
        some = slice(judging.num_drawn)
        drawn += _records(str(own), walked[some], labels[some], job)
        drawn += _records(judging.finest, _exact_paths(field, points[some], limit), labels[some], job)
    return Geometry(shares, drawn)


def _separation(field: Field, points: Tensor, solver: Solver) -> float | None:
    ends: list[float] = []

    def flow(x: Tensor) -> Tensor:
        solution = integrate(field, x, solver, max_steps=MOST_STEPS)
        ends.append(solution.t)
        return solution.h1

    jacobians = flow_jacobian(flow, points, forward=isinstance(solver, Fixed))
    mean = separation(jacobians).nanmean().item()
    return mean if math.isfinite(mean) and min(ends) == 1 else None


@torch.no_grad()
def _exact_paths(field: Field, points: Tensor, limit: Solver) -> Tensor:
    """(B, N + 1, 2) in the limit; shorter if its solve was given up."""
    if isinstance(limit, Fixed):
        return paths(field, points, limit)
    num_depths = limit.num_steps if isinstance(limit, Implicit) else NUM_DEPTHS
    depths = [Fraction(k + 1, num_depths) for k in range(num_depths)]
    states = integrate(field, points, limit, depths=depths, max_steps=MOST_STEPS).states
    return torch.stack([state.flatten(1) for state in (points, *states)], dim=1)


def _records(solver: str, walked: Tensor, labels: Tensor, job: str) -> list[PathRecord]:
    """At most some NUM_DEPTHS places of each path, its ends among them."""
    last = walked.shape[1] - 1
    if last == 0:  # given up before the first of them
        return []
    kept = sorted({round(i * last / min(last, NUM_DEPTHS)) for i in range(min(last, NUM_DEPTHS) + 1)})
    depth = {i: i / last if solver.partition("@")[2].isdigit() else i / NUM_DEPTHS for i in kept}
    code = code_fingerprint()
    return [
        PathRecord(job, code, solver, number, int(labels[number]), depth[i], *path[i].tolist())
        for number, path in enumerate(walked)
        for i in kept
    ]
