"""Programs that run in the foreground as our children, end with us, and are waited for by what they do."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path


class Unavailable(Exception):
    """This machine cannot run a cluster; one line says why. Nothing is wrong with the code under test."""


def wait_until(condition: Callable[[], object], what: str, seconds: float, log: Path | None = None) -> None:
    """Poll until `condition()` is true. TimeoutError with the end of the log if that takes too long."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"{what}: not within {seconds} s{_end_of(log)}")
        time.sleep(0.05)


def _end_of(log: Path | None, lines: int = 15) -> str:
    if log is None or not log.exists():
        return ""
    return f"; the end of {log}:\n" + "\n".join(log.read_text(errors="replace").splitlines()[-lines:])


def run_quietly(*command: object, environment: Mapping[str, str] | None = None) -> str:
    """stdout of a command that must succeed, else RuntimeError with its last line."""
    words = [str(word) for word in command]
    done = subprocess.run(words, env=environment, capture_output=True, text=True, timeout=60)
    if done.returncode:
        said = (done.stderr or done.stdout).strip().splitlines() or [f"exit code {done.returncode}"]
        raise RuntimeError(f"{' '.join(map(str, command))}: {said[-1]}")
    return done.stdout


def children_of(pid: int) -> list[int]:
    try:
        return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []


class Daemon:
    """One program, never in the background by itself, so that no PID file is needed to find it again."""

    def __init__(self, name: str, command: Sequence[object], log: Path, environment: Mapping[str, str]):
        """If the process that started it dies, whatever the way, the kernel ends it too (pdeathsig)."""
        self.name, self.log = name, log
        words = ["setpriv", "--pdeathsig", "KILL", *map(str, command)]
        with log.open("ab") as out:
            self.process = subprocess.Popen(
                words, stdin=subprocess.DEVNULL, stdout=out, stderr=out, env=dict(environment), start_new_session=True
            )

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def alive(self) -> bool:
        return self.process.poll() is None

    def ready(self, condition: Callable[[], object], seconds: float = 20) -> None:
        """Wait for `condition()`, which the program brings about. TimeoutError, and sooner if the program ends."""
        wait_until(lambda: not self.alive or condition(), f"{self.name} is ready", seconds, self.log)
        if not self.alive:
            raise RuntimeError(f"{self.name} ended with exit code {self.process.returncode}{_end_of(self.log)}")

    def stop(self, how: int = signal.SIGTERM, seconds: float = 10) -> None:
        """Ask it to end, and kill it if it does not."""
        for number in (how, signal.SIGKILL):
            if self.alive:
                os.kill(self.pid, number)
                try:
                    self.process.wait(seconds)
                except subprocess.TimeoutExpired:
                    continue
        self.process.wait(seconds)
