"""An experiment of two jobs with all their files, and what MLflow shows of it, for the tests of `publish`."""

import contextlib
import hashlib
import shutil
import sqlite3
from functools import cache
from pathlib import Path
from typing import Any

from test_collect import load, make_results

from pipeline.experiment import Experiment
from pipeline.paths import Paths
from pipeline.publish import publish
from pipeline.records import AttemptRecord, TrainingRecord, append_record, read_records, write_records
from pipeline.store import MlflowClient
from pipeline.target import Target

TINY = """
question: Is it shown?
job:
  data: {name: digits, num_validation: 144}
  model: {network: raw, family: gode, width: 16, basis: {degree: 1, num_coefficients: 3}}
  train: {solver: euler@4, optimiser: adam, lr: 5e-3, epochs: 3, batch_size: 64}
sweep: {seed: [0, 1]}
evaluate_with: {solvers: [euler@4, "dopri5@rtol=1e-5,atol=1e-7"]}
"""


@cache
def empty_database(folder: Path) -> Path:
    """An MLflow database without experiments: making one takes seconds, copying it none."""
    path = folder / "empty.db"
    MlflowClient(f"sqlite:///{path}").search_experiments()
    return path


class Tiny:
    """An experiment of two jobs with all their files, below a folder whose name has a space."""

    def __init__(self, folder: Path, database: Path):
        self.empty, self.folder = database, folder / "my results"
        self.folder.mkdir(exist_ok=True)
        self.paths = Paths(str(self.folder))
        self.source = folder / "tiny.yaml"
        self.experiment: Experiment = load(TINY, folder, "tiny.yaml")
        make_results(self.experiment, self.paths, epochs=3, depths=2)
        for minute, job in enumerate(self.experiment.jobs):
            Path(self.paths.model(job)).write_bytes(b"weights " * 9)
            append_record(self.paths.attempts(job), attempt(job, f"2026-01-02T03:{minute:02d}:00+00:00"))
        folder = Path(self.paths.figures("tiny"))
        folder.mkdir(parents=True)
        (folder / "cost.png").write_bytes(b"png")
        Path(self.paths.report("tiny")).write_text("<html>")
        Path(self.paths.table("tiny")).write_text("a,b\n1,2\n")
        self.new_database()

    def new_database(self) -> None:
        self.database = self.folder / "mlflow.db"
        if self.database.exists():
            self.client._tracking_client.store.engine.dispose()  # mlflow keeps the deleted file open
        shutil.copy(self.empty, self.database)
        shutil.rmtree(self.paths.mlflow_artifacts, ignore_errors=True)

    def publish(self, uri: str | None = None, **options):
        return publish(self.experiment, self.source, self.paths, Target.of(uri, self.paths), **options)

    @property
    def client(self) -> MlflowClient:
        return MlflowClient(f"sqlite:///{self.database}")

    @property
    def jobs(self) -> list[str]:
        return list(self.experiment.jobs)

    def runs(self, name: str = "tiny") -> dict[str, Any]:
        """By job or experiment; fails if one has two runs."""
        found = self.client.get_experiment_by_name(name)
        assert found is not None
        runs = self.client.search_runs([found.experiment_id])
        keyed = {run.data.tags.get("gode.job", name): run for run in runs}
        assert len(keyed) == len(runs)
        return keyed

    def model(self, job: str) -> Any:
        run = self.runs()[job]
        models = self.client.search_logged_models([run.info.experiment_id])
        (found,) = [model for model in models if model.source_run_id == run.info.run_id]
        assert [m.model_id for m in run.outputs.model_outputs] == [found.model_id]
        return found

    def unfinish(self, job: str, rows: int, outcome: str | None = None) -> None:
        """As if the job were in training: its first rows beside its checkpoint."""
        training = read_records(TrainingRecord, self.paths.training(job))
        for path in (self.paths.training(job), self.paths.model(job), self.paths.attempts(job)):
            Path(path).unlink()
        write_records(self.paths.training_so_far(job), training[:rows])
        if outcome:
            append_record(self.paths.attempts(job), attempt(job, "2026-01-02T03:00:00+00:00", outcome))


def attempt(job: str, started: str, outcome: Any = "finished") -> AttemptRecord:
    return AttemptRecord(job, "c0de", "abc123+", "here", 7, "cpu", 0, 60, started, 30.5, outcome, "")


def dump(tiny: Tiny) -> list[str]:
    with contextlib.closing(sqlite3.connect(tiny.database)) as database:
        return list(database.iterdump())


def files_below(folder: str | Path) -> dict[str, tuple[str, int]]:
    """Content and time of change of every file."""
    found = sorted(path for path in Path(folder).rglob("*") if path.is_file())
    return {str(p): (hashlib.md5(p.read_bytes()).hexdigest(), p.stat().st_mtime_ns) for p in found}


def shown(tiny: Tiny) -> dict[str, Any]:
    """All that MLflow shows, without the ids that it draws."""
    found, runs = {}, tiny.runs()
    for key, run in runs.items():
        folder = Path(run.info.artifact_uri.removeprefix("file://").replace("%20", " "))
        history = {
            name: sorted((m.step, m.timestamp, m.value) for m in tiny.client.get_metric_history(run.info.run_id, name))
            for name in run.data.metrics
        }
        found[key] = {
            "info": (run.info.run_name, run.info.status, run.info.start_time, run.info.end_time),
            "tags": {**run.data.tags, "mlflow.parentRunId": "mlflow.parentRunId" in run.data.tags},
            "params": run.data.params,
            "metrics": history,
            "files": {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()},
            "data": [(i.dataset.name, i.dataset.digest, i.tags[0].value) for i in run.inputs.dataset_inputs],
        }
        if key != "tiny":
            model = tiny.model(key)
            metrics = sorted((m.key, m.value, m.timestamp, m.dataset_name) for m in model.metrics)
            found[key]["model"] = (model.name, model.status, model.params, model.tags, metrics)
    with contextlib.closing(sqlite3.connect(tiny.database)) as database:
        found["rows"] = {
            table: database.execute(f"SELECT count(*) FROM {table}").fetchone()
            for table in ("metrics", "latest_metrics", "logged_model_metrics", "inputs", "datasets", "params", "tags")
        }
    return found


@cache
def published_once(folder: Path) -> Tiny:
    """For tests that only look, and to compare with."""
    (folder / "undisturbed").mkdir()
    tiny = Tiny(folder / "undisturbed", empty_database(folder))
    tiny.publish()
    return tiny
