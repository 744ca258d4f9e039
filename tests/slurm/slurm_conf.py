"""The configuration files of a cluster whose nodes are fast to notice faults (Slurm 22.05, Debian 12)."""

from __future__ import annotations

import os
import secrets
import socket
import stat
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from node import Network, Node

GROUPS = Path("/sys/fs/cgroup")


@dataclass(frozen=True)
class Hardware:
    """What each node claims to have. The cores may be more than the machine's; the stand-in GPUs do nothing."""

    cpus: int = 4
    memory: int = 3000  # MB
    gpus: int = 2


def groups_of_version_1() -> bool:
    """Whether control groups can freeze and limit jobs here. Else memory is polled, and a limit ends in FAILED."""
    files = (GROUPS / "freezer/cgroup.procs", GROUPS / "memory/memory.limit_in_bytes")
    return all(os.access(file, os.W_OK) for file in files)


def write_configuration(folder: Path, network: Network, nodes: Sequence[Node], hardware: Hardware) -> None:
    """All of it below `folder`/etc; slurm.conf, gres.conf and cgroup.conf in etc/slurm."""
    for each in ("etc/slurm", "run", "logs", "spool", "state", "devices"):
        (folder / each).mkdir(parents=True, exist_ok=True)
    etc = folder / "etc"
    key = etc / "munge.key"
    key.touch(mode=0o600)
    key.write_bytes(secrets.token_bytes(128))
    addresses = [f"{node.address} {node.name}" for node in nodes]
    here = ["127.0.0.1 localhost", f"{network.controller} {_short_name()}"]
    (etc / "hosts").write_text("\n".join([*here, *addresses, ""]))
    (etc / "resolv.conf").write_text("# no name server\n")
    (etc / "slurm/gres.conf").write_text(_gres(folder, nodes, hardware))
    (etc / "slurm/cgroup.conf").write_text(GROUP_LIMITS if groups_of_version_1() else "")
    (etc / "slurm/slurm.conf").write_text(_slurm(folder, network, nodes, hardware))


def _short_name() -> str:
    return socket.gethostname().split(".")[0]  # what `hostname -s` says is what slurmctld compares with


def _gres(folder: Path, nodes: Sequence[Node], hardware: Hardware) -> str:
    """A device file for each GPU: Slurm sets CUDA_VISIBLE_DEVICES for character devices only; these are /dev/null."""
    lines = []
    for node in nodes if hardware.gpus else ():
        for i in range(hardware.gpus):
            device = folder / f"devices/{node.name}-gpu{i}"
            if not device.exists():
                os.mknod(device, 0o666 | stat.S_IFCHR, os.makedev(1, 3))
        files = f"{folder}/devices/{node.name}-gpu[0-{hardware.gpus - 1}]"
        lines.append(f"NodeName={node.name} Name=gpu Type=fake File={files}\n")
    return "".join(lines)


def _slurm(folder: Path, network: Network, nodes: Sequence[Node], hardware: Hardware) -> str:
    gpus = f" Gres=gpu:fake:{hardware.gpus}" if hardware.gpus else ""
    size = f"CPUs={hardware.cpus} RealMemory={hardware.memory}{gpus}"
    limited = groups_of_version_1()
    return SLURM.format(
        folder=folder,
        controller=f"{_short_name()}({network.controller})",
        name=network.name,
        port=network.port,
        slurmd_port=network.port + 1,
        memory=hardware.memory // hardware.cpus,
        # linuxproc would lose what a job puts into the background
        tracking="proctrack/cgroup" if limited else "proctrack/linuxproc",
        task="task/cgroup" if limited else "task/none",
        gather="" if limited else "JobAcctGatherParams=OverMemoryKill",
        nodes="".join(f"NodeName={node.name} NodeAddr={node.address} {size}\n" for node in nodes),
    )


GROUP_LIMITS = f"""\
CgroupPlugin=cgroup/v1
CgroupMountpoint={GROUPS}
ConstrainRAMSpace=yes
"""

SLURM = """\
ClusterName={name}
SlurmctldHost={controller}
SlurmctldPort={port}
SlurmdPort={slurmd_port}
SlurmUser=root
SlurmdUser=root
SlurmctldPidFile={folder}/run/slurmctld.pid
SlurmdPidFile={folder}/run/slurmd.%n.pid
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool/%n
SlurmctldDebug=info
SlurmdDebug=info

# cred_expire is how long a requeued job has to wait, too; below 5 it silently means 120
AuthType=auth/munge
CredType=cred/munge
AuthInfo=socket={folder}/run/munge.socket,cred_expire=5

# soon after a node falls silent its jobs go elsewhere; it comes back by itself
MessageTimeout=5
SlurmdTimeout=5
SlurmctldTimeout=10
BatchStartTimeout=10
ReturnToService=2
KillWait=15
CompleteWait=0
TreeWidth=100

# the word on a job that ended is asked for when the whole campaign has
MinJobAge=3600

SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
DefMemPerCPU={memory}
SlurmdParameters=config_overrides
GresTypes=gpu
ProctrackType={tracking}
TaskPlugin={task}
JobAcctGatherType=jobacct_gather/linux
JobAcctGatherFrequency=task=1
{gather}
MpiDefault=none
SwitchType=switch/none

SchedulerType=sched/backfill
SchedulerParameters=batch_sched_delay=0,sched_interval=1,sched_min_interval=0,bf_interval=1
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE

AccountingStorageType=accounting_storage/none
JobCompType=jobcomp/filetxt
JobCompLoc={folder}/logs/finished.log

{nodes}
PartitionName=main Nodes=ALL Default=YES State=UP MaxTime=INFINITE PriorityTier=10 PreemptMode=OFF
# LLN: a job goes where the least is done, so that one campaign's jobs are on several nodes
PartitionName=low Nodes=ALL State=UP MaxTime=INFINITE PriorityTier=1 PreemptMode=REQUEUE LLN=YES
"""
