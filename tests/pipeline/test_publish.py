"""MLflow shows what the files hold, once, whatever happened on the way."""

import contextlib
import dataclasses
import json
import os
import re
from pathlib import Path
from types import SimpleNamespace

import pytest
from test_collect import load
from tiny import TINY, Tiny, dump, files_below, shown

from gode_core.solvers import ADAPTIVE_METHODS, TABLEAUS, Adaptive, Fixed, parse_solver
from pipeline import store
from pipeline.config import canonical
from pipeline.records import EvaluationRecord, TrainingRecord, read_records, write_records
from pipeline.store import MlflowClient
from pipeline.view import CURVES, MEASURES, View, plain_solver


def test_every_job_is_shown_whole(once):
    runs, paths = once.runs(), once.paths
    assert set(runs) == {"tiny", *once.jobs}
    for minute, (job, config) in enumerate(once.experiment.jobs.items()):
        run, info, data = runs[job], runs[job].info, runs[job].data
        started = 1767322800000 + 60000 * minute  # 2026-01-02T03:00
        assert (info.run_name, info.status, info.start_time, info.end_time) == (
            *(job, "FINISHED"),
            *(started, started + 30500),
        )
        assert data.tags["mlflow.parentRunId"] == runs["tiny"].info.run_id
        tags = {"label": "gode-3c-degree1", "family": "gode", "solver": "euler@4", "seed": str(config.seed)}
        tags |= {"code": "c0de", "commit": "abc123+", "diverged": "false"}
        assert tags.items() <= data.tags.items()
        assert data.params["model.basis.num_coefficients"] == "3"
        leaves = {key: str(value) for key, value in canonical(config)["train"].items() if value not in (None, [])}
        assert {k: v for k, v in data.params.items() if k.startswith("train.")} == {
            f"train.{key}": value for key, value in leaves.items()
        }
        rows = read_records(TrainingRecord, paths.training(job))
        for name in CURVES:
            history = once.client.get_metric_history(info.run_id, name)
            known = [(row.step, getattr(row, name)) for row in rows if getattr(row, name) is not None]
            assert sorted((m.step, m.value) for m in history) == known
            assert {m.timestamp for m in history} == ({started} if known else set())
        judged = read_records(EvaluationRecord, paths.evaluation(job, once.experiment.evaluate_with.id))
        expected = {f"{name}/{plain_solver(row.solver)}": getattr(row, name) for row in judged for name in MEASURES}
        assert expected.items() <= data.metrics.items()
        model = once.model(job)
        assert {m.key: m.value for m in model.metrics} == expected
        assert {m.dataset_name for m in model.metrics} == {run.inputs.dataset_inputs[0].dataset.name} == {"digits-test"}
        assert str(model.status) == "READY"
        assert model.params == data.params
        found = shown(once)[job]["files"]
        places = [paths.config(job), paths.training(job), paths.model(job), paths.attempts(job)]
        judging = once.experiment.evaluate_with.id
        places += [paths.decisions(job), paths.evaluation(job, judging), paths.validity(job, judging)]
        assert found == {Path(place).name: Path(place).read_bytes() for place in places}


def test_the_experiment_is_shown_whole(once):
    run = once.runs()["tiny"]
    assert run.info.status == "FINISHED"
    assert run.data.tags["mlflow.note.content"] == "Is it shown?"
    assert shown(once)["tiny"]["files"] == {
        "tiny.yaml": TINY.encode(),
        "table.csv": b"a,b\n1,2\n",
        "report.html": b"<html>",
        "figures/cost.png": b"png",
    }
    published = json.loads(Path(once.paths.published("tiny")).read_text())
    assert published["tracking_uri"] == f"sqlite:///{once.database}"
    assert (published["parent_run_id"], published["num_runs"]) == (run.info.run_id, 2)


def test_models_can_be_compared_by_solver(once):
    solver = plain_solver("dopri5@rtol=1e-5,atol=1e-7")
    accuracies = {job: once.runs()[job].data.metrics[f"accuracy/{solver}"] for job in once.jobs}
    found = once.client.search_logged_models(
        [once.runs()["tiny"].info.experiment_id],
        filter_string=f"metrics.`accuracy/{solver}` > 0 AND tags.family = 'gode'",
        order_by=[{"field_name": f"metrics.accuracy/{solver}", "ascending": False, "dataset_name": "digits-test"}],
    )
    assert [model.tags["gode.job"] for model in found] == sorted(accuracies, key=lambda job: -accuracies[job])


def test_published_again_nothing_changes(tiny, monkeypatch):
    tiny.publish()
    before = dump(tiny), files_below(tiny.paths.mlflow_artifacts), Path(tiny.paths.published("tiny")).read_bytes()
    for path in tiny.folder.glob("jobs/*/*"):
        os.utime(path, (1e9, 1e9))  # copied elsewhere and back
    monkeypatch.setattr(store, "PAGE", 2)
    tiny.publish()
    assert before[:2] == (dump(tiny), files_below(tiny.paths.mlflow_artifacts))
    assert before[2] == Path(tiny.paths.published("tiny")).read_bytes()


def test_a_deleted_database_is_made_again(tiny, once):
    tiny.publish()
    tiny.new_database()
    tiny.publish()
    assert shown(tiny) == shown(once)


class Failing:
    """A client whose call number `last` fails: before it has done anything, or after it (the answer is lost)."""

    def __init__(self, client: MlflowClient, last: int, answer_is_lost: bool):
        self.client, self.left, self.answer_is_lost = client, last, answer_is_lost

    def __getattr__(self, name):
        method = getattr(self.client, name)

        def call(*args, **kwargs):
            self.left -= 1
            if self.left == 0 and not self.answer_is_lost:
                raise store.MlflowException(f"{name} failed")
            result = method(*args, **kwargs)
            if self.left == 0:
                raise store.MlflowException(f"{name} was not answered")
            return result

        return call


def publish_failing(tiny: Tiny, monkeypatch, last: int, answer_is_lost: bool) -> bool:
    """True if the call that fails was reached; then published.json is not written."""
    Path(tiny.paths.published("tiny")).unlink(missing_ok=True)
    client = Failing(tiny.client, last, answer_is_lost)
    with monkeypatch.context() as patch:
        patch.setattr(store, "MlflowClient", lambda _: client)
        with contextlib.suppress(OSError):
            tiny.publish()
            return False
    assert not Path(tiny.paths.published("tiny")).exists()
    return True


@pytest.mark.parametrize("answer_is_lost", [False, True])
def test_broken_off_again_and_again_it_ends_with_the_same(tiny, answer_is_lost, monkeypatch, once):
    last = 1
    while publish_failing(tiny, monkeypatch, last, answer_is_lost):
        last += 1
    assert last > 10  # each time one call later
    assert shown(tiny) == shown(once)


@pytest.mark.parametrize("last", [9, 14])
def test_broken_off_once_it_ends_with_the_same(tiny, last, monkeypatch, once):
    assert publish_failing(tiny, monkeypatch, last, answer_is_lost=True)
    tiny.publish()
    assert shown(tiny) == shown(once)


def test_a_second_run_for_a_job_is_deleted(tiny, once):
    tiny.publish()
    run = tiny.runs()[tiny.jobs[0]]
    for other in ({"gode.job": tiny.jobs[0]}, {"note": "of the user"}):
        tiny.client.create_run(run.info.experiment_id, tags=other)
    tiny.publish()
    kept = tiny.client.search_runs([run.info.experiment_id], filter_string=f"tags.`gode.job` = '{tiny.jobs[0]}'")
    assert len(kept) == 1
    assert len(tiny.client.search_runs([run.info.experiment_id], filter_string="tags.note = 'of the user'")) == 1


@pytest.mark.parametrize("anew", ["trained", "judged"])
def test_a_job_made_anew_gets_a_new_run(tiny, anew, once):
    tiny.publish()
    job, other = tiny.jobs
    before = tiny.runs()
    judging = tiny.experiment.evaluate_with.id
    if anew == "trained":
        rows = read_records(TrainingRecord, path := tiny.paths.training(job))
        changed = [dataclasses.replace(rows[0], train_loss=9.0), *rows[1:]]
    else:
        rows = read_records(EvaluationRecord, path := tiny.paths.evaluation(job, judging))
        changed = [*rows[:-1], dataclasses.replace(rows[-1], seconds=9.0)]
    original = Path(path).read_bytes()
    write_records(path, changed)
    tiny.publish()
    after = tiny.runs()
    assert after[other].info.run_id == before[other].info.run_id
    assert after[job].info.run_id != before[job].info.run_id
    assert tiny.client.get_run(before[job].info.run_id).info.lifecycle_stage == "deleted"
    found = tiny.client.search_logged_models([after[job].info.experiment_id])
    assert {model.source_run_id for model in found} == {after[j].info.run_id for j in tiny.jobs}
    Path(path).write_bytes(original)
    tiny.publish()
    assert {k: v for k, v in shown(tiny).items() if k != "rows"} == {
        k: v for k, v in shown(once).items() if k != "rows"
    }


def test_a_solver_more_is_shown_for_every_job(tiny):
    tiny.publish()
    text = TINY.replace("[euler@4,", "[euler@4, rk4@8,")
    tiny.experiment = load(text, tiny.source.parent, "tiny.yaml")
    judging = tiny.experiment.evaluate_with.id
    for job in tiny.jobs:
        row = read_records(EvaluationRecord, next(Path(tiny.folder).glob(f"jobs/{job}/evaluation-*.jsonl")))[0]
        rows = [dataclasses.replace(row, solver=solver) for solver in tiny.experiment.evaluate_with.solvers]
        write_records(tiny.paths.evaluation(job, judging), rows)
    tiny.publish()
    runs = tiny.runs()
    assert all("accuracy/rk4-8" in runs[job].data.metrics for job in tiny.jobs)
    assert all(f"evaluation-{judging}.jsonl" in shown(tiny)[job]["files"] for job in tiny.jobs)


def test_children_follow_a_parent_that_was_deleted_by_hand(tiny, once):
    tiny.publish()
    tiny.client.delete_run(tiny.runs()["tiny"].info.run_id)
    tiny.publish()
    runs = tiny.runs()
    assert {runs[job].data.tags["mlflow.parentRunId"] for job in tiny.jobs} == {runs["tiny"].info.run_id}


def test_a_training_that_diverged_is_finished_and_says_so(tiny):
    job = tiny.jobs[0]
    rows = read_records(TrainingRecord, tiny.paths.training(job))
    stopped = dataclasses.replace(rows[-1], status="nonfinite", validation_loss=None)  # at the step of the row before
    write_records(tiny.paths.training(job), [*rows[:-1], dataclasses.replace(stopped, step=rows[-2].step)])
    judged = read_records(EvaluationRecord, path := tiny.paths.evaluation(job, tiny.experiment.evaluate_with.id))
    write_records(path, [dataclasses.replace(row, loss=None) for row in judged])
    tiny.publish()
    run = tiny.runs()[job]
    assert run.info.status == "FINISHED"
    assert run.data.tags["diverged"] == "true"
    assert len(tiny.client.get_metric_history(run.info.run_id, "train_loss")) == 3
    assert len(tiny.client.get_metric_history(run.info.run_id, "validation_loss")) == 2
    assert "loss/euler-4" not in run.data.metrics


def test_a_job_of_two_experiments_has_a_run_in_each(tiny, once):
    tiny.publish()
    tiny.experiment = dataclasses.replace(tiny.experiment, name="other")
    tiny.publish()
    assert set(tiny.runs("other")) == {"other", *tiny.jobs}
    assert shown(tiny)["tiny"] == shown(once)["tiny"]
    ours, others = tiny.runs(), tiny.runs("other")
    assert all(ours[job].info.run_id != others[job].info.run_id for job in tiny.jobs)


def test_a_job_that_left_the_experiment_stays_and_is_no_longer_current(tiny):
    """So that a mean over the runs can be one of the jobs that are."""
    whole, (stays, leaves) = tiny.experiment, tiny.jobs

    def current() -> dict[str, str]:
        return {job: tiny.runs()[job].data.tags["gode.current"] for job in whole.jobs}

    tiny.publish()
    assert current() == {stays: "true", leaves: "true"}
    before = tiny.runs()[leaves].info.run_id
    tiny.experiment = dataclasses.replace(whole, jobs={stays: whole.jobs[stays]})
    tiny.publish()
    assert current() == {stays: "true", leaves: "false"}
    tiny.experiment = whole
    tiny.publish()
    assert current() == {stays: "true", leaves: "true"}
    assert tiny.runs()[leaves].info.run_id == before


def test_what_changes_while_it_is_uploaded_is_uploaded_again(tiny, monkeypatch):
    """The report is made anew while the first run of the experiment is on its way."""
    report, put = Path(tiny.paths.report("tiny")), store.Store.put_files

    def put_and_change(self, run_id, view) -> None:
        put(self, run_id, view)
        report.write_text("<html>anew")

    with monkeypatch.context() as patch:
        patch.setattr(store.Store, "put_files", put_and_change)
        tiny.publish()
    tiny.publish()
    assert shown(tiny)["tiny"]["files"]["report.html"] == b"<html>anew"


@pytest.mark.parametrize(("set_by_user", "seconds"), [("10", "60"), ("300", "300")])
def test_a_server_may_take_longer_for_a_file_than_for_an_answer(monkeypatch, tmp_path, set_by_user, seconds):
    name, seen = "MLFLOW_HTTP_REQUEST_TIMEOUT", []
    monkeypatch.setenv(name, set_by_user)
    client = SimpleNamespace(log_artifacts=lambda run_id, folder: seen.append(os.environ[name]))
    (tmp_path / "a").write_text("a")
    store.Store(client, "1").put_files("run", View("a", "FINISHED", 0, 0, {"a": tmp_path / "a"}))  # type: ignore[arg-type]
    assert (seen, os.environ[name]) == ([seconds], set_by_user)


def test_a_broken_attempts_file_costs_the_attempts_alone(tiny):
    with open(tiny.paths.attempts(tiny.jobs[0]), "a") as file:
        file.write('{"job": ')
    tiny.publish()
    tags = [tiny.runs()[job].data.tags for job in tiny.jobs]
    assert ["commit" in t for t in tags] == [False, True]


SOLVERS = [str(Fixed(name, 8)) for name in TABLEAUS] + [
    str(Adaptive(name, rtol, 2.5e-7)) for name in ADAPTIVE_METHODS for rtol in (2.5e-7, 1e-5)
]


@pytest.mark.parametrize("solver", SOLVERS)
def test_a_solver_can_be_read_back_from_a_metric(solver):
    method, _, rest = plain_solver(solver).partition("-")
    words = rest.split(" ")
    numbers = words[0] if len(words) == 1 else ",".join(map("=".join, zip(words[::2], words[1::2])))
    assert parse_solver(f"{method}@{numbers}") == parse_solver(solver)
    assert re.fullmatch(r"[\w. -]+", plain_solver(solver))  # what MLflow allows in a name, on any system
