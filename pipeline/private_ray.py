"""A Ray of this process's own, on this machine, or on the nodes that SLURM gave it: started, used, and ended.

    with private_ray(cpus=4) as facts:
        ...                                     # ray.remote, ray.get ...: a door of ray

It is found by nobody and joins nobody: what RAY_ADDRESS says, or another Ray of the same user, counts for nothing. On
one machine it listens on the loopback alone; everywhere it asks for a token, kept in a folder that only its user may
enter. In the end, however it comes to that, its processes are gone and so is the folder.

What asks a job to end (SIGTERM, SIGUSR1) is often sent to all of its processes at once. On one machine Ray's do not
hear it: the process that has started them does, and needs them until the checkpoints are written. (On several nodes
ray_node.py sees to that.)
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import shutil
import signal
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.ray_environment import ON_ONE_MACHINE, STORE, ray_environment, write_token
from pipeline.ray_node import KILLED_WITHIN, descendants
from pipeline.ray_nodes import Interrupted, NoRay, allocated_nodes, ray_on_nodes

LONGEST = 40  # characters of the temporary folder: the path of a socket in it may have 107
PREFIX = "gode-ray-"
FRESH = 60.0  # seconds in which a folder may still be without its lock
OUR_SIGNALS = {signal.SIGTERM, signal.SIGUSR1}


@dataclass(frozen=True)
class RayFacts:
    """What was started."""

    cpus: int
    gpus: float


@contextlib.contextmanager
def private_ray(cpus: int | None = None, gpus: int | None = None) -> Iterator[RayFacts]:
    """A Ray with so many CPUs and GPUs; None: all that this process may use (on several nodes: of each).

    Raises NoRay if it does not start, OSError without a place for its files, Interrupted if SIGTERM comes
    before it stands. Handlers of signals and the environment are, in the end, what they were.
    """
    if len(nodes := allocated_nodes()) > 1:
        with ray_on_nodes(cpus, gpus, nodes=nodes) as there, _connected(address=there.address) as facts:
            yield facts
        return
    with (
        _folder() as folder,
        ray_environment(write_token(folder), ON_ONE_MACHINE),
        _connected(
            address="local",
            num_cpus=cpus or cpus_here(),
            num_gpus=gpus_here() if gpus is None else gpus,
            include_dashboard=False,
            object_store_memory=STORE,
            _temp_dir=str(folder / "r"),  # below: Ray opens its own folder to all
        ) as facts,
    ):
        yield facts


def cpus_here(root: Path = Path("/")) -> int:
    """CPUs that this process may use: of its affinity, and within the quota of its cgroups, v1 or v2. `root`: for
    tests, of a file system that says so."""
    quotas = [quota for quota in map(_quota, _cgroups(root)) if quota is not None]
    return max(1, int(min([len(os.sched_getaffinity(0)), *quotas])))


def gpus_here() -> int | None:
    """GPUs that CUDA_VISIBLE_DEVICES allows; None if it does not say: then Ray looks itself."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        return None
    names = [name.strip() for name in visible.split(",")]
    nothing = (i for i, name in enumerate(names) if name in ("", "-1", "NoDevFiles"))
    return next(nothing, len(names))  # CUDA too reads up to the first that is none


def _cgroups(root: Path) -> Iterator[Path]:
    """Folders of this process's cgroups that may hold a quota, with all above them. In a container the names are the
    host's while the folders are its own: those that are not there say nothing."""
    with contextlib.suppress(OSError):
        for line in (root / "proc/self/cgroup").read_text().splitlines():
            _, controllers, name = line.split(":", 2)
            if not controllers or "cpu" in controllers.split(","):
                mount = root / "sys/fs/cgroup" / (controllers and "cpu")
                folder = mount / name.lstrip("/")
                yield from (above for above in (folder, *folder.parents) if above.is_relative_to(mount))


def _quota(folder: Path) -> float | None:
    """CPUs; None: no limit."""
    with contextlib.suppress(OSError, ValueError):
        quota, period = (folder / "cpu.max").read_text().split()
        return int(quota) / int(period)  # `max` is no number, and no limit
    with contextlib.suppress(OSError, ValueError):
        quota, period = (int((folder / f"cpu.cfs_{each}_us").read_text()) for each in ("quota", "period"))
        return quota / period if quota > 0 else None
    return None


@contextlib.contextmanager
def _connected(**how) -> Iterator[RayFacts]:
    """ray.init, and its end. Ray takes SIGTERM for itself, and is made to give it back."""
    import ray
    import ray.exceptions

    assert not ray.is_initialized(), "this process is in a Ray already, which is not ours to end"
    before, asked = signal.getsignal(signal.SIGTERM), set()
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, OUR_SIGNALS)  # inherited by all that is started now
    try:
        try:
            ray.init(log_to_driver=False, logging_level=logging.WARNING, **how)
        except SystemExit:  # its own answer to SIGTERM, where another thread has heard it
            raise Interrupted from None
        except (RuntimeError, ConnectionError, ray.exceptions.RayError) as error:
            raise NoRay(f"Ray does not start: {str(error).strip().partition(chr(10))[0]}") from error
        finally:
            _restore(before)
            asked = signal.sigpending() & OUR_SIGNALS
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        if asked:
            raise Interrupted
        sizes = ray.cluster_resources()
        yield RayFacts(int(sizes.get("CPU", 0)), sizes.get("GPU", 0.0))
    finally:
        _shut_down()
        _restore(before)


def _shut_down() -> None:
    """End Ray, and all that it has started here. Its own way is to ask by SIGTERM, which is not heard, and to leave
    some to find out within a minute that the others are gone."""
    import ray
    from ray._private import worker

    node: Any = worker._global_node
    theirs: dict[int, str] = {}  # and when each began
    if node is not None:
        started = [info.process.pid for infos in node.all_processes.values() for info in infos]
        theirs = {pid: _born(pid) for each in started for pid in (each, *descendants(each))}
        kill = node.kill_all_processes
        node.kill_all_processes = lambda **how: kill(**how | {"allow_graceful": False})
    ray.shutdown()
    end = time.monotonic() + KILLED_WITHIN
    while time.monotonic() < end:
        left = [pid for pid, born in theirs.items() if born and _born(pid) == born]  # and not another of that number
        for pid in left:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        if not left:
            return
        time.sleep(0.02)


def _born(pid: int) -> str:
    """When a process began, in the kernel's count; empty if it has ended."""
    with contextlib.suppress(OSError):
        state, *numbers = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return "" if state == "Z" else numbers[18]
    return ""


def _restore(handler) -> None:
    with contextlib.suppress(ValueError):  # not in the main thread, where Ray has left it alone
        signal.signal(signal.SIGTERM, handler)


@contextlib.contextmanager
def _folder() -> Iterator[Path]:
    """A fresh folder with a short path, for this user alone; those of processes that were killed are removed. A TMPDIR
    is not asked: it is often long, or on a disk of all nodes, where sockets hang."""
    above = Path(os.environ.get("RAY_TMPDIR") or "/tmp")
    if len(str(above)) > LONGEST - len(PREFIX) - 8:
        raise OSError(f"RAY_TMPDIR: {above}: too long for Ray's sockets; choose a shorter folder, as /tmp")
    _remove_left(above)
    folder = Path(tempfile.mkdtemp(prefix=PREFIX, dir=above))
    lock = os.open(folder / "lock", os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(lock)


def _remove_left(above: Path) -> None:
    """Folders of this user whose lock nobody holds, but for those that are just being made."""
    for folder in above.glob(f"{PREFIX}*"):
        with contextlib.suppress(OSError):
            found = folder.stat()
            if found.st_uid != os.getuid() or time.time() - found.st_mtime < FRESH:
                continue
            lock = os.open(folder / "lock", os.O_RDWR | os.O_CLOEXEC)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(folder, ignore_errors=True)
            finally:
                os.close(lock)
