"""Print an experiment's jobs and their cost, before anything is spent; write their config.json files.

python -m pipeline.plan pipeline/experiments/digits.yaml            # what would run
python -m pipeline.plan pipeline/experiments/digits.yaml --write    # one config.json per job
"""

from __future__ import annotations

import argparse
import json
import logging
import math
from pathlib import Path

from gode_core.solvers import ADAPTIVE_METHODS, Adaptive, Fixed, Implicit, Layers, num_evals
from pipeline import stage
from pipeline.config import JobConfig, canonical
from pipeline.experiment import Experiment, load_experiment
from pipeline.model_config import NUM_BLOCKS
from pipeline.paths import DEFAULT_EXPERIMENT, Paths
from pipeline.records import replace_file
from pipeline.train_config import Phase

ASSUMED_STEPS = 10  # of an adaptive solve, where nothing is known before it ran
ASSUMED_ITERATIONS = 20  # field evaluations of an implicit step, likewise
ASSUMED_FIXED = 100  # steps where a rule chooses their number, if it may come to so many


def evals_per_solve(config: JobConfig, phase: Phase) -> int:
    """Field evaluations of one forward pass through all blocks; for adaptive and implicit solvers a guess."""
    solver, blocks = phase.parsed_solver, NUM_BLOCKS[config.model.network]
    if isinstance(solver, Layers):
        return config.model.evals_per_layer * sum(solver.count(block) for block in range(blocks))
    if isinstance(solver, Adaptive):
        return blocks * ASSUMED_STEPS * ADAPTIVE_METHODS[solver.method].evals_per_step
    if isinstance(solver, Implicit):
        return blocks * ASSUMED_ITERATIONS * solver.num_steps
    if config.train.adapt is not None:
        solver = Fixed(solver.method, min(solver.num_steps, ASSUMED_FIXED))
    basis = phase.basis or config.model.basis
    learnt = basis is not None and basis.knots == "free"  # no method restarts at those
    return blocks * num_evals(solver, None if learnt else config.basis_of(phase))


def is_guess(config: JobConfig) -> bool:
    phases = [config.phase(epoch) for epoch in range(config.train.epochs)]
    return config.train.adapt is not None or any(
        isinstance(phase.parsed_solver, Adaptive | Implicit) for phase in phases
    )


def training_evals(config: JobConfig) -> int | None:
    """Field evaluations (calls on a batch, forward only) of a whole training; None if only the data folder knows."""
    size = config.data.train_size
    if size is None:
        return None
    train = config.train
    batches = size // train.batch_size if train.drop_last else math.ceil(size / train.batch_size)
    return batches * sum(evals_per_solve(config, config.phase(epoch)) for epoch in range(train.epochs))


def describe(experiment: Experiment) -> str:
    """The plan as text: a line a job, and what it comes to."""
    lines = [f"{experiment.name}: {experiment.question}", ""]
    counted = [(key, config, training_evals(config)) for key, config in experiment.jobs.items()]
    lines.append(f"{'field evaluations':>18}  job")
    for key, config, evals in counted:
        number = "?" if evals is None else ("~" if is_guess(config) else "") + f"{evals:,}"
        lines.append(f"{number:>18}  {key}")
    known = [evals for _, _, evals in counted if evals is not None]
    judging = experiment.evaluate_with
    judges = f"with {len(judging.solvers)} solvers: {', '.join(judging.solvers)}"
    discrete = [isinstance(config.train.parsed_solver, Layers) for config in experiment.jobs.values()]
    if any(discrete):
        judges = "by its own layers" if all(discrete) else f"{judges} (discrete nets by their own layers alone)"
    total = f"{sum(known):,}" + (" and more" if len(known) < len(counted) else "")
    lines += [
        "",
        f"{len(counted)} jobs, {total} field evaluations in training (forward passes over a batch; `~` is a guess).",
        f"Each is judged on the {judging.split} split {judges}",
    ]
    return "\n".join(lines)


def write_configs(experiment: Experiment, paths: Paths) -> None:
    """config.json of every job: resolved and complete. A job can be run again from its folder alone.
    One that says the same already is left alone: a newer one would make Snakemake train again."""
    for key, config in experiment.jobs.items():
        path, content = Path(paths.config(key)), (json.dumps(canonical(config), indent=1) + "\n").encode()
        if not path.is_file() or path.read_bytes() != content:
            replace_file(path, content)


def main(arguments: argparse.Namespace) -> None:
    experiment = load_experiment(arguments.experiment)
    if arguments.write:
        write_configs(experiment, Paths(arguments.results))
        logging.info("%d jobs: each has its config.json in %s/jobs", len(experiment.jobs), arguments.results)
    else:
        print(describe(experiment))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("experiment", nargs="?", default=DEFAULT_EXPERIMENT, help="an experiment file")
    parser.add_argument("--write", action="store_true", help="write config.json of every job")
    parser.add_argument("--results", default="results", help="root of the results (default: results)")
    stage.run(main, parser)
