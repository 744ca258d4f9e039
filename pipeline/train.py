"""One job, from its config.json to its model; or several that differ in the seed alone, as one computation.

    python -m pipeline.train results/jobs/JOB/config.json [...] [--data data] [--device auto] [--threads 1]

Killed at any moment, the same command goes on from the last checkpoint, and ends with the same bits. SIGTERM, SIGUSR1
and SIGINT make it write a checkpoint at the next step and leave with exit code 85, 'not finished'.
"""

from __future__ import annotations

import argparse
import itertools
import logging
import os
import signal
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from pipeline import stage
from pipeline.attempt import Attempt
from pipeline.config import JobConfig, load_job
from pipeline.device import set_threads
from pipeline.paths import Paths
from pipeline.provenance import code_fingerprint
from pipeline.side_by_side import SideBySide
from pipeline.stacks import alike, fits
from pipeline.training import RunSettings

log = logging.getLogger(__name__)


def train(configs: dict[str, JobConfig], paths: Paths, run: RunSettings, should_stop: Callable[[], bool]) -> bool:
    """Train the jobs, going on from their checkpoints if there are any, and write their models and records. Several
    must be `alike`; they are trained side by side.

    `should_stop` is asked after each step; True makes a checkpoint and ends the training. Returns True if all are
    finished. Raises ValueError for a damaged checkpoint or data file, OSError if something cannot be written.
    """
    attempts = [Attempt(config, job, paths, run, len(configs) == 1) for job, config in configs.items()]
    place = {a.job: (a.training.finished, a.training.epoch, a.training.batch) for a in attempts}
    in_order = sorted(attempts, key=lambda attempt: place[attempt.job])
    groups = [list(group) for _, group in itertools.groupby(in_order, key=lambda attempt: place[attempt.job])]
    finished = [_train_group(group, run, should_stop) for group in groups]  # one, unless a stop came between two saves
    return all(finished)


def _train_group(attempts: Sequence[Attempt], run: RunSettings, should_stop: Callable[[], bool]) -> bool:
    """Attempts that stand at the same place."""
    for attempt in attempts:
        attempt.start()
    trainings = [attempt.training for attempt in attempts]
    plain = len(trainings) == 1 and (run.compile or not fits(trainings[0].config))
    runner = trainings[0] if plain else SideBySide(trainings)  # one alone too: to the bit, its company is nothing to it
    saved = time.monotonic()

    def save() -> None:
        nonlocal saved
        runner.settle()
        for attempt in attempts:
            attempt.save()
        saved = time.monotonic()

    def after_step() -> bool:
        if time.monotonic() - saved > run.checkpoint_seconds:
            save()
        return should_stop()

    outcome, reason = "failed", "killed"
    try:
        while not runner.finished and runner.run_epoch(after_step):
            if run.checkpoint_epochs and not runner.finished and runner.epoch % run.checkpoint_epochs == 0:
                save()
        if runner.finished:
            for attempt in attempts:
                attempt.finish()
            outcome, reason = "finished", ""
        else:
            save()
            outcome, reason = "interrupted", "asked to stop"
    except BaseException as error:
        reason = f"{type(error).__name__}: {error}"
        raise
    finally:
        for attempt in attempts:
            attempt.note(outcome, reason or attempt.training.status, len(attempts))
    return runner.finished


def main(arguments: argparse.Namespace) -> int:
    code_fingerprint()  # taken now: what is edited while this runs made none of its numbers
    found = [Paths.of_config(file) for file in arguments.configs]
    paths = found[0][0]
    configs = {job: load_job(file, job) for file, (_, job) in zip(arguments.configs, found)}
    if len(configs) > 1 and not alike(list(configs.values())):
        raise ValueError(f"{', '.join(configs)}: only jobs that differ in the seed alone are trained side by side")
    set_threads(arguments.threads)
    whole = [job for job in configs if all(Path(path).exists() for path in paths.trained(job))]
    for job in whole:
        log.info("%s is finished; delete its folder to train it again", job)
        del configs[job]
    if not configs:
        return 0
    asked: list[int] = []
    for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT):
        signal.signal(number, lambda received, _frame: asked.append(received))

    def should_stop() -> bool:
        if arguments.stop_with_parent not in (None, os.getppid()):
            asked.append(signal.SIGHUP)
        return bool(asked)

    run = RunSettings(
        arguments.data, arguments.device, arguments.compile, arguments.checkpoint_seconds, arguments.checkpoint_epochs
    )
    finished = train(configs, paths, run, should_stop)
    if not finished:
        log.info("%s: checkpoint written; the same command goes on", signal.Signals(asked[0]).name)
    return 0 if finished else stage.NOT_FINISHED


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("configs", nargs="+", metavar="CONFIG", help="config.json of a job; its files come beside it")
    parser.add_argument("--data", default="data", help="root of the data sets (default: data)")
    parser.add_argument("--device", default="auto", help="cpu, cuda, cuda:1 ...; auto takes a GPU if there is one")
    parser.add_argument("--threads", type=int, default=1, help="threads of this job (default: 1)")
    parser.add_argument(
        "--stop-with-parent",
        type=int,
        metavar="PID",
        help="checkpoint and leave when this parent process is gone (a Snakemake that was killed)",
    )
    parser.add_argument("--compile", action="store_true", help="torch.compile the solve (fixed steps; one job)")
    parser.add_argument("--checkpoint-seconds", type=float, default=60.0, help="seconds between checkpoints")
    parser.add_argument(
        "--checkpoint-epochs", type=int, default=0, help="epochs between checkpoints (0: by time alone)"
    )
    stage.run(main, parser)
