"""Where files lie: under one root, each job in a folder of its own."""

from __future__ import annotations

from pathlib import PurePosixPath

import pytest

from pipeline.paths import Paths

OF_A_JOB = (
    *("config", "model", "training", "decisions", "weights"),
    *("state", "resume", "training_so_far", "attempts", "lease"),
)
OF_A_JUDGING = ("evaluation", "validity", "trajectories")
OF_AN_EXPERIMENT = (
    *("experiment", "table", "curves", "decision_table", "weight_paths", "verdicts", "trajectory_table"),
    *("report", "figures", "published", "trial_table", "trial_curves", "batches"),
)
OF_A_RESULT = ("found", "collected")  # of a search
OF_A_SEARCH = ("trials", "search_lease", "search_stop", "search_scratch")


@pytest.mark.parametrize("root", ["results", "/scratch/someone/results", "."])
def test_no_two_things_lie_in_one_place(root):
    paths = Paths(root)
    places = [
        *[getattr(paths, name)("a") for name in (*OF_A_JOB, *OF_AN_EXPERIMENT, "data")],
        *[getattr(paths, name)(search) for name in OF_A_SEARCH for search in ("a", "b")],
        *[getattr(paths, name)("a", result) for name in OF_A_RESULT for result in ("x", "y")],
        *[getattr(paths, name)("a", judging) for name in OF_A_JUDGING for judging in ("x", "y")],
        *[paths.log("train", name) for name in ("a", "b")],
        *[paths.batch_trained(name) for name in ("a", "b")],
        *[paths.batch_judged("a", judging) for judging in ("x", "y")],
        paths.mlflow_artifacts,
    ]
    assert len(set(places)) == len(places)
    assert all(place.startswith(f"{root}/") for place in places)
    assert paths.mlflow.startswith(f"sqlite:///{root}/")


@pytest.mark.parametrize("name", OF_A_JOB)
def test_all_of_a_job_lies_in_its_own_folder(name):
    folder = PurePosixPath(Paths().config("a")).parent
    assert folder.name == "a"
    assert folder in PurePosixPath(getattr(Paths(), name)("a")).parents


@pytest.mark.parametrize("name", OF_A_JUDGING)
def test_all_of_a_judging_lies_in_its_job_s_folder(name):
    assert PurePosixPath(getattr(Paths(), name)("a", "x")).parent == PurePosixPath(Paths().config("a")).parent


def test_each_method_of_a_path_is_looked_at():
    """So that no file can be added untested, beside those with a test of their own."""
    known = {name for name in vars(Paths) if not name.startswith("_")}
    lists, others = (
        {"trained", "judged"},
        {"batch_trained", "batch_judged", "root", "of_config", "data", "log", "mlflow", "mlflow_artifacts"},
    )
    assert known == {*OF_A_SEARCH, *OF_A_JOB, *OF_A_JUDGING, *OF_A_RESULT, *OF_AN_EXPERIMENT} | lists | others


def test_the_rules_declare_each_file_once():
    paths = Paths()
    trained, judged = paths.trained("a"), paths.judged("a", "x")
    assert trained == [getattr(paths, name)("a") for name in ("model", "training", "decisions", "weights")]
    assert judged == [getattr(paths, name)("a", "x") for name in OF_A_JUDGING]


def test_what_a_resume_needs_lies_apart_from_what_rules_declare():
    """In `state`, since Snakemake deletes the declared outputs of a rule that failed."""
    state = PurePosixPath(Paths().state("a"))
    inside = {name for name in OF_A_JOB if state in PurePosixPath(getattr(Paths(), name)("a")).parents}
    assert inside == {"resume", "training_so_far", "attempts", "lease"}


@pytest.mark.parametrize("root", ["results", "/scratch/someone/results", "deep/er"])
def test_a_config_file_tells_the_root_and_the_job(root):
    assert Paths.of_config(Paths(root).config("a-job")) == (Paths(root), "a-job")


@pytest.mark.parametrize("path", ["config.json", "a/config.json", "results/job/a/config.json", "results/jobs/a/model"])
def test_a_file_elsewhere_is_no_job_s_config(path):
    with pytest.raises(ValueError, match=r"a job.s config is <results>/jobs/<job>/config\.json"):
        Paths.of_config(path)
