"""A real SLURM of several nodes on one machine, with the faults that real ones have, on demand.

    with Cluster(folder, nodes=2) as cluster:
        cluster.run("srun", "-N2", "hostname")
        cluster.crash("gode1")

No part of it outlives the process that made it. It needs root, Debian's packages and a kernel that gives namespaces.
"""

from __future__ import annotations

import os
import signal
import subprocess
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path

from daemons import Daemon, Unavailable, run_quietly, wait_until
from node import Network, Node, Place
from packages import SYSTEM_PATH, require_packages
from slurm_conf import Hardware, write_configuration


@dataclass(frozen=True)
class QueueRow:
    """A job as squeue shows it, finished ones too (for MinJobAge, an hour)."""

    id: str
    name: str
    state: str
    node: str
    reason: str
    comment: str

    @property
    def live(self) -> bool:
        """It waits, runs or has not ended on all its nodes."""
        return self.state in ("PENDING", "RUNNING", "SUSPENDED", "COMPLETING", "CONFIGURING", "REQUEUED")


class Cluster:
    """Nodes gode1, gode2, ... and a controller on this machine. Two at a time need a `Network` each."""

    def __init__(
        self,
        folder: Path,
        nodes: int = 2,
        *,
        hardware: Hardware = Hardware(),  # noqa: B008 (frozen)
        network: Network = Network(),  # noqa: B008 (frozen)
        install: bool = False,
    ):
        """`install`: Debian's packages, if they are missing. Without it their lack is a reason to be `Unavailable`."""
        self.folder = folder.resolve()
        self.hardware, self.network, self.install = hardware, network, install
        self.logs = self.folder / "logs"
        outside = {k: v for k, v in os.environ.items() if not k.startswith(("SLURM_", "SBATCH_", "SQUEUE_", "SACCT_"))}
        path = os.pathsep.join([outside.get("PATH", ""), SYSTEM_PATH])
        self.environment = outside | {"SLURM_CONF": str(self.folder / "etc/slurm/slurm.conf"), "PATH": path}
        bare = {"PATH": SYSTEM_PATH, "HOME": "/root", "LANG": "C.UTF-8"}
        self._bare = bare | {"SLURM_CONF": self.environment["SLURM_CONF"]}
        place = Place(network, self.folder / "etc", self.logs, self._bare)
        self.nodes = {node.name: node for node in (Node(i, place) for i in range(1, nodes + 1))}
        self._munged: Daemon | None = None
        self._controller: Daemon | None = None
        self._has_bridge = False

    def __enter__(self) -> Cluster:
        self.up()
        return self

    def __exit__(self, *failure: object) -> None:
        self.down()

    # ------------------------------------------------------------------ life

    def up(self) -> None:
        """Start, and wait until every node is idle. Unavailable where this machine cannot; then nothing stays."""
        if os.geteuid():
            raise Unavailable("a cluster of namespaces needs root")
        self.logs.mkdir(parents=True, exist_ok=True)
        require_packages(self.install, self.logs / "apt.log")
        write_configuration(self.folder, self.network, list(self.nodes.values()), self.hardware)
        try:
            self._lay_bridge()
            self._start_munged()
            self.start_controller(anew=True)
            for node in self.nodes.values():
                node.boot()
            for node in self.nodes:
                self.wait_for_node(node)
        except BaseException:
            self.down()
            raise

    def down(self) -> None:
        """Stop every process that was started here, and take away the bridge and the control groups."""
        with ExitStack() as last_to_first:  # each is tried, whatever becomes of the others
            if self._has_bridge:
                last_to_first.callback(run_quietly, "ip", "link", "del", self.network.bridge)
                self._has_bridge = False
            for daemon in (self._munged, self._controller):
                if daemon is not None:
                    last_to_first.callback(daemon.stop)
            for node in self.nodes.values():
                last_to_first.callback(node.clear_groups)
                last_to_first.callback(node.power_off)

    def _lay_bridge(self) -> None:
        bridge = self.network.bridge
        there = Path(f"/sys/class/net/{bridge}")
        if there.exists():
            if list((there / "brif").iterdir()):
                raise Unavailable(f"another cluster of these tests is up: the bridge {bridge} is in use")
            run_quietly("ip", "link", "del", bridge)  # left by one that was killed
        try:
            run_quietly("unshare", "--net", "--uts", "--mount", "--pid", "--fork", "true")
            run_quietly("ip", "link", "add", bridge, "type", "bridge")
            self._has_bridge = True
            run_quietly("ip", "address", "add", f"{self.network.controller}/24", "dev", bridge)
            run_quietly("ip", "link", "set", bridge, "up")
        except RuntimeError as error:
            raise Unavailable(f"this machine gives no namespaces or no bridge: {error}") from None

    def _start_munged(self) -> None:
        run, etc = self.folder / "run", self.folder / "etc"
        files = {"key-file": etc / "munge.key", "socket": run / "munge.socket", "pid-file": run / "munged.pid"}
        files |= {"log-file": self.logs / "munged.log", "seed-file": run / "munged.seed"}
        options = [f"--{option}={path}" for option, path in files.items()]
        command = ["munged", "--foreground", "--force", *options]  # --force: the folder may be everybody's
        self._munged = Daemon("munged", command, self.logs / "munged.out", self._bare)
        self._munged.ready(files["socket"].exists)

    def tidy(self) -> None:
        """Whole again after a test: no job is left, every node takes jobs, the controller answers."""
        if self._controller is None or not self._controller.alive:
            self.start_controller()
        for node in self.nodes.values():
            node.boot()
            node.plug(True)
        for partition in ("main", "low"):
            self.run("scontrol", "update", f"partition={partition}", "state=up")
        self.run("scancel", *[row.id for row in self.squeue() if row.live])
        for node in self.nodes:
            self.wait_for_node(node)
        wait_until(lambda: not any(row.live for row in self.squeue()), "no job is left", 30, self._controller_log)

    # ------------------------------------------------------------------ what users do

    def run(self, *command: object, seconds: float = 60) -> subprocess.CompletedProcess[str]:
        """A command on this machine, the cluster's login node; its failure is the caller's to judge."""
        return self._finish([], command, seconds)

    def exec(self, node: str, *command: object, seconds: float = 60) -> subprocess.CompletedProcess[str]:
        """A command on a node, outside SLURM."""
        return self._finish(self.nodes[node].inside(), command, seconds)

    def _finish(self, before: list[str], command: tuple[object, ...], seconds: float):
        words = [*before, *map(str, command)]
        return subprocess.run(words, env=self.environment, capture_output=True, text=True, timeout=seconds)

    def submit(self, script: str, *options: object) -> str:
        """The id of a batch job that runs this bash script. Its output goes to the logs, by its id."""
        output = f"--output={self.logs}/job%j.out"
        command = ["sbatch", "--parsable", output, "--open-mode=append", *map(str, options), f"--wrap={script}"]
        return run_quietly(*command, environment=self.environment).strip()

    def squeue(self) -> list[QueueRow]:
        """Every job that the controller knows. Raises RuntimeError while it does not answer."""
        done = self.run("squeue", "--noheader", "--states=all", "--format=%i|%j|%T|%N|%r|%k")
        if done.returncode:
            raise RuntimeError(f"squeue: {done.stderr.strip()}")
        return [QueueRow(*line.split("|", 5)) for line in done.stdout.splitlines()]

    def job(self, job: str) -> QueueRow:
        return next(row for row in self.squeue() if row.id == job)

    def wait_for_job(self, job: str, *states: str, node: str | None = None, seconds: float = 60) -> QueueRow:
        """Until the job is in one of these states, on that node if one is named."""
        last = self.job(job)

        def arrived() -> bool:
            nonlocal last
            last = self.job(job)
            return last.state in states and node in (None, last.node)

        wait_until(
            arrived, f"job {job} is {' or '.join(states)} on {node or 'any node'}", seconds, self._controller_log
        )
        return last

    # ------------------------------------------------------------------ nodes, and their faults

    def kill_slurmd(self, node: str) -> None:
        """SIGKILL to slurmd; its jobs live on, unseen."""
        self.nodes[node].kill_slurmd()

    def crash(self, node: str) -> None:
        """Power loss: every process of the node at once."""
        self.nodes[node].power_off()

    def start(self, node: str) -> None:
        """Bring back a node that crashed, or whose slurmd was killed, and wait until it takes jobs."""
        self.nodes[node].boot()
        self.wait_for_node(node)

    def cut(self, node: str) -> None:
        """A network partition: the node and its jobs live on; files stay shared."""
        self.nodes[node].plug(False)

    def heal(self, node: str) -> None:
        self.nodes[node].plug(True)
        self.wait_for_node(node)

    def hide(self, node: str, folder: Path) -> None:
        """On this node alone the folder is an empty one of its own, until `show`."""
        self.nodes[node].hide(folder)

    def show(self, node: str, folder: Path) -> None:
        self.nodes[node].show(folder)

    def node_state(self, node: str) -> str:
        """As sinfo says it: idle, mixed, allocated, down*, ..., or nothing while the controller is away."""
        return self.run("sinfo", "--noheader", f"--nodes={node}", "--partition=main", "--format=%T").stdout.strip()

    def wait_for_node(self, node: str, seconds: float = 40) -> None:
        """Until the node takes jobs, and is reached by the controller and by every node that has a network. A mark of
        the past (down, drained) is lifted."""

        def takes_jobs() -> bool:
            state = self.node_state(node)
            if state in ("down", "drained", "drain", "inval"):  # no star: it answers
                with suppress(RuntimeError):
                    resume = ["scontrol", "update", f"nodename={node}", "state=resume"]
                    run_quietly(*resume, environment=self.environment)
            return state in ("idle", "mixed", "allocated")

        def is_reached() -> bool:
            others = [other for name, other in self.nodes.items() if name != node and other.running and other.plugged]
            return all(self.nodes[node].is_reached_from(other) for other in (None, *others))

        wait_until(takes_jobs, f"node {node} takes jobs", seconds, self.nodes[node].log)
        wait_until(is_reached, f"node {node} is reached by all", seconds, self.nodes[node].log)

    # ------------------------------------------------------------------ the controller

    @property
    def _controller_log(self) -> Path:
        return self.logs / "slurmctld.log"

    def start_controller(self, anew: bool = False) -> None:
        """`anew` forgets all jobs."""
        command = ["slurmctld", "-D", *(["-c"] if anew else [])]
        self._controller = Daemon("slurmctld", command, self._controller_log, self._bare)
        self._controller.ready(lambda: "UP" in self.run("scontrol", "ping").stdout)

    def stop_controller(self, how: int = signal.SIGTERM) -> None:
        """It writes its state first, unless `how` is SIGKILL."""
        assert self._controller is not None, "the cluster is not up"
        self._controller.stop(how, seconds=30)

    def restart_controller(self, how: int = signal.SIGTERM) -> None:
        self.stop_controller(how)
        self.start_controller()
