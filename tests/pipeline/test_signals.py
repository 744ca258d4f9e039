"""SLURM tells Snakemake alone; the training hears of it, and Snakemake still does what it does."""

import contextlib
import os
import signal
import subprocess
import sys

import pytest

from pipeline import signals

# As Snakemake does: the Snakefile is read, then SIGTERM is taken for itself, then a child runs.
PARENT = """
import signal, subprocess, sys
from pipeline.signals import pass_on
pass_on()
own = []
signal.signal(signal.SIGTERM, lambda *_: own.append("TERM"))
child = subprocess.Popen([sys.executable, "-c", sys.argv[1]], stdout=subprocess.PIPE, text=True)
print(child.stdout.readline(), end="", flush=True)
answer = child.communicate()[0]
print(answer.strip(), child.returncode, *own, flush=True)
"""
CHILD = """
import signal
for number in (signal.SIGTERM, signal.SIGUSR1):
    signal.signal(number, lambda number, _: (print(signal.Signals(number).name), exit(85)))
print("ready", flush=True)
while True:
    signal.pause()
"""


@pytest.mark.parametrize(("number", "own"), [(signal.SIGTERM, " TERM"), (signal.SIGUSR1, "")])
def test_a_signal_reaches_the_child_and_means_what_it_did(number, own):
    process = subprocess.Popen([sys.executable, "-c", PARENT, CHILD], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    process.send_signal(number)  # to this process alone
    assert process.communicate(timeout=60)[0] == f"{number.name} 85{own}\n"
    assert process.returncode == 0


def test_a_child_that_has_just_ended_keeps_it_from_no_other(monkeypatch):
    told, kill = [], os.kill

    def tell(pid, number):
        told.append(pid)
        if len(told) == 1:
            raise ProcessLookupError
        kill(pid, 0)

    monkeypatch.setattr(os, "kill", tell)
    with contextlib.ExitStack() as ends:
        children = {ends.enter_context(subprocess.Popen(["sleep", "300"])) for _ in range(3)}
        for child in children:
            ends.callback(child.kill)
        signals._tell_children(signal.SIGUSR1)
        monkeypatch.undo()
    assert {child.pid for child in children} <= set(told)


def test_other_signals_are_left_alone():
    code = "import signal; from pipeline.signals import pass_on; before = signal.getsignal(signal.SIGINT); pass_on(); "
    check = "mine = lambda *_: 0; signal.signal(signal.SIGINT, mine); assert signal.getsignal(signal.SIGINT) is mine; "
    ignored = "signal.signal(signal.SIGTERM, signal.SIG_IGN); assert signal.getsignal(signal.SIGTERM) == signal.SIG_IGN"
    subprocess.run([sys.executable, "-c", code + check + ignored], check=True)
