"""One start of a training, and the files that it leaves: checkpoints, the model, records."""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import time
from datetime import UTC, datetime

import torch

from gode_core.bases import Moment
from gode_core.layers import DepthConv, DepthLinear
from gode_core.networks import Network
from pipeline import checkpoint
from pipeline.config import JobConfig
from pipeline.paths import Paths
from pipeline.provenance import code_fingerprint, commit
from pipeline.records import AttemptRecord, WeightRecord, append_record, write_records
from pipeline.training import RunSettings, Training

log = logging.getLogger(__name__)
NUM_DEPTHS = 65  # of a learned weight's path
NUM_ENTRIES = 4  # of the kernel whose path is kept


class Attempt:
    """A training that goes on from its checkpoint, if there is one, and writes its own files.

    Raises ValueError for a damaged checkpoint or data file, OSError if something cannot be written.
    """

    def __init__(self, config: JobConfig, job: str, paths: Paths, run: RunSettings, alone: bool = True):
        self.config, self.job, self.paths = config, job, paths
        self.training = Training(config, job, run)
        state = checkpoint.load(paths.resume(job), config)
        if state is not None:
            self._restore(state, run, alone)
        self.version = commit()  # now: git may be slow, and what is trained is not to wait for it, or be lost by it
        self.start()

    def start(self) -> None:
        self.begun, self.started = datetime.now(UTC).isoformat(timespec="seconds"), time.monotonic()
        self.from_step = self.training.step

    def _restore(self, state: dict, run: RunSettings, alone: bool) -> None:
        self.training.restore(state)
        log.info("going on from step %d (epoch %d)", self.training.step, self.training.epoch)
        if any(record.code != code_fingerprint() for record in self.training.records):
            if self.training.finished and not alone:  # asked for because its company has changed: it is done
                log.warning("%s is finished, by other code than this; delete its folder to train it again", self.job)
                return
            if self.training.finished:  # asked for anew, with `--forcerun train`: other code, other numbers
                self.training = Training(self.config, self.job, run)
            begun = "begun again" if not self.training.step else "mixed"
            log.warning("the code has changed since the checkpoint: %s", begun)

    def save(self) -> None:
        checkpoint.save(self.paths.resume(self.job), self.config, self.training.state())
        write_records(self.paths.training_so_far(self.job), self.training.records)

    def finish(self) -> None:
        """Write all that `train` declares."""
        self.save()  # stays until the job is judged: killed before Snakemake has noted the outputs, nothing is lost
        network, paths, job, adapting = self.training.final_network(), self.paths, self.job, self.training.adapting
        checkpoint.save_model(paths.model(job), self.config, network)
        write_records(paths.weights(job), weight_paths(network, job))
        write_records(paths.decisions(job), [] if adapting is None else adapting.decisions)
        write_records(paths.training(job), self.training.records)

    def note(self, outcome, reason: str, share: int = 1) -> None:
        """The record of this attempt, as one of `share` that ran side by side."""
        attempt = AttemptRecord(
            job=self.job,
            code=code_fingerprint(),
            commit=self.version,
            host=socket.gethostname(),
            pid=os.getpid(),
            device=str(self.training.device),
            from_step=self.from_step,
            to_step=self.training.step,
            started=self.begun,
            seconds=round(time.monotonic() - self.started, 3),
            outcome=outcome,
            reason=reason,
            share=share,
        )
        with contextlib.suppress(OSError):  # a full disk has been reported already, by the error on its way
            append_record(self.paths.attempts(self.job), attempt)


@torch.no_grad()
def weight_paths(network: Network, job: str) -> list[WeightRecord]:
    """theta(t) of a few entries, evenly spread over the largest kernel of the first block; and each k of a linear
    multistep net, layer n of N at depth n / N."""
    field, code = network.fields[0], code_fingerprint()
    learnt = [(i, layer) for i, layer in enumerate(field.layers) if isinstance(layer, DepthConv | DepthLinear)]
    if not learnt:
        return []
    i, layer = max(learnt, key=lambda item: item[1].weight[0].numel())
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
