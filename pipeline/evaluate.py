"""One trained model under many solvers -> a row each.

    python -m pipeline.evaluate EXPERIMENT results/jobs/JOB/config.json [--data data] [--device auto] [--threads 1]

The data is read once: each batch goes through every solver before the next one is made.
"""

from __future__ import annotations

import argparse
import logging
import time
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from gode_core.networks import Network, Prediction
from gode_core.solvers import Solver, parse_solver
from pipeline import checkpoint, stage
from pipeline.build import build_network
from pipeline.config import JobConfig, load_job
from pipeline.data import evaluation_batches, load_split
from pipeline.device import choose_device, set_threads
from pipeline.experiment import Judging, load_experiment
from pipeline.paths import Paths
from pipeline.provenance import code_fingerprint
from pipeline.records import EvaluationRecord, Status, write_records

log = logging.getLogger(__name__)
SEVERITY: tuple[Status, ...] = ("ok", "unconverged", "budget", "underflow", "nonfinite")


@dataclass
class Tally:
    """One solver's sums over the batches so far."""

    samples: int = 0
    failed: int = 0
    correct: int = 0
    agreed: int = 0
    loss: float = 0.0
    gap_max: float = 0.0
    gap_sum: float = 0.0
    evals: int = 0
    accepted: int = 0
    rejected: int = 0
    batches: int = 0
    seconds: float = 0.0
    status: Status = "ok"

    def add(self, prediction: Prediction, trained: Prediction, labels: Tensor, seconds: float) -> None:
        """`trained`: under the training solver. A sample whose solve failed counts as wrong, and agrees with none."""
        logits = prediction.logits.float()
        statuses = [solution.status for solution in prediction.solutions]
        good, comparable = _good(prediction), _good(trained)
        predicted, gap = logits.argmax(1), (logits - trained.logits.float()).abs()
        self.samples += len(labels)
        self.failed += int((~good).sum())
        self.correct += int(((predicted == labels) & good).sum())
        self.agreed += int(((predicted == trained.logits.argmax(1)) & good & comparable).sum())
        self.loss += F.cross_entropy(logits, labels, reduction="sum").item()
        self.gap_max = max(self.gap_max, gap.nan_to_num(torch.inf).max().item())
        self.gap_sum += gap.mean(1).sum().item()
        self.evals += sum(solution.num_evals for solution in prediction.solutions)
        self.accepted += sum(solution.num_accepted for solution in prediction.solutions)
        self.rejected += sum(solution.num_rejected for solution in prediction.solutions)
        self.batches += 1
        self.seconds += seconds
        self.status = max([self.status, *statuses], key=SEVERITY.index)


def _good(prediction: Prediction) -> Tensor:
    """(B,) bool: the samples whose solve ended, with finite logits."""
    ended = all(solution.stopped is None for solution in prediction.solutions)
    return torch.isfinite(prediction.logits).all(1) & ended


@torch.no_grad()
def evaluate(network: Network, trained_with: Solver, solvers: list[Solver], batches, max_steps: int) -> list[Tally]:
    """A tally for each solver, over all batches of (images, labels)."""
    tallies = [Tally() for _ in solvers]
    network.eval()
    for number, (images, labels) in enumerate(batches):
        if number == 0:  # what a solver does once (imports, tables) is no part of its time
            for solver in solvers:
                network.predict(images[:1], solver, max_steps=1)
        trained = network.predict(images, trained_with, max_steps=max_steps)
        for solver, tally in zip(solvers, tallies):
            started = _now(images.device)
            prediction = network.predict(images, solver, max_steps=max_steps)
            tally.add(prediction, trained, labels, _now(images.device) - started)
    return tallies


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def to_record(tally: Tally, job: str, solver: Solver, judging: Judging) -> EvaluationRecord:
    n = tally.samples
    whole = tally.failed == 0
    return EvaluationRecord(
        job=job,
        code=code_fingerprint(),
        solver=str(solver),
        split=judging.split,
        num_samples=n,
        num_failed=tally.failed,
        accuracy=tally.correct / n,
        loss=tally.loss / n if whole else None,
        agreement=tally.agreed / n,
        logit_gap_max=tally.gap_max if whole else None,
        logit_gap_mean=tally.gap_sum / n if whole else None,
        num_evals=tally.evals / tally.batches,
        num_accepted=tally.accepted / tally.batches,
        num_rejected=tally.rejected / tally.batches,
        seconds=tally.seconds,
        status=tally.status,
    )


def judge(config: JobConfig, job: str, judging: Judging, paths: Paths, data_root: str, device: torch.device) -> None:
    """Evaluate one job and write its rows."""
    network = build_network(config)
    checkpoint.load_model(paths.model(job), network)
    network.to(device)
    split = load_split(config.data, judging.split, data_root)
    if not len(split):
        raise ValueError(f"evaluate_with: split: {job} has no {judging.split} images; set data: num_validation")
    batches = evaluation_batches(split, config.data, batch_size=judging.batch_size, device=device)
    solvers = [parse_solver(text) for text in judging.solvers_of(config)]
    tallies = evaluate(network, config.train.parsed_solver, solvers, batches, judging.max_steps)
    records = [to_record(tally, job, solver, judging) for solver, tally in zip(solvers, tallies)]
    for record in records:
        log.info(
            "%-24s accuracy %.4f  agreement %.4f  %s", record.solver, record.accuracy, record.agreement, record.status
        )
    write_records(paths.evaluation(job, judging.id), records)
    for path in (paths.resume(job), paths.training_so_far(job)):  # the training is over, and its files are noted
        Path(path).unlink(missing_ok=True)


def main(arguments: argparse.Namespace) -> None:
    judging = load_experiment(arguments.experiment).evaluate_with
    set_threads(arguments.threads)
    device = choose_device(arguments.device)
    for file in arguments.configs:
        paths, job = Paths.of_config(file)
        judge(load_job(file, job), job, judging, paths, arguments.data, device)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("experiment", help="the experiment file that says with which solvers")
    parser.add_argument("configs", nargs="+", metavar="CONFIG", help="config.json of trained jobs")
    parser.add_argument("--data", default="data", help="root of the data sets (default: data)")
    parser.add_argument("--device", default="auto", help="cpu, cuda, cuda:1 ...; auto takes a GPU if there is one")
    parser.add_argument("--threads", type=int, default=1, help="threads of this job (default: 1)")
    stage.run(main, parser)
