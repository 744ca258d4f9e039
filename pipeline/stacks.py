"""Which jobs are trained side by side, as one computation (pipeline.side_by_side). No torch here: the Snakefile asks.

It pays where a net is so small that calls cost more than arithmetic: on points. There it is always done.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from gode_core.solvers import Fixed
from pipeline.config import JobConfig, digest
from pipeline.paths import Paths

LARGEST = 8  # jobs in one computation: the gain by more is small
MOST_PLACES = 10  # of a convolution, which in a stack is a matrix of all places by all places


@dataclass(frozen=True)
class JobStack:
    """Jobs that differ in the seed alone: what the Snakefile needs for a rule of their own."""

    jobs: tuple[str, ...]
    paths: Paths
    judging: str
    data: str  # the proof that their data set was seen
    priority: int  # those that take longest are begun first: begun last, they would end alone

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
    def models(self) -> list[str]:
        return [self.paths.model(job) for job in self.jobs]

    @property
    def trained(self) -> list[str]:
        return [file for job in self.jobs for file in self.paths.trained(job)]

    @property
    def judged(self) -> list[str]:
        return [file for job in self.jobs for file in self.paths.judged(job, self.judging)]


def fits(config: JobConfig) -> bool:
    """True if this job may be trained beside others: an ODE on points, with fixed steps and nothing beside the loss."""
    model, train = config.model, config.train
    points = len(config.data.shape) == 2 and model.network == "raw" and model.pad_channels is None
    free = model.basis is not None and model.basis.knots == "free"
    few = config.data.shape[-1] <= MOST_PLACES
    points = points and (model.field == "perceptron" or (model.field == "bottleneck" and few))
    family = model.family in ("neural_ode", "gode", "resnet") and not (free or model.time_channel)
    plain = not (train.phases or train.adapt or train.kinetic or train.jacobian or train.random_end)
    return points and family and plain and isinstance(train.parsed_solver, Fixed) and train.autocast == "none"


def alike(configs: Iterable[JobConfig]) -> bool:
    """True if the jobs may be trained side by side."""
    found = list(configs)
    return all(map(fits, found)) and len({dataclasses.replace(config, seed=0) for config in found}) == 1


def stacks_of(jobs: Mapping[str, JobConfig], paths: Paths, judging: str) -> list[JobStack]:
    """The jobs of an experiment that are trained side by side, in the order of its file."""
    groups: dict[JobConfig, list[str]] = {}
    for job, config in jobs.items():
        if fits(config):
            groups.setdefault(dataclasses.replace(config, seed=0), []).append(job)
    return [
        JobStack(tuple(some), paths, judging, paths.data(config.data.source), _evals(config))
        for config, group in groups.items()
        for some in (group[i : i + LARGEST] for i in range(0, len(group), LARGEST))
        if len(some) > 1
    ]


def _evals(config: JobConfig) -> int:
    solver = config.train.parsed_solver
    assert isinstance(solver, Fixed)
    return solver.num_evals * config.train.epochs
