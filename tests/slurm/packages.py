"""What a cluster needs from Debian: looked for, and installed where that was asked for."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from daemons import Unavailable

SYSTEM_PATH = "/usr/sbin:/usr/bin:/sbin:/bin"
PROGRAMS = {  # Debian's package -> a program of it
    "slurmctld": "slurmctld",
    "slurmd": "slurmd",
    "slurm-client": "sbatch",
    "munge": "munged",
    "iproute2": "ip",
    "util-linux": "setpriv",
}


def missing_packages() -> list[str]:
    return [package for package, program in PROGRAMS.items() if not shutil.which(program, path=SYSTEM_PATH)]


def require_packages(install: bool, log: Path) -> None:
    """Raises Unavailable with the line that a user can type, unless all is there or could be installed."""
    missing = missing_packages()
    if not missing:
        return
    if not install:
        raise Unavailable(f"SLURM is not installed: apt-get install --no-install-recommends {' '.join(missing)}")
    if not shutil.which("apt-get"):
        raise Unavailable(f"{', '.join(missing)}: missing, and there is no apt-get to install them with")
    command = ["apt-get", "install", "--yes", "--no-install-recommends", *missing]
    with no_services_started(), log.open("w") as out:
        for attempt in (command, ["apt-get", "update"], command):  # a stale list of packages is refreshed once
            done = subprocess.run(
                attempt, stdout=out, stderr=out, env=os.environ | {"DEBIAN_FRONTEND": "noninteractive"}, timeout=600
            )
            if attempt is command and not done.returncode:
                return
    raise Unavailable(f"{' '.join(command)}: exit code {done.returncode}; {log.read_text()[-300:].strip()}")


@contextmanager
def no_services_started() -> Iterator[None]:
    """Debian's packages start what they install, unless this file forbids it."""
    policy = Path("/usr/sbin/policy-rc.d")
    ours = not policy.exists()
    if ours:
        policy.write_text("#!/bin/sh\nexit 101\n")
        policy.chmod(0o755)
    try:
        yield
    finally:
        if ours:
            policy.unlink()
