"""What MLflow is to show of an experiment, from its files: one view of each job that was started, trials of its search
too, one of the whole.

    find_views(experiment, ...) -> [View of the experiment, View of a job, ...]     looks at files, parses few
    read_job_content(view, ...) -> Content                                          parses all of one job

No mlflow here: `publish` carries views over.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from functools import cache, cached_property
from pathlib import Path
from typing import Any, Literal

from gode_core.solvers import Adaptive, Fixed, parse_solver
from pipeline.config import JobConfig, canonical, digest
from pipeline.experiment import Experiment
from pipeline.paths import Paths
from pipeline.records import AttemptRecord, EvaluationRecord, TrainingRecord, ValidityRecord, read_records
from pipeline.search_tags import tags_of, tags_of_search, trials_by_job
from pipeline.trials import Outcome, Trial
from pipeline.tried import is_done, trial_jobs

log = logging.getLogger(__name__)

FORMAT = 3  # of what is shown; another number makes every run anew
CURVES = (
    *("train_loss", "train_accuracy", "validation_loss", "validation_accuracy", "lr", "num_evals"),
    *("num_coefficients", "converted_loss", "converted_accuracy", "converted_error", "kinetic", "jacobian"),
    "check_evals",
)
MEASURES = (
    *("accuracy", "loss", "agreement", "logit_gap_max", "logit_gap_mean"),
    *("num_evals", "num_failed", "seconds"),
)
VALIDITY = (
    *("gap", "gap_low", "gap_high", "worst_gap", "worst_low", "worst_high", "limit_accuracy", "ode_within"),
    *("agreement", "order", "share_folded", "share_crossing", "separation", "limit_separation"),
)

Status = Literal["RUNNING", "FINISHED", "FAILED", "KILLED"]  # MLflow's words


@dataclass(frozen=True)
class View:
    """The files behind one run of MLflow. Times are milliseconds since 1970."""

    name: str  # the job's id, or the experiment's name
    status: Status
    started: int
    ended: int
    files: dict[str, Path]  # by the name that MLflow shows
    fixed: dict[str, str] = field(default_factory=dict)  # tags that no longer change, unless rows were made anew
    tags: dict[str, str] = field(default_factory=dict)  # others: what a search has made of it

    @cached_property
    def digest(self) -> str:
        """Of all that is shown, as it was when first asked. Not of times: a file that was copied is the same file."""
        found = {name: _file_digest(path) for name, path in self.files.items()}
        more = {"tags": self.tags} if self.tags else {}
        return digest({"fixed": self.fixed, "name": self.name, "status": self.status, "files": found} | more)


@dataclass(frozen=True)
class Point:
    """One value of one metric, at an optimiser step."""

    name: str
    value: float
    step: int


@dataclass(frozen=True)
class Content:
    """What is read out of a job's files. `curves` holds a list for each row of training.jsonl."""

    params: dict[str, str]
    tags: dict[str, str]
    curves: list[list[Point]]
    measures: list[Point]


def find_views(experiment: Experiment, source: Path, paths: Paths, following: bool) -> list[View]:
    """The experiment's view, then one of each job that was started, and of each trial that is no job of it. `following`
    counts what is not finished as running. experiment: with its winners; source: its file. Raises OSError if a file
    vanishes meanwhile."""
    trials = trials_by_job(experiment.search, paths)
    jobs = [view for job in experiment.jobs if (view := _find_job(job, experiment, paths, following))]
    complete = len(jobs) == len(experiment.jobs) and is_done(experiment, paths)
    status = _worst({view.status for view in jobs}, complete, following)
    jobs = [replace(view, tags=tags_of(trials[view.name])) if view.name in trials else view for view in jobs]
    jobs += _find_trials(experiment, trials, paths, following)
    name, files = experiment.name, {source.name: source}
    tables = [paths.table(name), paths.curves(name), paths.weight_paths(name), paths.verdicts(name)]
    tables += [paths.decision_table(name), paths.report(name)]
    if experiment.search is not None:
        tables += [paths.trial_table(name), paths.trial_curves(name), paths.found(name, experiment.search.result_id)]
    for path in map(Path, tables):
        if path.is_file():
            files[path.name] = path
    for path in sorted(Path(paths.figures(name)).glob("*.png")):
        files[f"{path.parent.name}/{path.name}"] = path
    started = min((view.started for view in jobs), default=_modified(source))
    ended = max((view.ended for view in jobs), default=started)
    tags = tags_of_search(experiment.search, trials) if experiment.search else {}
    return [View(name, status, started, ended, files, tags=tags), *jobs]


def _find_trials(
    experiment: Experiment, trials: Mapping[str, list[Trial]], paths: Paths, following: bool
) -> list[View]:
    """Of trials that are no jobs of the experiment. One that its search has stopped has come to its end."""
    ends: dict[Outcome, Status] = {"finished": "FINISHED", "stopped": "FINISHED", "failed": "FAILED"}
    found = []
    for job, same in trials.items():
        if job in experiment.jobs or not Path(paths.config(job)).is_file():
            continue
        view = _look_at(job, experiment, paths, following and not is_done(experiment, paths))
        found.append(replace(view, status=ends.get(same[-1].outcome, view.status), tags=tags_of(same)))
    return found


def any_started(experiment: Experiment, paths: Paths) -> bool:
    """experiment: with or without its winners."""
    begun = any(Path(paths.config(job)).is_file() for job in trial_jobs(experiment.search, paths))
    return begun or any(_is_started(job, paths) for job in experiment.jobs)


def all_judged(experiment: Experiment, paths: Paths) -> bool:
    """experiment: with its winners."""
    judging = experiment.evaluate_with.id
    return is_done(experiment, paths) and all(
        _is_trained(job, paths) and Path(paths.evaluation(job, judging)).is_file() for job in experiment.jobs
    )


def _is_trained(job: str, paths: Paths) -> bool:
    return Path(paths.training(job)).is_file() and Path(paths.model(job)).is_file()


def _is_started(job: str, paths: Paths) -> bool:
    return _is_trained(job, paths) or Path(paths.state(job)).is_dir()


def _find_job(job: str, experiment: Experiment, paths: Paths, following: bool) -> View | None:
    return _look_at(job, experiment, paths, following) if _is_started(job, paths) else None


def _look_at(job: str, experiment: Experiment, paths: Paths, following: bool) -> View:
    trained = _is_trained(job, paths)
    training = Path(paths.training(job) if trained else paths.training_so_far(job))
    judging = experiment.evaluate_with.id
    evaluation = Path(paths.evaluation(job, judging))
    files = {"config.json": Path(paths.config(job)), "attempts.jsonl": Path(paths.attempts(job))}
    files["training.jsonl"] = training
    if trained:
        results = (paths.model(job), paths.decisions(job), paths.evaluation(job, judging), paths.validity(job, judging))
        files |= {path.name: path for path in map(Path, results)}
    files = {name: path for name, path in files.items() if path.is_file()}
    fixed = {"gode.format": str(FORMAT)}
    if "training.jsonl" in files and (first := training.read_bytes().partition(b"\n")[0]):
        fixed["gode.trained"] = hashlib.sha256(first).hexdigest()[:10]
    if evaluation.name in files:
        fixed["gode.judged"] = _file_digest(evaluation)[:10]
    attempts = _attempts(files.get("attempts.jsonl"))
    started = _milliseconds(attempts[0].started) if attempts else _modified(Path(paths.config(job)))
    ended = started
    if attempts:
        ended = _milliseconds(attempts[-1].started) + round(1000 * attempts[-1].seconds)
    elif "training.jsonl" in files:
        ended = max(started, _modified(training))
    return View(job, _status(trained, attempts, following), started, ended, files, fixed)


def _status(trained: bool, attempts: list[AttemptRecord], following: bool) -> Status:
    if trained:
        return "FINISHED"
    if following:
        return "RUNNING"
    return "FAILED" if attempts and attempts[-1].outcome == "failed" else "KILLED"


def _worst(statuses: set[Status], complete: bool, following: bool) -> Status:
    """The experiment's status, from those of its jobs that were started."""
    if complete and statuses == {"FINISHED"}:
        return "FINISHED"
    if following:
        return "RUNNING"
    return "FAILED" if "FAILED" in statuses else "KILLED"


def read_job_content(view: View, config: JobConfig) -> Content:
    """Raises ValueError for a broken row."""
    training = read_records(TrainingRecord, view.files["training.jsonl"]) if "training.jsonl" in view.files else []
    judged = [path for name, path in view.files.items() if name.startswith("evaluation-")]
    evaluation = read_records(EvaluationRecord, judged[0]) if judged else []
    validity: list[ValidityRecord] = []
    tags = {"label": config.label, "family": config.model.family, "solver": config.train.solver}
    tags["seed"] = str(config.seed)
    if training:
        tags["code"] = training[-1].code
    if attempts := _attempts(view.files.get("attempts.jsonl")):
        tags["commit"] = attempts[-1].commit
    if view.status == "FINISHED" and training:
        tags["training_status"] = training[-1].status
        tags["diverged"] = str(training[-1].status == "nonfinite").lower()
    for path in (path for name, path in view.files.items() if name.startswith("validity-")):
        validity += read_records(ValidityRecord, path)
    if validity:
        tags |= {"verdict": validity[0].verdict, "verdict_reason": validity[0].reason}
    curves = [_points(row, CURVES, "", row.step) for row in training]
    if config.train.adapt is not None:
        curves = [[*points, *_chosen(row)] for points, row in zip(curves, training)]
    # step 0: MLflow draws a bar for each run, where another step would make it draw a curve of one point
    measures = [point for row in evaluation for point in _points(row, MEASURES, "/" + plain_solver(row.solver), 0)]
    measures += [point for row in validity for point in _points(row, VALIDITY, "/validity", 0)]
    params = {name: value for name, value in _leaves(canonical(config), "") if value != ""}
    return Content(params, tags, curves, measures)


def plain_solver(solver: str) -> str:
    """A solver in the letters that MLflow allows in a metric's name: `rk4@8` as `rk4-8`,
    `dopri5@rtol=1e-5,atol=1e-7` as `dopri5-rtol 1e-5 atol 1e-7`. The first `-` is the `@`: no method has one."""
    return solver.replace("@", "-").replace("=", " ").replace(",", " ")


def _chosen(row: TrainingRecord) -> list[Point]:
    """The steps or the tolerance that a rule has come to."""
    solver = parse_solver(row.solver or "")
    if isinstance(solver, Adaptive):
        return [Point("tolerance", solver.rtol, row.step)]
    assert isinstance(solver, Fixed)
    return [Point("num_steps", float(solver.num_steps), row.step)]


def _points(row: Any, names: tuple[str, ...], suffix: str, step: int) -> list[Point]:
    """Numbers that do not exist (None) are left out."""
    values = [(name, getattr(row, name)) for name in names]
    return [Point(name + suffix, float(value), step) for name, value in values if value is not None]


def _leaves(data: dict[str, Any], prefix: str) -> list[tuple[str, str]]:
    """Dotted names and texts; lists parted by spaces, None as nothing."""
    leaves = []
    for key, value in data.items():
        if isinstance(value, dict):
            leaves += _leaves(value, f"{prefix}{key}.")
        else:
            words = value if isinstance(value, list) else [] if value is None else [value]
            leaves.append((prefix + key, " ".join(map(str, words))))
    return leaves


def _attempts(path: Path | None) -> list[AttemptRecord]:
    """None without the file, or if a row of it is broken (a full disk): it is no more than a note."""
    try:
        return read_records(AttemptRecord, path) if path else []
    except ValueError:
        log.warning("%s: a broken row; the attempts of this job are left out", path)
        return []


def _milliseconds(text: str) -> int:
    return round(1000 * datetime.fromisoformat(text).timestamp())


def _modified(path: Path) -> int:
    return path.stat().st_mtime_ns // 1_000_000


def _file_digest(path: Path) -> str:
    stat = path.stat()
    return _content_digest(path, stat.st_size, stat.st_mtime_ns)


@cache
def _content_digest(path: Path, _size: int, _mtime_ns: int) -> str:
    """Kept while the file stays as it is: `--follow` asks every few seconds."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
