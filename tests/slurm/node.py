"""One node: network, host name, mounts and processes of its own, on a bridge of this machine; files are shared."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from daemons import Daemon, children_of, run_quietly, wait_until

INIT = Path(__file__).with_name("node_init.py")


@dataclass(frozen=True)
class Network:
    """What two clusters on one machine may not share: names, addresses and ports."""

    name: str = "gode"
    subnet: str = "10.213.78"
    port: int = 26950  # of slurmctld; slurmd listens on the next one

    @property
    def bridge(self) -> str:
        return f"{self.name}0"

    @property
    def controller(self) -> str:
        return f"{self.subnet}.254"


@dataclass(frozen=True)
class Place:
    """Where a cluster's nodes are, and keep their things."""

    network: Network
    etc: Path
    logs: Path
    environment: Mapping[str, str]


class Node:
    """A machine that can be switched on and off. `name` is gode1, gode2, ..."""

    def __init__(self, number: int, place: Place):
        self.place, network = place, place.network
        self.name, self.address = f"{network.name}{number}", f"{network.subnet}.{number}"
        self.cable = f"{self.name}-cable"  # the end that is plugged into the bridge
        self.card = f"02:00:00:00:00:{number:02x}"  # the same in each life: what others know of it stays true
        self.log = place.logs / f"slurmd.{self.name}.log"
        self.plugged = False
        self._machine: Daemon | None = None
        self._slurmd: Daemon | None = None

    @property
    def running(self) -> bool:
        return self._machine is not None and self._machine.alive

    @property
    def slurmd_running(self) -> bool:
        return self._slurmd is not None and self._slurmd.alive

    @property
    def init(self) -> int:
        """Process id of the node's first process, as the host sees it."""
        assert self._machine is not None, f"{self.name} was never switched on"
        return children_of(self._machine.pid)[0]

    def boot(self) -> None:
        """Switch on: namespaces, then the cable, then slurmd. Nothing happens to what runs already."""
        if not self.running:
            own = ["--net", "--uts", "--mount", "--pid", "--fork", "--kill-child", "--propagation", "private"]
            log = self.place.logs / f"init.{self.name}.log"
            log.unlink(missing_ok=True)
            command = ["unshare", *own, sys.executable, "-I", "-S", INIT, self.name, self.place.etc]
            self._machine = Daemon(self.name, command, log, self.place.environment)
            self._machine.ready(lambda: "booted" in log.read_text())
            self._connect()
        if not self.slurmd_running:
            command = [*self.inside(), "slurmd", "-D", "-N", self.name]
            self._slurmd = Daemon(f"slurmd of {self.name}", command, self.log, self.place.environment)

    def _connect(self) -> None:
        with suppress(RuntimeError):  # of the node's former life; it goes by itself, but not at once
            run_quietly("ip", "link", "del", self.cable)
        peer = ["peer", "name", "eth0", "address", self.card, "netns", self.init]
        run_quietly("ip", "link", "add", self.cable, "type", "veth", *peer)
        run_quietly("ip", "link", "set", self.cable, "master", self.place.network.bridge, "up")
        own = ["nsenter", "-t", self.init, "-n", "ip"]
        run_quietly(*own, "address", "add", f"{self.address}/24", "dev", "eth0")
        for device in ("eth0", "lo"):
            run_quietly(*own, "link", "set", device, "up")
        self.plugged = True

    def inside(self) -> list[str]:
        """The words before a command that runs on this node, in the folder where we are."""
        return ["nsenter", "-t", str(self.init), "-n", "-u", "-m", "-p", f"--wdns={os.getcwd()}", "--"]

    def is_reached_from(self, other: Node | None) -> bool:
        """Whether our slurmd takes a connection from another node, or from the controller's machine (None)."""
        place = f"/dev/tcp/{self.address}/{self.place.network.port + 1}"
        ask = [*(other.inside() if other else []), "timeout", "1", "bash", "-c", f"exec 3<>{place}"]
        return not subprocess.run(ask, capture_output=True, timeout=20).returncode

    def plug(self, in_: bool) -> None:
        """The network cable: without it the node lives on, but is heard by nobody and hears nobody."""
        run_quietly("ip", "link", "set", self.cable, "up" if in_ else "down")
        self.plugged = in_

    def kill_slurmd(self) -> None:
        """SIGKILL to slurmd alone: its jobs live on, and nobody can reach them."""
        assert self._slurmd is not None, f"{self.name} was never switched on"
        for pid in children_of(self._slurmd.pid):  # of nsenter, which waits for it
            os.kill(pid, signal.SIGKILL)
        self._slurmd.process.wait(10)

    def power_off(self) -> None:
        """All at once. The cable first: a dead machine sends no last word over its connections."""
        if self._machine is None:
            return
        with suppress(RuntimeError):
            run_quietly("ip", "link", "del", self.cable)
        if self.running:
            os.kill(self.init, signal.SIGKILL)
        for daemon in (self._machine, self._slurmd):
            if daemon is not None:
                daemon.stop()

    def hide(self, folder: Path) -> None:
        """An empty folder in its place, on this node alone: as if the nodes did not share it."""
        subprocess.run([*self.inside(), "mount", "-t", "tmpfs", "tmpfs", str(folder)], check=True, timeout=20)

    def show(self, folder: Path) -> None:
        subprocess.run([*self.inside(), "umount", str(folder)], check=True, timeout=20)

    def clear_groups(self) -> None:
        """The empty control groups that slurmd leaves behind."""
        for top in Path("/sys/fs/cgroup").glob(f"*/slurm_{self.name}"):
            folders = sorted(top.rglob("*/"), key=lambda path: -len(path.parts))
            wait_until(lambda t=top: not any(_members(p) for p in t.rglob("cgroup.procs")), f"{top} is empty", 10)
            for folder in (*folders, top):
                folder.rmdir()


def _members(listing: Path) -> str:
    try:
        return listing.read_text()
    except OSError:  # it went while we looked
        return ""
