"""All records of an experiment -> tables, in long form.

    table.csv          one row per (job, solver that it was judged with)
    training.csv       one row per (job, epoch)
    decisions.csv      one row per (job, check of the solver while training)
    weights.csv        one row per (job, weight entry, depth)
    validity.csv       one row per job that is, or is not, an ODE
    trajectories.csv   one row per (job, solver, path, depth)

and of an experiment with a search, whose winners are jobs like the others, two more: see pipeline.search_table.

A job's parameters are columns, named by their dotted path (`model.basis.degree`): nothing is read out of names.

python -m pipeline.collect pipeline/experiments/digits.yaml
"""

from __future__ import annotations

import argparse
import dataclasses
import logging
import typing
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from pipeline import stage
from pipeline.config import JobConfig, load_job
from pipeline.experiment import Experiment, Judging
from pipeline.past import read_attempts
from pipeline.paths import DEFAULT_EXPERIMENT, Paths
from pipeline.records import (
    DecisionRecord,
    EvaluationRecord,
    PathRecord,
    TrainingRecord,
    ValidityRecord,
    WeightRecord,
    read_records,
    replace_file,
)
from pipeline.search_table import read_search, trial_curves, trial_table
from pipeline.winners import load_whole

KINDS = {
    "training": TrainingRecord,
    "decisions": DecisionRecord,
    "weights": WeightRecord,
    "evaluation": EvaluationRecord,
    "validity": ValidityRecord,
    "trajectories": PathRecord,
}
OF_TRAINING = ("training", "decisions", "weights")  # the rule `train` makes such rows again, `evaluate` the others
MAX_NAMED = 3  # jobs that one error names


@dataclass(frozen=True)
class Collected:
    """One job with all its records."""

    config: JobConfig
    training: list[TrainingRecord]
    decisions: list[DecisionRecord]
    weights: list[WeightRecord]
    evaluation: list[EvaluationRecord]
    validity: list[ValidityRecord]
    trajectories: list[PathRecord]
    torch: str | None  # versions of it that the training ran under, as far as its attempts say


def collect(experiment: Experiment, paths: Paths, mix_code: bool = False) -> dict[str, pd.DataFrame]:
    """The tables, by the path that each belongs to. Raises ValueError if a job's files are missing or not its own, if
    the search is not done, or if rows were made by different code and `mix_code` is false."""
    of_search = _collect_search(experiment, paths, mix_code)
    _check_present(experiment, paths)
    jobs = {job: _read(job, paths, experiment.evaluate_with) for job in experiment.jobs}
    if not mix_code:
        for kind in KINDS:
            check_one_code(kind, (row for found in jobs.values() for row in getattr(found, kind)))
    name = experiment.name
    return {
        paths.table(name): pd.DataFrame([row for job, found in jobs.items() for row in _table_rows(job, found)]),
        paths.curves(name): _long(jobs, "training"),
        paths.decision_table(name): _long(jobs, "decisions"),
        paths.weight_paths(name): _long(jobs, "weights"),
        paths.verdicts(name): _long(jobs, "validity"),
        paths.trajectory_table(name): _long(jobs, "trajectories"),
    } | of_search


def _collect_search(experiment: Experiment, paths: Paths, mix_code: bool) -> dict[str, pd.DataFrame]:
    """None without a search."""
    if experiment.search is None:
        return {}
    tried, found = read_search(experiment, paths)
    if not mix_code:
        check_one_code("trial", (row for each in tried for row in each.rows))
    return {
        paths.trial_table(experiment.name): trial_table(experiment.search, tried, found),
        paths.trial_curves(experiment.name): trial_curves(tried),
    }


def check_one_code(kind: str, rows: Iterable[Any]) -> None:
    """Raises ValueError if the `code` of the rows differs: they would be compared as if only the job differed."""
    jobs: dict[str, dict[str, None]] = {}
    for row in rows:
        jobs.setdefault(row.code, {})[row.job] = None
    if len(jobs) > 1:
        common = sorted(jobs, key=lambda code: -len(jobs[code]))
        made = "; ".join(f"{code} made those of {_named(list(jobs[code]))}" for code in common)
        raise ValueError(
            f"{kind} rows were made by different code: {made}. {_made_again(kind)}, or accept the mixture with "
            "`--config mix_code=true` (here: --mix-code)"
        )


def _made_again(kind: str) -> str:
    if kind == "trial":
        return "Search again: delete the folder in `searches`, and those of the older jobs"
    rule, files = ("train", "the folders") if kind in OF_TRAINING else ("evaluate", "the evaluation-*.jsonl")
    return (
        f"Make them again with `snakemake --forcerun {rule}` (for jobs that go side by side: delete {files} of the "
        "older ones first)"
    )


def flatten(config: JobConfig) -> dict[str, Any]:
    """Every parameter of a job by its dotted path; lists as text. A part that a job does not have (a basis of its own)
    has its columns, empty."""
    return dict(_leaves(type(config), config, ""))


def _leaves(cls: type, config: Any, prefix: str) -> Iterator[tuple[str, Any]]:
    hints = typing.get_type_hints(cls)
    for f in dataclasses.fields(cls):
        value = getattr(config, f.name, None)
        parts = [hint for hint in (hints[f.name], *typing.get_args(hints[f.name])) if dataclasses.is_dataclass(hint)]
        if parts and not isinstance(value, tuple):
            yield from _leaves(parts[0], value, f"{prefix}{f.name}.")  # type: ignore[arg-type]
        else:
            between = "; " if parts else " "
            yield prefix + f.name, between.join(map(str, value)) if isinstance(value, tuple) else value


def _check_present(experiment: Experiment, paths: Paths) -> None:
    missing = {}
    for job in experiment.jobs:
        files = [*paths.trained(job)[1:], *paths.judged(job, experiment.evaluate_with.id)]
        if absent := [file for file in files if not Path(file).exists()]:
            missing[job] = absent[0]
    if missing:
        raise ValueError(
            f"{next(iter(missing.values()))}: no such file, and {len(missing)} of {len(experiment.jobs)} jobs are not "
            f"trained and judged yet: {_named(list(missing))}. Run the experiment first (`snakemake` makes what lacks)"
        )


def _read(job: str, paths: Paths, judging: Judging) -> Collected:
    config = load_job(paths.config(job), job)
    files = dict(zip(KINDS, (*paths.trained(job)[1:], *paths.judged(job, judging.id)), strict=True))
    rows = {kind: read_records(cls, files[kind]) for kind, cls in KINDS.items()}
    for kind, file in files.items():
        if strangers := {row.job for row in rows[kind]} - {job}:
            raise ValueError(f"{file}: holds rows of the job {min(strangers)}; delete the file to have it made again")
    if not rows["training"]:
        raise ValueError(f"{files['training']}: holds no rows; delete the file to have it made again")
    asked = list(judging.solvers_of(config))
    last = rows["training"][-1].solver or config.train.solver
    if config.train.adapt is not None and last not in asked:
        asked.append(last)  # the solver that the training came to
    _check_solvers(rows["evaluation"], asked, files["evaluation"])
    return Collected(config, **rows, torch=_torch_of(job, paths))


def _torch_of(job: str, paths: Paths) -> str | None:
    """From the attempts with steps, since the last beginning."""
    try:
        attempts = [each for each in read_attempts(job, paths) if each.to_step > each.from_step]
    except ValueError:  # a row that a full disk has cut off: it is no more than a note
        return None
    begun = max((i for i, each in enumerate(attempts) if each.from_step == 0), default=0)
    return " ".join(dict.fromkeys(each.torch for each in attempts[begun:] if each.torch)) or None


def _check_solvers(rows: list[EvaluationRecord], asked: list[str], file: str) -> None:
    found = [row.solver for row in rows]
    if sorted(asked) != sorted(found):
        lacking, extra = sorted(set(asked) - set(found)), sorted(set(found) - set(asked))
        twice = sorted({solver for solver in found if found.count(solver) > 1})
        wrong = {"lacks": lacking, "has, but was not asked for,": extra, "has twice": twice}
        words = "; ".join(f"{verb} {', '.join(solvers)}" for verb, solvers in wrong.items() if solvers)
        raise ValueError(f"{file}: {words}; delete the file to have it made again")


def _table_rows(job: str, found: Collected) -> Iterator[dict[str, Any]]:
    config, last = found.config, found.training[-1]
    parameters = {"job": job, "label": config.label, "num_coefficients": config.basis.num_coefficients}
    parameters |= flatten(config)
    trained = {
        "train_epoch": last.epoch,
        "train_status": last.status,
        "train_validation_accuracy": last.validation_accuracy,
        "train_torch": found.torch,
    }
    for row in found.evaluation:
        yield parameters | vars(row) | trained


def _long(jobs: dict[str, Collected], kind: str) -> pd.DataFrame:
    """The rows of one kind, each with its job's label, training solver and seed."""
    named = ["label", "train.solver", "seed"]
    names = [f.name for f in dataclasses.fields(KINDS[kind])]
    rows = []
    for found in jobs.values():
        values = (found.config.label, str(found.config.train.parsed_solver), found.config.seed)
        rows += [dict(zip(named, values)) | vars(row) for row in getattr(found, kind)]
    return pd.DataFrame(rows, columns=["job", *named, *(name for name in names if name != "job")])


def _named(jobs: list[str]) -> str:
    rest = len(jobs) - MAX_NAMED
    return ", ".join(jobs[:MAX_NAMED]) + (f" and {rest} more" if rest > 0 else "")


def main(arguments: argparse.Namespace) -> None:
    paths = Paths(arguments.results)
    tables = collect(load_whole(arguments.experiment, paths), paths, arguments.mix_code)
    for path, table in tables.items():
        # convert_dtypes: whole numbers stay whole beside empty cells (degree 3, not 3.0)
        replace_file(path, table.convert_dtypes().to_csv(index=False).encode())
        logging.info("%s: %d rows", path, len(table))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("experiment", nargs="?", default=DEFAULT_EXPERIMENT, help="an experiment file")
    parser.add_argument("--results", default="results", help="root of the results (default: results)")
    parser.add_argument("--mix-code", action="store_true", help="accept rows that were made by different code")
    stage.run(main, parser)
