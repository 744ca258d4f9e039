"""One job, from its config.json to its model.

    python -m pipeline.train results/jobs/JOB/config.json [--data data] [--device auto] [--threads 1]

Killed at any moment, the same command goes on from the last checkpoint, and ends with the same bits. SIGTERM, SIGUSR1
and SIGINT make it write a checkpoint at the next step and leave with exit code 85, 'not finished'.
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import os
import signal
import socket
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import torch

from gode_core.bases import Moment
from gode_core.layers import DepthConv, DepthLinear
from gode_core.networks import Network
from pipeline import checkpoint, stage
from pipeline.config import JobConfig, load_job
from pipeline.device import set_threads
from pipeline.paths import Paths
from pipeline.provenance import code_fingerprint, commit
from pipeline.records import AttemptRecord, WeightRecord, append_record, write_records
from pipeline.training import RunSettings, Training

log = logging.getLogger(__name__)
NUM_DEPTHS = 65  # of a learned weight's path
NUM_ENTRIES = 4  # of the kernel whose path is kept


@torch.no_grad()
def weight_paths(network: Network, job: str) -> list[WeightRecord]:
    """theta(t) of a few entries, evenly spread over the largest kernel of the first block; and each k of a linear
    multistep net, layer n of N at depth n / N."""
    field, code = network.fields[0], code_fingerprint()
    i, layer = max(
        ((i, layer) for i, layer in enumerate(field.layers) if isinstance(layer, DepthConv | DepthLinear)),
        key=lambda item: item[1].weight[0].numel(),
    )
    size = layer.weight[0].numel()
    entries = sorted({j * (size - 1) // (NUM_ENTRIES - 1) for j in range(NUM_ENTRIES)})
    depths = [j / (NUM_DEPTHS - 1) for j in range(NUM_DEPTHS)]
    kernels = [field.weights(Moment(t))[0][i]["weight"].flatten() for t in depths]
    name = f"layers.{i}.weight"
    records = [
        WeightRecord(job, code, name, entry, t, kernel[entry].item())
        for t, kernel in zip(depths, kernels)
        for entry in entries
    ]
    for block, k in enumerate(network.multistep_coefficients):
        means = k.mean(1).tolist()  # over channels, where each has its own
        means.append(means[-1])  # a layer reaches to the next depth, the last one to t = 1
        records += [WeightRecord(job, code, f"k of block {block}", 0, n / len(k), m) for n, m in enumerate(means)]
    return records


def train(config: JobConfig, job: str, paths: Paths, run: RunSettings, should_stop: Callable[[], bool]) -> bool:
    """Train the job, going on from its checkpoint if there is one, and write its model and records.

    `should_stop` is asked after each step; True makes a checkpoint and ends the training. Returns True if the job is
    finished. Raises ValueError for a damaged checkpoint or data file, OSError if something cannot be written.
    """
    training = Training(config, job, run)
    state = checkpoint.load(paths.resume(job), config)
    if state is not None:
        training.restore(state)
        log.info("going on from step %d (epoch %d)", training.step, training.epoch)
        if any(record.code != code_fingerprint() for record in training.records):
            if training.finished:  # asked for anew, with `--forcerun train`: other code, other numbers
                training = Training(config, job, run)
            log.warning(
                "the code has changed since the checkpoint: %s", "begun again" if not training.step else "mixed"
            )
    version = commit()  # now: git may be slow, and what is trained is not to wait for it, or be lost by it
    begun, started, from_step = datetime.now(UTC).isoformat(timespec="seconds"), time.monotonic(), training.step
    saved = time.monotonic()

    def save() -> None:
        nonlocal saved
        checkpoint.save(paths.resume(job), config, training.state())
        write_records(paths.training_so_far(job), training.records)
        saved = time.monotonic()

    def after_step() -> bool:
        if time.monotonic() - saved > run.checkpoint_seconds:
            save()
        return should_stop()

    outcome, reason = "failed", "killed"
    try:
        while not training.finished and training.run_epoch(after_step):
            if run.checkpoint_epochs and training.epoch % run.checkpoint_epochs == 0:
                save()
        if training.finished:
            save()  # stays until the job is judged: killed before Snakemake has noted the outputs, nothing is lost
            network = training.final_network()
            checkpoint.save_model(paths.model(job), config, network)
            write_records(paths.weights(job), weight_paths(network, job))
            write_records(paths.training(job), training.records)
            outcome, reason = "finished", training.status
        else:
            save()
            outcome, reason = "interrupted", "asked to stop"
    except BaseException as error:
        reason = f"{type(error).__name__}: {error}"
        raise
    finally:
        attempt = AttemptRecord(
            job=job,
            code=code_fingerprint(),
            commit=version,
            host=socket.gethostname(),
            pid=os.getpid(),
            device=str(training.device),
            from_step=from_step,
            to_step=training.step,
            started=begun,
            seconds=round(time.monotonic() - started, 3),
            outcome=outcome,
            reason=reason,
        )
        with contextlib.suppress(OSError):  # a full disk has been reported already, by the error on its way
            append_record(paths.attempts(job), attempt)
    return training.finished


def main(arguments: argparse.Namespace) -> int:
    paths, job = Paths.of_config(arguments.config)
    config = load_job(arguments.config, job)
    set_threads(arguments.threads)
    if all(Path(path).exists() for path in (paths.model(job), paths.weights(job), paths.training(job))):
        log.info("%s is finished; delete its model to train it again", job)
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
    finished = train(config, job, paths, run, should_stop)
    if not finished:
        log.info("%s: checkpoint written; the same command goes on", signal.Signals(asked[0]).name)
    return 0 if finished else stage.NOT_FINISHED


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", help="config.json of the job; its files are written beside it")
    parser.add_argument("--data", default="data", help="root of the data sets (default: data)")
    parser.add_argument("--device", default="auto", help="cpu, cuda, cuda:1 ...; auto takes a GPU if there is one")
    parser.add_argument("--threads", type=int, default=1, help="threads of this job (default: 1)")
    parser.add_argument(
        "--stop-with-parent",
        type=int,
        metavar="PID",
        help="checkpoint and leave when this parent process is gone (a Snakemake that was killed)",
    )
    parser.add_argument("--compile", action="store_true", help="torch.compile the solve (fixed-step solvers)")
    parser.add_argument("--checkpoint-seconds", type=float, default=60.0, help="seconds between checkpoints")
    parser.add_argument(
        "--checkpoint-epochs", type=int, default=0, help="epochs between checkpoints (0: by time alone)"
    )
    stage.run(main, parser)
