"""In place of Snakemake, for the one that drives it: a small script that notes its calls. And jobs left behind."""

from __future__ import annotations

import json
import sys
import threading
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path

from places import Places
from stand_in import StandIn

from pipeline.resume import Driver, go_on

SCRIPT = """
import json, os, signal, sys, time
from pathlib import Path
with open("calls.jsonl", "a") as file:
    file.write(json.dumps(sys.argv[1:]) + "\\n")
if "--unlock" in sys.argv:
    [path.unlink() for path in Path(".snakemake/locks").iterdir()]
    sys.exit(json.loads(os.environ.get("UNLOCKS", "0")))
{body}
"""


class Snakemake:
    """In place of Snakemake: `body` is Python that each call runs."""

    def __init__(self, driver: Driver, body: str = ""):
        Path("snakemake-stand-in.py").write_text(SCRIPT.format(body=body))
        driver.command = [sys.executable, "-SE", "snakemake-stand-in.py", *driver.command[3:]]

    @property
    def calls(self) -> list[list[str]]:
        file = Path("calls.jsonl")
        return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []

    @property
    def runs(self) -> int:
        return sum("--unlock" not in call for call in self.calls)


def driver(where: str = "slurm", *more: str) -> Driver:
    return Driver("four.yaml", where, ["results=results"], more)


def left(stand_in: StandIn, number: str, state: str = "RUNNING", **fields: str) -> None:
    """A job of a Snakemake that was killed."""
    stand_in.add(number, state, **({"name": "gode-four_uuid-1", "comment": "rule_train_wildcards_x"} | fields))


def states(stand_in: StandIn) -> dict[str, str]:
    """Of each job, by its number."""
    return {number: job["state"] for number, job in stand_in.read()["jobs"].items()}


def soon(change: Callable[[], None]) -> threading.Thread:
    """In a moment, beside the test."""
    thread = threading.Timer(0.3, change)
    thread.start()
    return thread


def arguments(**facts) -> Namespace:
    """Of a call without options, but for these."""
    plain = {"experiment": "four.yaml", "where": None, "results": "results", "data": "", "device": "", "more": []}
    return Namespace(**(plain | {"wait": False, "cancel": False, "dry_run": False} | facts))


def run_on(places: Places, body: str, where: str = "local") -> tuple[int, Snakemake, list[float]]:
    """(exit code, the stand-in, seconds slept between runs)."""
    work, slept = driver(where), []
    fake = Snakemake(work, body)
    code = go_on(work, places.experiment, places.paths, slept.append)
    return code, fake, slept


def finishing(places: Places, then: str = "sys.exit(1)") -> str:
    """Each run trains one job more, as long as there are some."""
    jobs = {job: places.paths.trained(job) for job in places.jobs}
    return f"""
for files in {jobs!r}.values():
    if not Path(files[0]).exists():
        [Path(file).touch() for file in files]
        break
{then}
"""
