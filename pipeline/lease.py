"""One writer for a job: a file in its state folder that says who trains it, and that he lives.

    with Leases(holders, paths.lease) as leases:
        if leases.take(should_stop):                    # waits while another process trains one of them
            ...
            leases.check()                              # before each write; raises LeaseLost

Needed where Snakemake was killed and its jobs live on, or a node is cut off and SLURM starts its jobs elsewhere. A
lease that has not changed for STALE seconds is taken over, by one file replaced with another, one process at a time;
clocks are never compared. Its former holder, should he wake, finds that the file is not his, and writes no more. Who
he was is kept beside it until his attempt is recorded: the next one may be killed before it comes to that.
"""

from __future__ import annotations

import contextlib
import errno
import json
import logging
import math
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, replace
from pathlib import Path

from pipeline.holder import Holder, now, parse_holder, read_holder, whereabouts
from pipeline.records import replace_file

log = logging.getLogger(__name__)
BEAT = 5.0  # seconds between signs of life
STALE = 30.0  # seconds without one, after which the holder counts as dead
GRACE = 3.0  # seconds after a living holder has let go: his Snakemake may still delete what it declares
SIZE = 1024  # bytes of the file: it is written in place, so that a beat never lands in a successor's file


class LeaseLost(Exception):
    """Another process trains this job now."""


class Watch:
    """How long a file has been as it is, by this process's clock alone."""

    def __init__(self):
        self.seen: tuple[bytes, float] | None = None

    def unchanged(self, content: bytes) -> float:
        """Seconds for which `content` has been the answer."""
        if self.seen is None or self.seen[0] != content:
            self.seen = content, time.monotonic()
        return time.monotonic() - self.seen[1]


class Lease:
    """The lease of one job, held or not."""

    def __init__(self, path: str, holder: Holder):
        self.path, self.holder = Path(path), holder
        self.begun = time.monotonic()
        self.file: int | None = None
        self.took_over = False
        self._watch, self._watch_guard = Watch(), Watch()
        self._lock = threading.Lock()  # of `holder`, which a sign of life and a start change, each in its thread

    def try_take(self) -> bool:
        """One look. False while another holds it who may be alive."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        try:
            self._create(self.path)
        except FileExistsError:
            return self._take_over()
        return True

    def _create(self, path: Path) -> None:
        self.file = os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o644)
        self.beat()

    def _take_over(self) -> bool:
        """Put an own lease in place of that of one who is dead."""
        try:
            content = self.path.read_bytes()
            former = parse_holder(content)
            if self._watch.unchanged(content) < STALE and not (former and former.gone):
                return False
            with self._one_at_a_time() as alone:
                if not alone or self.path.read_bytes() != content:  # he lives, or another took it in between
                    return False
                self._replace(former)
        except FileNotFoundError:  # let go in this moment
            return False
        return True

    @contextlib.contextmanager
    def _one_at_a_time(self) -> Iterator[bool]:
        """False if another process is taking this lease over. One that died over it is waited for like a holder."""
        guard = self.path.with_name(f".{self.path.name}.taking")
        try:
            file = os.open(guard, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644)
        except FileExistsError:
            with contextlib.suppress(FileNotFoundError):
                if self._watch_guard.unchanged(guard.read_bytes()) > STALE:
                    guard.unlink()
            yield False
            return
        try:
            os.write(file, self.holder.token.encode())
            os.close(file)
            yield True
        finally:
            guard.unlink(missing_ok=True)

    def _replace(self, former: Holder | None) -> None:
        beside = self.path.with_name(f".{self.path.name}.{self.holder.token}")
        try:
            self._create(beside)
            if former is not None:
                replace_file(self._killed(former), json.dumps(asdict(former)).encode())
            os.replace(beside, self.path)
        except BaseException:
            beside.unlink(missing_ok=True)
            raise
        self.took_over = True

    def _killed(self, former: Holder) -> Path:
        return self.path.with_name(f"killed-{former.token}.json")

    def killed(self) -> list[Holder]:
        """Holders whose lease was taken over, and whose attempts are still to be recorded: the oldest first."""
        found = (read_holder(path) for path in self.path.parent.glob("killed-*.json"))
        return sorted((holder for holder in found if holder is not None), key=lambda holder: holder.started)

    def forget(self, former: Holder) -> None:
        """His attempt is recorded."""
        self._killed(former).unlink(missing_ok=True)

    def start(self, **facts) -> None:
        """A training begins, or goes on."""
        self.begun = time.monotonic()
        with contextlib.suppress(OSError):
            self.beat(started=now(), seconds=0.0, **facts)

    @property
    def waited(self) -> bool:
        """True if another held it when this process came."""
        return self._watch.seen is not None

    @property
    def seconds(self) -> float:
        return round(time.monotonic() - self.begun, 3)

    def beat(self, **facts) -> None:
        """A sign of life, written into the file that was taken, wherever its name has gone."""
        assert self.file is not None
        with self._lock:
            self.holder = replace(self.holder, beat=self.holder.beat + 1, **facts)
            os.pwrite(self.file, json.dumps(asdict(self.holder)).ljust(SIZE).encode(), 0)
            os.fsync(self.file)

    @property
    def mine(self) -> bool:
        """True if the file under the name is the one that was taken. Opened, so that a network file system looks."""
        assert self.file is not None
        try:
            with open(self.path, "rb") as there:
                return os.path.samestat(os.fstat(there.fileno()), os.fstat(self.file))
        except OSError as error:
            if error.errno in (errno.ENOENT, errno.ESTALE):  # ESTALE: NFS, of a file that another machine replaced
                return False
            raise

    def release(self) -> None:
        if self.file is not None:
            file, mine = self.file, self.mine
            self.file = None
            if mine:
                self.path.unlink(missing_ok=True)
            os.close(file)


class Leases:
    """The leases of jobs that one process trains (or of a search), kept alive by a thread. file: where each lies."""

    def __init__(self, holders: Mapping[str, Holder], file: Callable[[str], str]):
        in_order = sorted(holders)  # so that none waits in a ring
        self.of = {job: Lease(file(job), holders[job]) for job in in_order}
        self.place: Callable[[str], tuple[int, int] | None] = lambda job: None  # of a job: its step and epoch
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._keep, daemon=True)

    def take(self, should_stop: Callable[[], object], patient: bool = False) -> bool:
        """Wait until all are held. False if asked to stop before, unless `patient`."""
        self._thread.start()
        for job, lease in self.of.items():
            said = -math.inf
            while not lease.try_take():
                holder = read_holder(lease.path)
                if holder is not None and time.monotonic() - said > 60:
                    said = time.monotonic()
                    log.warning("%s is trained by another process; waiting for it: %s", job, whereabouts(holder))
                if should_stop() and not patient:
                    return False
                time.sleep(0.2)  # a file on another machine sends no event
            if lease.waited and not lease.took_over:
                time.sleep(GRACE)
        return True

    def check(self) -> None:
        """Raises LeaseLost unless all are still held: to be asked before each write."""
        for job, lease in self.of.items():
            if not lease.mine:
                holder = read_holder(lease.path)
                by = whereabouts(holder) if holder else "the file is gone"
                raise LeaseLost(f"{job}: another process took over, since this one showed no life: {by}")

    def _keep(self) -> None:
        while not self._ended.wait(BEAT):
            for job, lease in self.of.items():
                if lease.file is None:
                    continue
                step, epoch = self.place(job) or (lease.holder.step, lease.holder.epoch)
                with contextlib.suppress(OSError):  # without signs of life another takes over, as it should
                    lease.beat(step=step, epoch=epoch, seconds=lease.seconds)

    def __enter__(self) -> Leases:
        return self

    def __exit__(self, *_) -> None:
        self._ended.set()
        if self._thread.is_alive():
            self._thread.join()
        for lease in self.of.values():
            lease.release()
