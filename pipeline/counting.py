"""How many field evaluations and optimiser steps a job takes, before it runs. No torch here.

A field evaluation is one call of the field on a batch, forwards.
"""

from __future__ import annotations

import math

from gode_core.solvers import ADAPTIVE_METHODS, Adaptive, Fixed, Implicit, Layers, Solver, num_evals, parse_solver
from pipeline.config import JobConfig
from pipeline.data_config import DATA_SIZES
from pipeline.experiment import Judging
from pipeline.model_config import NUM_BLOCKS
from pipeline.train_config import Phase

ASSUMED_STEPS = 10  # of an adaptive solve, where nothing is known before it ran
ASSUMED_ITERATIONS = 20  # field evaluations of an implicit step, likewise
ASSUMED_FIXED = 100  # steps where a rule chooses their number, if it may come to so many


def evals_per_solve(config: JobConfig, phase: Phase) -> int:
    """Field evaluations of one forward pass through all blocks; for adaptive and implicit solvers a guess."""
    solver = phase.parsed_solver
    if config.train.adapt is not None and isinstance(solver, Fixed):
        solver = Fixed(solver.method, min(solver.num_steps, ASSUMED_FIXED))
    return _evals(config, phase, solver)


def _evals(config: JobConfig, phase: Phase, solver: Solver) -> int:
    """With another solver than the phase's."""
    blocks = NUM_BLOCKS[config.model.network]
    if isinstance(solver, Layers):
        return config.model.evals_per_layer * sum(solver.count(block) for block in range(blocks))
    if isinstance(solver, Adaptive):
        return blocks * ASSUMED_STEPS * ADAPTIVE_METHODS[solver.method].evals_per_step
    if isinstance(solver, Implicit):
        return blocks * ASSUMED_ITERATIONS * solver.num_steps
    basis = phase.basis or config.model.basis
    learnt = basis is not None and basis.knots == "free"  # no method restarts at those
    return blocks * num_evals(solver, None if learnt else config.basis_of(phase))


def is_guess(config: JobConfig) -> bool:
    solvers = [phase.parsed_solver for _, phase in _phases(config)]
    return config.train.adapt is not None or any(isinstance(solver, Adaptive | Implicit) for solver in solvers)


def training_evals(config: JobConfig) -> int | None:
    """Field evaluations of a whole training; None if only the data folder knows."""
    batches = _batches_per_epoch(config)
    if batches is None:
        return None
    return batches * sum(epochs * evals_per_solve(config, phase) for epochs, phase in _phases(config))


def training_steps(config: JobConfig) -> int | None:
    """Optimiser steps of a whole training; None if only the data folder knows."""
    batches = _batches_per_epoch(config)
    return None if batches is None else batches * config.train.epochs


def judging_evals(config: JobConfig, judging: Judging) -> int | None:
    """Field evaluations of a judgement by all its solvers, and by that of the training; None as above."""
    size = config.data.num_validation if judging.split == "validation" else _test_size(config)
    if size is None:
        return None
    last = config.phase(config.train.epochs)
    solvers = dict.fromkeys((*judging.solvers_of(config), config.train.solver))
    return math.ceil(size / judging.batch_size) * sum(_evals(config, last, parse_solver(s)) for s in solvers)


def _test_size(config: JobConfig) -> int | None:
    return DATA_SIZES[config.data.name][1] if config.data.name in DATA_SIZES else None


def _batches_per_epoch(config: JobConfig) -> int | None:
    size, train = config.data.train_size, config.train
    if size is None:
        return None
    return size // train.batch_size if train.drop_last else math.ceil(size / train.batch_size)


def _phases(config: JobConfig) -> list[tuple[int, Phase]]:
    """Each phase and its number of epochs."""
    starts = [0, *(phase.until for phase in config.train.phases)]
    ends = [*starts[1:], config.train.epochs]
    return [(end - start, config.phase(start)) for start, end in zip(starts, ends)]
