"""The `search` of an experiment file: a space of jobs, how it is searched, and what becomes of the best.

A trial is a job like any other; which one is told by what was chosen (`Search.job_of`). No torch here.
"""

from __future__ import annotations

import json
import math
import random
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

from pipeline.config import JobConfig, digest, job_id, read_job
from pipeline.reading import need, read_dataclass, unknown_key
from pipeline.space import Space, Values, laid_over, read_space

Goal = Literal["validation_accuracy", "validation_loss", "num_evals"]
GOALS: dict[Goal, Literal["max", "min"]] = {"validation_accuracy": "max", "validation_loss": "min", "num_evals": "min"}
NUM_CHECKED = 64  # combinations that are looked at when the file is read
MOST_DRAWS = 1000  # until one fulfils the conditions
MOST_COUNTED = 2000  # combinations: more are enough for any number of trials


@dataclass(frozen=True)
class Scheduler:
    """Who stops a trial before its last epoch. Epochs are those of the job.

    asha, hyperband: of those that have come as far, the best 1/reduction go on (Li et al. 2018, 2020); median: who is
    worse than the median of the others stops (Golovin et al. 2017); pbt: the worst `quantile` take over weights and
    learning rate of the best, the rate times or divided by `factor` (Jaderberg et al. 2017).
    """

    name: Literal["none", "asha", "hyperband", "median", "pbt"] = "none"
    grace_epochs: int = 1  # asha, median: none stops before
    reduction: int = 3  # asha, hyperband
    interval: int = 1  # pbt: epochs between two decisions
    quantile: float = 0.25  # pbt
    factor: float = 1.25  # pbt

    def __post_init__(self):
        for name, least in (("grace_epochs", 1), ("reduction", 2), ("interval", 1)):
            need(getattr(self, name) >= least, "{} must be at least {}, got {}", name, least, getattr(self, name))
        need(0 < self.quantile <= 0.5, "quantile must lie in (0, 0.5], got {}", self.quantile)
        need(self.factor > 1, "factor must be above 1, got {}", self.factor)


@dataclass(frozen=True)
class Winners:
    """How many of the best are trained in full, judged and reported, and with which seeds each."""

    count: int = 1
    seeds: tuple[int, ...] = ()  # none: that of the trial

    def __post_init__(self):
        need(self.count >= 1, "count must be at least 1, got {}", self.count)
        need(len(set(self.seeds)) == len(self.seeds), "seeds: one stands twice in {}", list(self.seeds))


@dataclass(frozen=True)
class PerTrial:
    """What one trial takes of a machine. gpus: 0.25 puts four trials on one; none: a whole one where there is one."""

    cpus: int = 1
    gpus: float | None = None

    def __post_init__(self):
        need(self.cpus >= 1, "cpus must be at least 1, got {}", self.cpus)
        fits = self.gpus is None or 0 <= self.gpus <= 1 or self.gpus == int(self.gpus)
        need(fits, "gpus must lie in [0, 1], or be a whole number, got {}", self.gpus)


@dataclass(frozen=True)
class SearchBudget:
    """What all trials may cost together; when it is spent, what is finished counts."""

    minutes: float | None = None  # by the clock, of the searches of this space so far
    gpu_hours: float | None = None
    core_hours: float | None = None

    def __post_init__(self):
        limits = {name: value for name, value in vars(self).items() if value is not None}
        need(bool(limits), "give `minutes`, `gpu_hours` or `core_hours`")
        for name, value in limits.items():
            need(value > 0, "{} must be positive, got {}", name, value)


@dataclass(frozen=True)
class Settings:
    """All of a search but its space."""

    num_trials: int | None = None  # grid: none is all of it
    algorithm: Literal["random", "grid", "tpe"] = "random"
    goals: tuple[Goal, ...] = ("validation_accuracy",)  # two: the front between them is sought
    scheduler: Scheduler = Scheduler()
    budget: SearchBudget | None = None
    per_trial: PerTrial = PerTrial()
    at_once: int | None = None  # trials (hyperband, pbt: on each node); none: as many as the machine takes
    winners: Winners = Winners()
    synchronous: bool = False  # the same result again, at the price of waiting for each other
    seed: int = 0  # of what is tried; the seed of the trials is that of the job

    def __post_init__(self):
        need(self.num_trials is None or self.num_trials >= 1, "num_trials must be at least 1, got {}", self.num_trials)
        need(self.num_trials is not None or self.algorithm == "grid", "num_trials is missing")
        need(self.at_once is None or self.at_once >= 1, "at_once must be at least 1, got {}", self.at_once)
        need(1 <= len(self.goals) <= 2, "goals: give one or two, got {}", list(self.goals))
        need(len(set(self.goals)) == len(self.goals), "goals: {} stands twice", self.goals[0])
        need(self.goals[0] != "num_evals", "goals: num_evals can only stand second: alone it asks for no net at all")
        pbt, known = self.scheduler.name == "pbt", self.algorithm != "tpe"
        banded = self.scheduler.name == "hyperband"
        waits = banded and self.synchronous
        need(not waits, "synchronous: hyperband gives the same again without it: all of a group wait for each other")
        need(known or not banded, "algorithm: hyperband compares trials that are all known; tpe goes with asha, median")
        need(not pbt or self.algorithm == "random", "algorithm: pbt goes with random: it makes its own way from there")
        need(not pbt or len(self.goals) == 1, "goals: pbt has one")


class Exhausted(ValueError):
    """The space holds nothing more that was not tried."""


@dataclass(frozen=True)
class Search:
    """What is chosen is laid over `base`, the experiment's `job`. where: the file, for errors."""

    space: Space
    settings: Settings
    base: Mapping[str, Any]
    where: str

    @property
    def id(self) -> str:
        """Of what decides which trials there may be. One that asks for more trials, or other winners, goes on."""
        s = self.settings
        rules = [s.algorithm, s.goals, vars(s.scheduler), s.synchronous, s.seed]
        conditions = [str(condition) for condition in self.space.conditions]
        space = {path: [d.kind, d.options] for path, d in self.space.domains.items()}
        return digest(_plain({"base": self.base, "space": space, "conditions": conditions, "rules": rules}))

    @property
    def result_id(self) -> str:
        """Of what decides what comes of it."""
        s = self.settings
        budget = None if s.budget is None else vars(s.budget)
        return digest(_plain({"id": self.id, "num_trials": s.num_trials, "winners": vars(s.winners), "budget": budget}))

    @property
    def is_known_beforehand(self) -> bool:
        """True if no trial depends on what others come to."""
        return self.settings.algorithm != "tpe" and self.settings.scheduler.name == "none"

    def job_of(self, values: Values) -> JobConfig | None:
        """The job of a trial; None if a condition forbids it. Raises ValueError if it is none."""
        data = laid_over(self.base, values)
        try:
            if not self.space.allows(data):
                return None
        except ValueError as error:
            raise ValueError(f"{self.where}: conditions: {error}") from None
        words = ", ".join(f"{path} = {json.dumps(value, default=str)}" for path, value in values.items())
        return read_job(data, f"{self.where}: {words}")

    def drawn(self, number: int, taken: Collection[str] = ()) -> tuple[Values, JobConfig]:
        """What random search tries as trial `number`, unless the job is `taken` by a former trial: a function of the
        search's seed and the number. Raises ValueError if there is nothing, or nothing else."""
        generator = random.Random(f"{self.settings.seed}/{number}")
        for _ in range(MOST_DRAWS):
            values = self.space.draw(generator)
            config = self.job_of(values)
            if config is not None and (not taken or job_id(config) not in taken):
                return values, config
        left = [item for item in self.grid() if job_id(item[1]) not in taken] if self.space.is_finite else []
        if left:
            return generator.choice(left)
        if not taken:
            raise ValueError(f"{self.where}: conditions: not one of {MOST_DRAWS} combinations fulfils them")
        raise Exhausted(f"{self.where}: the space holds nothing more that was not tried, after {number} trials")

    def first(self, count: int) -> list[tuple[Values, JobConfig]]:
        """What a search of nothing but random trials tries first: no job twice."""
        found: dict[str, tuple[Values, JobConfig]] = {}
        for number in range(count):
            values, config = self.drawn(number, found)
            found[job_id(config)] = values, config
        return list(found.values())

    def grid(self) -> list[tuple[Values, JobConfig]]:
        """All that the conditions allow."""
        return self._grid

    @cached_property
    def _grid(self) -> list[tuple[Values, JobConfig]]:
        found = ((values, self.job_of(values)) for values in self.space.grid())
        return [(values, config) for values, config in found if config is not None]

    @property
    def num_trials(self) -> int:
        """How many are asked for."""
        wanted = self.settings.num_trials
        if self.settings.algorithm == "grid":
            there = len(self.grid())
            return there if wanted is None else min(wanted, there)
        assert wanted is not None
        return wanted

    def check(self) -> list[JobConfig]:
        """Some jobs of the space. Raises ValueError where a combination that the conditions allow is no job."""
        return self._checked

    @cached_property
    def _checked(self) -> list[JobConfig]:
        self._check_conditions()
        if self.settings.algorithm == "grid":
            self._need(self.space.is_finite, "space: a grid is of lists and whole numbers; draw others with random")
            found = [config for _, config in self.grid()]
            self._need(bool(found), "conditions: they leave nothing of the grid")
        else:
            grids = [path for path, domain in self.space.domains.items() if domain.kind == "grid"]
            self._need(not grids, f"space: {', '.join(grids)}: `grid` goes with the algorithm grid; write `choice`")
            found = [self.drawn(-1 - i)[1] for i in range(NUM_CHECKED)]  # others than those that will be tried
            self._check_size()
        self._check_jobs(found)
        return found

    def _check_size(self) -> None:
        """No job is tried twice: there must be as many as are asked for."""
        sizes = [len(domain.all()) if domain.is_finite else math.inf for domain in self.space.domains.values()]
        if math.prod(sizes) <= MOST_COUNTED:
            there = len({job_id(config) for _, config in self.grid()})
            text = f"num_trials: {self.num_trials} are more than the {there} jobs of the space; take the algorithm grid"
            self._need(self.num_trials <= there, text)

    def _check_conditions(self) -> None:
        """A field that no job has would be a condition that says nothing."""
        known = set(_paths(self.base)) | set(self.space.domains)
        for domain_path, domain in self.space.domains.items():
            for option in domain.options if domain.is_list else ():
                known |= set(_paths(laid_over({}, {domain_path: option})))
        for condition in self.space.conditions:
            for name in condition.fields:
                if "." in name or name in JobConfig.__dataclass_fields__:
                    self._need(name in known, f"conditions: {condition}: {unknown_key(name, sorted(known))}")

    def _check_jobs(self, jobs: list[JobConfig]) -> None:
        blind = any(config.data.num_validation == 0 for config in jobs)
        text = f"goals: {self.settings.goals[0]} needs `num_validation` in the data of each job: the test split chooses"
        self._need(not blind, text + " nothing")
        if self.settings.scheduler.name == "pbt":
            plain = not any(config.train.phases or config.train.adapt for config in jobs)
            self._need(plain, "scheduler: pbt goes without phases and adapt")
            alone = set(self.space.domains) <= {"train.lr", "train.weight_decay"}
            text = "scheduler: pbt varies `train.lr` and `train.weight_decay` alone: weights go from trial to trial"
            self._need(alone, text)

    def _need(self, condition: bool, message: str) -> None:
        need(condition, "{}: {}", self.where, message)


def read_search(raw: Any, base: Mapping[str, Any], where: str) -> Search:
    """From plain data. base: the experiment's `job`. Raises ValueError."""
    if not isinstance(raw, dict):
        raise ValueError(f"{where}: must be a mapping, got {raw!r}")
    if "space" not in raw:
        raise ValueError(f"{where}: `space` is missing")
    space = read_space(raw["space"], raw.get("conditions"), where)
    rest = {key: value for key, value in raw.items() if key not in ("space", "conditions")}
    if isinstance(rest.get("scheduler"), str):
        rest["scheduler"] = {"name": rest["scheduler"]}
    return Search(space, read_dataclass(Settings, rest, where), base, where)


def _paths(data: Mapping[str, Any], before: str = "") -> Iterator[str]:
    """The dotted paths of all that stands in a job."""
    for key, value in data.items():
        yield before + str(key)
        if isinstance(value, Mapping):
            yield from _paths(value, f"{before}{key}.")


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(v) for key, v in value.items()}
    return [_plain(v) for v in value] if isinstance(value, list | tuple) else value
