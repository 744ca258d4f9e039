"""The typed rows that a job writes, and JSON lines in and out.

Accuracies lie in [0, 1]; losses are cross entropies in nats, means over samples. `None` stands for a number that does
not exist (a loss that is not finite, an accuracy that was not asked for): JSON has no NaN.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
import uuid
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar

Status = Literal["ok", "nonfinite", "budget", "underflow", "unconverged"]


@dataclass(frozen=True)
class TrainingRecord:
    """One epoch. Holds no times: an interrupted and an uninterrupted training write the same rows."""

    job: str
    code: str  # fingerprint of the code that computed it
    epoch: int  # finished epochs
    step: int  # optimiser steps so far
    lr: float  # of the last step
    train_loss: float | None  # as trained on: with augmentation and smoothing
    train_accuracy: float | None
    validation_loss: float | None  # None without validation images
    validation_accuracy: float | None
    num_evals: float  # field evaluations per solve (forward), mean over the epoch's batches
    status: Status  # other than ok: training stopped before the step whose solve, loss or gradient was not finite
    solver: str | None = None  # of this epoch, and
    num_coefficients: int | None = None  # over depth: phases may differ
    converted_loss: float | None = None  # first record of a later phase: validation at once after the conversion,
    converted_accuracy: float | None = None  # before any further step,
    converted_error: float | None = None  # and the largest relative L2 error over depth of a weight; 0: exact
    kinetic: float | None = None  # mean kinetic energy of a solve, where its weight in the loss is not 0
    jacobian: float | None = None  # mean Jacobian norm along a solve, likewise
    check_evals: float | None = None  # field evaluations of checks of the solver, per optimiser step


@dataclass(frozen=True)
class EvaluationRecord:
    """One trained model under one solver, over a whole split."""

    job: str
    code: str
    solver: str
    split: Literal["test", "validation"]
    num_samples: int
    num_failed: int  # samples whose solve did not end `ok`; they count as wrong
    accuracy: float
    loss: float | None
    agreement: float  # share of samples with the class that the training solver gives
    logit_gap_max: float | None  # largest |logit - logit under the training solver|
    logit_gap_mean: float | None
    num_evals: float  # field evaluations per solve, summed over the blocks, mean over batches
    num_accepted: float  # steps, likewise
    num_rejected: float
    seconds: float  # for the split, data apart
    status: Status  # the worst of its batches
    num_lost: int | None = None  # samples that are right under the training solver and wrong under this one,
    num_gained: int | None = None  # and the reverse
    limit_gap: float | None = None  # mean |logit - logit in the limit h -> 0|, over classes and samples


@dataclass(frozen=True)
class ValidityRecord:
    """Is this trained model an ODE? One row per job that has a path through time: see gode_core.validity.

    gap, worst_gap: accuracy under the training solver minus that under another; the intervals come of paired counts.
    """

    job: str
    code: str
    split: Literal["test", "validation"]
    solver: str  # that of the training, at its end
    limit: str  # the solver that stands for h -> 0
    limit_check: str | None  # of those that may be finer than the training solver the next nearest to it, and
    limit_check_gap: float | None  # its mean logit gap to the limit: how near the limit is
    num_samples: int
    accuracy: float  # under the training solver
    limit_accuracy: float
    agreement: float  # share of samples with one class under both
    logit_gap: float | None  # mean, between both
    gap: float
    gap_low: float
    gap_high: float
    num_finer: int  # other solvers that count: no farther from the limit than the training solver, or its check
    worst_solver: str | None  # of them the one with the largest gap
    worst_gap: float | None
    worst_low: float | None
    worst_high: float | None
    margin: float  # gaps within it are none
    ode_within: float | None  # the smallest margin at which the verdict would be `ode`
    confidence: float  # of all intervals together
    method: str | None  # whose order was observed: that of the training
    order: float | None  # slope of log(logit gap to the limit) over log(step), from the training step on
    order_error: float | None  # its standard error
    num_orders: int  # points of the fit
    num_paths: int  # points whose paths were followed; 0: none, and then the rest is None
    share_folded: float | None  # points where a step's map turns the orientation over, which no flow does
    share_crossing: float | None  # pairs of paths that cross, where weights are constant in depth
    separation: float | None  # mean log of the largest stretching of nearby points, under the training solver,
    limit_separation: float | None  # and in the limit
    verdict: Literal["ode", "discrete", "undecided"]
    reason: str


@dataclass(frozen=True)
class PathRecord:
    """One point of the plane on its way through the block."""

    job: str
    code: str
    solver: str
    path: int
    target: int  # the point's class
    depth: float
    x: float
    y: float


@dataclass(frozen=True)
class DecisionRecord:
    """One check of a rule that changes the solver in training: see pipeline.adapt."""

    job: str
    code: str
    step: int  # optimiser steps made before
    action: Literal["start", "shrink", "grow", "keep", "limit"]  # limit: it ought to shrink and may not
    solver: str | None  # trained with so far; None at the start
    reference: str | None  # what it was compared with,
    difference: float | None  # and how much they differ: in accuracy, or in class probabilities
    trial: str | None  # a coarser one that was tried,
    trial_difference: float | None  # and its difference from the reference
    accuracy: float | None  # under `solver`, on what the check looks at
    next_solver: str
    num_evals: int  # field evaluations that the check cost
    reason: str


@dataclass(frozen=True)
class WeightRecord:
    """One entry of a learned weight at one depth: theta(t)."""

    job: str
    code: str
    weight: str  # the parameter's name in the model
    entry: int  # index into the flattened weight
    depth: float
    value: float


@dataclass(frozen=True)
class AttemptRecord:
    """One start of a training: who, when, from where it went on, and how it ended."""

    job: str
    code: str
    commit: str  # with `+` behind it if the working tree had changes; `unknown` outside git
    host: str
    pid: int
    device: str
    from_step: int
    to_step: int
    started: str  # ISO 8601, UTC
    seconds: float
    outcome: Literal["finished", "interrupted", "failed", "killed"]
    reason: str
    share: int = 1  # trainings that ran side by side in these seconds
    threads: int = 1
    slurm_job: str = ""  # number of the SLURM job; empty outside one
    campaign: str = ""  # name of the SLURM job: the same for all jobs of one run of Snakemake
    gpus: float = 1.0  # what it had of a GPU, where it was on one
    torch: str = ""  # its version; empty where that is not known


@dataclass(frozen=True)
class TrialRecord:
    """What happened to a trial of a search: a line for each event, in the order of time."""

    trial: int  # its number, from 0
    job: str  # what it trains, from now on
    event: Literal["begun", "changed", "stopped", "finished", "failed"]
    at: str  # ISO 8601, UTC
    epoch: int = 0  # finished epochs
    value: float | None = None  # of the first goal, there
    reason: str = ""  # changed: what it took over; stopped: who stopped it; failed: the error
    values: dict[str, Any] = field(default_factory=dict)  # begun: what was chosen, by dotted path


OfJob = TrainingRecord | EvaluationRecord | WeightRecord | AttemptRecord | ValidityRecord | PathRecord | DecisionRecord
Record = OfJob | TrialRecord
R = TypeVar("R", bound=Record)


def to_line(record: Record) -> str:
    row = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in vars(record).items()}
    return json.dumps(row, allow_nan=False) + "\n"


def write_records(path: str | Path, records: Iterable[Record]) -> None:
    """The whole file, by replacement: a reader sees the old rows or the new ones, never half."""
    replace_file(path, "".join(map(to_line, records)).encode())


def append_record(path: str | Path, record: Record) -> None:
    """One row more, written in one call, or none; on a line of its own, though the last one was cut off."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a+b", buffering=0) as file:
        size = file.tell()
        whole = size == 0 or os.pread(file.fileno(), 1, size - 1) == b"\n"
        rest = (b"" if whole else b"\n") + to_line(record).encode()
        try:
            while rest:
                rest = rest[file.write(rest) :]
            os.fsync(file)  # a network file system says only now that the disk is full
        except OSError:
            file.truncate(size)  # half a row would stay, when the disk has room again
            raise


def read_records(cls: type[R], path: str | Path) -> list[R]:
    """Rows of one kind. Raises ValueError with the line for a row that is cut off or has other columns; one that came
    later, with a default, may lack."""
    return parse_records(cls, Path(path).read_bytes(), path)


def parse_records(cls: type[R], content: bytes, path: str | Path) -> list[R]:
    """As `read_records`, of what stands in `path`."""
    names = {f.name for f in dataclasses.fields(cls)}
    later = {f.name for f in dataclasses.fields(cls) if f.default is not dataclasses.MISSING}
    records = []
    for number, line in enumerate(content.splitlines(), 1):
        try:
            row = json.loads(line)
        except ValueError:  # no JSON, or no text
            raise ValueError(
                f"{path}:{number}: a broken row (cut off?); delete the file to have it made again"
            ) from None
        if not isinstance(row, dict) or not names - later <= set(row) <= names:
            other = ", ".join(sorted(names ^ set(row))) if isinstance(row, dict) else "no columns"
            raise ValueError(
                f"{path}:{number}: not a {cls.__name__} (missing or unknown: {other}); "
                "delete the file to have it made again"
            )
        records.append(cls(**row))
    return records


def replace_file(path: str | Path, content: bytes) -> None:
    """Write beside, flush to disk, then replace. On failure the old file stands and nothing is left beside it.
    An OSError names `path`, whichever call failed."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.part")  # pids of two machines may be equal
    try:
        with open(beside, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, path)
    except BaseException as error:
        beside.unlink(missing_ok=True)
        if isinstance(error, OSError):
            error.filename = str(path)
        raise
