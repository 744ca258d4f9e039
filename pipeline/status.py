"""Every job of an experiment: done, running and where, queued, failed and why; its search; what all have used.

python -m pipeline.status pipeline/experiments/digits.yaml                 # what runs, waits or has failed
python -m pipeline.status pipeline/experiments/digits.yaml --all           # the others too
python -m pipeline.status pipeline/experiments/digits.yaml --watch 10      # on a terminal, again every ten seconds
"""

from __future__ import annotations

import argparse
import contextlib
import shutil
import sys
import time

from pipeline import slurm, stage
from pipeline.cost import duration
from pipeline.experiment import Experiment, load_experiment
from pipeline.paths import DEFAULT_EXPERIMENT, Paths
from pipeline.progress import STATES, Place, Standing, State, describe, standing

SHOWN: tuple[State, ...] = ("failed", "training", "judging", "queued", "stopped")  # the others are only counted
HEAD = ("state", "job", "epoch", "attempts", "time", "")
HOME = "\x1b[H\x1b[J"  # to the corner, and clear what stands there


def look(experiment: Experiment, paths: Paths) -> tuple[Standing, str]:
    """Where the jobs stand, and a line about SLURM if it does not say."""
    if not slurm.installed():
        return standing(experiment, paths), "No SLURM on this machine: this is what the files say."
    try:
        return standing(experiment, paths, slurm.queue()), ""
    except slurm.Away as away:
        return standing(experiment, paths), f"SLURM does not answer ({away}): this is what the files say."


def render(found: Standing, remark: str, whole: bool = False) -> list[str]:
    """The lines to print; jobs in order of their states, and within one of the experiment's file."""
    lines = [describe(found), *([str(found.search)] if found.search else [])]
    early = [place for place in found.places if place.state == "done" and place.note]
    if early:
        lines.append(f"Of those done, {len(early):,} ended early ({', '.join(sorted({p.note for p in early}))}).")
    lines += [remark] if remark else []
    places = (*found.places, *found.trials)
    shown = [place for state in STATES if whole or state in SHOWN for place in places if place.state == state]
    if not shown:
        return lines
    rows = [HEAD, *map(_cells, shown)]
    widths = [max(len(row[i]) for row in rows) for i in range(len(HEAD) - 1)]
    lines += ["", *("  ".join([*(cell.ljust(w) for cell, w in zip(row, widths)), row[-1]]).rstrip() for row in rows)]
    if any(place.state == "failed" for place in shown):
        lines += ["", "`python -m pipeline.why JOB` says more of one that failed, and what to do."]
    return lines


def _cells(place: Place) -> tuple[str, ...]:
    epoch = "" if place.state == "waiting" else f"{place.epoch}/{place.epochs}"
    attempts = str(len(place.all_attempts) or "")
    return place.state, place.job, epoch, attempts, duration(place.seconds) if attempts else "", place.note


def fitted(lines: list[str], columns: int, rows: int) -> list[str]:
    """What a screen can hold."""
    kept = lines if len(lines) < rows else [*lines[: rows - 2], f"... {len(lines) - rows + 2} lines more"]
    return [line[:columns] for line in kept]


def watch(experiment: Experiment, paths: Paths, seconds: float, whole: bool) -> None:
    """Redraw until all is done, or Ctrl-C."""
    while True:
        found, remark = look(experiment, paths)
        lines = [*render(found, remark, whole), "", f"{time.strftime('%H:%M:%S')}, again in {seconds:g} s; Ctrl-C ends"]
        print(HOME + "\n".join(fitted(lines, *shutil.get_terminal_size())), flush=True)
        if found.is_done:
            return
        time.sleep(seconds)


def main(arguments: argparse.Namespace) -> None:
    if arguments.watch is not None and not arguments.watch >= 1:
        raise ValueError(f"--watch: at least 1 second, got {arguments.watch:g}")
    experiment, paths = load_experiment(arguments.experiment), Paths(arguments.results)
    if arguments.watch and sys.stdout.isatty():
        with contextlib.suppress(KeyboardInterrupt):
            watch(experiment, paths, arguments.watch, arguments.all)
        return
    print("\n".join(render(*look(experiment, paths), arguments.all)))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("experiment", nargs="?", default=DEFAULT_EXPERIMENT, help="an experiment file")
    parser.add_argument("--results", default="results", help="root of the results (default: results)")
    parser.add_argument("--all", action="store_true", help="list jobs that are done, trained or wait too")
    parser.add_argument("--watch", type=float, metavar="SECONDS", help="look again and again, on a terminal")
    stage.run(main, parser)
