"""What the Snakefile needs to know of one run: the experiment, and how it is run. No torch here."""

from __future__ import annotations

import json
import os
import shlex
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from pipeline.company import write_company
from pipeline.config import JobConfig, load_job
from pipeline.cost import keep_budget, refusal, spent
from pipeline.experiment import KEYS, Experiment, load_experiment
from pipeline.paths import DEFAULT_EXPERIMENT, Paths
from pipeline.reading import unknown_key
from pipeline.search_cost import estimate_whole
from pipeline.signals import pass_on
from pipeline.stacks import Batch, batches_of, fleet_of
from pipeline.target import Target
from pipeline.winners import read_winners

SETTINGS = {
    "results": "results",
    "data": "data",
    "device": "auto",
    "mix_code": False,
    "together": "",
    "checkpoint_seconds": 60,
    "fleet": False,
}


@dataclass(frozen=True)
class Run:
    """An experiment under a results root. Lists of files are in the order of the experiment's jobs."""

    file: str
    experiment: Experiment
    paths: Paths
    data: str
    device: str
    mix_code: str  # the flag for `collect`, or nothing
    together: int | None  # small jobs of one process; None: as many as pays
    checkpoint_seconds: int
    with_fleet: bool  # all jobs are trained inside one allocation

    @staticmethod
    def of(config: Mapping[str, Any], configfiles: Sequence[Any], inside_job: bool = False) -> Run:
        """From Snakemake's config: `--configfile` names the experiment, `--config` says how it is run.

        Bad input, and an experiment beyond its budget, end Snakemake with one line, before any job. `inside_job`: the
        Snakefile is read again by a job on a cluster, which asks no more than whether the budget is spent, and passes
        on what SLURM tells it.
        """
        if inside_job:
            pass_on()
        file = str(configfiles[-1]) if configfiles else DEFAULT_EXPERIMENT
        try:
            experiment = load_experiment(file)
            for key in config:
                if key not in SETTINGS and key not in KEYS:
                    raise ValueError(f"--config: {unknown_key(key, list(SETTINGS))}")
            settings = SETTINGS | {key: config[key] for key in SETTINGS if key in config}
            paths = Paths(str(settings["results"]))
            _need_folder(Path(paths.root))
            _keep_budget(experiment, paths, str(settings["device"]), _relative(file), inside_job)
            together = None if settings["together"] == "" else _count(settings, "together")
            checkpoint_seconds = _count(settings, "checkpoint_seconds")
        except ValueError as error:
            sys.exit(f"error: {error}")
        flag = "--mix-code" if str(settings["mix_code"]).lower() == "true" else ""
        run = Run(
            _relative(file),
            experiment,
            paths,
            str(settings["data"]),
            str(settings["device"]),
            flag,
            together,
            checkpoint_seconds,
            str(settings["fleet"]).lower() == "true",
        )
        if not inside_job:
            for batch in (*run.batches, *([run.fleet] if run.fleet else [])):
                batch.retract()
            run.retract_collected()
        return run

    @property
    def name(self) -> str:
        return self.experiment.name

    @property
    def judging(self) -> str:
        return self.experiment.evaluate_with.id

    @property
    def rows(self) -> list[str]:
        """What says that all that `collect` reads is there."""
        in_batches = {job for batch in self.batches for job in batch.jobs}
        alone = [job for job in self.experiment.jobs if job not in in_batches]
        return [batch.judged for batch in self.batches] + self._rows_of(alone)

    def _rows_of(self, jobs: Iterable[str]) -> list[str]:
        judged = self.paths.judged
        return [path for job in jobs for path in (*self.paths.trained(job)[1:], *judged(job, self.judging))]  # no model

    def rows_of_winners(self, checkpoints: Any) -> Callable[[Any], list[str]]:
        """For Snakemake: a function that is asked again when the search is done, and tells of its winners."""

        def rows(wildcards: Any) -> list[str]:
            if self.experiment.search is None:
                return []
            checkpoints.search.get()
            own = read_winners(self.experiment, self.paths)
            others = self._rows_of(job for job in own if job not in self.experiment.jobs)
            return [self.found, *others]  # the winners of another search, or number of trials, may be the same jobs

        return rows

    @property
    def found(self) -> str:
        """What the search comes to."""
        assert self.experiment.search is not None
        return self.paths.found(self.name, self.experiment.search.result_id)

    @property
    def collected(self) -> list[str]:
        """The mark that the tables are of this search; nothing without one."""
        search = self.experiment.search
        return [] if search is None else [self.paths.collected(self.name, search.result_id)]

    def retract_collected(self) -> None:
        """Delete the mark of another search, or of one that is to be made: Snakemake makes nothing anew for an input
        that lacks, as long as what is made of it is there. The tables stay until they are made anew."""
        every = Path(self.paths.collected(self.name, "*"))
        for mark in map(str, every.parent.glob(every.name)) if self.collected else ():
            if mark not in self.collected or not os.path.exists(self.found):
                os.unlink(mark)

    def note_company(self) -> None:
        """For those who look on, when the run begins."""
        write_company(self.batches, self.name, self.paths)

    @property
    def trial_tables(self) -> list[str]:
        """What `collect` makes of a search; nothing without one."""
        return (
            []
            if self.experiment.search is None
            else [self.paths.trial_table(self.name), self.paths.trial_curves(self.name)]
        )

    @property
    def data_of_search(self) -> list[str]:
        """The proof that the data sets of its trials were seen."""
        assert self.experiment.search is not None
        return [self.paths.data(source) for source in dict.fromkeys(c.data.source for c in self._some_trials)]

    @cached_property
    def _some_trials(self) -> list[JobConfig]:
        return [] if self.experiment.search is None else self.experiment.search.check()

    @cached_property
    def batches(self) -> list[Batch]:
        """Jobs that are trained (unless a fleet does it), and judged, by one process."""
        return batches_of(self.experiment.jobs, self.paths, self.judging, self.together, self.fleet)

    @cached_property
    def fleet(self) -> Batch | None:
        """All jobs, if one rule is to train them."""
        return fleet_of(self.experiment.jobs, self.paths, self.judging) if self.with_fleet else None

    @property
    def trainings(self) -> list[Batch]:
        """Batches that have a training of their own."""
        return [] if self.with_fleet else self.batches

    def data_of(self, wildcards: Any) -> str:
        """The proof that a job's data set was seen, whole."""
        job = wildcards.job
        config = self.experiment.jobs.get(job) or load_job(
            self.paths.config(job), job
        )  # a winner's: the search wrote it
        return self.paths.data(config.data.source)

    def data_arguments(self, wildcards: Any) -> str:
        """For `python -m pipeline.data`: the data set of that name, and what belongs to it."""
        configs = (*self.experiment.jobs.values(), *self._some_trials)
        data = next(config.data for config in configs if config.data.source == wildcards.source)
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
        found = json.loads(published.read_text())
        mlflow = Target.of(found["tracking_uri"], self.paths).farewell(found["experiment_id"])
        return f"\nThe report: {self.paths.report(self.name)}\nMLflow:     {mlflow}\n"


def _keep_budget(experiment: Experiment, paths: Paths, device: str, where: str, inside_job: bool) -> None:
    """Raises ValueError if the experiment has a budget, and trainings that it does not allow."""
    if experiment.budget is None:
        return
    if inside_job:
        try:
            said = refusal(experiment, paths)
        except ValueError as error:  # half a row, that another node is about to write, say: nothing to end this for
            said = ""
            print(f"warning: {error}", file=sys.stderr)
        if said:
            raise ValueError(f"{where}: {said}")
        return
    rules = estimate_whole(experiment, paths, device)
    if warning := keep_budget(experiment.budget, spent(experiment, paths), rules, paths.root, where):
        print(f"warning: {warning}", file=sys.stderr)


def _count(settings: Mapping[str, Any], key: str) -> int:
    text = settings[key]
    if not str(text).isdecimal() or int(text) < 1:
        raise ValueError(f"--config: {key}: must be a whole number, at least 1, got {text!r}")
    return int(text)


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
