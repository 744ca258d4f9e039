"""What jobs of a results folder have cost, in seconds of devices, by their likeness to a job that is to come.

A job is of three kinds, the narrowest first: the same but for the seed; the same model, data and batch size with any
solver; the same network on the same data. No torch here: the Snakefile asks.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import os
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pipeline.config import JobConfig, load_job
from pipeline.counting import training_evals, training_steps
from pipeline.paths import Paths
from pipeline.records import AttemptRecord, EvaluationRecord, read_records

MOST_ALIKE = 20  # jobs of a kind whose attempts are read: the median of more is no better
MOST_OTHERS = 1000  # jobs of other experiments that are looked at

Kind = Literal["gpu", "core"]
KINDS: tuple[Kind, ...] = ("gpu", "core")


@dataclass(frozen=True)
class DeviceSeconds:
    """Seconds of GPUs; and of processor cores, where no GPU was used."""

    gpu: float = 0.0
    core: float = 0.0

    def __add__(self, other: DeviceSeconds) -> DeviceSeconds:
        return DeviceSeconds(self.gpu + other.gpu, self.core + other.core)

    def hours(self, kind: Kind) -> float:
        return getattr(self, kind) / 3600


@dataclass(frozen=True)
class Past:
    """What a job has cost on one kind of device, in seconds of it."""

    job: str
    kind: Kind
    seconds: float  # of training
    evals: float | None  # field evaluations of training in that time; None if only the data folder knows
    whole: bool  # trained from its start to its end
    judging: float | None  # of its judgement; None if it was not judged so


def cost_of(attempt: AttemptRecord) -> DeviceSeconds:
    """Of one training in an attempt, which several may have shared, as they may a GPU."""
    if attempt.device.startswith("cuda"):
        return DeviceSeconds(gpu=attempt.seconds * attempt.gpus / attempt.share)
    return DeviceSeconds(core=attempt.seconds * attempt.threads / attempt.share)


def kinds_of(config: JobConfig) -> tuple[JobConfig, Hashable, Hashable]:
    """The kinds that a job is of, the narrowest first."""
    model, data = config.model, config.data
    alike = dataclasses.replace(config, seed=0)
    return alike, (data, model, config.train.batch_size), (data.source, model.network)


def read_past(
    wanted: Iterable[JobConfig], own: Mapping[str, JobConfig], paths: Paths, judging: str, devices: Sequence[Kind]
) -> dict[Hashable, list[Past]]:
    """By kind, of those that the wanted jobs are of: the past of some jobs on such devices. The experiment's own jobs
    are read first, then others of the folder, and of no kind more than MOST_ALIKE."""
    found: dict[Hashable, list[Past]] = {kind: [] for config in wanted for kind in kinds_of(config)}
    for job, config in _candidates(own, paths) if found else ():
        kinds = [kind for kind in kinds_of(config) if kind in found and len(found[kind]) < MOST_ALIKE]
        for past in _past_of(job, config, paths, judging) if kinds else ():
            for kind in kinds if past.kind in devices else ():
                found[kind].append(past)
    return found


def job_folders(paths: Paths) -> set[str]:
    """Names of the jobs that have a folder."""
    try:
        with os.scandir(Path(paths.config("job")).parents[1]) as entries:
            return {entry.name for entry in entries}
    except FileNotFoundError:
        return set()


def read_attempts(job: str, paths: Paths) -> list[AttemptRecord]:
    """None of a job that was never begun. Raises ValueError for a broken row."""
    path = paths.attempts(job)
    try:
        return read_records(AttemptRecord, path)
    except FileNotFoundError:
        return []
    except ValueError as error:  # the usual advice, to delete the file, would forget what was spent
        row = str(error).partition(": ")[0]
        raise ValueError(f"{row}: a broken row, so what the job has cost is not known; delete that row alone") from None


def _candidates(own: Mapping[str, JobConfig], paths: Paths) -> Iterator[tuple[str, JobConfig]]:
    there = job_folders(paths)
    yield from ((job, config) for job, config in own.items() if job in there)
    others = sorted(there - own.keys())
    for job in others[:: math.ceil(len(others) / MOST_OTHERS) or 1]:  # evenly: names begin with the data set
        with contextlib.suppress(ValueError, OSError):  # by an older version, say: it tells nothing
            yield job, load_job(paths.config(job), job)


def _past_of(job: str, config: JobConfig, paths: Paths, judging: str) -> list[Past]:
    """One for each kind of device; none without steps, or with a broken row: an estimate can do without it."""
    try:
        attempts = [attempt for attempt in read_attempts(job, paths) if attempt.to_step > attempt.from_step]
        return [past for kind in KINDS for past in _past_on(kind, job, config, attempts, _judging(job, paths, judging))]
    except ValueError:
        return []


def _past_on(
    kind: Kind, job: str, config: JobConfig, attempts: list[AttemptRecord], judging: float | None
) -> Iterator[Past]:
    own = [attempt for attempt in attempts if getattr(cost_of(attempt), kind) > 0]
    if not own:
        return
    evals, steps, last = training_evals(config), training_steps(config), own[-1]
    made = sum(attempt.to_step - attempt.from_step for attempt in own)
    if judging is not None:  # it ran, most likely, where the training ended
        judging = judging * (last.threads if kind == "core" else 1) if last is attempts[-1] else None
    yield Past(
        job=job,
        kind=kind,
        seconds=sum(getattr(cost_of(attempt), kind) for attempt in own),
        evals=evals * made / steps if evals and steps else None,
        whole=len(own) == len(attempts) and last.outcome == "finished",
        judging=judging,
    )


def _judging(job: str, paths: Paths, judging: str) -> float | None:
    """Seconds of all solvers."""
    try:
        return sum(row.seconds for row in read_records(EvaluationRecord, paths.evaluation(job, judging)))
    except FileNotFoundError:
        return None
