"""What the Snakefile knows of a run: from `--configfile` and `--config` to files and arguments."""

import json
import subprocess
from pathlib import Path
from types import SimpleNamespace

import pytest

from pipeline import provenance
from pipeline import run as run_module
from pipeline.run import Run

SMALL = Path(__file__).parents[1] / "workflow" / "small.yaml"


@pytest.mark.parametrize(("value", "flag"), [(False, ""), ("false", ""), (True, "--mix-code"), ("true", "--mix-code")])
def test_mix_code_is_read_as_it_is_written(value, flag):
    """Snakemake hands over `--config mix_code=false` as text."""
    assert Run.of({"mix_code": value}, [SMALL]).mix_code == flag


def test_the_default_experiment_and_another():
    assert Run.of({}, []).name == "digits"
    run = Run.of({"results": "there"}, [SMALL])
    assert run.name == "small"
    assert len(run.configs) == 6
    assert len(run.rows) == len(set(run.rows)) == 36
    assert [Path(path).name.partition("-")[0] for path in run.rows[:6]] == [
        *("training.jsonl", "decisions.jsonl", "weights.jsonl"),
        *("evaluation", "validity", "trajectories"),
    ]
    assert all(path.startswith("there/") for path in run.configs + run.rows)


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
    published.write_text(json.dumps({"experiment_id": "7"}))
    assert run.paths.report("small") in run.farewell
    assert f"sqlite:///{tmp_path}/mlflow.db" in run.farewell


@pytest.mark.parametrize("error", [FileNotFoundError(), subprocess.TimeoutExpired("git", 30)])
def test_a_commit_that_git_cannot_tell_is_unknown(monkeypatch, error):
    """It stands in a note on the attempt; a training must not be lost by it."""

    def fails(*arguments, **options):
        raise error

    monkeypatch.setattr(provenance.subprocess, "run", fails)
    assert provenance.commit.__wrapped__() == "unknown"
