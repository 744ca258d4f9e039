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

from gode_core.solvers import ADAPTIVE_METHODS, Adaptive, Solver
from pipeline import stage
from pipeline.config import JobConfig, canonical
from pipeline.experiment import Experiment, load_experiment
from pipeline.paths import DEFAULT_EXPERIMENT, Paths
from pipeline.records import replace_file

ASSUMED_STEPS = 10  # of an adaptive solve, where nothing is known before it ran
NUM_BLOCKS = {"raw": 1, "stem": 1, "stages": 3}


def evals_per_solve(solver: Solver) -> int:
    """Field evaluations of one forward solve; for adaptive solvers a guess."""
    if isinstance(solver, Adaptive):
        return ASSUMED_STEPS * ADAPTIVE_METHODS[solver.method].evals_per_step
    return solver.num_evals


def training_evals(config: JobConfig) -> int | None:
    """Field evaluations (calls on a batch, forward only) of a whole training; None if only the data folder knows."""
    size = config.data.train_size
    if size is None:
        return None
    train = config.train
    batches = size // train.batch_size if train.drop_last else math.ceil(size / train.batch_size)
    return train.epochs * batches * NUM_BLOCKS[config.model.network] * evals_per_solve(train.parsed_solver)


def describe(experiment: Experiment) -> str:
    """The plan as text: a line a job, and what it comes to."""
    lines = [f"{experiment.name}: {experiment.question}", ""]
    counted = [(key, config, training_evals(config)) for key, config in experiment.jobs.items()]
    lines.append(f"{'field evaluations':>18}  job")
    for key, config, evals in counted:
        adaptive = isinstance(config.train.parsed_solver, Adaptive)
        number = "?" if evals is None else ("~" if adaptive else "") + f"{evals:,}"
        lines.append(f"{number:>18}  {key}")
    known = [evals for _, _, evals in counted if evals is not None]
    judging = experiment.evaluate_with
    solvers = ", ".join(judging.solvers)
    total = f"{sum(known):,}" + (" and more" if len(known) < len(counted) else "")
    lines += [
        "",
        f"{len(counted)} jobs, {total} field evaluations in training (forward passes over a batch; `~` is a guess).",
        f"Each is judged on the {judging.split} split with {len(judging.solvers)} solvers: {solvers}",
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
