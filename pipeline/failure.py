"""Why a job's newest start ended before the job was done: its class, by what records and logs say; and what to do."""

from __future__ import annotations

import builtins
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pipeline.records import AttemptRecord

Kind = Literal[
    "config",
    "nonfinite",
    "solver",
    "out of memory",
    "time",
    "node",
    "preempted",
    "signal",
    "another process",
    "crash",
    "killed",
    "none",
]
MOST_READ = 65536  # bytes of a log's end

FROM_SITE = "in cluster/slurm/site.yaml"
GOES_ON = "the next attempt goes on from the last checkpoint"
ADVICE: dict[Kind, str] = {
    "config": "The line says what is wrong, and where: mend it, then start the run again.",
    "nonfinite": "A loss or a solve was not finite, which is a result; a smaller `lr`, more steps of the solver or "
    "`clip_norm` make another job of it.",
    "solver": "A solve was given up, which is a result. `budget`: it needed more steps than it may take; `underflow`: "
    "its step fell below what the time's precision can add; `unconverged`: an implicit step was not found. Another "
    "solver, more steps or a larger tolerance make another job of it.",
    "out of memory": f"Ask for more memory: `memory_mb` {FROM_SITE} (a run's further attempts do so by themselves); "
    "or take a smaller `batch_size`, which is another job.",
    "time": f"Nothing to do: {GOES_ON}; if none comes forward, ask for more `minutes` {FROM_SITE}.",
    "node": f"Nothing to do: {GOES_ON}, on another node; tell the site if it is the same node again.",
    "preempted": f"Nothing to do: {GOES_ON}; a partition that others may not take over is quicker.",
    "signal": f"Somebody, or the machine, ended it; started again, {GOES_ON}.",
    "another process": "Another process trains this job, or has: wait for it, or end one of the two.",
    "crash": "This is a defect of the program, or of the machine: the end of the log shows where; started again, "
    f"{GOES_ON}.",
    "killed": f"It was ended at once (kill -9, too little memory, a machine gone down); started again, {GOES_ON}. "
    "If it ends so once more, give it more memory.",
    "none": "Nothing to do.",
}

IN_SLURM_LOG: dict[Kind, str] = {  # by a job's SLURM daemon; the last such line counts, since restarts are appended
    "out of memory": r"oom[-_ ]kill|: Out Of Memory",
    "time": r"DUE TO TIME LIMIT",
    "preempted": r"DUE TO PREEMPTION",
    "node": r"DUE TO NODE FAILURE|Node failure on ",
    "signal": r"CANCELLED AT \S+ (\*\*\*|DUE TO JOB REQUEUE)",
    "config": r"^error: ",  # of the Snakefile, which is read again in each job: a budget that is spent, say
}
OF_SLURM_STATE: dict[str, Kind] = {
    "OUT_OF_MEMORY": "out of memory",
    "TIMEOUT": "time",
    "DEADLINE": "time",
    "NODE_FAIL": "node",
    "BOOT_FAIL": "node",
    "PREEMPTED": "preempted",
    "CANCELLED": "signal",
}
NO_MEMORY = r"out ?of ?memory|MemoryError|(can't|cannot) allocate memory"  # CUDA, Python, the C library


@dataclass(frozen=True)
class Evidence:
    """What the newest start of a job has left."""

    attempt: AttemptRecord | None = None  # None if it never came so far as to be recorded
    killed: bool = False  # its lease is still there, and its process is not
    log: str = ""  # the end of the job's own log, or of one that it shares
    slurm_log: str = ""  # the end of the log of its SLURM job
    slurm_state: str = ""
    shared: bool = False  # the log is that of other jobs too
    given_up: str = ""  # why the search that tried it gave it up


@dataclass(frozen=True)
class Failure:
    kind: Kind
    said: str  # the words that show it

    @property
    def advice(self) -> str:
        return ADVICE[self.kind]


def failure_of(left: Evidence) -> Failure:
    """The class of the newest start's end; `none` if it finished, or never was."""
    if said := heard(left):
        return Failure(_of_words(said, "config" if said.startswith("error: ") else "crash"), said)
    if left.killed:
        return _by_slurm(left) or Failure("killed", "it shows no sign of life and has left no word")
    if left.attempt is None and left.given_up:
        return _of_error(left.given_up)
    if left.attempt is None:
        return _by_slurm(left) or Failure("none", "")
    return _of_attempt(left.attempt, left)


def heard(left: Evidence) -> str:
    """What its log complains of, as far as it is this job's failure: a log of several ends with the error of one, and
    this one may have failed of another before, by its own record."""
    newest = None if left.killed else left.attempt
    return "" if left.shared and newest and newest.outcome == "failed" else complaint(left.log)


def _of_attempt(attempt: AttemptRecord, left: Evidence) -> Failure:
    reason = attempt.reason
    if attempt.outcome == "finished":
        return _by_slurm(left) or _of_status("" if reason == "ok" else reason)
    if attempt.outcome == "failed":
        return _of_error(reason)
    if reason == "the time limit is near":
        return Failure("time", reason)
    if "another process took over" in reason:
        return Failure("another process", reason)
    if by_slurm := _by_slurm(left):
        return by_slurm
    if attempt.outcome == "killed":
        return Failure("killed", reason)
    if reason == "SIGUSR1" and attempt.slurm_job:  # asked for by cluster/slurm, so long before the time limit
        return Failure("time", reason)
    return Failure("signal", reason)


def _of_status(status: str) -> Failure:
    """A training that ended early is finished: see gode_core.solution."""
    return Failure("none" if not status else "nonfinite" if status == "nonfinite" else "solver", status)


def _of_error(reason: str) -> Failure:
    """`RuntimeError: ...`, as records have it."""
    error = getattr(builtins, reason.partition(":")[0], None)
    expected = isinstance(error, type) and issubclass(error, ValueError | OSError)
    return Failure(_of_words(reason, "config" if expected else "crash"), reason)


def _of_words(said: str, otherwise: Kind) -> Kind:
    return "out of memory" if re.search(NO_MEMORY, said, re.IGNORECASE) else otherwise


def _by_slurm(left: Evidence) -> Failure | None:
    for line in reversed(left.slurm_log.splitlines()):
        for kind, pattern in IN_SLURM_LOG.items():
            if re.search(pattern, line):
                return Failure(kind, line.strip())
    kind = OF_SLURM_STATE.get(left.slurm_state)
    return Failure(kind, f"SLURM says {left.slurm_state}") if kind else None


def complaint(text: str) -> str:
    """The error that a log ends with: its line `error: ...`, or the last line of its traceback. Empty if there is none.
    A log holds one start: the shell empties it before each."""
    lines = [line.rstrip() for line in text.splitlines() if line.strip()]
    if lines and lines[-1].startswith("error: "):
        return lines[-1]
    begins = [i for i, line in enumerate(lines) if line.startswith("Traceback (most recent call last)")]
    if not begins:
        return ""
    after = [line for line in lines[begins[-1] + 1 :] if re.match(r"[A-Za-z_][\w.]*(: |:?$)", line)]
    return after[0] if after else lines[-1]  # an error of several lines is named by its first


def on_job(job: str, text: str) -> str:
    """Of the log of a batch that ends with a complaint, which is that of its last job: the last line that names this
    one, `HH:MM:SS JOB: ...`; else all."""
    named = re.findall(rf"^(?:\d\d:\d\d:\d\d )?{re.escape(job)}: (.+)$", text, re.MULTILINE)
    return f"error: {named[-1]}" if named and complaint(text) else text


def end_of(path: str | Path) -> str:
    """The end of a log; empty if there is none."""
    try:
        with open(path, "rb") as file:
            file.seek(0, 2)
            file.seek(max(0, file.tell() - MOST_READ))
            return file.read().decode(errors="replace")
    except (FileNotFoundError, NotADirectoryError):
        return ""
