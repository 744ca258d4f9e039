"""Who trains a job: a process, on a machine, perhaps in a SLURM job; and how far it was when it was last heard of."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import uuid
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path


@dataclass(frozen=True)
class Holder:
    """Who trains a job, and how far he was at his last sign of life."""

    token: str
    host: str
    pid: int
    born: str  # boot, process namespace and start of the process: by these one can be known to be gone
    code: str
    device: str
    threads: int
    share: int  # trainings in this process
    slurm_job: str
    campaign: str
    started: str  # ISO 8601, UTC
    from_step: int | None = None  # None: no step was asked for yet
    step: int = 0
    epoch: int = 0
    seconds: float = 0.0  # since `started`
    beat: int = 0
    gpus: float = 1.0  # of one, where it is on one

    @staticmethod
    def me(**facts) -> Holder:
        """This process."""
        host, pid = socket.gethostname(), os.getpid()
        return Holder(token=uuid.uuid4().hex, host=host, pid=pid, born=_born(pid), started=now(), **facts)

    @property
    def gone(self) -> bool:
        """True if this machine can tell that the process has ended. False says nothing."""
        here = _born(os.getpid()).split()[:2]
        if not self.born or self.born.split()[:2] != here:
            return False
        return _born(self.pid) != self.born and not _is_hidden(self.pid)


def read_holder(path: str | Path) -> Holder | None:
    """None if nobody trains the job, or what stands there cannot be read."""
    with contextlib.suppress(OSError):
        return parse_holder(Path(path).read_bytes())


def parse_holder(content: bytes) -> Holder | None:
    with contextlib.suppress(ValueError, TypeError):
        return Holder(**json.loads(content))


def whereabouts(holder: Holder) -> str:
    """In words."""
    inside = f", SLURM job {holder.slurm_job}" if holder.slurm_job else ""
    return f"process {holder.pid} on {holder.host}{inside}, since {holder.started}"


def now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def _is_hidden(pid: int) -> bool:
    """True for a process of another user of which this machine tells no more than that it lives (`hidepid`)."""
    try:
        os.kill(pid, 0)
    except OSError as error:
        return isinstance(error, PermissionError) and not os.access(f"/proc/{pid}/stat", os.R_OK)
    return False


def _born(pid: int) -> str:
    """Boot, process namespace and start time of a process; empty if it has ended, or this is no Linux."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        state, *rest = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return f"{boot} {os.readlink('/proc/self/ns/pid')} {rest[18]}" if state != "Z" else ""
    except OSError:
        return ""
