"""MLflow shows a search: each trial once, with what was chosen and what became of it, while it runs and after."""

import shutil
import threading
from pathlib import Path

import pytest
from searched import FAILED, SEARCH, STEPS, Searched
from tiny import dump, empty_database

from pipeline.publish import follow, publish
from pipeline.store import MlflowClient
from pipeline.target import Target
from pipeline.trials import read_events, trials_of
from pipeline.view import all_judged, any_started, find_views

FEW = SEARCH.replace("num_trials: 24", "num_trials: 6").replace("count: 3", "count: 2")


class Shown(Searched):
    """A search of six trials, and an MLflow."""

    def __init__(self, folder: Path, database: Path, text: str = FEW):
        super().__init__(folder, text)
        Path(self.paths.root).mkdir()
        self.database = Path(self.paths.root, "mlflow.db")
        shutil.copy(database, self.database)

    def publish(self, **options) -> dict:
        """The runs by job, or name, of all."""
        publish(self.experiment, self.file, self.paths, Target.of(None, self.paths), **options)
        client = MlflowClient(f"sqlite:///{self.database}")
        found = client.get_experiment_by_name("found")
        assert found is not None
        runs = client.search_runs([found.experiment_id])
        keyed = {run.data.tags.get("gode.job", "found"): run for run in runs}
        assert len(keyed) == len(runs)
        return keyed


@pytest.fixture
def shown(tmp_path, tmp_path_factory, monkeypatch) -> Shown:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return Shown(tmp_path, empty_database(tmp_path_factory.getbasetemp()))


def test_trials_and_winners_are_runs_each_job_once(shown):
    shown.try_all()
    experiment = shown.end()
    runs = shown.publish()
    trials = trials_of(read_events(shown.search.id, shown.paths))
    assert set(runs) == {"found", *experiment.jobs, *(trial.job for trial in trials)}
    assert len({*experiment.jobs} & {trial.job for trial in trials}) == 2  # winners, with their own seed
    parent = runs["found"]
    for trial in trials:
        run, tags = runs[trial.job], runs[trial.job].data.tags
        assert run.info.status == ("FAILED" if trial.number == FAILED else "FINISHED")
        assert tags["mlflow.parentRunId"] == parent.info.run_id
        assert (tags["gode.trial"], tags["gode.outcome"], tags["gode.reason"]) == (
            *(str(trial.number), trial.outcome),
            trial.reason,
        )
        assert tags["gode.chosen.train.lr"] == f"{trial.values['train.lr']:g}"
        history = MlflowClient(f"sqlite:///{shown.database}").get_metric_history(run.info.run_id, "validation_accuracy")
        assert len(history) == trial.epoch
        assert max([point.step for point in history], default=0) == STEPS * trial.epoch
    other = next(job for job, config in experiment.jobs.items() if config.seed == 1)
    assert "gode.trial" not in runs[other].data.tags
    tags = parent.data.tags
    assert (parent.info.status, tags["gode.search"], tags["search.scheduler"]) == ("FINISHED", shown.search.id, "asha")
    counts = [tags[f"search.{name}"] for name in ("num_trials", "finished", "stopped", "failed", "running")]
    assert counts == ["6", "3", "2", "1", "0"]


def test_a_failed_trial_is_a_failed_run(shown):
    job = shown.begin(0)
    shown.trained(0, job, 1)
    shown.event(0, job, "failed", epoch=1, reason="RuntimeError: no")
    runs = shown.publish(following=True)
    assert (runs[job].info.status, runs[job].data.tags["gode.outcome"]) == ("FAILED", "failed")
    assert runs["found"].info.status == "RUNNING"  # others may be better


def test_a_trial_grows_while_it_is_watched_and_nothing_is_doubled(shown):
    job, ids = shown.begin(0), set()

    def look() -> tuple[str, str, int]:
        runs = shown.publish(following=True)
        ids.add(runs[job].info.run_id)
        points = MlflowClient(f"sqlite:///{shown.database}").get_metric_history(runs[job].info.run_id, "train_loss")
        return runs[job].info.status, runs["found"].info.status, len(points)

    shown.trained(0, job, 1)
    assert look() == ("RUNNING", "RUNNING", 1)
    shown.trained(0, job, 2)
    assert look() == ("RUNNING", "RUNNING", 2)
    shown.event(0, job, "stopped", epoch=2, reason="asha")
    assert look() == ("FINISHED", "RUNNING", 2)
    before = dump(shown)
    assert look() == ("FINISHED", "RUNNING", 2)
    assert (len(ids), dump(shown)) == (1, before)
    assert shown.publish()["found"].info.status == "KILLED"  # nobody is at it


def test_a_trial_nobody_is_at_is_not_shown_as_running(shown):
    job = shown.begin(0)
    shown.trained(0, job, 1)
    assert shown.publish()[job].info.status == "KILLED"


def test_a_job_that_was_tried_twice_is_one_run(shown):
    job = shown.begin(0)
    values, _ = shown.search.drawn(0)
    shown.event(1, job, "begun", values=values)
    shown.finish(0, job)
    shown.event(1, job, "finished", epoch=4, reason="ok")
    tags = shown.publish()[job].data.tags
    assert (tags["gode.trial"], tags["gode.outcome"]) == ("0 1", "finished")


def test_follow_goes_on_from_the_search_to_the_winners(shown):
    assert not any_started(shown.experiment, shown.paths)
    shown.begin(0)
    kept: dict[Path, bytes] = {}

    def find() -> None:
        """The winners are known, and not yet judged."""
        judging = shown.end().evaluate_with.id
        files = [Path(shown.paths.evaluation(job, judging)) for job in shown.whole.jobs]
        kept.update((file, file.read_bytes()) for file in files)
        for file in files:
            file.unlink()

    def judge() -> None:
        for file, content in kept.items():
            file.write_bytes(content)

    steps, done = [shown.try_all, find, judge], []

    def once() -> None:
        done.append(all_judged(shown.whole, shown.paths))
        steps.pop(0)()

    follow(once, shown.experiment, shown.paths, threading.Event(), 0.0)
    assert (done, steps) == ([False, False, False], [])  # now all is judged, and it ends
    assert all_judged(shown.whole, shown.paths)


def test_another_outcome_is_another_digest(shown):
    job = shown.begin(0)
    shown.trained(0, job, 2)
    before = {view.name: view.digest for view in find_views(shown.whole, shown.file, shown.paths, True)}
    shown.event(0, job, "stopped", epoch=2, reason="asha")
    after = {view.name: view.digest for view in find_views(shown.whole, shown.file, shown.paths, True)}
    assert set(before) == set(after) == {"found", job}
    assert before["found"] != after["found"]
    assert before[job] != after[job]
