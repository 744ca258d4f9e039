"""One job, from its config.json to its model; or several: those that differ in numbers alone (seed, rates and schedule,
weight decay, clipping, label smoothing) as one computation, where that pays, the others one after the other.

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
from collections import deque
from collections.abc import Callable, Generator, Mapping, Sequence
from pathlib import Path

from pipeline import stage
from pipeline.attempt import Attempt
from pipeline.config import JobConfig, load_job
from pipeline.deadline import Allocation, Deadline
from pipeline.describe import write_configs
from pipeline.device import choose_device, set_threads
from pipeline.finished import is_trained
from pipeline.holder import Holder
from pipeline.lease import LeaseLost, Leases
from pipeline.paths import Paths
from pipeline.provenance import code_fingerprint
from pipeline.records import TrainingRecord, replace_file
from pipeline.side_by_side import SideBySide
from pipeline.stacks import alike, fits
from pipeline.training import RunSettings
from pipeline.winners import load_whole

log = logging.getLogger(__name__)


Rows = Mapping[str, list[TrainingRecord]]  # by job: all of its rows so far


def train(
    configs: dict[str, JobConfig],
    paths: Paths,
    run: RunSettings,
    should_stop: Callable[[], str | bool],
    patient: bool = False,
) -> bool:
    """Train the jobs, going on from their checkpoints if there are any, and write their models and records. Several
    must be `alike`; they are trained side by side. While another process trains one of them, wait; `patient`: whoever
    asks to stop.

    `should_stop` is asked after each step; True, or the reason in words, makes a checkpoint and ends the training.
    Returns True if all are finished. Raises ValueError for a damaged checkpoint or data file, or for a job whose
    attempts come to nothing, OSError if something cannot be written, LeaseLost if another process has taken over.
    """
    epochs = train_by_epochs(configs, paths, run, should_stop, patient)
    while True:
        try:
            next(epochs)
        except StopIteration as end:
            return end.value


def train_by_epochs(
    configs: dict[str, JobConfig],
    paths: Paths,
    run: RunSettings,
    should_stop: Callable[[], str | bool],
    patient: bool = False,
) -> Generator[Rows, None, bool]:
    """As `train`, but pauses after each epoch, with the rows so far: for one who decides epoch by epoch whether it is
    worth going on. Closed in a pause, it writes a checkpoint and ends."""
    facts = {"code": code_fingerprint(), "threads": run.threads, "share": len(configs), "device": run.device}
    me = Holder.me(**facts, gpus=run.gpus, slurm_job=run.slurm_job, campaign=run.campaign)
    with Leases(dict.fromkeys(configs, me), paths.lease) as leases:
        if not leases.take(should_stop, patient):
            return False
        attempts = [
            Attempt(config, job, paths, leases.of[job], run)
            for job, config in configs.items()
            if not is_trained(job, paths)  # another has finished it since this process began
        ]
        for attempt in attempts:
            attempt.check_progress()
        for attempt in attempts:
            attempt.build()
        at = {attempt.job: attempt.training for attempt in attempts}  # not those that another finished meanwhile
        leases.place = lambda job: (at[job].step, at[job].epoch) if job in at else None
        place = {job: (training.finished, training.epoch, training.batch) for job, training in at.items()}
        in_order = sorted(attempts, key=lambda attempt: place[attempt.job])
        groups = [list(group) for _, group in itertools.groupby(in_order, key=lambda attempt: place[attempt.job])]
        finished = []
        for group in groups:  # one, unless a stop came between two saves
            finished.append((yield from _train_group(group, leases, run, should_stop)))
    return all(finished)


def _train_group(
    attempts: Sequence[Attempt], leases: Leases, run: RunSettings, should_stop: Callable[[], str | bool]
) -> Generator[Rows, None, bool]:
    """Attempts that stand at the same place."""
    for attempt in attempts:
        attempt.start(len(attempts))
    trainings = [attempt.training for attempt in attempts]
    plain = len(trainings) == 1 and (run.compile or not fits(trainings[0].config))
    saved = time.monotonic()
    stop: str | bool = False

    def save() -> None:
        nonlocal saved
        runner.settle()
        leases.check()
        for attempt in attempts:
            attempt.save()
        saved = time.monotonic()

    def after_step() -> bool:
        nonlocal stop
        if time.monotonic() - saved > run.checkpoint_seconds:
            save()
        stop = should_stop()
        return bool(stop)

    outcome, reason = "failed", "killed"
    try:
        runner = trainings[0] if plain else SideBySide(trainings)  # one alone too: its company is nothing to its bits
        while not runner.finished and runner.run_epoch(after_step):
            if run.checkpoint_epochs and not runner.finished and runner.epoch % run.checkpoint_epochs == 0:
                save()
            yield {training.job: training.records for training in trainings}
        leases.check()
        if runner.finished:
            for attempt in attempts:
                attempt.finish()
            outcome, reason = "finished", ""
        else:
            save()
            outcome, reason = "interrupted", stop if isinstance(stop, str) else "asked to stop"
    except GeneratorExit:  # closed in a pause
        save()
        outcome, reason = "interrupted", "stopped between two epochs"
        raise
    except LeaseLost as lost:
        outcome, reason = "interrupted", str(lost)
        raise
    except BaseException as error:
        reason = f"{type(error).__name__}: {error}"
        raise
    finally:
        for attempt in attempts:
            attempt.note(outcome, reason or attempt.training.status)
    return runner.finished


class Stop:
    """What asks a training to end before it is finished: a signal, the end of the allocation, a parent that is gone."""

    def __init__(self, deadline: Deadline, parent: int | None):
        self.deadline, self.parent = deadline, parent
        self.received = ""
        for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT):
            signal.signal(number, self._receive)

    def _receive(self, number: int, _frame) -> None:
        self.received = signal.Signals(number).name

    def __call__(self) -> str:
        """Empty, or why to stop."""
        if self.parent not in (None, os.getppid()):
            self.received = "the process that started it is gone"
        if self.deadline.near() and not self.received:
            self.received = "the time limit is near"
        return self.received


def main(arguments: argparse.Namespace) -> int:
    code_fingerprint()  # taken now: what is edited while this runs made none of its numbers
    found = [Paths.of_config(file) for file in arguments.configs]
    paths = found[0][0]
    new = [job for file, (_, job) in zip(arguments.configs, found) if not Path(file).exists()]
    if arguments.experiment and new:
        write_configs(load_whole(arguments.experiment, paths), paths, new)
    configs = {job: load_job(file, job) for file, (_, job) in zip(arguments.configs, found)}
    set_threads(arguments.threads)
    whole = [job for job in configs if is_trained(job, paths)]
    for job in whole:
        log.info("%s is finished; delete its folder to train it again", job)
        del configs[job]
    allocation = Allocation.here()
    stop = Stop(Deadline(allocation), arguments.stop_with_parent)
    run = RunSettings(
        arguments.data,
        str(choose_device(arguments.device)),
        arguments.compile,
        arguments.checkpoint_seconds,
        arguments.checkpoint_epochs,
        arguments.threads,
        allocation.slurm_job,
        allocation.campaign,
    )
    failed, waiting = None, deque(groups_of(configs))
    while waiting:
        together = waiting.popleft()
        try:
            finished = _train_and_wait(together, paths, run, stop)
        except ValueError as error:  # of these jobs; the others are trained all the same
            if len(together) > 1:  # one of them may be the reason: now each by itself
                log.warning("%s: %s; now one by one", ", ".join(together), error)
                waiting.extendleft({job: together[job]} for job in reversed(together))
                continue
            log.error("%s: %s", ", ".join(together), error)
            failed = error
            continue
        if not finished:
            log.info("%s: not finished; the same command goes on", stop.received)
            return stage.NOT_FINISHED
    if failed is not None:
        raise failed
    if arguments.done:
        replace_file(arguments.done, b"")
    return 0


def groups_of(configs: dict[str, JobConfig]) -> list[dict[str, JobConfig]]:
    """Those that are trained side by side, and each other one by itself, one after the other."""
    found: list[dict[str, JobConfig]] = []
    for job, config in configs.items():
        if found and alike([*found[-1].values(), config]):
            found[-1][job] = config
        else:
            found.append({job: config})
    return found


def _train_and_wait(configs: dict[str, JobConfig], paths: Paths, run: RunSettings, stop: Stop) -> bool:
    """Train; where another process takes over, wait until it has, and do not leave before: Snakemake would then delete
    what another writes."""
    patient = False
    while True:
        try:
            return train(configs, paths, run, stop, patient)
        except LeaseLost as lost:
            log.warning("%s; waiting for it", lost)
            patient = True


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("configs", nargs="+", metavar="CONFIG", help="config.json of a job; its files come beside it")
    parser.add_argument("--experiment", help="write the config.json from this file, where there is none")
    parser.add_argument("--done", metavar="FILE", help="written when all are finished")
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
