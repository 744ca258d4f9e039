"""A private Ray over all nodes of a SLURM allocation, for the process that asks for it and as long as it wants it.

    with ray_on_nodes() as there:
        ray.init(address=there.address)

One process starts it, on one of the nodes: the head there, and a worker on each other node, as steps of the
allocation's own SLURM job. Its token, ports and folders are its own, and no other Ray is seen or touched.

The job must be asked for with `--no-kill`, or SLURM ends it with the first node that is lost; then Ray goes on without
that node, and repeats elsewhere what ran there. In a rule of Snakemake, which runs its command once on the first node:

    resources: nodes=2, tasks=2, mpi="srun", slurm_extra="--no-kill ..."       # with GPUs also tasks_per_gpu=0
"""

from __future__ import annotations

import importlib
import json
import logging
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from pipeline import slurm
from pipeline.ray_environment import ON_NODES, ray_environment, write_token
from pipeline.ray_node import Offer, Part, answers

log = logging.getLogger(__name__)
PATIENCE = 180.0  # seconds until all nodes are there: a hundred that import Ray from one file system take their time
ALIVE = 0  # the state of a node in Ray's own table
END = 10.0  # seconds for the steps to end by themselves


class NoRay(RuntimeError):
    """Ray did not come up, or is of no use; one line says where, and why."""


class Interrupted(Exception):
    """Asked to end while Ray was starting."""


@dataclass(frozen=True)
class Address:
    """Where a Ray is, for `ray.init(address=...)`, and the file with its token (RAY_AUTH_TOKEN_PATH)."""

    address: str
    token_file: str


def allocated_nodes() -> list[str]:
    """Names of the nodes of this process's SLURM job, the first one first; none outside a job. A SLURM that does not
    answer gave none but this."""
    try:
        return slurm.nodes()
    except slurm.Away as away:
        log.warning("SLURM does not say which nodes this job has: %s", away)
        return []


@contextmanager
def ray_on_nodes(
    cpus: int | None = None,
    gpus: int | None = None,
    *,
    nodes: Sequence[str] | None = None,
    folder: str | None = None,
    patience: float = PATIENCE,
) -> Iterator[Address]:
    """Ray on all nodes of this allocation, ended with the block.

    `cpus`, `gpus`: of each node; None: what SLURM gave there. `nodes`: `allocated_nodes()`, if they were asked for
    before. `folder`: seen by all nodes, for the token and the logs while Ray runs; None: the current one. `patience`:
    seconds until all nodes must be there.

    ValueError outside an allocation, or if this program runs in more than one copy. NoRay with one line if a node does
    not come, Interrupted if a signal that this process handles does. A node lost later is a warning: Ray goes on
    without it.
    """
    nodes, here = allocated_nodes() if nodes is None else nodes, os.environ.get("SLURMD_NODENAME", "")
    _check(nodes, here)
    own = Path(tempfile.mkdtemp(prefix=f".ray-{os.environ['SLURM_JOB_ID']}-", dir=folder or os.getcwd())).absolute()
    with ExitStack() as last_to_first:
        last_to_first.callback(shutil.rmtree, own, ignore_errors=True)
        token = write_token(own)
        last_to_first.enter_context(ray_environment(token, ON_NODES))
        others = [node for node in nodes if node != here]
        part = Part(
            job=int(os.environ["SLURM_JOB_ID"]),
            peer=others[0] if others else here,
            head="",
            head_node=here,
            temporary=f"/tmp/r-{os.environ['SLURM_JOB_ID']}-{secrets.token_hex(3)}",  # short: sockets have 107 bytes
            token_file=str(token),
            cpus=cpus,
            gpus=gpus,
            given_up=str(own),
        )
        steps: list[Step] = []
        last_to_first.callback(_end, steps)
        with _asked_to_end() as asked:
            address = _start(part, others, steps, patience, asked)
        watch = Watch(steps)
        last_to_first.callback(watch.stop)
        yield Address(address, str(token))


class Step:
    """A step of SLURM's on one node that runs pipeline.ray_node, as long as its stdin is open."""

    def __init__(self, node: str, part: Part, folder: Path):
        self.node, self.log = node, folder / f"{node}.log"
        where = [f"--jobid={part.job}", "--overlap", "--nodes=1", "--ntasks=1", f"--nodelist={node}"]
        program = [sys.executable, "-m", "pipeline.ray_node", json.dumps(asdict(part))]
        # what is set for the job, such as SLURM_MEM_PER_NODE, is an option to srun, and may forbid the step
        clean = {k: v for k, v in os.environ.items() if k == "SLURM_CONF" or not k.startswith(("SLURM_", "SRUN_"))}
        with self.log.open("wb") as out:
            self.process = subprocess.Popen(
                ["srun", *where, "--cpu-bind=none", "--mpi=none", *program],
                stdin=subprocess.PIPE,
                stdout=out,
                stderr=out,
                env=clean,
                start_new_session=True,  # Ctrl-C is for the driver, which then ends its Ray
            )

    @property
    def offer(self) -> Offer | None:
        for line in self._lines():
            if line.startswith("{"):
                with suppress(ValueError, TypeError):
                    return Offer(**json.loads(line))
        return None

    @property
    def over(self) -> bool:
        return self.process.poll() is not None

    @property
    def last_words(self) -> str:
        """The end of its log, in one line."""
        said = [line.strip() for line in self._lines() if line.strip() and not line.startswith("{")]
        return " | ".join(said[-3:])[-600:] or "it said nothing"

    def _lines(self) -> list[str]:
        return self.log.read_text(errors="replace").splitlines() if self.log.exists() else []

    def close(self) -> None:
        """Tell it to end."""
        assert self.process.stdin is not None
        with suppress(BrokenPipeError):
            self.process.stdin.close()


class Watch:
    """Says when a step ends while Ray is in use: its node is lost, or Ray there has failed."""

    def __init__(self, steps: Sequence[Step]):
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._look, args=(list(steps),), daemon=True)
        self._thread.start()

    def _look(self, left: list[Step]) -> None:
        while not self._stop.wait(1.0):
            for step in [step for step in left if step.over]:
                left.remove(step)
                log.warning("Ray on node %s has ended: %s", step.node, step.last_words.rpartition(" | ")[2])

    def stop(self) -> None:
        self._stop.set()
        self._thread.join()


def _check(nodes: Sequence[str], here: str) -> None:
    if not nodes:
        raise ValueError("Ray on several nodes needs a SLURM allocation, and this process runs in none")
    if here not in nodes:
        raise ValueError(f"start this on one of the nodes {', '.join(nodes)} of the allocation, by sbatch or srun")
    if int(os.environ.get("SLURM_STEP_NUM_TASKS") or 1) > 1:
        raise ValueError("srun started this program more than once, and each copy would start a Ray: use `srun -n1`")


@contextmanager
def _asked_to_end() -> Iterator[Callable[[], bool]]:
    """Says whether a signal has come since to whose handler it is passed on. (Not sigpending: another thread may take
    it.)"""
    heard: list[int] = []
    found = ((int(number), signal.getsignal(number)) for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT))
    handlers = {number: handler for number, handler in found if callable(handler)}

    def hear(number: int, frame: Any) -> None:
        heard.append(number)
        handlers[number](number, frame)

    with ExitStack() as last_to_first:
        if threading.current_thread() is threading.main_thread():  # others cannot
            for number, handler in handlers.items():
                last_to_first.callback(signal.signal, number, handler)
                signal.signal(number, hear)
        yield lambda: bool(heard)


def _start(
    part: Part, others: Sequence[str], steps: list[Step], patience: float, asked_to_end: Callable[[], bool]
) -> str:
    """All steps, and the address of Ray when all nodes are there. Raises NoRay, Interrupted."""
    folder, end = Path(part.given_up), time.monotonic() + patience

    def wait(condition: Callable[[], list[Step]]) -> None:
        """Until no step is missing."""
        while True:
            for step in steps:
                if step.over:
                    raise NoRay(f"Ray on node {step.node} ended ({step.process.returncode}): {step.last_words}")
            if not (missing := condition()):
                return
            if asked_to_end():
                raise Interrupted
            if time.monotonic() > end:
                names = ", ".join(step.node for step in missing)
                raise NoRay(f"no Ray on {names} within {patience:.0f} s: {missing[0].last_words}")
            time.sleep(0.2)

    steps.append(Step(part.head_node, part, folder))
    wait(lambda: [step for step in steps if step.offer is None])
    head = steps[0].offer
    assert head is not None
    host = f"[{head.address}]" if ":" in head.address else head.address
    joining = replace(part, head=f"{host}:{head.port}", peer=head.address)
    for i, node in enumerate(others, 1):  # a folder each: the nodes may share /tmp after all
        steps.append(Step(node, replace(joining, temporary=f"{part.temporary}-{i}"), folder))
    wait(lambda: [step for step in steps if step.offer is None])
    wait(lambda: _not_there(joining.head, steps))
    cpus, gpus = (sum(getattr(step.offer, kind) for step in steps) for kind in ("cpus", "gpus"))
    log.info("Ray runs on %d nodes with %d CPUs and %d GPUs", len(steps), cpus, gpus)
    return joining.head


def _not_there(address: str, steps: Sequence[Step]) -> list[Step]:
    """Steps whose node Ray does not count among its own. The head is not asked before its port is open: Ray's client
    would wait for it, and nobody could end that."""
    raylet: Any = importlib.import_module("ray._raylet")
    alive: set[str] = set()
    if answers(address):
        with suppress(importlib.import_module("ray.exceptions").RpcError):  # it has just ended, or has just begun
            nodes = raylet.GcsClient(address=address).get_all_node_info().values()
            alive = {node.node_manager_address for node in nodes if node.state == ALIVE}
    return [step for step in steps if step.offer is None or step.offer.address not in alive]


def _end(steps: Sequence[Step]) -> None:
    """End our own steps, and nothing else. The one of a node that is lost may not answer."""
    for step in reversed(steps):
        step.close()
    end = time.monotonic() + END
    for step in steps:
        for how in (None, step.process.terminate, step.process.kill):
            if how is not None:
                how()
            try:
                step.process.wait(max(end - time.monotonic(), 1.0))
                break
            except subprocess.TimeoutExpired:
                continue
