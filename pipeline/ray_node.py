"""One node's part of a Ray of several nodes: runs `ray start`, and ends all of it as soon as the launcher is gone.

    srun --nodelist=NODE python -m pipeline.ray_node '{"job": 12, ...}'      # a Part, see below

The launcher (ray_nodes.py) holds the other end of stdin: when that is closed, even by SIGKILL, every process that Ray
started here is killed and its temporary folder removed. `ray stop` would end other Rays of the same user as well. The
first line on stdout says what this node brings; the rest is Ray's log.

SIGTERM and SIGUSR1, which SLURM sends to a job's steps as it does to the launcher, are not heard: the launcher needs
this node until its checkpoints are written. It cannot say so any more where its own node is lost: SLURM then keeps the
job running, with nobody in it, and the first node that is left has it begun again.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import select
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path

from pipeline import slurm
from pipeline.ray_environment import STORE

SERVICES = ("port", "node-manager-port", "object-manager-port", "dashboard-agent-listen-port")
SERVICES += ("dashboard-agent-grpc-port", "runtime-env-agent-port", "metrics-export-port")
SERVICES += ("dashboard-port", "ray-client-server-port")
OF_HEAD = ("port", "dashboard-port", "ray-client-server-port")
FIRST, LAST, STEP = 20_000, 30_000, 10  # ports of services: above Ray's workers, below those the kernel gives out
FIRST_OF_WORKERS, SLICE, SLICES = 10_100, 900, 11
PR_SET_CHILD_SUBREAPER = 36
KILLED_WITHIN = 10.0  # seconds
LOOK = 10.0  # seconds between two questions whether SLURM has lost the first node
DEAF_TO = {signal.SIGTERM, signal.SIGUSR1}


@dataclass(frozen=True)
class Part:
    """What a node is told by its launcher."""

    job: int  # SLURM's number, from which ports derive
    peer: str  # a name or address of another node: the way there says which address of this node others reach
    head: str  # address:port to join; empty: this node is the head
    head_node: str  # its name
    temporary: str  # folder on this node's own disk; made here, and may not be there yet
    token_file: str  # seen by all nodes
    cpus: int | None  # None: what SLURM gave
    gpus: int | None
    given_up: str  # folder of the launcher, which the head removes: a launcher that was killed cannot


@dataclass(frozen=True)
class Offer:
    """What a node brings."""

    address: str
    port: int  # of the head's control service; 0 on other nodes
    cpus: int
    gpus: int


class LauncherGone(Exception):
    """Nobody holds the other end of stdin."""


def ports(job: int, is_free: Callable[[int], bool]) -> dict[str, int]:
    """For each of SERVICES; two jobs on a node start to look at different places. ValueError if nothing is free."""
    blocks = (LAST - FIRST) // STEP
    for i in range(blocks):
        first = FIRST + (job + i) % blocks * STEP
        if all(is_free(first + k) for k in range(len(SERVICES))):
            return {service: first + k for k, service in enumerate(SERVICES)}
    raise ValueError(f"no {len(SERVICES)} free ports in a row between {FIRST} and {LAST} on {socket.gethostname()}")


def worker_ports(job: int) -> tuple[int, int]:
    """First and last; Ray passes over those of them that are in use."""
    first = FIRST_OF_WORKERS + job % SLICES * SLICE
    return first, first + SLICE - 1


def port_is_free(port: int) -> bool:
    """Nobody listens on it at any address. Without SO_REUSEPORT, so that another Ray of this user counts too."""
    for family, anywhere in ((socket.AF_INET, "0.0.0.0"), (socket.AF_INET6, "::")):
        try:
            with socket.socket(family) as own:
                own.bind((anywhere, port))
        except OSError as error:
            if error.errno not in NO_SUCH_FAMILY:
                return False
    return True


NO_SUCH_FAMILY = (97, 99)  # EAFNOSUPPORT, EADDRNOTAVAIL: a node without IPv6


def address_towards(peer: str) -> str:
    """This node's address as `peer` sees it: a name may mean 127.0.0.1 at home. No packet is sent."""
    family, kind, protocol, _, place = socket.getaddrinfo(peer, 9, type=socket.SOCK_DGRAM)[0]
    with socket.socket(family, kind, protocol) as way:
        way.connect(place)
        return way.getsockname()[0]


def cpus_here(environment: Mapping[str, str] = os.environ) -> int:
    """Of this job on this node. SLURM's count: Ray would take what it sees, which may be all of them."""
    given = environment.get("SLURM_CPUS_ON_NODE", "")
    return int(given) if given.isdigit() and int(given) else len(os.sched_getaffinity(0))


def gpus_here(environment: Mapping[str, str] = os.environ) -> int:
    given = environment.get("SLURM_GPUS_ON_NODE", "")
    visible = [word for word in environment.get("CUDA_VISIBLE_DEVICES", "").split(",") if word.strip()]
    return int(given) if given.isdigit() else len(visible)


def command(part: Part, offer: Offer, own_ports: Mapping[str, int]) -> list[str]:
    """`ray start`, with nothing left to chance or to a default that others share."""
    first, last = worker_ports(part.job)
    needless = (*(OF_HEAD if part.head else ()), *(() if find_spec("grpc") else ("ray-client-server-port",)))
    options = {
        **{service: port for service, port in own_ports.items() if service not in needless},
        **({"address": part.head} if part.head else {"include-dashboard": "false"}),
        "node-ip-address": offer.address,
        "min-worker-port": first,
        "max-worker-port": last,
        "num-cpus": offer.cpus,
        "num-gpus": offer.gpus,
        "object-store-memory": STORE,
        "temp-dir": part.temporary,
        "log-style": "record",
        "log-color": "false",
    }
    words = [f"--{option}={value}" for option, value in options.items()]
    head = [] if part.head else ["--head"]
    return [sys.executable, "-m", "ray.scripts.scripts", "start", *head, *words, "--disable-usage-stats", "--block"]


def run(part: Part) -> int:
    """Until Ray ends by itself (its exit code) or the launcher is gone (0). A job that has lost the launcher's node is
    begun again."""
    own_ports = ports(part.job, port_is_free)
    cpus, gpus = (cpus_here() if part.cpus is None else part.cpus), (gpus_here() if part.gpus is None else part.gpus)
    offer = Offer(address_towards(part.peer), 0 if part.head else own_ports["port"], cpus, gpus)
    print(json.dumps(asdict(offer)), flush=True)
    if not os.path.exists(part.token_file):
        raise ValueError(
            f"{part.token_file} is not seen on {socket.gethostname()}: it must lie in a folder of all nodes"
        )
    os.mkdir(part.temporary, 0o700)
    try:
        while part.head and not answers(part.head):
            _pause()
        process = subprocess.Popen(command(part, offer, own_ports), stdin=subprocess.DEVNULL, stderr=subprocess.STDOUT)
        while process.poll() is None:
            _pause()
        kill_descendants()  # now: what is next may take its time
        if part.head and _is_left_behind(part):
            shutil.rmtree(part.given_up, ignore_errors=True)
            _begin_again(str(part.job))
        return process.returncode or 1  # it blocks, so that any end is an early one
    except LauncherGone:
        if not part.head:
            shutil.rmtree(part.given_up, ignore_errors=True)
        return 0
    finally:
        kill_descendants()
        shutil.rmtree(part.temporary, ignore_errors=True)


def _is_left_behind(part: Part) -> bool:
    """Whether SLURM has lost the first node, and this is the one of those left that has to do something about it. Waits
    until that is clear: a node is missed after minutes at some sites. Raises LauncherGone."""
    while not (answers(part.head) or DEAF_TO & signal.sigpending()):  # asked to end: SLURM sees to the job
        _pause(LOOK)
        with contextlib.suppress(slurm.Away):
            nodes = slurm.nodes()
            if nodes and part.head_node not in nodes and nodes[0] == os.environ.get("SLURMD_NODENAME"):
                return True
    return False


def _begin_again(job: str) -> None:
    """Or end it, at a site that allows no other: it would wait for its time limit."""
    for end in (lambda: slurm.requeue(job), lambda: slurm.cancel([job])):
        try:
            end()
            return
        except slurm.Away as away:
            print(f"the first node of job {job} is lost: {away}", file=sys.stderr)


def answers(place: str) -> bool:
    host, _, port = place.rpartition(":")
    try:
        with socket.create_connection((host.strip("[]"), int(port)), timeout=1):
            return True
    except OSError:
        return False


def _pause(seconds: float = 0.2) -> None:
    """Raises LauncherGone."""
    if select.select([0], [], [], seconds)[0] and not os.read(0, 4096):
        raise LauncherGone


def kill_descendants() -> None:
    """All of them: those whose parents are dead have become our own children."""
    end = time.monotonic() + KILLED_WITHIN
    while (found := descendants(os.getpid())) and time.monotonic() < end:
        for pid in found:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        _reap()
        time.sleep(0.02)


def _reap() -> None:
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        pass


def descendants(ancestor: int) -> set[int]:
    """Zombies among them too: they go when their parent does."""
    parents = {}
    for entry in Path("/proc").iterdir():
        try:
            parents[int(entry.name)] = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
        except (ValueError, OSError):  # no process, or one that has just ended
            continue
    found: set[int] = set()
    while more := {pid for pid, parent in parents.items() if parent in found | {ancestor}} - found:
        found |= more
    return found


def main(words: list[str]) -> int:
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    signal.pthread_sigmask(signal.SIG_BLOCK, DEAF_TO)  # inherited by all of Ray
    try:
        return run(Part(**json.loads(words[0])))
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
