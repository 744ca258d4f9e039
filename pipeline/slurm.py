"""The door to SLURM: what is queued, where this process runs and until when, to cancel, what a site has.

Plain commands of SLURM, each with a time-out: a controller that does not answer is an `Away`, never a wait for ever.
"""

from __future__ import annotations

import getpass
import os
import re
import shutil
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass

TIMEOUT = 30.0  # seconds for one command
BETWEEN, END = "\x1f", "\x1e"  # of fields and rows: a name or a comment may hold any readable sign, and line breaks
FIELDS = ("%i", "%j", "%T", "%k", "%Z", "%N", "%r", "%S", "%e")
OF_USER = ("SQUEUE_", "SINFO_", "SCANCEL_", "SLURM_TIME_FORMAT")
ENDED = (
    *("BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED"),
    *("NODE_FAIL", "OUT_OF_MEMORY", "PREEMPTED", "REVOKED", "TIMEOUT"),
)


class Away(OSError):
    """SLURM did not answer, or not as expected."""


class Refused(Away):
    """A command of SLURM ended with an error."""


@dataclass(frozen=True)
class SlurmJob:
    """A row of squeue. Times are seconds since 1970, None where SLURM knows none yet."""

    id: str
    name: str  # of the executor: <prefix>_<one for each run of Snakemake>
    state: str  # RUNNING, PENDING, ...
    comment: str  # of the executor: rule_<rule>_wildcards_<job>
    folder: str  # that it was submitted from
    nodes: str
    reason: str  # that it waits for
    start: float | None
    end: float | None  # its time limit

    @property
    def live(self) -> bool:
        return self.state not in ENDED

    @property
    def rule(self) -> str:
        """The rule that it runs; empty for a job of another kind, or where the site drops comments."""
        found = re.fullmatch(r"rule_(.+?)(_wildcards_.*)?", self.comment)
        return found[1] if found else ""

    @property
    def wildcards(self) -> str:
        return self.comment.partition("_wildcards_")[2]


def installed() -> bool:
    return all(map(shutil.which, ("sbatch", "squeue", "scancel")))


def queue(finished: bool = False) -> list[SlurmJob]:
    """This user's jobs; `finished`: those too that ended some minutes ago (MinJobAge of the site). Raises Away."""
    states = ["--states=all"] if finished else []
    return _rows("--user", str(os.getuid()), *states)


def own() -> SlurmJob | None:
    """The SLURM job that this process is part of. None outside one. Raises Away."""
    number = os.environ.get("SLURM_JOB_ID")
    return next(iter(_rows("--jobs", number)), None) if number else None


def environment() -> dict[str, str]:
    """Of this process, without what a user has set for his own look at SLURM: it would hide jobs, or partitions."""
    return {name: value for name, value in os.environ.items() if not name.startswith(OF_USER)}


def nodes() -> list[str]:
    """Names of the nodes of the job that this process is part of, the first one first; none outside one. (Snakemake
    takes SLURM_JOB_NUM_NODES and its like from what it runs.) Raises Away."""
    job = own()
    if job is None or not job.nodes:
        return []
    return _ask("scontrol", "show", "hostnames", job.nodes).split() if "[" in job.nodes else job.nodes.split(",")


def requeue(number: str) -> None:
    """From its beginning, wherever there is place. Nothing happens to a job that has ended. Raises Away."""
    _ask("scontrol", "requeue", "incomplete", number)


def cancel(numbers: Iterable[str]) -> None:
    """Raises Away."""
    if found := list(numbers):
        _ask("scancel", *found)


def partitions() -> dict[str, float | None]:
    """Longest time in minutes (None: any) of each partition that this user sees. Raises Away."""
    return {name.removesuffix("*"): minutes(limit) for name, limit in _partitions()}


def default_limit() -> float | None:
    """Longest time in minutes of the partition that takes jobs which name none; None: any. Raises Away."""
    return next((minutes(limit) for name, limit in _partitions() if name.endswith("*")), None)


def _partitions() -> list[tuple[str, str]]:
    """Name, with a star behind the default's, and limit. Hidden ones too: jobs may be sent there."""
    lines = _ask("sinfo", "--all", "--noheader", "-o", BETWEEN.join(("%P", "%l"))).splitlines()
    return [(name, limit) for name, _, limit in (line.partition(BETWEEN) for line in lines)]


def accounts() -> set[str] | None:
    """The accounts that this user may charge, in small letters. None where no database says. Raises nothing."""
    try:
        text = _ask(
            "sacctmgr",
            "--noheader",
            "--parsable2",
            "show",
            "associations",
            f"user={getpass.getuser()}",
            "format=account",
        )
    except Away:
        return None
    return {line.strip().lower() for line in text.splitlines() if line.strip()} or None


def refusal(options: Iterable[str]) -> str | None:
    """What SLURM says of a job that it would not take; None if it would. Raises Away."""
    try:
        _ask("sbatch", "--test-only", *options, "--wrap", "true")
    except Refused as refused:
        return str(refused)
    return None


def minutes(limit: str) -> float | None:
    """SLURM's [days-][[hours:]minutes:]seconds, or `days-hours`, in minutes; None for `infinite`."""
    found = re.fullmatch(r"(?:(\d+)-)?(\d+)(?::(\d+))?(?::(\d+))?", limit.strip())
    if not found:
        return None
    days, *rest = (int(part) if part is not None else None for part in found.groups())
    given = [part for part in rest if part is not None]
    if days is not None:  # from hours down
        given += [0] * (3 - len(given))
    given = [0] * (3 - len(given)) + given
    hours, mins, seconds = given
    return (days or 0) * 1440 + hours * 60 + mins + seconds / 60


def try_on_node(script: str, options: Iterable[str]) -> str | None:
    """What a shell on one node answers; None if none is free at once. Raises Away."""
    asked = ["srun", "--immediate=10", "--quiet", "--nodes=1", "--ntasks=1", "--mem=100", "--time=1", *options]
    try:
        return _ask(*asked, "sh", "-c", script)
    except Refused:
        return None


def _rows(*options: str) -> list[SlurmJob]:
    found = []
    text = _ask("squeue", "--noheader", *options, "-o", BETWEEN.join(FIELDS) + END)
    *rows, rest = text.split(f"{END}\n")
    for line in [*rows, rest] if rest else rows:
        fields = line.split(BETWEEN)
        if len(fields) != len(FIELDS):
            raise Away(f"squeue answered with a line of {len(fields)} fields, not {len(FIELDS)}: {line!r}")
        *words, start, end = (field.strip() for field in fields)
        found.append(SlurmJob(*words, start=_time(start), end=_time(end)))
    return found


def _time(text: str) -> float | None:
    return float(text) if text.isdecimal() else None  # N/A, NONE, Unknown: not begun, or without a limit


def _ask(*command: str) -> str:
    plain = environment() | {"SLURM_TIME_FORMAT": "%s"}  # seconds: a local time may be one of two, when summer ends
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT, env=plain)
    except FileNotFoundError:
        raise Away(f"`{command[0]}` is not on the path: this machine has no SLURM commands") from None
    except subprocess.TimeoutExpired:
        raise Away(f"`{command[0]}` did not answer within {TIMEOUT:.0f} s") from None
    if done.returncode:
        raise Refused(f"`{command[0]}` failed: {' '.join(done.stderr.split()) or f'exit code {done.returncode}'}")
    return done.stdout
