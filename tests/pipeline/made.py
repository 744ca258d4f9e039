"""Records of models that were never trained, by a law that says what the report must find.

A model trained with at least `critical` steps is the flow of an ODE: its accuracy falls with the error of the solver at
test, and every solver as exact as its own gives the same. One trained with fewer is right under its own solver alone.
"""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path

import numpy as np

from gode_core.solvers import Adaptive, Fixed, parse_solver
from gode_core.validity import Judgement, fitted_order, judge, may_be_finer
from pipeline.config import JobConfig, canonical
from pipeline.experiment import Experiment
from pipeline.paths import Paths
from pipeline.records import (
    DecisionRecord,
    EvaluationRecord,
    PathRecord,
    TrainingRecord,
    ValidityRecord,
    write_records,
)

SAMPLES = 1000
EPOCHS, STEPS = 4, 100  # an epoch has so many steps
CRITICAL = {"euler": 8, "rk4": 2}


def step_error(text: str) -> float:
    solver = parse_solver(text)
    return 0.0 if isinstance(solver, Adaptive) else (1 / solver.num_steps) ** solver.order  # type: ignore[union-attr]


def make_models(experiment: Experiment, paths: Paths, critical=CRITICAL, ended=None) -> None:
    """All files of every job. critical: by method, or by method and seed; ended: by seed, what `adapt` came to."""
    for job, config in experiment.jobs.items():
        own = (ended or {})[config.seed] if config.train.adapt else config.train.solver
        method = own.partition("@")[0]
        least = critical.get((method, config.seed), critical.get(method, 1))
        parsed = parse_solver(own)
        is_ode = not isinstance(parsed, Fixed) or parsed.num_steps >= least
        coarsest = f"{method}@{least}" if isinstance(parsed, Fixed) else "rk4@2"
        judging = experiment.evaluate_with
        asked = list(judging.solvers_of(config))
        asked += [own] if config.train.adapt and own not in asked else []
        rows = [evaluated(job, solver, own, is_ode, coarsest) for solver in dict.fromkeys([*asked, own])]
        Path(paths.config(job)).parent.mkdir(parents=True, exist_ok=True)
        Path(paths.config(job)).write_text(json.dumps(canonical(config)))
        write_records(paths.training(job), [_epoch(job, epoch, config, own) for epoch in range(1, EPOCHS + 1)])
        write_records(paths.weights(job), [])
        write_records(paths.decisions(job), _decisions(job, config, own) if config.train.adapt else [])
        write_records(paths.evaluation(job, judging.id), [row for row in rows if row.solver in asked])
        write_records(paths.validity(job, judging.id), [judged(job, rows, own, judging)])
        write_records(paths.trajectories(job, judging.id), _paths(job, own, judging) if judging.num_drawn else [])


def evaluated(job: str, solver: str, own: str, is_ode: bool, least: str) -> EvaluationRecord:
    """`least`: the coarsest solver that tells the flow's classes apart."""
    right = 980  # of SAMPLES, under the training solver
    error, trained = step_error(solver), step_error(own)
    if is_ode:
        lost = round(480 * math.tanh(max(0.0, error / max(step_error(least), 1e-12) - 1)))
    else:
        lost = 0 if solver == own else round(480 * math.tanh(2 * abs(math.log2((error + 1e-4) / (trained + 1e-4)))))
    gap = 2.0 * abs(error - trained) * (1 if is_ode else 8)
    limit_gap = 2.0 * error * (1 if is_ode else 8)
    evals = float(getattr(parse_solver(solver), "num_evals", 60))
    numbers = (
        (right - lost) / SAMPLES,
        0.1 + lost / SAMPLES,
        1 - lost / SAMPLES,
        3 * gap,
        gap,
        evals,
        evals,
        0.0,
        0.01,
    )
    return EvaluationRecord(
        job, "c0de", solver, "test", SAMPLES, 0, *numbers, "ok", num_lost=lost, num_gained=0, limit_gap=limit_gap
    )


def judged(job: str, rows: list[EvaluationRecord], own: str, judging) -> ValidityRecord:
    """By the rules of gode_core.validity, as `evaluate` does."""
    by_solver = {row.solver: row for row in rows}
    mine, limit = by_solver[own], by_solver[judging.finest]
    found = {row.solver: Judgement(row.solver, SAMPLES, row.num_lost or 0, 0, 0, row.limit_gap) for row in rows}
    others = [each for name, each in found.items() if name not in (own, judging.finest)]
    others = [each for each in others if may_be_finer(parse_solver(each.solver), parse_solver(own))]
    verdict = judge(mine.limit_gap, found[judging.finest], others, confidence=judging.confidence)
    own_method = own.partition("@")[0]
    same = [row for row in rows if row.solver.partition("@")[0] == own_method and step_error(row.solver) > 0]
    same = [row for row in same if step_error(row.solver) <= step_error(own)]
    steps = [1 / int(row.solver.partition("@")[2]) for row in same]
    order = fitted_order(steps, [row.limit_gap or 0.0 for row in same])
    names = {f.name for f in dataclasses.fields(ValidityRecord)}
    return ValidityRecord(
        job=job,
        code="c0de",
        split="test",
        solver=own,
        limit=judging.finest,
        num_samples=SAMPLES,
        accuracy=mine.accuracy,
        limit_accuracy=limit.accuracy,
        agreement=limit.agreement,
        logit_gap=mine.limit_gap,
        method=own_method if order else None,
        order=order.slope if order else None,
        order_error=order.standard_error if order else None,
        num_orders=order.num_points if order else 0,
        num_paths=judging.num_paths,
        share_folded=0.0 if verdict.verdict == "ode" else 0.4,
        share_crossing=0.0 if verdict.verdict == "ode" else 0.25,
        separation=1.0,
        limit_separation=1.2,
        **{name: value for name, value in vars(verdict).items() if name in names},
    )


def _epoch(job: str, epoch: int, config: JobConfig, own: str) -> TrainingRecord:
    """40 evaluations a solve in the first epoch and 20 in the others; checks cost 3 more a step, if there are any."""
    evals, checks = (40.0 if epoch == 1 else 20.0), (3.0 if config.train.adapt else None)
    accuracy = 0.5 + 0.12 * epoch
    numbers = (STEPS * epoch, 1e-3, 1.0 / epoch, accuracy, None, None, evals, "ok", own)
    return TrainingRecord(job, "c0de", epoch, *numbers, check_evals=checks)


def _decisions(job: str, config: JobConfig, own: str) -> list[DecisionRecord]:
    """A saw-tooth that comes to `own`, at chance up to step 100."""
    method = own.partition("@")[0]
    adaptive = isinstance(parse_solver(own), Adaptive)
    saw = [8, 4, 2, 1, 2, 4, 8, 16, 32, 64, 58, 52, 47, 94, 85, 77, 70, 63, 57, 51]
    names = [f"{method}@{n}e-7" if adaptive else f"{method}@{n}" for n in saw] + [own]
    rows, before = [], None
    for i, name in enumerate(names):
        step = STEPS * EPOCHS * i // len(names)
        accuracy = None if i == 0 else 0.51 if step <= 100 else 0.6 + 0.38 * i / len(names)
        action = "start" if before is None else "shrink" if i % 3 else "grow"
        numbers = (step, action, before, "midpoint@9", 0.02, None, None, accuracy, name, 60, "as it was")
        rows.append(DecisionRecord(job, "c0de", *numbers))
        before = name
    return rows


def _paths(job: str, own: str, judging) -> list[PathRecord]:
    """Rotations about the origin: one of the coarse solver, whose radius grows, and one of the flow."""
    random, rows = np.random.default_rng(0), []
    starts = random.normal(0, 0.3, (judging.num_drawn, 2))
    for solver in (own, judging.finest):
        parsed = parse_solver(solver)
        num_steps = parsed.num_steps if isinstance(parsed, Fixed) else 64
        for number, start in enumerate(starts):
            z = complex(*start)
            for n in range(num_steps + 1):
                target = int(abs(complex(*start)) > 0.3)
                rows.append(PathRecord(job, "c0de", solver, number, target, n / num_steps, z.real, z.imag))
                z *= complex(1, 4 / num_steps) if solver == own else np.exp(4j / num_steps)
    return rows
