"""What the Snakefile knows of a run: from `--configfile` and `--config` to files and arguments."""

import dataclasses
import json
import os
import subprocess
from pathlib import Path
from types import SimpleNamespace

import pytest
from searched import Searched

from pipeline import cost, past, provenance
from pipeline import run as run_module
from pipeline.counting import training_steps
from pipeline.experiment import Budget, load_experiment
from pipeline.paths import Paths
from pipeline.records import AttemptRecord, append_record
from pipeline.run import Run
from pipeline.target import Target

SMALL = Path(__file__).parents[1] / "workflow" / "small.yaml"


@pytest.mark.parametrize(("value", "flag"), [(False, ""), ("false", ""), (True, "--mix-code"), ("true", "--mix-code")])
def test_mix_code_is_read_as_it_is_written(value, flag):
    """Snakemake hands over `--config mix_code=false` as text."""
    assert Run.of({"mix_code": value}, [SMALL]).mix_code == flag


def test_the_default_experiment_and_another():
    assert Run.of({}, []).name == "digits"
    run = Run.of({"results": "there"}, [SMALL])
    assert run.name == "small"
    assert len(run.rows) == len(set(run.rows)) == 36
    assert [Path(path).name.partition("-")[0] for path in run.rows[:6]] == [
        *("training.jsonl", "decisions.jsonl", "weights.jsonl"),
        *("evaluation", "validity", "trajectories"),
    ]
    assert all(path.startswith("there/") for path in run.rows)


def test_what_is_collected_rests_on_the_file_of_the_search_too(tmp_path):
    """Asked for more trials, and then for as many as before, it may come to the same winners by other trials."""
    made = Searched(tmp_path)
    made.try_all()
    whole = made.end()
    asked = []
    checkpoints = SimpleNamespace(search=SimpleNamespace(get=lambda: asked.append(1)))
    found = Run.of({"results": made.paths.root}, [made.file]).rows_of_winners(checkpoints)(None)
    assert asked
    assert found[0] == made.paths.found("found", made.search.result_id)
    assert [file for file in found if file.endswith("training.jsonl")] == [
        made.paths.training(job) for job in whole.jobs
    ]


@pytest.mark.parametrize(("config", "files"), [({"resultz": 1}, []), ({}, ["no-such.yaml"])])
def test_bad_input_ends_in_one_line(config, files):
    with pytest.raises(SystemExit) as ended:
        Run.of(config, files)
    assert str(ended.value).startswith("error: ")
    assert "\n" not in str(ended.value)


def test_a_results_folder_that_may_not_be_written_is_refused_before_any_job(tmp_path, monkeypatch):
    monkeypatch.setattr(run_module.os, "access", lambda path, mode: False)  # root may write everywhere
    with pytest.raises(SystemExit, match="may not be written; choose another folder"):
        Run.of({"results": str(tmp_path / "deep" / "er")}, [SMALL])


@pytest.fixture
def begun(tmp_path) -> Path:
    """Two of six jobs are trained, in an hour each, below `results`; a budget of five core-hours."""
    path = tmp_path / "begun.yaml"
    path.write_text(SMALL.read_text() + "budget: {core_hours: 5}\n")
    paths = Paths(str(tmp_path / "results"))
    for job in list(load_experiment(SMALL).jobs)[::2][:2]:  # a ResNet and a Neural ODE
        steps = training_steps(load_experiment(SMALL).jobs[job])
        attempt = AttemptRecord(job, "c", "c", "h", 1, "cpu", 0, steps or 0, "", 3600.0, "finished", "")
        append_record(paths.attempts(job), attempt)
        for file in paths.trained(job):
            Path(file).touch()
    return path


def run_of(file: Path, **options) -> Run:
    return Run.of({"results": str(file.parent / "results")}, [file], **options)


def test_an_experiment_beyond_its_budget_is_refused_in_one_line(begun):
    with pytest.raises(SystemExit) as ended:
        run_of(begun)
    line = str(ended.value)
    assert line.startswith(f"error: {begun}: budget: 2 core-hours are spent and 4 more are needed")
    assert line.endswith("which exceeds 5: raise `budget`, or take jobs out of the experiment")
    assert "\n" not in line
    begun.write_text(begun.read_text().replace("core_hours: 5", "core_hours: 900"))
    assert run_of(begun).name == "begun"


def test_a_job_of_a_cluster_is_stopped_when_the_budget_is_spent_and_not_before(begun):
    assert run_of(begun, inside_job=True).experiment.budget == Budget(core_hours=5)
    begun.write_text(begun.read_text().replace("core_hours: 5", "core_hours: 2"))
    for inside in (True, False):
        with pytest.raises(SystemExit, match=r"error: .*: budget of 2 core-hours is spent \(2\): raise `budget`"):
            run_of(begun, inside_job=inside)
    run = run_of(SMALL)
    for file in (file for job in run.experiment.jobs for file in Paths(f"{begun.parent}/results").trained(job)):
        Path(file).parent.mkdir(parents=True, exist_ok=True)
        Path(file).touch()
    for inside in (True, False):  # nothing is left to train: all may be judged and reported
        run_of(begun, inside_job=inside)


def test_a_job_of_a_cluster_reads_each_attempt_once(begun, monkeypatch):
    """There are as many of these jobs as there are attempts to read, or more."""
    read: list[str] = []
    attempts = cost.read_attempts
    monkeypatch.setattr(cost, "read_attempts", lambda job, paths: [read.append(job), *attempts(job, paths)][1:])
    run_of(begun, inside_job=True)
    assert len(read) == len(set(read)) == 2


def test_a_row_that_a_job_of_a_cluster_cannot_read_does_not_end_it(begun):
    """It may be about to be written, by another node. Before any job it is said."""
    job = next(iter(load_experiment(SMALL).jobs))
    with open(Paths(f"{begun.parent}/results").attempts(job), "a") as file:
        file.write('{"job": "cut o')
    assert run_of(begun, inside_job=True).name == "begun"
    with pytest.raises(SystemExit, match="a broken row, so what the job has cost is not known"):
        run_of(begun)


def test_a_guess_beyond_the_budget_is_a_warning(tmp_path, capsys):
    (tmp_path / "new.yaml").write_text(SMALL.read_text() + "budget: {core_hours: 1e-4}\n")
    assert run_of(tmp_path / "new.yaml").name == "new"
    error = capsys.readouterr().err
    assert error.startswith(f"warning: {tmp_path / 'new.yaml'}: budget: 0 core-hours are spent and ~")
    assert error.count("\n") == 1


def test_without_a_budget_nothing_of_the_past_is_read(begun, monkeypatch):
    without = load_experiment(SMALL)

    def fails(*arguments):
        raise AssertionError("a file was looked for")

    for name in ("scandir", "listdir", "stat"):
        monkeypatch.setattr(past.os, name, fails)
    monkeypatch.setattr(past, "read_records", fails)
    monkeypatch.setattr(run_module, "_need_folder", lambda root: None)
    monkeypatch.setattr(run_module, "load_experiment", lambda file: without)
    assert run_of(begun).experiment.budget is None
    monkeypatch.setattr(run_module, "load_experiment", lambda file: dataclasses.replace(without, budget=Budget(1.0)))
    with pytest.raises(AssertionError, match="looked for"):
        run_of(begun)


def test_a_data_set_is_proved_once_and_asked_for_with_what_belongs_to_it(tmp_path):
    text = SMALL.read_text().replace("{name: digits, num_validation: 50}", "{name: spheres, dimension: 3}")
    (tmp_path / "points.yaml").write_text(text.replace(", pad_channels: 2", ""))
    run = Run.of({}, [tmp_path / "points.yaml"])
    job = next(iter(run.experiment.jobs))
    assert run.data_of(SimpleNamespace(job=job)) == "results/data/spheres3.json"
    assert run.data_arguments(SimpleNamespace(source="spheres3")) == "spheres --dimension 3"


def test_the_farewell_says_where_to_look(tmp_path, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    run = Run.of({"results": str(tmp_path)}, [SMALL])
    assert run.farewell == ""
    published = Path(run.paths.published(run.name))
    published.parent.mkdir(parents=True)
    where = Target.of(None, run.paths).shown
    published.write_text(json.dumps({"tracking_uri": where, "experiment_id": "7"}))
    assert run.paths.report("small") in run.farewell
    assert f"sqlite:///{tmp_path}/mlflow.db" in run.farewell
    published.write_text(json.dumps({"tracking_uri": "http://elsewhere:5000", "experiment_id": "7"}))
    assert "http://elsewhere:5000/#/experiments/7/" in run.farewell  # published again, by hand, to another MLflow
    assert "mlflow.db" not in run.farewell


def test_git_is_asked_without_being_made_to_write(tmp_path, monkeypatch):
    """`git status` takes down what it has seen, where it may: each job would, into one file."""

    def git(*words: str) -> None:
        subprocess.run(["git", "-C", str(tmp_path), "-c", "user.name=n", "-c", "user.email=e", *words], check=True)

    (tmp_path / "file").write_text("1")
    git("init", "--quiet")
    git("add", "file")
    git("commit", "--quiet", "--message", "one")
    index = tmp_path / ".git/index"
    os.utime(tmp_path / "file", (1, 1))  # of other age, and the same: that is what it would take down
    os.utime(index, (2, 2))
    before = index.read_bytes()
    monkeypatch.setattr(provenance, "HERE", tmp_path)
    assert not provenance.commit.__wrapped__().endswith("+")
    assert index.read_bytes() == before


@pytest.mark.parametrize("error", [FileNotFoundError(), subprocess.TimeoutExpired("git", 30)])
def test_a_commit_that_git_cannot_tell_is_unknown(monkeypatch, error):
    """It stands in a note on the attempt; a training must not be lost by it."""

    def fails(*arguments, **options):
        raise error

    monkeypatch.setattr(provenance.subprocess, "run", fails)
    assert provenance.commit.__wrapped__() == "unknown"
