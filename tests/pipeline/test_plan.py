"""What a plan counts, prints and writes, and what it does not import."""

from __future__ import annotations

import json
import os
import re
import resource
import subprocess
import sys
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest

from gode_core.solvers import ADAPTIVE_METHODS
from pipeline import stage
from pipeline.config import job_id, read_job
from pipeline.cost import RuleCost
from pipeline.counting import ASSUMED_STEPS, evals_per_solve, judging_evals, training_evals, training_steps
from pipeline.describe import write_configs
from pipeline.experiment import Budget, Judging, load_experiment
from pipeline.past import DeviceSeconds
from pipeline.paths import DEFAULT_EXPERIMENT, Paths
from pipeline.plan import describe, describe_budget, describe_cost
from pipeline.records import AttemptRecord, append_record

ROOT = Path(__file__).parents[2]
JOB: dict[str, Any] = {
    "data": {"name": "digits", "num_validation": 437},  # leaves 1000
    "model": {"network": "raw", "family": "neural_ode", "width": 8},
    "train": {"solver": "rk4@5", "epochs": 3, "batch_size": 300, "optimiser": "adam", "lr": 0.1},
}


def count(**changes: Any) -> int | None:
    data = deepcopy(JOB)
    for path, value in changes.items():
        section, name = path.split(".")
        data[section][name] = value
    return training_evals(read_job(data, ""))


@pytest.mark.parametrize(
    ("changes", "by_hand"),
    [
        ({}, 3 * 4 * 5 * 4),  # epochs, batches (the last of 100), steps, stages
        ({"train.drop_last": True}, 3 * 3 * 5 * 4),
        ({"train.batch_size": 250, "train.drop_last": True}, 3 * 4 * 5 * 4),
        ({"train.batch_size": 5000}, 3 * 1 * 5 * 4),
        ({"train.solver": "euler@7"}, 3 * 4 * 7),
        ({"train.solver": "heun@7"}, 3 * 4 * 7 * 2),
        ({"train.epochs": 1}, 4 * 5 * 4),
        ({"data.num_train": 301}, 3 * 2 * 5 * 4),
        ({"model.network": "stem", "model.field": "preactivation"}, 3 * 4 * 5 * 4),
        ({"model.network": "stages", "model.field": "preactivation"}, 3 * 4 * 3 * 5 * 4),  # three blocks
        ({"data.name": "mnist"}, 3 * 199 * 5 * 4),  # 59 563 images
        ({"model.family": "resnet", "train.solver": "euler@6"}, 3 * 4 * 6),
    ],
)
def test_field_evaluations_are_those_of_a_count_by_hand(changes, by_hand):
    assert count(**changes) == by_hand


def test_a_folder_s_images_are_counted_only_if_their_number_is_given():
    folder = {"data.name": "imagefolder", "data.folder": "birds", "data.image_size": 8, "data.num_classes": 3}
    assert count(**folder) is None
    assert count(**folder, **{"data.num_train": 600}) == 3 * 2 * 5 * 4


@pytest.mark.parametrize("method", ADAPTIVE_METHODS)
def test_an_adaptive_solve_is_guessed_from_its_method(method):
    config = read_job(JOB | {"train": JOB["train"] | {"solver": f"{method}@1e-5"}}, "")
    assert evals_per_solve(config, config.phase(0)) == ASSUMED_STEPS * ADAPTIVE_METHODS[method].evals_per_step


def test_each_phase_is_counted_with_its_own_solver_and_basis():
    """Four batches. ab3 makes two of Runge-Kutta's steps at the start of each of two pieces, of three stages each."""
    early = {"until": 1, "solver": "ab3@8", "basis": {"degree": 0, "num_coefficients": 2}}
    gode = {"model.family": "gode", "model.basis": {"degree": 3, "num_coefficients": 8}}
    assert count(**gode, **{"train.phases": [early]}) == 4 * 2 * (2 * 3 + 2) + 2 * 4 * 5 * 4


def test_a_training_is_as_long_as_its_epochs_one_by_one():
    """With its steps, and an adaptation that bounds them for the training, not for those who judge."""
    early = [{"until": 2, "solver": "euler@2"}, {"until": 3, "solver": "dopri5@1e-3"}]
    config = read_job(JOB | {"train": JOB["train"] | {"epochs": 7, "phases": early}}, "")
    assert training_evals(config) == 4 * sum(evals_per_solve(config, config.phase(epoch)) for epoch in range(7))
    assert training_steps(config) == 4 * 7
    adapt = {"epochs": 2, "solver": "euler@500", "adapt": {"rule": "step"}}
    config = read_job(JOB | {"train": JOB["train"] | adapt}, "")
    assert training_evals(config) == 4 * 2 * 100
    judging = Judging(("euler@300",), split="validation", batch_size=400)
    assert judging_evals(config, judging) == 2 * (300 + 500)


TEXT = """\
question: Does depth matter?
job:
  data: {name: digits, num_validation: 437}
  model: {network: raw, family: neural_ode, width: 8}
  train: {optimiser: adam, lr: 0.1, epochs: 3, batch_size: 300, solver: rk4@5}
sweep:
  train.solver: [rk4@500, dopri5@1e-3]
evaluate_with: {solvers: [euler@2, rk4@8], split: validation}
"""


@pytest.fixture
def small(tmp_path) -> Path:
    path = tmp_path / "small.yaml"
    path.write_text(TEXT)
    return path


def test_the_plan_names_each_job_with_its_cost_and_the_sum(small):
    experiment = load_experiment(small)
    lines = describe(experiment).splitlines()
    fixed, adaptive = experiment.jobs
    guess = 3 * 4 * ASSUMED_STEPS * ADAPTIVE_METHODS["dopri5"].evals_per_step
    assert [line.split() for line in lines if line.endswith((fixed, adaptive))] == [
        [f"{3 * 4 * 500 * 4:,}", fixed],
        [f"~{guess:,}", adaptive],
    ]
    assert lines[0] == "small: Does depth matter?"
    assert f"2 jobs, {3 * 4 * 500 * 4 + guess:,} field evaluations in training" in lines[-2]
    assert lines[-1] == "Each is judged on the validation split with 2 solvers: euler@2, rk4@8"


def test_the_plan_says_where_it_cannot_count(small):
    folder = "{name: imagefolder, folder: birds, image_size: 8, num_classes: 3, num_validation: 5}"
    small.write_text(TEXT.replace("{name: digits, num_validation: 437}", folder))
    text = describe(load_experiment(small))
    assert text.count("\n                 ?  ") == 2
    assert "2 jobs, 0 and more field evaluations" in text


def test_the_configs_that_are_written_are_the_jobs(small, tmp_path):
    experiment, paths = load_experiment(small), Paths(str(tmp_path / "results"))
    write_configs(experiment, paths)
    for key, config in experiment.jobs.items():
        written = json.loads(Path(paths.config(key)).read_text())
        assert read_job(written, "") == config
        assert job_id(read_job(written, "")) == key
    assert {p.name for p in (tmp_path / "results" / "jobs").iterdir()} == set(experiment.jobs)


def test_a_config_that_stands_is_left_alone_and_a_broken_one_is_mended(small, tmp_path):
    """A newer config.json would make Snakemake train again."""
    experiment, paths = load_experiment(small), Paths(str(tmp_path))
    write_configs(experiment, paths)
    kept, broken = (Path(paths.config(key)) for key in experiment.jobs)
    for path in (kept, broken):
        os.utime(path, (1, 1))
    whole = broken.read_bytes()
    broken.write_bytes(whole[:-9])
    write_configs(experiment, paths)
    assert kept.stat().st_mtime == 1
    assert broken.read_bytes() == whole


def plan(*arguments: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "pipeline.plan", *arguments]
    environment = {k: v for k, v in os.environ.items() if k != "GODE_TRACEBACK"}
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)


def test_the_command_prints_the_default_experiment_and_writes_nothing(tmp_path):
    end = plan("--results", str(tmp_path / "results"))
    assert (end.returncode, end.stderr) == (0, "")
    assert all(key in end.stdout for key in load_experiment(ROOT / DEFAULT_EXPERIMENT).jobs)
    assert not list(tmp_path.iterdir())


def test_the_command_writes_the_configs(small, tmp_path):
    end = plan(str(small), "--write", "--results", str(tmp_path / "results"))
    assert (end.returncode, end.stdout) == (0, "")
    assert f"2 jobs: each has its config.json in {tmp_path / 'results'}/jobs" in end.stderr
    assert len(list((tmp_path / "results" / "jobs").glob("*/config.json"))) == 2


def spend(small: Path, seconds: float) -> str:
    """One of the two jobs is trained and the other, with another solver, is not. The folder of the results."""
    experiment, paths = load_experiment(small), Paths(str(small.parent / "results"))
    job = next(iter(experiment.jobs))
    steps = training_steps(experiment.jobs[job]) or 0
    attempt = AttemptRecord(job, "c", "c", "h", 1, "cpu", 0, steps, "", seconds, "finished", "")
    append_record(paths.attempts(job), attempt)
    for file in paths.trained(job):
        Path(file).touch()
    return paths.root


def test_the_command_ends_with_what_is_to_be_spent_and_on_what_that_rests(small):
    root = spend(small, 40 * 3600.0)
    train, evaluate, total = plan(str(small), "--results", root).stdout.splitlines()[-3:]
    assert train.split()[0] == "train"
    assert "1.2 core-hours" in train  # 60 evaluations a solve, and not 2000
    assert train.endswith(f"2 jobs, 1 done; by past jobs in {root} (1)")
    assert evaluate.endswith(f"2 jobs, 0 done; a guess: nothing like it in {root}")
    parts = [float(line.split()[1].removeprefix("~")) for line in (train, evaluate)]
    assert float(total.split()[2].removeprefix("~")) == pytest.approx(sum(parts), abs=0.11)
    train, *_ = plan(str(small), "--results", root, "--device", "cuda").stdout.splitlines()[-3:]
    assert "GPU-minutes" in train
    assert "a guess" in train


def test_the_command_refuses_what_exceeds_the_budget_after_it_has_shown_it(small):
    small.write_text(TEXT + "budget: {core_hours: 40.5}\n")
    end = plan(str(small), "--results", spend(small, 40 * 3600.0))
    assert end.returncode == 2
    assert re.search(r"budget    40\.5 core-hours, 40 spent; then ~\d\.\d too few\n", end.stdout)
    assert end.stderr.startswith(f"error: {small}: budget: 40 core-hours are spent and 1.2 more are needed")
    assert end.stderr.count("\n") == 1
    small.write_text(TEXT + "budget: {core_hours: 50}\n")
    end = plan(str(small), "--results", str(small.parent / "results"))
    assert (end.returncode, end.stderr) == (0, "")
    assert re.search(r"budget    50 core-hours, 40 spent; then ~\d\.\d left\n", end.stdout)


def test_the_command_warns_where_a_guess_exceeds_the_budget(small):
    small.write_text(TEXT + "budget: {core_hours: 1e-5}\n")
    end = plan(str(small), "--results", str(small.parent / "results"))
    assert end.returncode == 0
    assert "(a guess), which may exceed 1e-05; no training begins on a cluster once it is spent" in end.stderr


def test_what_is_guessed_is_marked_and_what_is_done_is_nothing():
    hour = DeviceSeconds(gpu=3600.0)
    train = RuleCost("train", 9000, 9000, DeviceSeconds(), DeviceSeconds(), frozenset(), 0)
    evaluate = RuleCost("evaluate", 9000, 7, DeviceSeconds(core=90.0), hour, frozenset("ab"), 0)
    assert describe_cost([train, evaluate], "there") == [
        "To be spent:",
        "  train     nothing                          9,000 jobs, 9,000 done",
        "  evaluate  ~1 GPU-hours + 1.5 core-minutes  9,000 jobs, 7 done; by past jobs in there (2), the rest a guess",
        "  in all    ~1 GPU-hours + 1.5 core-minutes",
    ]
    assert describe_budget(Budget(40, 8), DeviceSeconds(7200.0, 36.0), [train, evaluate]) == [
        "  budget    40 GPU-hours, 2 spent; then ~37 left",
        "  budget    8 core-hours, 0.01 spent; then 8 left",
    ]


@pytest.mark.parametrize("wrong", ["typo.yaml", "pipeline", "pipeline/plan.py", "pipeline/experiments/digitz.yaml"])
def test_a_wrong_file_is_one_line_on_stderr(wrong):
    end = plan(wrong)
    assert (end.returncode, end.stdout) == (2, "")
    assert end.stderr.startswith(f"error: {wrong}: ")
    assert end.stderr.count("\n") == 1


def test_a_reader_who_leaves_early_is_no_error():
    """`| head`: no message, and the exit code that the shell gives to it."""
    command = [sys.executable, "-m", "pipeline.plan"]
    buffered = {k: v for k, v in os.environ.items() if k != "PYTHONUNBUFFERED"}
    with subprocess.Popen(command, cwd=ROOT, env=buffered, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as child:
        assert child.stdout
        assert child.stderr
        child.stdout.close()
        message = child.stderr.read()
    assert (child.returncode, message) == (stage.READER_LEFT, b"")


def test_results_that_cannot_be_written_are_one_line_on_stderr(small, tmp_path):
    (tmp_path / "results").write_text("a file, not a folder")
    end = plan(str(small), "--write", "--results", str(tmp_path / "results"))
    assert end.returncode == 2
    assert end.stderr.startswith(f"error: {tmp_path / 'results'}")
    assert end.stderr.count("\n") == 1


def test_planning_is_cheap_and_imports_nothing_heavy():
    """The Snakefile does what this does, in each job of a cluster. Seconds of the processor, not of a busy machine."""
    program = (
        "import sys; from pipeline.experiment import load_experiment; import pipeline.plan\n"
        f"pipeline.plan.describe(load_experiment({DEFAULT_EXPERIMENT!r}))\n"
        "print(*sorted({name.partition('.')[0] for name in sys.modules}))"
    )
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    end = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    heavy = {
        "torch",
        "torchvision",
        "torchdiffeq",
        "numpy",
        "scipy",
        "pandas",
        "sklearn",
        "matplotlib",
        "ray",
        "mlflow",
    }
    assert not heavy & set(end.stdout.split())
    assert {"yaml", "pipeline", "gode_core"} <= set(end.stdout.split())
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 1.5
