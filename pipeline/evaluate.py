"""One trained model under many solvers -> a row each, and a verdict: is it an ODE?

    python -m pipeline.evaluate EXPERIMENT results/jobs/JOB/config.json [--data data] [--device auto] [--threads 1]

The data is read once: each batch goes through every solver before the next one is made.
"""

from __future__ import annotations

import argparse
import logging
import math
import time
from collections import Counter
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from gode_core.networks import Network, Prediction
from gode_core.solvers import Layers, Solver, parse_solver
from pipeline import checkpoint, stage
from pipeline.build import build_network
from pipeline.config import JobConfig, load_job
from pipeline.data import evaluation_batches, load_split
from pipeline.device import choose_device, set_threads
from pipeline.experiment import Judging, load_experiment
from pipeline.finished import is_judged
from pipeline.paths import Paths
from pipeline.provenance import code_fingerprint
from pipeline.records import EvaluationRecord, Status, TrainingRecord, read_records, replace_file, write_records
from pipeline.verdicts import Geometry, Shares, geometry_of, verdict_of

log = logging.getLogger(__name__)
GIVEN_UP = ("budget", "underflow", "unconverged")
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
    lost: int = 0
    gained: int = 0
    limit_gap_sum: float = 0.0
    accepted: int = 0
    rejected: int = 0
    batches: int = 0
    seconds: float = 0.0
    status: Status = "ok"
    given_up: bool = False  # a sample was not followed to t = 1, nor to where it leaves the numbers
    classes: Counter[int] = field(default_factory=Counter)  # samples of each

    def add(self, judged: Judged, trained: Judged, limit: Judged, labels: Tensor) -> None:
        """trained, limit: under the training solver, and the one that stands for h -> 0. A sample whose solve failed
        counts as wrong, agrees with none, and is infinitely far from all: what was reached of it are no logits."""
        prediction, good = judged.prediction, judged.good
        logits, right = judged.logits, judged.right(labels)
        gap, limit_gap = judged.gap(trained), judged.gap(limit).mean(1)
        self.samples += len(labels)
        self.failed += int((~good).sum())
        self.correct += int(right.sum())
        self.agreed += int(((logits.argmax(1) == trained.logits.argmax(1)) & good & trained.good).sum())
        self.lost += int((trained.right(labels) & ~right).sum())
        self.gained += int((right & ~trained.right(labels)).sum())
        self.loss += F.cross_entropy(logits, labels, reduction="sum").item()
        self.gap_max = max(self.gap_max, gap.max().item())
        self.gap_sum += gap.mean(1).sum().item()
        self.limit_gap_sum += limit_gap.sum().item()
        self.evals += sum(solution.num_evals for solution in prediction.solutions)
        self.accepted += sum(solution.num_accepted for solution in prediction.solutions)
        self.rejected += sum(solution.num_rejected for solution in prediction.solutions)
        self.batches += 1
        self.seconds += judged.seconds
        self.classes.update(labels.tolist())
        found = [solution.status for solution in prediction.solutions]
        self.given_up |= any(status in GIVEN_UP for status in found)
        self.status = max([self.status, *found], key=SEVERITY.index)

    @property
    def limit_gap(self) -> float | None:
        """Mean |logit - logit in the limit|; None if it is not finite."""
        gap = self.limit_gap_sum / self.samples
        return gap if math.isfinite(gap) else None


class Judged:
    """A prediction, and the seconds that it took."""

    def __init__(self, prediction: Prediction, seconds: float):
        self.prediction, self.seconds = prediction, seconds
        self.logits = prediction.logits.float()
        self.good = _good(prediction)

    def right(self, labels: Tensor) -> Tensor:
        """(B,) bool."""
        return (self.logits.argmax(1) == labels) & self.good

    def gap(self, other: Judged) -> Tensor:
        """(B, classes): |logit - logit of the other|."""
        both = (self.good & other.good)[:, None]
        return (self.logits - other.logits).abs().where(both, torch.inf)


def _good(prediction: Prediction) -> Tensor:
    """(B,) bool: the samples whose solve ended, with finite logits."""
    ended = all(solution.stopped is None for solution in prediction.solutions)
    return torch.isfinite(prediction.logits).all(1) & ended


@torch.no_grad()
def evaluate(network: Network, own: Solver, limit: Solver, solvers: list[Solver], batches, max_steps: int):
    """A tally for each solver, in the order of `solvers`, over all batches of (images, labels). Those of the training
    solver `own` and of the limit are among them, whether they are asked for or not."""
    tallies = {solver: Tally() for solver in (*solvers, own, limit)}
    network.eval()
    for number, (images, labels) in enumerate(batches):
        if number == 0:  # what a solver does once (imports, tables) is no part of its time
            for solver in tallies:
                network.predict(images[:1], solver, max_steps=1)
        references = {solver: _judge(network, images, solver, max_steps) for solver in dict.fromkeys((own, limit))}
        for solver, tally in tallies.items():
            judged = references.get(solver) or _judge(network, images, solver, max_steps)
            tally.add(judged, references[own], references[limit], labels)
    return tallies


def _judge(network: Network, images: Tensor, solver: Solver, max_steps: int) -> Judged:
    started = _now(images.device)
    prediction = network.predict(images, solver, max_steps=max_steps)
    return Judged(prediction, _now(images.device) - started)


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
        num_lost=tally.lost,
        num_gained=tally.gained,
        limit_gap=tally.limit_gap,
    )


def judge(config: JobConfig, job: str, judging: Judging, paths: Paths, data_root: str, device: torch.device) -> None:
    """Evaluate one job and write its rows."""
    network = build_network(config)
    checkpoint.load_model(paths.model(job), network)
    network.to(device)
    split = load_split(config.data, judging.split, data_root)
    if not len(split):
        raise ValueError(f"evaluate_with: split: {job} has no {judging.split} images; set data: num_validation")
    batches = partial(evaluation_batches, split, config.data, device=device)
    own = trained_with(config, job, paths)
    asked = [parse_solver(text) for text in judging.solvers_of(config)]
    recorded = asked if config.train.adapt is None or own in asked else [*asked, own]
    limit = own if isinstance(own, Layers) else parse_solver(judging.finest)
    tallies = evaluate(network, own, limit, recorded, batches(batch_size=judging.batch_size), judging.max_steps)
    records = [to_record(tallies[solver], job, solver, judging) for solver in recorded]
    for record in records:
        log.info(
            "%-24s accuracy %.4f  agreement %.4f  %s", record.solver, record.accuracy, record.agreement, record.status
        )
    verdicts, geometry = [], Geometry(Shares(), [])
    if not isinstance(own, Layers):  # between the layers of a discrete net is no path
        some = next(batches(batch_size=max(1, judging.num_paths)))
        geometry = geometry_of(network, config, own, judging, some, job)
        by_name = {str(solver): tally for solver, tally in tallies.items()}
        verdicts = [verdict_of(by_name, str(own), judging, geometry, job)]
        log.info("%s: %s", verdicts[0].verdict, verdicts[0].reason)
    write_records(paths.validity(job, judging.id), verdicts)
    write_records(paths.trajectories(job, judging.id), geometry.drawn)
    write_records(paths.evaluation(job, judging.id), records)
    forget(job, paths)


def trained_with(config: JobConfig, job: str, paths: Paths) -> Solver:
    """The solver of the training, at its end."""
    if config.train.adapt is None:
        return config.train.parsed_solver
    last = read_records(TrainingRecord, paths.training(job))[-1]
    return parse_solver(last.solver or config.train.solver)


def forget(job: str, paths: Paths) -> None:
    """Delete what a resume would need: the training is over, and its files are noted."""
    Path(paths.resume(job)).unlink(missing_ok=True)
    Path(paths.training_so_far(job)).unlink(missing_ok=True)


def main(arguments: argparse.Namespace) -> None:
    code_fingerprint()  # taken now: what is edited while this runs made none of its numbers
    judging = load_experiment(arguments.experiment).evaluate_with
    set_threads(arguments.threads)
    device = choose_device(arguments.device)
    for file in arguments.configs:
        paths, job = Paths.of_config(file)
        if arguments.done and is_judged(job, judging.id, paths):
            log.info("%s is judged already", job)
            continue
        judge(load_job(file, job), job, judging, paths, arguments.data, device)
    if arguments.done:
        replace_file(arguments.done, b"")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("experiment", help="the experiment file that says with which solvers")
    parser.add_argument("configs", nargs="+", metavar="CONFIG", help="config.json of trained jobs")
    parser.add_argument("--done", metavar="FILE", help="judge what is not yet judged; written when all are")
    parser.add_argument("--data", default="data", help="root of the data sets (default: data)")
    parser.add_argument("--device", default="auto", help="cpu, cuda, cuda:1 ...; auto takes a GPU if there is one")
    parser.add_argument("--threads", type=int, default=1, help="threads of this job (default: 1)")
    stage.run(main, parser)
