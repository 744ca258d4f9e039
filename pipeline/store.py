"""One experiment in MLflow: its runs, their files, points and models. The door of mlflow.

A run is found by its tag `gode.job` (`gode.experiment`) and carries the digest of what it shows: with the same digest
it is left alone. It may grow; but MLflow cannot change a point, so a job that was trained or judged anew gets a new
run, and the old one is deleted. That of a job which the experiment no longer has stays, with the tag `gode.current`
false.
"""

from __future__ import annotations

import itertools
import json
import os
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

# Before mlflow is imported, which reads them. What the user has set stands.
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "WARNING")
os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")  # of mlflow's own 7, a dead server costs 4 minutes a call
os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")  # seconds, for a connection and for an answer

from mlflow import MlflowClient
from mlflow.entities import Dataset, DatasetInput, InputTag, LoggedModelOutput, Metric, Param, Run, RunTag
from mlflow.exceptions import MlflowException
from requests import RequestException
from sqlalchemy.exc import SQLAlchemyError

from pipeline.config import JobConfig, canonical, digest
from pipeline.experiment import Experiment
from pipeline.target import Target
from pipeline.view import Content, View, read_job_content

PAGE = 1000  # runs in one answer
UPLOAD_SECONDS = 60  # for a file


@dataclass(frozen=True)
class Store:
    """One experiment in MLflow."""

    client: MlflowClient
    experiment_id: str

    @staticmethod
    def open(target: Target, experiment: Experiment) -> Store:
        """Find the experiment, or create it (a fresh SQLite database takes some seconds). Raises ValueError if it
        was deleted in MLflow, or if the default database was made for results in another folder."""
        client, name = MlflowClient(target.uri), experiment.name
        tags = {"mlflow.note.content": experiment.question, "mlflow.experimentKind": "custom_model_development"}
        place = target.artifacts and f"{target.artifacts}/{name}"
        found = client.get_experiment_by_name(name)
        if found is None:
            return Store(client, client.create_experiment(name, artifact_location=place, tags=tags))
        if found.lifecycle_stage != "active":
            raise ValueError(
                f"{target.shown}: the experiment `{name}` was deleted in MLflow; restore it (`mlflow experiments "
                f"restore --experiment-id {found.experiment_id}`) or remove it for good (`mlflow gc`)"
            )
        if target.is_default and found.artifact_location != place:
            raise ValueError(
                f"{target.shown}: made for files in {found.artifact_location}, but they belong in {place} now; delete "
                "this database and publish again: it holds nothing that the results do not hold"
            )
        for key, value in tags.items():
            if found.tags.get(key) != value:
                client.set_experiment_tag(found.experiment_id, key, value)
        return Store(client, found.experiment_id)

    def runs(self) -> dict[str, Run]:
        """Our runs, by job id or experiment name. Of two for one job (an answer of the server was lost), one goes."""
        pages = [self.client.search_runs([self.experiment_id], max_results=PAGE)]
        while token := pages[-1].token:
            pages.append(self.client.search_runs([self.experiment_id], max_results=PAGE, page_token=token))
        found: dict[str, Run] = {}
        for run in itertools.chain(*pages):
            key = run.data.tags.get("gode.job") or run.data.tags.get("gode.experiment")
            if key in found:
                self.delete(run)
            elif key:
                found[key] = run
        return found

    def models(self, run_id: str) -> list[str]:
        found = self.client.search_logged_models([self.experiment_id], filter_string=f"source_run_id = '{run_id}'")
        return [model.model_id for model in found]

    def delete(self, run: Run) -> None:
        """A run and its models. MLflow keeps them, out of sight, until `mlflow gc`."""
        for model_id in self.models(run.info.run_id):
            self.client.delete_logged_model(model_id)
        self.client.delete_run(run.info.run_id)

    def begin(self, view: View, run: Run | None, tags: dict[str, str]) -> tuple[Run, bool]:
        """The view's run with its tags and status, and whether it is new: `run` serves if it can grow into the view."""
        if run is not None and _outdated(run, view):
            self.delete(run)
            run = None
        new = run is None
        if run is None:
            run = self.client.create_run(self.experiment_id, view.started, tags | view.fixed | view.tags, view.name)
        else:  # before any point: if this breaks off, the next attempt knows which rows the points came from
            self.client.log_batch(run.info.run_id, tags=_run_tags(tags | view.fixed | view.tags))
        if view.status == "RUNNING":
            self.client.update_run(run.info.run_id, status="RUNNING")
        else:  # at once: whatever happens next, it is not left as running
            self.client.set_terminated(run.info.run_id, view.status, view.ended)
        return run, new

    def mark(self, runs: dict[str, Run], jobs: set[str]) -> None:
        """Tell the runs of `jobs` from those of jobs that the experiment no longer has: a mean over all would mix
        them."""
        for run in runs.values():
            if job := run.data.tags.get("gode.job"):
                current = str(job in jobs).lower()
                if run.data.tags.get("gode.current") != current:
                    self.client.set_tag(run.info.run_id, "gode.current", current)

    def put_files(self, run_id: str, view: View) -> None:
        with tempfile.TemporaryDirectory() as folder, _patient():
            for name, path in view.files.items():
                link = Path(folder, name)
                link.parent.mkdir(exist_ok=True)
                link.symlink_to(path.absolute())
            self.client.log_artifacts(run_id, folder)

    def put_model(self, run_id: str, new_run: bool, view: View, content: Content) -> str:
        """The id of the run's model: a name for the weights that lie in the run, with parameters and metrics."""
        if not new_run and (models := self.models(run_id)):
            return models[0]
        tags = {"mlflow.model.isExternal": "true", "gode.job": view.name} | content.tags
        name, family = re.sub(r"[^\w-]", "-", view.name), content.tags["family"]  # MLflow refuses `.` in the name
        return self.client.create_logged_model(self.experiment_id, name, run_id, tags, content.params, family).model_id

    def end(self, run_id: str, view: View, num_rows: int = 0) -> None:
        """Last of all: with its digest a run counts as published."""
        self.client.log_batch(run_id, tags=_run_tags({"gode.digest": view.digest, "gode.num_rows": str(num_rows)}))


def put_experiment(store: Store, view: View, run: Run | None, experiment: Experiment) -> str:
    """The run of the experiment as a whole; returns its id."""
    to_show = view.digest  # taken now: a file that changes while it is uploaded is uploaded again next time
    if run is not None and run.data.tags.get("gode.digest") == to_show:
        return run.info.run_id
    tags = {"gode.experiment": experiment.name, "mlflow.note.content": experiment.question}
    tags |= {"split": experiment.evaluate_with.split, "solvers": " ".join(experiment.evaluate_with.solvers)}
    run, _ = store.begin(view, run, tags | {"num_jobs": str(len(experiment.jobs))})
    store.put_files(run.info.run_id, view)
    store.end(run.info.run_id, view)
    return run.info.run_id


def put_job(store: Store, view: View, run: Run | None, config: JobConfig, split: str, parent: str) -> bool:
    """The run of a job, and its model. False if there was nothing to do."""
    known = {} if run is None else run.data.tags
    if known.get("gode.digest") == view.digest and known.get("mlflow.parentRunId") == parent:
        return False
    content = read_job_content(view, config)
    ours = {"gode.job": view.name, "gode.current": "true", "mlflow.parentRunId": parent}
    run, new = store.begin(view, run, content.tags | ours)
    run_id, started = run.info.run_id, run.info.start_time
    store.put_files(run_id, view)
    num_known = 0 if new else int(known.get("gode.num_rows", 0))
    points = [point for row in content.curves[num_known:] for point in row]
    metrics = [Metric(p.name, p.value, started, p.step) for p in points]
    if content.measures:
        model = store.put_model(run_id, new, view, content)
        about = canonical(config.data)
        data = Dataset(f"{config.data.name}-{split}", digest(about), "code", json.dumps(about))
        metrics += [Metric(p.name, p.value, started, p.step, model, data.name, data.digest) for p in content.measures]
        store.client.log_inputs(run_id, [DatasetInput(data, [InputTag("mlflow.data.context", split)])])
        if run.outputs is None or not run.outputs.model_outputs:
            store.client.log_outputs(run_id, [LoggedModelOutput(model, step=0)])
        store.client.finalize_logged_model(model, "READY")
    # the client splits a long list into calls that MLflow takes; points that are there already stay single
    store.client.log_batch(run_id, metrics=metrics, params=[Param(*item) for item in content.params.items()])
    store.end(run_id, view, len(content.curves))
    return True


@contextmanager
def _patient() -> Iterator[None]:
    """More time, within, for what a server is to store: it answers when it has passed the whole file on. (MLflow reads
    the variable at each call; a server that is dead has been found so by an earlier one.)"""
    name = "MLFLOW_HTTP_REQUEST_TIMEOUT"
    before = os.environ[name]
    os.environ[name] = str(max(UPLOAD_SECONDS, int(before)))
    try:
        yield
    finally:
        os.environ[name] = before


@contextmanager
def one_sentence(target: Target) -> Iterator[None]:
    """Errors of MLflow as an OSError: where, what, what to do; without passwords."""
    try:
        yield
    except (MlflowException, SQLAlchemyError, RequestException) as error:
        what = re.sub(r"(?<=//)[^\s/]*@", "", " ".join(str(error).split()))
        what = "no answer" if "Max retries exceeded" in what else what[:300]
        raise OSError(
            f"MLflow at {target.shown}: {what}. Is it running, and the address right? Publish again when it is, or "
            "elsewhere with --tracking-uri: it goes on where it was, and no result is touched"
        ) from error


def _outdated(run: Run, view: View) -> bool:
    """True if points in the run were made of rows that are no more."""
    names = ("gode.format", "gode.trained", "gode.judged")
    return any(run.data.tags.get(name) not in (None, view.fixed.get(name)) for name in names)


def _run_tags(tags: dict[str, str]) -> list[RunTag]:
    return [RunTag(key, value) for key, value in tags.items()]
