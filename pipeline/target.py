"""Where MLflow is: its address, where it keeps files, how a person opens it; and who may write there now."""

from __future__ import annotations

import fcntl
import logging
import os
import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from pipeline.paths import Paths

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Target:
    """A tracking URI (it may hold a password), and where a new experiment keeps its files; None: where the server
    says."""

    uri: str
    artifacts: str | None
    is_default: bool

    @staticmethod
    def of(uri: str | None, paths: Paths) -> Target:
        """`uri`, else $MLFLOW_TRACKING_URI, else a database below the results root."""
        here = Paths(str(Path(paths.root).absolute()))  # so that `mlflow ui` may be started in any folder
        uri = uri or os.environ.get("MLFLOW_TRACKING_URI")
        served = uri is not None and uri.startswith(("http", "databricks"))
        return Target(uri or here.mlflow, None if served else Path(here.mlflow_artifacts).as_uri(), not uri)

    @property
    def shown(self) -> str:
        """The address without user, password and options."""
        scheme, separator, rest = self.uri.partition("://")
        return scheme + separator + (rest if scheme == "sqlite" else rest.partition("?")[0].rpartition("@")[2])

    def farewell(self, experiment_id: str) -> str:
        """One line: how to look at an experiment. `mlflow ui` listens on 127.0.0.1 alone, unless told otherwise."""
        # MLflow opens a page for chat bots otherwise, and hides jobs below the experiment's run unless sorted by name
        page = f"/#/experiments/{experiment_id}/runs?workflowType=machine_learning"
        page += "&orderByKey=tags.%60mlflow.runName%60&orderByAsc=true"
        if self.shown.startswith("http"):
            return self.shown.rstrip("/") + page
        command = f"mlflow ui --backend-store-uri {shlex.quote(self.shown)}"
        return f"{command}    (then open http://127.0.0.1:5000{page})"


@contextmanager
def alone(paths: Paths) -> Iterator[None]:
    """One writer at a time for these results: a second one waits, and then finds all done."""
    lock = Path(paths.mlflow_artifacts).with_suffix(".lock")
    lock.parent.mkdir(parents=True, exist_ok=True)
    with open(lock, "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX)
        except OSError as error:
            log.warning("%s: no locks here (%s); publish from one place at a time", lock, error.strerror)
        yield
