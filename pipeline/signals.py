"""What SLURM tells a job, told to the training too.

SLURM signals the one process that it has started, where it keeps track of jobs by cgroups (as most sites do): a
Snakemake, which on SIGTERM waits for what it runs, and tells nobody. Until the time to kill comes, half a minute at
most sites, the training could have written a checkpoint, did it but know.
"""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Callable
from pathlib import Path


def pass_on() -> None:
    """From now on SIGTERM and SIGUSR1 are sent on to the children of this process: in a Snakemake that runs one job of
    a cluster. SIGTERM has its own meaning for Snakemake, which it keeps; SIGUSR1, SLURM's warning, would end it."""
    signal.signal(signal.SIGUSR1, lambda number, _frame: _tell_children(number))
    install = signal.signal

    def install_behind(number, handler):
        """Snakemake takes SIGTERM for itself when its work begins, after it has read the Snakefile."""
        return install(number, _both(handler) if number == signal.SIGTERM and callable(handler) else handler)

    signal.signal = install_behind  # type: ignore[assignment]  # it asks for no hook


def _both(handler: Callable) -> Callable:
    def tell_and_handle(number, frame):
        _tell_children(number)
        return handler(number, frame)

    return tell_and_handle


def _tell_children(number: int) -> None:
    for file in Path("/proc/self/task").glob("*/children"):
        children = []
        with contextlib.suppress(OSError):  # the thread has ended meanwhile
            children = file.read_text().split()
        for child in children:
            with contextlib.suppress(OSError):  # it has ended meanwhile, and the next is to be told all the same
                os.kill(int(child), number)
