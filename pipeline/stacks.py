"""Which jobs share a process. No torch here: the Snakefile asks.

Some that differ in nothing but numbers are trained side by side, as one computation (pipeline.side_by_side): where a
net is so small that calls cost more than arithmetic, on points, that is always done. And where small jobs are many,
several are done one after the other by one process, since its start, and a place in a cluster's queue, would cost more
than the job.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from gode_core.solvers import Fixed
from pipeline.config import JobConfig, digest
from pipeline.finished import is_judged, is_trained
from pipeline.guess import guessed_seconds
from pipeline.paths import Paths

LARGEST = 8  # jobs in one computation: the gain by more is small
MANY = 200  # small jobs, from which on some are done by one process,
TOGETHER = 16  # so many
SMALL = 60.0  # core-seconds, guessed, of a job that counts as small
MOST_PLACES = 10  # of a convolution, which in a stack is a matrix of all places by all places
# Of a layer's output, batch x width x pixels, for images. Eight together are so many times as fast, on one core:
# 2.9 at 16,384 numbers, 1.3 to 1.9 at 32,768 (digits.yaml), 1.3 at 65,536, 0.8 to 1.0 at 131,072, 0.5 at 401,408, where
# what is kept for the gradient no longer fits the cache. One alone takes 1.05 to 1.1 times as long as a plain network:
# the price of bits that do not depend on its company.
MOST_NUMBERS = 65_536


@dataclass(frozen=True)
class Batch:
    """Jobs that share a process: what the Snakefile needs for a rule of their own."""

    jobs: tuple[str, ...]
    paths: Paths
    judging: str
    data: tuple[str, ...]  # the proof that their data sets were seen
    priority: float  # those that take longest are begun first: begun last, they would end alone
    mark: str = ""  # that all are trained, where a fleet trains them with others

    @property
    def name(self) -> str:
        return digest({"jobs": list(self.jobs)})

    @property
    def train(self) -> str:
        """The name of the rule."""
        return f"train_{self.name}"

    @property
    def evaluate(self) -> str:
        return f"evaluate_{self.name}"

    @property
    def configs(self) -> list[str]:
        return [self.paths.config(job) for job in self.jobs]

    @property
    def trained(self) -> str:
        """The mark that all are trained. Snakemake deletes what a failed rule declares, so that is all it is told of:
        what is finished stays, whatever happens to the others, and in whatever company it is asked for next."""
        return self.mark or self.paths.batch_trained(self.name)

    @property
    def judged(self) -> str:
        return self.paths.batch_judged(self.name, self.judging)

    def retract(self) -> None:
        """Delete a mark that is no longer true: files were deleted, or a model was trained again."""
        if os.path.exists(self.trained) and not all(is_trained(job, self.paths) for job in self.jobs):
            os.unlink(self.trained)
        if os.path.exists(self.judged) and not all(is_judged(job, self.judging, self.paths) for job in self.jobs):
            os.unlink(self.judged)


def fits(config: JobConfig) -> bool:
    """True if this job may be trained beside others: an ODE on points or small images, with fixed steps and nothing
    beside the loss."""
    model, train, shape = config.model, config.train, config.data.shape
    if len(shape) == 2:
        kind = model.field == "perceptron" or (model.field == "bottleneck" and shape[-1] <= MOST_PLACES)
        kind = kind and model.pad_channels is None
    else:
        kind = model.field == "bottleneck" and train.batch_size * model.width * shape[1] * shape[2] <= MOST_NUMBERS
    free = model.basis is not None and model.basis.knots == "free"
    family = model.family in ("neural_ode", "gode", "resnet") and not (free or model.time_channel)
    plain = not (train.phases or train.adapt or train.kinetic or train.jacobian or train.random_end)
    fixed = isinstance(train.parsed_solver, Fixed) and train.autocast == "none"
    return model.network == "raw" and kind and family and plain and fixed


def alike(configs: Iterable[JobConfig]) -> bool:
    """True if the jobs may be trained side by side: they differ in numbers alone that each may have for itself."""
    found = list(configs)
    return all(map(fits, found)) and len(set(map(_shape, found))) == 1


def _shape(config: JobConfig) -> JobConfig:
    """The job, with the same number wherever those that are trained side by side may differ. The steps of a solver are
    none of these: the computation of few would have to wait for that of many."""
    rates = {"lr": 1.0, "schedule": "constant", "milestones": (), "decay": 0.1, "warmup_epochs": 0.0, "changes": ()}
    train = dataclasses.replace(config.train, **rates, weight_decay=0.0, clip_norm=None, label_smoothing=0.0)
    model = dataclasses.replace(config.model, init="kaiming_normal")  # of the first weights alone
    return dataclasses.replace(config, seed=0, train=train, model=model)


def fleet_of(jobs: Mapping[str, JobConfig], paths: Paths, judging: str) -> Batch:
    """All jobs of an experiment, to be trained by one fleet."""
    return _batch(tuple(jobs), jobs, paths, judging)


def batches_of(
    jobs: Mapping[str, JobConfig], paths: Paths, judging: str, together: int | None = None, fleet: Batch | None = None
) -> list[Batch]:
    """The jobs of an experiment that share a process with others, in the order of its file. `together`: how many small
    ones are done one after the other; None: as many as pays. Jobs added with further seeds come into batches of their
    own, so that finished ones stay as they are. `fleet`: what trains them; they are judged in the same batches, and
    those that are judged alone are a batch too, since it has but one mark for all."""
    units = _stacks(jobs)
    small = [unit for unit in units if all(_is_small(jobs[job]) for job in unit)]
    count = sum(map(len, small))
    limit = together or (TOGETHER if count >= MANY else 1)
    packed = _packed(sorted(small, key=lambda unit: jobs[unit[0]].seed), limit)
    large = [unit for unit in units if not all(_is_small(jobs[job]) for job in unit)]
    found = [batch for batch in (*packed, *large) if len(batch) > 1 or fleet]
    order = {job: i for i, job in enumerate(jobs)}
    mark = fleet.trained if fleet else ""
    return [
        _batch(batch, jobs, paths, judging, mark) for batch in sorted(found, key=lambda batch: order[next(iter(batch))])
    ]


def _batch(names: tuple[str, ...], jobs: Mapping[str, JobConfig], paths: Paths, judging: str, mark: str = "") -> Batch:
    data = tuple(dict.fromkeys(paths.data(jobs[job].data.source) for job in names))
    return Batch(names, paths, judging, data, sum(guessed_seconds(jobs[job]) or 0 for job in names), mark)


def units_of(jobs: Mapping[str, JobConfig], processes: int = 0) -> list[dict[str, JobConfig]]:
    """The jobs that are trained side by side, and each other one by itself, wherever they stand in the order; those on
    images side by side where there are enough to keep so many processes busy (0: not)."""
    images = 0 < processes * LARGEST <= len(jobs)
    return [{job: jobs[job] for job in unit} for unit in _stacks(jobs, images)]


def _stacks(jobs: Mapping[str, JobConfig], images: bool = False) -> list[tuple[str, ...]]:
    """Jobs that are trained side by side, and each other one by itself. images: those on images too; two or three of
    them gain too little to share a process for it where each could have its own."""
    groups: dict[object, list[str]] = {}
    for job, config in jobs.items():
        together = fits(config) and (images or len(config.data.shape) == 2)
        groups.setdefault(_shape(config) if together else job, []).append(job)
    return [tuple(group[i : i + LARGEST]) for group in groups.values() for i in range(0, len(group), LARGEST)]


def _packed(units: Iterable[tuple[str, ...]], limit: int) -> list[tuple[str, ...]]:
    """One after the other, up to `limit` jobs."""
    found: list[tuple[str, ...]] = []
    for unit in units:
        if found and len(found[-1]) + len(unit) <= limit:
            found[-1] += unit
        else:
            found.append(unit)
    return found


def _is_small(config: JobConfig) -> bool:
    seconds = guessed_seconds(config)
    return seconds is not None and seconds < SMALL
