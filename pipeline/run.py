"""What the Snakefile needs to know of one run: the experiment, and how it is run. No torch here."""

from __future__ import annotations

import json
import os
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.experiment import Experiment, load_experiment
from pipeline.paths import DEFAULT_EXPERIMENT, Paths
from pipeline.reading import unknown_key
from pipeline.stacks import JobStack, stacks_of
from pipeline.target import Target

SETTINGS = {"results": "results", "data": "data", "device": "auto", "mix_code": False}


@dataclass(frozen=True)
class Run:
    """An experiment under a results root. Lists of files are in the order of the experiment's jobs."""

    file: str
    experiment: Experiment
    paths: Paths
    data: str
    device: str
    mix_code: str  # the flag for `collect`, or nothing

    @staticmethod
    def of(config: Mapping[str, Any], configfiles: Sequence[Any]) -> Run:
        """From Snakemake's config: `--configfile` names the experiment, `--config` says how it is run.

        Bad input ends Snakemake with one line, since it comes before any job.
        """
        file = str(configfiles[-1]) if configfiles else DEFAULT_EXPERIMENT
        try:
            experiment = load_experiment(file)
            of_experiment = {"name", "question", "job", "sweep", "evaluate_with", "published"}
            for key in config:
                if key not in SETTINGS and key not in of_experiment:
                    raise ValueError(f"--config: {unknown_key(key, list(SETTINGS))}")
            _need_folder(Path(str(config.get("results", SETTINGS["results"]))))
        except ValueError as error:
            sys.exit(f"error: {error}")
        settings = SETTINGS | {key: config[key] for key in SETTINGS if key in config}
        paths = Paths(str(settings["results"]))
        flag = "--mix-code" if str(settings["mix_code"]).lower() == "true" else ""
        return Run(_relative(file), experiment, paths, str(settings["data"]), str(settings["device"]), flag)

    @property
    def name(self) -> str:
        return self.experiment.name

    @property
    def judging(self) -> str:
        return self.experiment.evaluate_with.id

    @property
    def configs(self) -> list[str]:
        return [self.paths.config(job) for job in self.experiment.jobs]

    @property
    def rows(self) -> list[str]:
        """All that `collect` reads."""
        return [
            path
            for job in self.experiment.jobs
            for path in (*self.paths.trained(job)[1:], *self.paths.judged(job, self.judging))  # all but the model
        ]

    @property
    def stacks(self) -> list[JobStack]:
        """Jobs that are trained, and judged, by one process."""
        return stacks_of(self.experiment.jobs, self.paths, self.judging)

    def data_of(self, wildcards: Any) -> str:
        """The proof that a job's data set was seen, whole."""
        return self.paths.data(self.experiment.jobs[wildcards.job].data.source)

    def data_arguments(self, wildcards: Any) -> str:
        """For `python -m pipeline.data`: the data set of that name, and what belongs to it."""
        data = next(c.data for c in self.experiment.jobs.values() if c.data.source == wildcards.source)
        options = {
            "--dimension": data.dimension,
            "--folder": data.folder,
            "--image-size": data.image_size,
            "--num-classes": data.num_classes,
        }
        given = [f"{option} {shlex.quote(str(value))}" for option, value in options.items() if value is not None]
        return " ".join([data.name, *given])

    @property
    def farewell(self) -> str:
        """The last lines of a run: where to look. Nothing if the run was for other files than the report."""
        published = Path(self.paths.published(self.name))
        if not published.is_file():
            return ""
        experiment_id = json.loads(published.read_text())["experiment_id"]
        mlflow = Target.of(None, self.paths).farewell(experiment_id)
        return f"\nThe report: {self.paths.report(self.name)}\nMLflow:     {mlflow}\n"


def _need_folder(root: Path) -> None:
    """Raises ValueError unless results can be written there: before any job, when Snakemake would show a traceback."""
    there = next(path for path in (root.absolute(), *root.absolute().parents) if path.exists())
    if not there.is_dir():
        raise ValueError(f"{there}: is no folder; results go below one: choose another with `--config results=FOLDER`")
    if not os.access(there, os.W_OK | os.X_OK):
        raise ValueError(f"{there}: may not be written; choose another folder with `--config results=FOLDER`")


def _relative(file: str) -> str:
    """Snakemake hands over absolute paths; one below the working directory is shown as typed."""
    path = Path(file)
    return str(path.relative_to(Path.cwd())) if path.is_absolute() and path.is_relative_to(Path.cwd()) else file
