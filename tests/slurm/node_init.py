"""The first process of a node: gives it a name and files of its own, then reaps what the node's programs leave behind.

    unshare ... python node_init.py NAME FOLDER

FOLDER holds `slurm` (seen as /etc/slurm, where Slurm's programs look when nobody says SLURM_CONF), `hosts` and
`resolv.conf` (empty: a look-up of an unknown name fails at once, where there is no way to a name server).
"""

import os
import signal
import socket
import subprocess
import sys


def main(name: str, folder: str) -> None:
    socket.sethostname(name)
    subprocess.run(["mount", "-t", "proc", "proc", "/proc"], check=True)
    for ours, seen in (("slurm", "/etc/slurm"), ("hosts", "/etc/hosts"), ("resolv.conf", "/etc/resolv.conf")):
        if os.path.exists(seen):
            subprocess.run(["mount", "--bind", f"{folder}/{ours}", seen], check=True)
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGCHLD})
    print("booted", flush=True)
    while True:
        signal.sigwait({signal.SIGCHLD})
        try:
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        except ChildProcessError:
            pass


if __name__ == "__main__":
    main(*sys.argv[1:])
