"""A training under way: what happens in a step and in an epoch, and the state that a resume needs."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from gode_core.integrate import SolveFailed
from gode_core.solvers import Fixed
from pipeline.build import build_network, build_optimiser, learning_rate
from pipeline.config import JobConfig
from pipeline.data import Split, evaluation_batches, load_split, num_batches, training_batches
from pipeline.device import choose_device
from pipeline.provenance import code_fingerprint
from pipeline.records import Status, TrainingRecord

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class RunSettings:
    """How a job is run: nothing here changes what it is."""

    data_root: str = "data"
    device: str = "auto"
    compile: bool = False
    checkpoint_seconds: float = 60.0
    checkpoint_epochs: int = 0  # 0: by time alone


@dataclass
class Sums:
    """Of the epoch so far. Loss and hits stay on the device until they are asked for."""

    loss: Tensor
    correct: Tensor
    images: int = 0
    evals: int = 0
    batches: int = 0


class Training:
    """A training under way: weights, optimiser, place in the data, rows so far. `state` and `restore` are inverse."""

    def __init__(self, config: JobConfig, job: str, run: RunSettings):
        self.config, self.job, self.run = config, job, run
        self.device = choose_device(run.device)
        self.split = load_split(config.data, "train", run.data_root).near(self.device)
        self.validation: Split | None = None
        if config.data.num_validation:
            self.validation = load_split(config.data, "validation", run.data_root).near(self.device)
        self.network = build_network(config).to(self.device)
        self.optimiser = build_optimiser(self.network, config.train)
        self.solver = config.train.parsed_solver
        self.forward: Callable = self.network
        if run.compile and isinstance(self.solver, Fixed):
            self.network.prepare(self.solver, config.train.gradient)
            self.forward = torch.compile(self.network, fullgraph=True)
        self.steps_per_epoch = num_batches(len(self.split), config.train.batch_size, config.train.drop_last)
        if not self.steps_per_epoch:
            size, images = config.train.batch_size, len(self.split)
            raise ValueError(f"train: batch_size {size} with drop_last leaves no batch of {images} images")
        self.epoch = self.batch = 0
        self.status: Status = "ok"
        self.lr = 0.0
        self.sums = self._no_sums()
        self.records: list[TrainingRecord] = []

    def _no_sums(self) -> Sums:
        zeros = torch.zeros(2, dtype=torch.float64, device=self.device)
        return Sums(zeros[0], zeros[1])

    @property
    def step(self) -> int:
        return self.epoch * self.steps_per_epoch + self.batch

    @property
    def finished(self) -> bool:
        return self.epoch == self.config.train.epochs or self.status != "ok"

    def state(self) -> dict[str, Any]:
        """Tensors and plain data. Batches and augmentation are functions of (seed, epoch, batch): no generator."""
        sums = self.sums
        return {
            "network": self.network.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "place": [self.epoch, self.batch],
            "status": self.status,
            "lr": self.lr,
            "sums": [sums.loss.item(), sums.correct.item(), sums.images, sums.evals, sums.batches],
            "records": [vars(record) for record in self.records],
        }

    def restore(self, state: dict[str, Any]) -> None:
        self.network.load_state_dict(state["network"])
        self.optimiser.load_state_dict(state["optimiser"])
        self.epoch, self.batch = state["place"]
        self.status = state["status"]
        self.lr = state["lr"]
        loss, correct, *counts = state["sums"]
        self.sums = self._no_sums()
        self.sums.loss += loss
        self.sums.correct += correct
        self.sums.images, self.sums.evals, self.sums.batches = counts
        self.records = [TrainingRecord(**row) for row in state["records"]]

    def run_epoch(self, after_step: Callable[[], bool]) -> bool:
        """Train to the end of the epoch. False if `after_step()` asked to stop before it."""
        train = self.config.train
        batches = training_batches(
            self.split,
            self.config.data,
            seed=self.config.seed,
            epoch=self.epoch,
            batch_size=train.batch_size,
            drop_last=train.drop_last,
            device=self.device,
            first=self.batch,
        )
        self.network.train()
        for images, labels in batches:
            self.status = self._train_on(images, labels)
            if self.status != "ok":
                break
            self.batch += 1
            if after_step():
                return False  # after the last batch too: a resume then finds none left and ends the epoch
        self._end_epoch()
        return True

    def _train_on(self, images: Tensor, labels: Tensor) -> Status:
        """One optimiser step, unless something is not finite: then weights stay as they were."""
        train, sums = self.config.train, self.sums
        self.lr = learning_rate(train, self.step, self.steps_per_epoch)
        for group in self.optimiser.param_groups:
            group["lr"] = self.lr
        self.optimiser.zero_grad()
        try:
            logits, evals = self._solve(images)
            loss = F.cross_entropy(logits.float(), labels, label_smoothing=train.label_smoothing)
            loss.backward()
        except SolveFailed as failure:
            return failure.status
        gradients = [p.grad for p in self.network.parameters() if p.grad is not None]
        norm = torch.nn.utils.get_total_norm(gradients)
        if not bool(torch.isfinite(norm + loss)):  # the one host read of a step
            return "nonfinite"
        if train.clip_norm is not None:
            torch.nn.utils.clip_grads_with_norm_(self.network.parameters(), train.clip_norm, norm)
        self.optimiser.step()
        sums.loss += loss.detach() * len(labels)
        sums.correct += (logits.detach().argmax(1) == labels).sum()
        sums.images += len(labels)
        sums.evals += evals
        sums.batches += 1
        return "ok"

    def _solve(self, images: Tensor) -> tuple[Tensor, int]:
        """Logits (B, classes) under the training solver, and the field evaluations. Raises SolveFailed."""
        train = self.config.train
        with torch.autocast(self.device.type, torch.bfloat16, enabled=train.autocast == "bf16"):
            if isinstance(self.solver, Fixed):
                logits = self.forward(images, self.solver, train.gradient)
                return logits, self.solver.num_evals * len(self.network.fields)
            prediction = self.network.predict(images, self.solver, train.gradient)
        for solution in prediction.solutions:
            if solution.status != "ok":
                raise SolveFailed(solution.status, solution.t)
        return prediction.logits, sum(solution.num_evals for solution in prediction.solutions)

    def _end_epoch(self) -> None:
        if self.status == "ok":
            self.epoch, self.batch = self.epoch + 1, 0
        if self.epoch % self.config.train.record_every == 0 or self.finished:
            self.records.append(self._record())
            log.info("%s", self._line(self.records[-1]))
        self.sums = self._no_sums()

    def _record(self) -> TrainingRecord:
        sums = self.sums
        loss, accuracy = self._validate()
        return TrainingRecord(
            job=self.job,
            code=code_fingerprint(),
            epoch=self.epoch,
            step=self.step,
            lr=self.lr,
            train_loss=sums.loss.item() / sums.images if sums.images else None,
            train_accuracy=sums.correct.item() / sums.images if sums.images else None,
            validation_loss=loss,
            validation_accuracy=accuracy,
            num_evals=sums.evals / max(sums.batches, 1),
            status=self.status,
        )

    @torch.no_grad()
    def _validate(self) -> tuple[float | None, float | None]:
        """Loss and accuracy. What is not finite there, or a solve that fails, ends the training."""
        if self.validation is None:
            return None, None
        self.network.eval()
        loss = correct = 0.0
        for images, labels in evaluation_batches(
            self.validation, self.config.data, batch_size=1000, device=self.device
        ):
            try:
                logits = self._solve(images)[0].float()
            except SolveFailed as failure:
                self.status = failure.status
                return None, None
            loss += F.cross_entropy(logits, labels, reduction="sum").item()
            correct += (logits.argmax(1) == labels).sum().item()
        if not math.isfinite(loss) and self.status == "ok":
            self.status = "nonfinite"
        return loss / len(self.validation), correct / len(self.validation)

    def _line(self, record: TrainingRecord) -> str:
        def show(x: float | None) -> str:
            return "-" if x is None else f"{x:.4f}"

        losses = f"loss {show(record.train_loss)} / {show(record.validation_loss)}"
        accuracies = f"accuracy {show(record.train_accuracy)} / {show(record.validation_accuracy)}"
        return f"epoch {record.epoch}/{self.config.train.epochs}  {losses}  {accuracies}  {record.status}"
