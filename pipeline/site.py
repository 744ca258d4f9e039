"""What is particular to one SLURM cluster: a small file of its user, checked, as the settings of cluster/slurm.

    site = Site.of_user()   # cluster/slurm/site.yaml, or the file that GODE_SITE names; none: the cluster's defaults
    site.check()            # a partition that does not exist, an account refused, no SLURM: one line, before any job

Read by cluster/slurm/profile.yaml, while Snakemake reads its command line.
"""

from __future__ import annotations

import difflib
import hashlib
import os
import re
import shlex
import sys
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import NoReturn, TypeVar

import yaml

from pipeline import executor, slurm
from pipeline.paths import DEFAULT_EXPERIMENT
from pipeline.reading import need, read_dataclass

T = TypeVar("T")

PLACE = "cluster/slurm/site.yaml"
PREFIX = "gode"  # of all our SLURM jobs' names
GROWS = 4  # times at most: an attempt that ran out of time goes on, and needs no more memory for it
OF_SNAKEMAKE_MB = 500  # the two that run around each job
LONGEST_NAME = 50  # characters, of the executor's prefix
WARNING_SECONDS = 30  # SIGUSR1 so long before the end, if SLURM's commands do not work on its nodes
NOTHING = "none"  # a `gres` that is none, where the site has one
JUDGES = "hasattr(input, 'model')"  # of a rule; names would not do: rules of stacks have names of their own


@dataclass(frozen=True)
class Stage:
    """What one SLURM job asks for: the first attempt; later ones ask for more."""

    minutes: int
    memory_mb: int
    partition: str | None = None  # None: the site's
    gres: str | None = None  # likewise; none: no GPU

    def __post_init__(self):
        need(self.minutes >= 1, "minutes must be at least 1, got {}", self.minutes)
        need(self.memory_mb >= 100, "memory_mb must be at least 100, got {}", self.memory_mb)


@dataclass(frozen=True)
class Pool:
    """What a search, or a fleet, asks for: an allocation that it fills with trainings, on one node or several."""

    minutes: int = 240
    memory_mb: int = 16000  # of each node
    cpus: int = 8  # of each node
    nodes: int = 1
    gres: str | None = None  # of each node: gpu:4; None: the site's; none: no GPU
    partition: str | None = None  # None: the site's

    def __post_init__(self):
        for name, least in (("minutes", 1), ("memory_mb", 1000), ("cpus", 1), ("nodes", 1)):  # Ray alone takes 800 MB
            need(getattr(self, name) >= least, "{} must be at least {}, got {}", name, least, getattr(self, name))


@dataclass(frozen=True)
class Site:
    """A cluster's facts. None: the cluster's own default."""

    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    constraint: str | None = None
    gres: str | None = None  # for each job, if its stage has none of its own: gpu:1, gpu:a100:1; None: no GPU
    extra: str | None = None  # further options of sbatch
    train: Stage = Stage(minutes=120, memory_mb=4000)
    evaluate: Stage = Stage(minutes=60, memory_mb=4000)
    search: Pool | None = None  # None: a Pool as it stands above; whether there is a place for it is not asked before
    fleet: Pool | None = None
    most_minutes: int | None = None  # that a job may ask for; None: the partition's limit
    most_memory_mb: int | None = None  # likewise; None: four times the first attempt's
    most_jobs: int = 100  # queued at once
    poll_seconds: int = 20  # between two looks at the queue
    most_poll_seconds: int | None = None  # likewise, where nothing happens; None: up to 180, or a third of MinJobAge

    def __post_init__(self):
        need(self.most_jobs >= 1, "most_jobs must be at least 1, got {}", self.most_jobs)
        need(self.poll_seconds >= 1, "poll_seconds must be at least 1, got {}", self.poll_seconds)
        most = self.most_poll_seconds
        need(most is None or most >= self.poll_seconds, "most_poll_seconds must be at least poll_seconds, got {}", most)
        need(self.most_minutes is None or self.most_minutes >= 1, "most_minutes must be at least 1")
        need(self.most_memory_mb is None or self.most_memory_mb >= 100, "most_memory_mb must be at least 100")

    @staticmethod
    def of_user() -> Site:
        """From the user's file. Ends the program with one line for one that cannot be used."""
        path = Path(_place())
        try:
            if not path.exists():
                need(not os.environ.get("GODE_SITE"), "{}: no such file, and GODE_SITE names it", path)
                return Site()
            return read_dataclass(Site, yaml.safe_load(path.read_text()) or {}, str(path))
        except (ValueError, OSError, yaml.YAMLError) as error:
            where = f"{path}: " if isinstance(error, yaml.YAMLError) else ""  # the others say it
            sys.exit(f"error: {where}{' '.join(str(error).split())}")

    def check(self) -> None:
        """Ends the program with one line if jobs could not be submitted like this."""
        try:
            self._check()
        except slurm.Away as away:
            _end(away)
        except ValueError as error:
            sys.exit(f"error: {_place()}: {error}")

    def ask_squeue_alone(self) -> None:
        """For the Snakemake of this process: see executor.py. Ends the program with one line if squeue forgets too
        early for that."""
        try:
            executor.ask_squeue_alone(self.poll_seconds, self.most_poll_seconds)
        except ValueError as error:
            sys.exit(f"error: {_place()}: {error}")

    def _check(self) -> None:
        if not slurm.installed():
            raise slurm.Away("`sbatch`, `squeue` and `scancel` are not on the path: is this the login node?")
        stages = {"train": self.train, "evaluate": self.evaluate, "search": self.search, "fleet": self.fleet}
        described = {rule: stage for rule, stage in stages.items() if stage is not None}
        _need_partitions(self.partition, self._limits, "partition")
        for rule, stage in described.items():
            _need_partitions(stage.partition, self._limits, f"{rule}: partition")
        if self.account is not None:
            known = slurm.accounts()
            need(known is not None, "account: no database of accounts answers here; leave it out if there is none")
            names = ", ".join(sorted(known or ()))
            need(self.account.lower() in (known or ()), "account: `{}` is not yours. Yours: {}.", self.account, names)
        for rule, stage in described.items():
            said = slurm.refusal(self._job(stage, 1))
            need(said is None, "{}: SLURM would not take a job like this: {}", rule, said)
            said, most = slurm.refusal(self._job(stage, GROWS)), self._memory(stage, GROWS)
            need(
                said is None,
                "{}: later attempts ask for more, up to {} MB, and SLURM would not take them; set most_memory_mb: {}",
                *(rule, most, said),
            )

    def _job(self, stage: Stage | Pool, times: int) -> list[str]:
        """Options of sbatch."""
        gres, shape = self._gres(stage), []
        if isinstance(stage, Pool):
            shape = [f"--nodes={stage.nodes}", f"--ntasks={stage.nodes}", f"--cpus-per-task={stage.cpus}"]
        shape += [f"--gres={gres}"] if gres else []
        minutes = min(self.longest(stage), stage.minutes * times)
        asked = [f"--mem={self._memory(stage, times)}", f"--time={minutes}"]
        return [*self._where(stage), *shape, *asked, *shlex.split(self.extra or "")]

    def _memory(self, stage: Stage | Pool, times: int) -> int:
        return min(self.most_memory_mb or sys.maxsize, stage.memory_mb * times + OF_SNAKEMAKE_MB)

    def _partition(self, stage: Stage | Pool) -> str:
        """Empty: the cluster's default; Snakemake's executor asks for none then, nor for a `gres` that is empty."""
        return (self.partition if stage.partition is None else stage.partition) or ""

    def _gres(self, stage: Stage | Pool) -> str:
        """Empty: none."""
        found = self.gres if stage.gres is None else stage.gres
        return "" if found in (None, NOTHING) else found

    def longest(self, stage: Stage | Pool) -> int:
        """Minutes that the longest of its attempts asks for: no more than it may."""
        partition = self._partition(stage)
        found = [self._limits.get(name) for name in partition.split(",")] if partition else [self._limit_of_default]
        limits = [max(1, int(limit)) for limit in found if limit is not None]
        wanted = stage.minutes if isinstance(stage, Pool) else stage.minutes * GROWS
        return min(wanted, self.most_minutes or sys.maxsize, *limits)

    @cached_property
    def _limits(self) -> dict[str, float | None]:
        return _answered(slurm.partitions)

    @cached_property
    def _limit_of_default(self) -> float | None:
        return _answered(slurm.default_limit)

    @property
    def options(self) -> list[str]:
        """Where trainings go, as options of srun."""
        return self._where(self.train)

    def _where(self, stage: Stage | Pool) -> list[str]:
        partition = [f"--partition={name}"] if (name := self._partition(stage)) else []
        named = {"account": self.account, "qos": self.qos, "constraint": self.constraint}
        return partition + [f"--{key}={value}" for key, value in named.items() if value is not None]

    @property
    def resources(self) -> dict[str, str]:
        """Snakemake's default resources: Python expressions of `attempt` and `input`. A rule with a model among its
        inputs judges, the others train. These alone are warned of their end: a judgement has no checkpoint to write."""
        train, times = self.train, f"min(attempt, {GROWS})"
        enough = min(self.longest(train), train.minutes) * 60 > 5 * WARNING_SECONDS
        warning = [f"--signal=USR1@{WARNING_SECONDS}"] if enough else []
        memory = f"{self._by_rule(lambda stage: stage.memory_mb)} * {times} + {OF_SNAKEMAKE_MB}"
        asked = {
            "runtime": f"min({self._by_rule(self.longest)}, {self._by_rule(lambda stage: stage.minutes)} * {times})",
            "mem_mb": f"min({self.most_memory_mb or sys.maxsize}, {memory})",
            "slurm_extra": _either(self._extra(*warning), self._extra()),
        }
        words = {"slurm_account": self.account, "qos": self.qos, "constraint": self.constraint}
        asked |= {key: repr(word) for key, word in words.items() if word is not None}
        own = {"slurm_partition": self._by_rule(self._partition), "gres": self._by_rule(self._gres)}
        return asked | {key: word for key, word in own.items() if word != repr("")}

    def _by_rule(self, what: Callable[[Stage], object]) -> str:
        return _either(what(self.train), what(self.evaluate))

    def _extra(self, *options: str) -> str:
        return " ".join(["--open-mode=append", *options, *([self.extra] if self.extra else [])])

    @property
    def pools(self) -> dict[str, Pool]:
        """By the name of the rule."""
        return {"search": self.search or Pool(), "fleet": self.fleet or Pool()}

    @property
    def threads_of_pools(self) -> dict[str, int]:
        return {rule: pool.cpus for rule, pool in self.pools.items()}

    @property
    def resources_of_pools(self) -> dict[str, dict[str, str | int]]:
        """By the name of the rule; expressions as in `resources`. On several nodes the command still runs once, on the
        first, which starts Ray on the others; and SLURM does not end the job with a node that is lost."""
        found = {}
        for rule, pool in self.pools.items():
            memory = f"{pool.memory_mb} * min(attempt, {GROWS})"
            own: dict[str, str | int] = {
                "runtime": self.longest(pool),
                "mem_mb": f"min({self.most_memory_mb or sys.maxsize}, {memory} + {OF_SNAKEMAKE_MB})",
                "slurm_extra": repr(self._extra(*(["--no-kill"] if pool.nodes > 1 else []))),
            }
            for key, of in (("slurm_partition", self._partition), ("gres", self._gres)):
                own |= {} if of(pool) == of(self.train) else {key: repr(of(pool))}  # else it has those of a training
            if pool.nodes > 1:
                own |= {"nodes": pool.nodes, "tasks": pool.nodes, "mpi": repr("srun")}
                own |= {"tasks_per_gpu": 0} if self._gres(pool) else {}
            found[rule] = own
        return found


def name_of_jobs(arguments: Sequence[str]) -> str:
    """What a run's SLURM jobs are called, before the executor's own number: gode-<experiment>. No two experiments of a
    folder share it: a name that cannot be used as it is ends in a hash."""
    found, follows = DEFAULT_EXPERIMENT, False
    for word in arguments:
        option, is_whole, value = word.partition("=")
        if word.startswith("-"):
            follows = option in ("--configfile", "--configfiles")
        if follows and (is_whole or not word.startswith("-")):  # of several, the last names the experiment
            found = value if word.startswith("-") else word
    name = Path(found).stem
    plain = re.sub(r"[^A-Za-z0-9_-]", "-", name)
    most = LONGEST_NAME - len(PREFIX) - 1
    if plain != name or len(plain) > most:
        mark = hashlib.sha256(name.encode()).hexdigest()[:6]
        plain = f"{plain[: most - len(mark) - 1]}-{mark}"
    return f"{PREFIX}-{plain}"


def _place() -> str:
    return os.environ.get("GODE_SITE") or PLACE


def _either(training: object, judging: object) -> str:
    """An expression for both kinds of rule."""
    return repr(training) if training == judging else f"({judging!r} if {JUDGES} else {training!r})"


def _need_partitions(names: str | None, there: Collection[str], where: str) -> None:
    for name in [] if names is None else names.split(","):
        near = difflib.get_close_matches(name, there, n=1)
        hint = f" Did you mean `{near[0]}`?" if near else ""
        listed = ", ".join(sorted(there))
        need(name in there, "{}: `{}` is none here.{} There are: {}.", where, name, hint, listed)


def _answered(ask: Callable[[], T]) -> T:
    try:
        return ask()
    except slurm.Away as away:
        _end(away)


def _end(away: slurm.Away) -> NoReturn:
    sys.exit(f"error: SLURM does not answer here ({away}); try again, or use this machine: --profile cluster/local")
