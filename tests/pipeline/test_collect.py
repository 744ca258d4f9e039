"""`collect` keeps every row and every parameter, and refuses what is not of one piece."""

import csv
import dataclasses
import json
import math
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from test_records import record

from gode_core.solvers import Fixed, parse_solver
from pipeline.adapt_config import AdaptConfig
from pipeline.collect import KINDS, collect, flatten
from pipeline.config import JobConfig, canonical
from pipeline.data_config import DataConfig
from pipeline.experiment import Experiment, load_experiment
from pipeline.model_config import BasisConfig, EvolutionConfig, ModelConfig, RuleConfig
from pipeline.paths import DEFAULT_EXPERIMENT, Paths
from pipeline.records import (
    AttemptRecord,
    EvaluationRecord,
    TrainingRecord,
    WeightRecord,
    append_record,
    read_records,
    write_records,
)
from pipeline.train_config import Phase, TrainConfig

EPOCHS, DEPTHS = 5, 9
SMALL = """
question: Does it hold?
job:
  data: {name: digits, num_validation: 144}
  model: {network: raw, family: neural_ode, width: 16}
  train: {solver: euler@4, optimiser: adam, lr: 5e-3, epochs: 5, batch_size: 64}
sweep:
  model: [{family: neural_ode}, {family: gode, basis: {degree: 1, num_coefficients: 3}}]
  seed: [0, 1]
evaluate_with: {solvers: [euler@4, euler@8, dopri5@1e-5]}
"""


def make_results(experiment: Experiment, paths: Paths, epochs: int = EPOCHS, depths: int = DEPTHS) -> None:
    """The files of every job, as if trained and judged: accuracies fall with the distance between two solvers, most
    for free weights. Seeded by the job's place."""
    for place, (job, config) in enumerate(experiment.jobs.items()):
        random = np.random.default_rng(place)
        Path(paths.config(job)).parent.mkdir(parents=True, exist_ok=True)
        Path(paths.config(job)).write_text(json.dumps(canonical(config)))
        best = {"neural_ode": 0.935, "gode": 0.955}.get(config.model.family, 0.965) + random.normal(0, 0.006)
        rows = [_epoch(job, epoch, epochs, best, random, config) for epoch in range(1, epochs + 1)]
        write_records(paths.training(job), rows)
        judging = experiment.evaluate_with
        found = [_judged(job, config, solver, best, random) for solver in judging.solvers_of(config)]
        write_records(paths.evaluation(job, judging.id), found)
        write_records(paths.weights(job), _weights(job, config, random, depths))
        for empty in (paths.decisions(job), paths.validity(job, judging.id), paths.trajectories(job, judging.id)):
            write_records(empty, [])


def _epoch(job: str, epoch: int, epochs: int, best: float, random, config: JobConfig) -> TrainingRecord:
    accuracy = min(1, best - 0.85 * math.exp(-9 * epoch / epochs) + random.normal(0, 0.004))
    solver = config.train.parsed_solver
    evals = float(solver.num_evals) if isinstance(solver, Fixed) else 60.0
    validation = accuracy if config.data.num_validation else None
    return TrainingRecord(
        job, "c0de", epoch, 20 * epoch, 0.005, 1.5 - accuracy, accuracy, validation, validation, evals, "ok"
    )


def _judged(job: str, config: JobConfig, solver: str, best: float, random) -> EvaluationRecord:
    def error(text: str) -> float:
        parsed = parse_solver(text)
        return (1 / parsed.num_steps) ** parsed.order if isinstance(parsed, Fixed) else 0.0

    parsed, own = parse_solver(solver), solver == config.train.solver
    sensitive = {"neural_ode": 0.6, "gode": 1.5}.get(config.model.family, 6.0)
    gap = 0.0 if own else sensitive * abs(error(solver) - error(config.train.solver))
    n = 360
    correct = round(n * min(1, max(0.1, best - 0.85 * math.tanh(gap) ** 1.5 + (0 if own else random.normal(0, 0.004)))))
    evals = float(parsed.num_evals) if isinstance(parsed, Fixed) else 60 + 12 * random.random()
    accuracy, steps = correct / n, evals / 6
    numbers = (accuracy, 4 * (1 - accuracy), 1 - math.tanh(gap), 9 * gap, 3 * gap, evals, steps, 0.0, 0.01)
    return EvaluationRecord(job, "c0de", solver, "test", n, 0, *numbers, "ok")


def _weights(job: str, config: JobConfig, random, depths: int) -> list[WeightRecord]:
    rows = []
    for entry in (0, 7, 14, 21):
        coefficients = random.normal(0, 0.3, config.basis.num_coefficients)
        for t in np.linspace(0, 1, depths):
            rows.append(WeightRecord(job, "c0de", "conv2.weight", entry, t, float(config.basis.row(t) @ coefficients)))
    return rows


def change(path: str, cls, **values) -> None:
    """Values of the last row of a file."""
    rows = read_records(cls, path)
    write_records(path, [*rows[:-1], dataclasses.replace(rows[-1], **values)])


def run_stage(stage: str, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", f"pipeline.{stage}", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True)


def load(text: str, folder: Path, name: str = "small.yaml") -> Experiment:
    path = folder / name
    path.write_text(text)
    return load_experiment(path)


@pytest.fixture
def small(tmp_path: Path) -> tuple[Experiment, Paths]:
    experiment, paths = load(SMALL, tmp_path), Paths(str(tmp_path / "results"))
    make_results(experiment, paths)
    return experiment, paths


def files(experiment: Experiment, paths: Paths, job: str) -> dict[str, str]:
    """Of a job, by the kind of the rows."""
    return dict(zip(KINDS, (*paths.trained(job)[1:], *paths.judged(job, experiment.evaluate_with.id)), strict=True))


def fill(experiment: Experiment, paths: Paths) -> None:
    """Rows of the kinds that not every job has: for each job another number of them."""
    for place, job in enumerate(experiment.jobs, 1):
        for kind in ("decisions", "validity", "trajectories"):
            rows = [record(KINDS[kind], number, job=job, code="c0de") for number in range(place)]
            write_records(files(experiment, paths, job)[kind], rows)


def tables(experiment: Experiment, paths: Paths, mix_code: bool = False) -> tuple[pd.DataFrame, ...]:
    return tuple(collect(experiment, paths, mix_code).values())


def test_every_record_becomes_one_row(tmp_path):
    experiment, paths = dataclasses.replace(load_experiment(DEFAULT_EXPERIMENT), search=None), Paths(str(tmp_path))
    make_results(experiment, paths)
    fill(experiment, paths)
    found = collect(experiment, paths)
    names = ("table", "training", "decisions", "weights", "validity", "trajectories")
    assert [Path(path).name for path in found] == [f"{name}.csv" for name in names]
    table, training, decisions, weights, validity, trajectories = found.values()
    jobs = len(experiment.jobs)
    assert len(table) == jobs * len(experiment.evaluate_with.solvers)
    assert len(training) == jobs * EPOCHS
    assert len(weights) == jobs * 4 * DEPTHS
    assert not table.duplicated(["job", "solver"]).any()
    for frame in (decisions, validity, trajectories):
        assert frame.groupby("job", sort=False).size().to_dict() == {j: i for i, j in enumerate(experiment.jobs, 1)}
    for frame in found.values():
        assert {"job", "label", "train.solver", "seed"} < set(frame)
        assert frame.columns.is_unique
        assert [frame[frame["job"] == job]["label"].unique() for job in experiment.jobs] == [
            config.label for config in experiment.jobs.values()
        ]


@pytest.mark.parametrize("kind", ["decisions", "validity", "trajectories"])
def test_a_table_keeps_each_number_of_its_records(small, kind):
    """And beside them the label of the model: no record may have a column of that name."""
    experiment, paths = small
    fill(experiment, paths)
    (table,) = [table for path, table in collect(experiment, paths).items() if Path(path).stem == kind]
    found = table.to_dict("records")
    records = [row for job in experiment.jobs for row in read_records(KINDS[kind], files(experiment, paths, job)[kind])]
    assert [{name: row[name] for name in vars(records[0])} for row in found] == [vars(row) for row in records]
    assert [row["label"] for row in found] == [experiment.jobs[row.job].label for row in records]


def test_a_table_without_rows_has_its_columns(small):
    for table in tables(*small):
        assert {"job", "label", "train.solver", "seed", "code"} < set(table)


def test_a_row_holds_the_jobs_parameters_the_record_and_the_end_of_the_training(small):
    experiment, paths = small
    table = tables(experiment, paths)[0]
    for job, config in experiment.jobs.items():
        judged = read_records(EvaluationRecord, paths.evaluation(job, experiment.evaluate_with.id))
        last = read_records(TrainingRecord, paths.training(job))[-1]
        for judgement in judged:
            row = table[(table["job"] == job) & (table["solver"] == judgement.solver)].iloc[0]
            assert {name: row[name] for name in vars(judgement)} == vars(judgement)
            assert (row["train.lr"], row["seed"], row["label"]) == (config.train.lr, config.seed, config.label)
            assert row["num_coefficients"] == config.basis.num_coefficients
            assert row["train_validation_accuracy"] == last.validation_accuracy
            assert (row["train_epoch"], row["train_status"]) == (last.epoch, last.status)


def test_a_row_names_the_torch_that_the_job_was_trained_with(small):
    """Those of the attempts that it is made of: since it was last begun anew, and with steps."""
    experiment, paths = small
    first, second, third, _ = experiment.jobs
    tries = [(0, 20, "2.9"), (0, 8, "2.11"), (8, 8, "2.12"), (8, 16, ""), (16, 20, "2.13+cpu")]
    for from_step, to_step, version in tries:
        append_record(paths.attempts(first), attempt(first, from_step, to_step, version))
    append_record(paths.attempts(second), attempt(second, 0, 20, "2.13+cpu"))
    append_record(paths.attempts(third), attempt(third, 0, 20, "2.13+cpu"))
    with open(paths.attempts(third), "a") as file:
        file.write('{"job": ')  # by a full disk: it is no more than a note
    found = tables(experiment, paths)[0].drop_duplicates("job").set_index("job")["train_torch"]
    assert list(found.fillna("")) == ["2.11 2.13+cpu", "2.13+cpu", "", ""]


def attempt(job: str, from_step: int, to_step: int, version: str) -> AttemptRecord:
    numbers = ("here", 7, "cpu", from_step, to_step, "2026-01-02T03:00:00+00:00", 30.5)
    return AttemptRecord(job, "c0de", "abc", *numbers, "interrupted", "", torch=version)


def test_each_parameter_has_a_column_also_those_of_a_basis_that_no_job_has(tmp_path):
    text = SMALL.replace(
        "  model: [{family: neural_ode}, {family: gode, basis: {degree: 1, num_coefficients: 3}}]\n", ""
    )
    experiment, paths = load(text, tmp_path), Paths(str(tmp_path))
    make_results(experiment, paths)
    columns = set(tables(experiment, paths)[0])
    parts = {"data": DataConfig, "model": ModelConfig, "train": TrainConfig, "model.rule": RuleConfig}
    parts |= {
        "train.adapt": AdaptConfig,
        "model.basis": BasisConfig,
        "model.evolution": EvolutionConfig,
        "model.evolution.basis": BasisConfig,
    }
    for part, cls in parts.items():
        assert {f"{part}.{f.name}" for f in dataclasses.fields(cls)} - set(parts) <= columns
    assert not set(parts) & columns


@pytest.mark.parametrize("kind", KINDS)
def test_rows_of_different_code_are_refused_unless_told_to_mix(small, kind):
    experiment, paths = small
    fill(experiment, paths)
    job = list(experiment.jobs)[2]
    change(files(experiment, paths, job)[kind], KINDS[kind], code="0ther")
    rule = "evaluate" if kind in ("evaluation", "validity", "trajectories") else "train"
    words = rf"{kind} rows .*c0de.*0ther made those of {job}.*--forcerun {rule}`.*mix_code=true"
    with pytest.raises(ValueError, match=words):
        collect(experiment, paths)
    assert len(tables(experiment, paths, mix_code=True)[0]) == 12


def test_training_and_judging_may_come_from_two_codes(small):
    """A change to the evaluation alone asks for no new training."""
    experiment, paths = small
    for job in experiment.jobs:
        path = paths.training(job)
        write_records(path, [dataclasses.replace(row, code="older") for row in read_records(TrainingRecord, path)])
    assert set(tables(experiment, paths)[1]["code"]) == {"older"}


@pytest.mark.parametrize("kind", KINDS)
def test_rows_of_another_job_are_refused(small, kind):
    experiment, paths = small
    fill(experiment, paths)
    first, second = list(experiment.jobs)[:2]
    change(files(experiment, paths, first)[kind], KINDS[kind], job=second)
    with pytest.raises(ValueError, match=f"{first}/{kind}[^/]*.jsonl: holds rows of the job {second}"):
        collect(experiment, paths)


@pytest.mark.parametrize(
    ("solver", "words"), [("rk4@3", "lacks dopri5@1e-5; has, but was not asked for, rk4@3"), ("euler@8", "has twice")]
)
def test_other_solvers_than_asked_are_refused(small, solver, words):
    experiment, paths = small
    change(paths.evaluation(next(iter(experiment.jobs)), experiment.evaluate_with.id), EvaluationRecord, solver=solver)
    with pytest.raises(ValueError, match=words):
        collect(experiment, paths)


@pytest.mark.parametrize(
    ("ended", "words"),
    [
        ("euler@37", None),
        ("euler@8", None),
        ("euler@38", "lacks euler@38; has, but was not asked for, euler@37"),
        (None, "has, but was not asked for, euler@37"),
    ],
)
def test_an_adapted_job_is_judged_by_the_solver_that_its_training_came_to_too(tmp_path, ended, words):
    """Once, if that was asked for."""
    adapted = SMALL.replace("batch_size: 64}", "batch_size: 64, adapt: {rule: agreement}}")
    experiment, paths = load(adapted, tmp_path), Paths(str(tmp_path / "results"))
    make_results(experiment, paths)
    solvers = [*experiment.evaluate_with.solvers, *(["euler@37"] if ended != "euler@8" else [])]
    for job in experiment.jobs:
        change(paths.training(job), TrainingRecord, solver=ended)
        path = paths.evaluation(job, experiment.evaluate_with.id)
        first = read_records(EvaluationRecord, path)[0]
        write_records(path, [dataclasses.replace(first, solver=solver) for solver in solvers])
    if words is None:
        assert list(tables(experiment, paths)[0]["solver"]) == solvers * 4
    else:
        with pytest.raises(ValueError, match=words):
            collect(experiment, paths)


def test_a_config_that_was_changed_by_hand_is_refused(small):
    experiment, paths = small
    path = Path(paths.config(next(iter(experiment.jobs))))
    path.write_text(path.read_text().replace("0.005", "0.5"))
    with pytest.raises(ValueError, match="holds the job"):
        collect(experiment, paths)


@pytest.mark.parametrize("kind", KINDS)
def test_a_job_that_is_not_finished_is_named(small, kind):
    experiment, paths = small
    job = list(experiment.jobs)[3]
    Path(files(experiment, paths, job)[kind]).unlink()
    with pytest.raises(ValueError, match=f"1 of 4 jobs are not trained and judged yet: {job}"):
        collect(experiment, paths)


def test_a_training_without_rows_is_refused(small):
    experiment, paths = small
    Path(paths.training(next(iter(experiment.jobs)))).write_text("")
    with pytest.raises(ValueError, match="holds no rows"):
        collect(experiment, paths)


def test_the_files_hold_the_numbers_exactly_and_an_error_leaves_them_alone(small, tmp_path):
    experiment, paths = small
    done = run_stage("collect", tmp_path / "small.yaml", "--results", paths.root)
    assert done.returncode == 0, done.stderr
    with open(paths.table("small")) as file:
        written = list(csv.DictReader(file))
    for column in ("accuracy", "loss", "train_validation_accuracy"):
        assert [float(row[column]) for row in written] == list(tables(experiment, paths)[0][column])
    before = Path(paths.table("small")).read_bytes()
    assert b",3.0," not in before  # the number of coefficients stays whole beside the empty cells
    change(paths.training(next(iter(experiment.jobs))), TrainingRecord, code="0ther")
    refused = run_stage("collect", tmp_path / "small.yaml", "--results", paths.root)
    assert refused.returncode == 2
    assert refused.stderr.startswith("error: training rows")
    assert refused.stderr.count("\n") == 1
    assert Path(paths.table("small")).read_bytes() == before
    assert run_stage("collect", tmp_path / "small.yaml", "--results", paths.root, "--mix-code").returncode == 0


@pytest.mark.parametrize("stage", ["collect", "report"])
def test_no_torch_is_imported(stage):
    code = f"import sys, pipeline.{stage}; assert 'torch' not in sys.modules"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


LINE = {"degree": 1, "num_coefficients": 4}
PHASES = [
    *({}, {"until": 2}, {"solver": "bosh3@1e-2"}, {"gradient": "adjoint"}, {"basis": LINE}),
    *({"basis": LINE | {"knots": ["1/3", "1/2"]}}, {"basis": LINE | {"knots": ["1/4", "1/2"]}}),
    *({"basis": LINE | {"knots": "unclamped"}}, {"basis": {"kind": "hat", "num_coefficients": 4}}),
]


def test_phases_that_differ_read_differently(tmp_path):
    """Else jobs that differ in them alone would be taken for seeds of one model."""
    phases = [[{"until": 1, "solver": "dopri5@1e-3"} | changes] for changes in PHASES]
    sweep = f"sweep:\n  train.phases: {json.dumps(phases)}"
    text = re.sub(r"sweep:(\n  .*)*", sweep, SMALL).replace("neural_ode", f"gode, basis: {json.dumps(LINE)}")
    experiment = load(text, tmp_path)
    assert len(experiment.jobs) == len({flatten(config)["train.phases"] for config in experiment.jobs.values()})
    assert {field for changes in PHASES for field in changes} == {f.name for f in dataclasses.fields(Phase)}
