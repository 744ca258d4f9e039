"""One start of a training, and the files that it leaves: checkpoints, the model, records."""

from __future__ import annotations

import contextlib
import itertools
import logging
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import torch

from gode_core.bases import Moment
from gode_core.layers import DepthConv, DepthLinear
from gode_core.networks import Network
from pipeline import checkpoint
from pipeline.config import JobConfig
from pipeline.holder import Holder
from pipeline.lease import Lease
from pipeline.paths import Paths
from pipeline.provenance import code_fingerprint, commit
from pipeline.records import AttemptRecord, WeightRecord, append_record, read_records, write_records
from pipeline.training import RunSettings, Training

log = logging.getLogger(__name__)
NUM_DEPTHS = 65  # of a learned weight's path
MOST_FAILED = 2  # SLURM jobs of one run that raise an error before their first step,
MOST_FUTILE = 5  # or attempts that end in any way before it
NUM_ENTRIES = 4  # of the kernel whose path is kept


class Attempt:
    """A training that goes on from its checkpoint, if there is one, and writes its own files.

    Raises ValueError for a damaged checkpoint or data file, OSError if something cannot be written.
    """

    def __init__(self, config: JobConfig, job: str, paths: Paths, lease: Lease, run: RunSettings):
        self.config, self.job, self.paths, self.lease, self.run = config, job, paths, lease, run
        self.version = commit()  # now: git may be slow, and what is trained is not to wait for it, or be lost by it
        self.from_step = self.saved_step = 0
        with self._failure_noted():
            self.state = checkpoint.load(paths.resume(job), config)
        if self.state is not None:
            self.from_step = self.saved_step = self.state.get("step", 0)  # missing: it is from before there was a lease
        for former in lease.killed():
            self._note_killed(former)
        for folder in (Path(paths.state(job)), Path(paths.config(job)).parent):
            for left in folder.glob(".*.part"):  # half a file, of one who was killed over it: now it is nobody's
                left.unlink(missing_ok=True)

    def build(self) -> None:
        """The network and its data, as far as they were trained. Many a training runs out of memory here: what is to
        be said of those before it has been said."""
        with self._failure_noted():
            self.training = Training(self.config, self.job, self.run)
            if self.state is not None:
                self._restore(self.state)
        self.state = None

    def start(self, share: int = 1) -> None:
        self.from_step = self.saved_step = self.training.step
        self.lease.start(from_step=self.from_step, share=share, device=str(self.training.device))

    def _restore(self, state: dict) -> None:
        self.training.restore(state)
        log.info("going on from step %d (epoch %d)", self.training.step, self.training.epoch)
        if any(record.code != code_fingerprint() for record in self.training.records):
            if self.training.finished:  # asked for anew, with `--forcerun train`: other code, other numbers
                self.training = Training(self.config, self.job, self.run)
            begun = "begun again" if not self.training.step else "mixed"
            log.warning("the code has changed since the checkpoint: %s", begun)

    def save(self) -> None:
        checkpoint.save(self.paths.resume(self.job), self.config, self.training.state() | {"step": self.training.step})
        write_records(self.paths.training_so_far(self.job), self.training.records)
        self.saved_step = self.training.step

    def finish(self) -> None:
        """Write all that `train` declares."""
        self.save()  # stays until the job is judged: killed before Snakemake has noted the outputs, nothing is lost
        network, paths, job, adapting = self.training.final_network(), self.paths, self.job, self.training.adapting
        checkpoint.save_model(paths.model(job), self.config, network)
        write_records(paths.weights(job), weight_paths(network, job))
        write_records(paths.decisions(job), [] if adapting is None else adapting.decisions)
        write_records(paths.training(job), self.training.records)

    def check_progress(self) -> None:
        """Raises ValueError if the attempts of this campaign have come to nothing: another would cost as much again."""
        name = self.lease.holder.campaign
        if not name:  # outside SLURM each start is a person's own
            return
        same = [record for record in self._noted() if record.campaign == name]
        futile = list(itertools.takewhile(_is_futile, reversed(same)))
        failed = {attempt.slurm_job for attempt in futile if attempt.outcome == "failed"}  # in a stack, then alone: one
        if len(failed) >= MOST_FAILED or len(futile) >= MOST_FUTILE:
            last = futile[0]
            raise ValueError(
                f"{self.job}: {len(futile)} attempts without a step forward, the last on {last.host}: {last.outcome}, "
                f"{last.reason}; `python -m pipeline.why {self.job}` says more, and a new run tries again"
            )

    def _noted(self) -> list[AttemptRecord]:
        """The attempts so far. A row that a full disk has cut off is no reason not to train."""
        file = Path(self.paths.attempts(self.job))
        try:
            return read_records(AttemptRecord, file) if file.exists() else []
        except ValueError as error:
            log.warning("former attempts do not count: %s", error)
            return []

    def note(self, outcome, reason: str) -> None:
        """The record of this attempt. Its steps are those that are kept: up to the last checkpoint. None if another has
        taken over, and has recorded it as killed, or is about to."""
        holder = replace(self.lease.holder, seconds=self.lease.seconds)
        if not self._is_noted(holder) and holder.token not in {former.token for former in self.lease.killed()}:
            self._note(holder, outcome, reason, self.version, self.from_step)

    def _note_killed(self, former: Holder) -> None:
        """The record of an attempt before this one, which could not write it: its process was ended at once."""
        if not self._is_noted(former):
            from_step = self.saved_step if former.from_step is None else former.from_step
            reason = f"no sign of life after {former.seconds:.0f} s"
            self._note(former, "killed", reason, "unknown", from_step)
        self.lease.forget(former)

    def _is_noted(self, holder: Holder) -> bool:
        key = holder.host, holder.pid, holder.started
        return any((record.host, record.pid, record.started) == key for record in self._noted())

    @contextlib.contextmanager
    def _failure_noted(self) -> Iterator[None]:
        try:
            yield
        except BaseException as error:
            self.note("failed", f"{type(error).__name__}: {error}")
            raise

    def _note(self, holder: Holder, outcome, reason: str, version: str, from_step: int) -> None:
        attempt = AttemptRecord(
            job=self.job,
            code=holder.code,
            commit=version,
            host=holder.host,
            pid=holder.pid,
            device=holder.device,
            from_step=from_step,
            to_step=self.saved_step,
            started=holder.started,
            seconds=holder.seconds,
            outcome=outcome,
            reason=reason,
            share=holder.share,
            threads=holder.threads,
            slurm_job=holder.slurm_job,
            campaign=holder.campaign,
            gpus=holder.gpus,
            torch="" if outcome == "killed" else str(torch.__version__),
        )
        with contextlib.suppress(OSError):  # a full disk has been reported already, by the error on its way
            append_record(self.paths.attempts(self.job), attempt)


def _is_futile(attempt: AttemptRecord) -> bool:
    return attempt.outcome != "finished" and attempt.to_step <= attempt.from_step


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
