"""What is particular to one SLURM cluster: a small file of its user, checked, as the settings of cluster/slurm.

    site = Site.of_user()   # cluster/slurm/site.yaml, or the file that GODE_SITE names; none: the cluster's defaults
    site.check()            # a partition that does not exist, an account refused, no SLURM: one line, before any job

Read by cluster/slurm/profile.yaml, while Snakemake reads its command line.
"""

from __future__ import annotations

import difflib
import hashlib
import importlib
import os
import re
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NoReturn

import yaml

from pipeline import slurm
from pipeline.paths import DEFAULT_EXPERIMENT
from pipeline.reading import need, read_dataclass

PLACE = "cluster/slurm/site.yaml"
PREFIX = "gode"  # of all our SLURM jobs' names
GROWS = 4  # times at most: an attempt that ran out of time goes on, and needs no more memory for it
OF_SNAKEMAKE_MB = 500  # the two that run around each job
LONGEST_NAME = 50  # characters, of the executor's prefix
USUAL_AGE = 300  # seconds for which squeue remembers a job that has ended, where SLURM does not say
LOOKS = 3  # at the queue in that time: one may come to nothing
LEAST_PAUSE = 5  # seconds between two of them: the profile's max-status-checks-per-second
WARNING_SECONDS = 30  # SIGUSR1 so long before the end, if SLURM's commands do not work on its nodes


@dataclass(frozen=True)
class Stage:
    """What one SLURM job asks for: the first attempt; later ones ask for more."""

    minutes: int
    memory_mb: int

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
    gres: str | None = None  # of each node: gpu:4; None: no GPU

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
    gres: str | None = None  # for each job: gpu:1, gpu:a100:1; None: no GPU
    extra: str | None = None  # further options of sbatch
    train: Stage = Stage(minutes=120, memory_mb=4000)
    evaluate: Stage = Stage(minutes=60, memory_mb=4000)
    search: Pool | None = None  # None: a Pool as it stands above; whether there is a place for it is not asked before
    fleet: Pool | None = None
    most_minutes: int | None = None  # that a job may ask for; None: the partition's limit
    most_memory_mb: int | None = None  # likewise; None: four times the first attempt's
    most_jobs: int = 100  # queued at once
    poll_seconds: int = 20  # between two looks at the queue

    def __post_init__(self):
        need(self.most_jobs >= 1, "most_jobs must be at least 1, got {}", self.most_jobs)
        need(self.poll_seconds >= 1, "poll_seconds must be at least 1, got {}", self.poll_seconds)
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
        """For the Snakemake of this process. Its executor asks SLURM before each look how long squeue remembers a job
        that has ended, and, where no answer comes, asks sacct in that look, again and again: a controller that is away
        for a moment, on a cluster without accounting, would be waited for for ever. So it is asked once, here. After
        each look that finds nothing new the executor waits longer, up to three minutes; here, up to what lets it look
        so often that it sees the end of each job. Ends the program with one line if squeue forgets too early for that.
        """
        try:
            executor: Any = importlib.import_module("snakemake_executor_plugin_slurm")
        except ModuleNotFoundError:
            sys.exit("error: SLURM's executor is not installed: pip install -c envs/constraints.txt -e '.[slurm]'")
        for name in os.environ.keys() - slurm.environment().keys():  # the executor's squeue is to show all jobs
            del os.environ[name]
        said = executor.get_min_job_age()
        age = USUAL_AGE if said is None else said or sys.maxsize  # 0: it never forgets
        longest, least = age // LOOKS, LOOKS * LEAST_PAUSE
        if age < least:
            what = f"SLURM forgets a job {age} s after its end (MinJobAge), and {least} s are needed"
            sys.exit(f"error: {what}: ask those who run the cluster for more, or use --profile cluster/local")
        if self.poll_seconds > longest:
            what = f"at most {longest}: SLURM forgets a job {age} s after its end, which would go unseen"
            sys.exit(f"error: {_place()}: poll_seconds must be {what}")
        executor.get_min_job_age = lambda: age
        pause = executor.Executor.next_seconds_between_status_checks
        executor.Executor.next_seconds_between_status_checks = property(
            lambda looking: min(pause.fget(looking), longest), pause.fset
        )

    def _check(self) -> None:
        if not slurm.installed():
            raise slurm.Away("`sbatch`, `squeue` and `scancel` are not on the path: is this the login node?")
        there = slurm.partitions()
        if self.partition is not None:
            for name in self.partition.split(","):
                near = difflib.get_close_matches(name, there, n=1)
                hint = f" Did you mean `{near[0]}`?" if near else ""
                need(
                    name in there,
                    "partition: `{}` is none here.{} There are: {}.",
                    name,
                    hint,
                    ", ".join(sorted(there)),
                )
        if self.account is not None:
            known = slurm.accounts()
            need(known is not None, "account: no database of accounts answers here; leave it out if there is none")
            names = ", ".join(sorted(known or ()))
            need(self.account.lower() in (known or ()), "account: `{}` is not yours. Yours: {}.", self.account, names)
        stages = {"train": self.train, "evaluate": self.evaluate, "search": self.search, "fleet": self.fleet}
        for rule, stage in stages.items():
            if stage is None:
                continue
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
        gres, shape, minutes = self.gres, [], stage.minutes * times
        if isinstance(stage, Pool):
            gres, minutes = stage.gres or self.gres, stage.minutes
            shape = [f"--nodes={stage.nodes}", f"--ntasks={stage.nodes}", f"--cpus-per-task={stage.cpus}"]
        shape += [] if gres is None else [f"--gres={gres}"]
        asked = [f"--mem={self._memory(stage, times)}", f"--time={min(self.longest, minutes)}"]
        return [*self.options, *shape, *asked, *shlex.split(self.extra or "")]

    def _memory(self, stage: Stage | Pool, times: int) -> int:
        return min(self.most_memory_mb or sys.maxsize, stage.memory_mb * times + OF_SNAKEMAKE_MB)

    @cached_property
    def longest(self) -> int:
        """Minutes that a job may ask for."""
        limits = [] if self.most_minutes is None else [self.most_minutes]
        try:
            if self.partition is None:
                found = [slurm.default_limit()]
            else:
                there = slurm.partitions()
                found = [there.get(name) for name in self.partition.split(",")]
        except slurm.Away as away:
            _end(away)
        limits += [max(1, int(limit)) for limit in found if limit is not None]
        grown = max(self.train.minutes, self.evaluate.minutes) * GROWS
        return min(limits, default=max(grown, *(pool.minutes for pool in self.pools.values())))

    @property
    def options(self) -> list[str]:
        """Where jobs go, as options of srun."""
        named = {"partition": self.partition, "account": self.account, "qos": self.qos, "constraint": self.constraint}
        return [f"--{key}={value}" for key, value in named.items() if value is not None]

    @property
    def resources(self) -> dict[str, str]:
        """Snakemake's default resources: Python expressions of `attempt` and `input`. A rule with a model among its
        inputs judges, the others train; rules of stacks have names of their own, so names would not do."""
        train, evaluate, times = self.train, self.evaluate, f"min(attempt, {GROWS})"
        shortest = min(self.longest, train.minutes, evaluate.minutes)
        warning = [f"--signal=USR1@{WARNING_SECONDS}"] if shortest * 60 > 5 * WARNING_SECONDS else []
        extra = " ".join(["--open-mode=append", *warning, *([self.extra] if self.extra else [])])
        judges = "hasattr(input, 'model')"
        grown = f"({evaluate.memory_mb} if {judges} else {train.memory_mb}) * {times}"
        asked = {
            "runtime": f"min({self.longest}, ({evaluate.minutes} if {judges} else {train.minutes}) * {times})",
            "mem_mb": f"min({self.most_memory_mb or sys.maxsize}, {grown} + {OF_SNAKEMAKE_MB})",
            "slurm_extra": repr(extra),
        }
        words = {
            "slurm_partition": self.partition,
            "slurm_account": self.account,
            "qos": self.qos,
            "constraint": self.constraint,
            "gres": self.gres,
        }
        return asked | {key: repr(word) for key, word in words.items() if word is not None}

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
            several = ["--no-kill"] if pool.nodes > 1 else []
            extra = " ".join(["--open-mode=append", *several, *([self.extra] if self.extra else [])])
            memory = f"{pool.memory_mb} * min(attempt, {GROWS})"
            own: dict[str, str | int] = {
                "runtime": min(self.longest, pool.minutes),
                "mem_mb": f"min({self.most_memory_mb or sys.maxsize}, {memory} + {OF_SNAKEMAKE_MB})",
                "slurm_extra": repr(extra),
            }
            if pool.gres is not None:
                own["gres"] = repr(pool.gres)
            if pool.nodes > 1:
                own |= {"nodes": pool.nodes, "tasks": pool.nodes, "mpi": repr("srun")}
                own |= {"tasks_per_gpu": 0} if pool.gres or self.gres else {}
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


def _end(away: slurm.Away) -> NoReturn:
    sys.exit(f"error: SLURM does not answer here ({away}); try again, or use this machine: --profile cluster/local")
