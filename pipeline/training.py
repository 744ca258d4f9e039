"""A training under way: its place in the data, what happens in a step and in an epoch, and the state that a resume
needs. What learns meanwhile is a `Learner`, another one in each phase."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from gode_core.integrate import SolveFailed
from gode_core.networks import Network
from pipeline.adapt import Answer
from pipeline.adapting import Adapting
from pipeline.build import learning_rate
from pipeline.config import JobConfig
from pipeline.data import Split, evaluation_batches, load_split, num_batches, training_batches
from pipeline.device import choose_device
from pipeline.learner import Learner
from pipeline.provenance import code_fingerprint
from pipeline.records import Status, TrainingRecord
from pipeline.train_config import Phase

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class RunSettings:
    """How a job is run: nothing here changes what it is."""

    data_root: str = "data"
    device: str = "auto"
    compile: bool = False
    checkpoint_seconds: float = 60.0
    checkpoint_epochs: int = 0  # 0: by time alone
    threads: int = 1
    slurm_job: str = ""
    campaign: str = ""
    gpus: float = 1.0  # of one, where it is on one


@dataclass
class Sums:
    """Of the epoch so far, over its images. What is on the device stays there until it is asked for."""

    device: Tensor  # (4,) float64: loss, hits, kinetic energy, Jacobian norm
    images: int = 0
    evals: int = 0
    batches: int = 0
    check_evals: int = 0


class Training:
    """Its learner and solver, its place in the data, sums and rows so far. `state` and `restore` are inverse."""

    def __init__(self, config: JobConfig, job: str, run: RunSettings):
        self.config, self.job, self.run = config, job, run
        self.device = choose_device(run.device)
        self.split = load_split(config.data, "train", run.data_root).near(self.device)
        self.validation: Split | None = None
        if config.data.num_validation:
            self.validation = load_split(config.data, "validation", run.data_root).near(self.device)
        self._begin(config.phase(0))
        self.adapting: Adapting | None = None
        if config.train.adapt is not None:
            self.adapting = Adapting(config, job, self.validation, self.device)
        self.steps_per_epoch = num_batches(len(self.split), config.train.batch_size, config.train.drop_last)
        if not self.steps_per_epoch:
            size, images = config.train.batch_size, len(self.split)
            raise ValueError(f"train: batch_size {size} with drop_last leaves no batch of {images} images")
        self.epoch = self.batch = 0
        self.status: Status = "ok"
        self.lr = 0.0
        self.sums = self._no_sums()
        self.records: list[TrainingRecord] = []
        self.converted: dict[str, float | None] = {}  # of the last change of phase, until it is recorded

    def _begin(self, phase: Phase) -> None:
        self.learner = Learner(self.config, phase, self.device, self.run.compile)
        self.solver = phase.parsed_solver

    def _no_sums(self) -> Sums:
        return Sums(torch.zeros(4, dtype=torch.float64, device=self.device))

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
            "network": self.learner.network.state_dict(),
            "optimiser": self.learner.optimiser.state_dict(),
            "place": [self.epoch, self.batch],
            "phase": self.learner.phase.until,
            "status": self.status,
            "lr": self.lr,
            "sums": [*sums.device.tolist(), sums.images, sums.evals, sums.batches, sums.check_evals],
            "records": [vars(record) for record in self.records],
            "converted": self.converted,
            "adapting": None if self.adapting is None else self.adapting.state(),
        }

    def restore(self, state: dict[str, Any]) -> None:
        if state["phase"] != self.learner.phase.until:
            self._begin(self.config.phase(state["phase"] - 1))
        self.learner.network.load_state_dict(state["network"])
        self.learner.optimiser.load_state_dict(state["optimiser"])
        self.epoch, self.batch = state["place"]
        self.status = state["status"]
        self.lr = state["lr"]
        found, counts = state["sums"][:4], state["sums"][4:]
        self.sums = Sums(torch.tensor(found, dtype=torch.float64, device=self.device), *counts)
        self.records = [TrainingRecord(**row) for row in state["records"]]
        self.converted = state["converted"]
        if self.adapting is not None:
            self.adapting.restore(state["adapting"])
            self.solver = self.adapting.solver

    def settle(self) -> None:
        """All that the training knows is where `state` finds it, already."""

    def run_epoch(self, after_step: Callable[[], bool]) -> bool:
        """Train to the end of the epoch. False if `after_step()` asked to stop before it."""
        if self.config.phase(self.epoch) != self.learner.phase:
            self._convert()
        self.learner.network.train()
        for images, labels in self.batches():
            if self.status == "ok":  # else the conversion has failed
                self.status = self._train_on(images, labels)
            if self.status != "ok":
                break
            self.batch += 1
            if after_step():
                return False  # after the last batch too: a resume then finds none left and ends the epoch
        self.end_epoch()
        return True

    def batches(self) -> Iterator[tuple[Tensor, Tensor]]:
        """What is left of the epoch."""
        train = self.config.train
        return training_batches(
            self.split,
            self.config.data,
            seed=self.config.seed,
            epoch=self.epoch,
            batch_size=train.batch_size,
            drop_last=train.drop_last,
            device=self.device,
            first=self.batch,
        )

    def set_rate(self) -> None:
        """The learning rate, and the weight decay, of the step that comes."""
        self.lr = learning_rate(self.config.train, self.step, self.steps_per_epoch)
        groups = self.learner.optimiser.param_groups
        for group in groups:
            group["lr"] = self.lr
        _, groups[0]["weight_decay"] = self.config.train.base_rates(self.epoch)

    def _train_on(self, images: Tensor, labels: Tensor) -> Status:
        """One optimiser step, unless something is not finite: then weights stay as they were."""
        train, sums = self.config.train, self.sums
        learner, network = self.learner, self.learner.network
        self.set_rate()
        learner.optimiser.zero_grad()
        if self.adapting is not None and self.step == 0:
            sums.check_evals += self.adapting.begin(network, images)
            self.solver = self.adapting.solver
        try:
            solved = learner.solve(images, self.solver, learner.generator(self.epoch, self.batch))
            loss = F.cross_entropy(solved.logits.float(), labels, label_smoothing=train.label_smoothing)
            total = loss + train.kinetic * solved.kinetic + train.jacobian * solved.jacobian
            total.backward()
        except SolveFailed as failure:
            return failure.status
        gradients = [p.grad for p in network.parameters() if p.grad is not None]
        norm = torch.nn.utils.get_total_norm(gradients)
        if not bool(torch.isfinite(norm + total)):  # the one host read of a step
            return "nonfinite"
        if self.adapting is not None:
            trained = Answer(solved.logits.detach().float(), labels, solved.num_evals)
            if self.step + 1 < train.epochs * self.steps_per_epoch:  # what is judged is what was trained with
                sums.check_evals += self.adapting.after_step(network, (images, labels), trained, self.step)
                self.solver = self.adapting.solver
        if train.clip_norm is not None:
            torch.nn.utils.clip_grads_with_norm_(network.parameters(), train.clip_norm, norm)
        learner.optimiser.step()
        hits = (solved.logits.detach().argmax(1) == labels).sum()
        means = torch.stack(
            [loss.detach(), hits / len(labels), *(t.detach() for t in (solved.kinetic, solved.jacobian))]
        )
        sums.device += means.double() * len(labels)
        sums.images += len(labels)
        sums.evals += solved.num_evals
        sums.batches += 1
        return "ok"

    def _convert(self) -> None:
        """Go on in the phase that now begins, with the weights and the optimiser's state of the last one."""
        learner, solver = self.learner, self.solver
        self._begin(self.config.phase(self.epoch))
        error = self.learner.take_over(learner)
        loss, accuracy = self._validate()
        self.converted = {"converted_loss": loss, "converted_accuracy": accuracy, "converted_error": error}
        text = "%s -> %s: at once loss - / %s  accuracy - / %s, error of the weights %.2g"
        log.info(text, solver, self.solver, _show(loss), _show(accuracy), error)

    def final_network(self) -> Network:
        """The network on the basis of the last phase, even if the training stopped in an earlier one."""
        return self.learner.network_in(self.config.phase(self.config.train.epochs))

    def end_epoch(self) -> None:
        if self.status == "ok":
            self.epoch, self.batch = self.epoch + 1, 0
        train = self.config.train
        last = self.finished or self.epoch in [phase.until for phase in train.phases]
        if last or self.epoch % train.record_every == 0:
            self.records.append(self._record())
            self.converted = {}
            log.info("%s", self._line(self.records[-1]))
        self.sums = self._no_sums()

    def _record(self) -> TrainingRecord:
        sums, train = self.sums, self.config.train
        means = (sums.device / max(sums.images, 1)).tolist() if sums.images else [None] * 4
        loss, accuracy = self._validate()
        return TrainingRecord(
            job=self.job,
            code=code_fingerprint(),
            epoch=self.epoch,
            step=self.step,
            lr=self.lr,
            train_loss=means[0],
            train_accuracy=means[1],
            validation_loss=loss,
            validation_accuracy=accuracy,
            num_evals=sums.evals / max(sums.batches, 1),
            status=self.status,
            solver=str(self.solver),
            num_coefficients=self.config.basis_of(self.learner.phase).num_coefficients,
            **self.converted,
            kinetic=means[2] if train.kinetic else None,
            jacobian=means[3] if train.jacobian else None,
            check_evals=sums.check_evals / max(sums.batches, 1) if train.adapt else None,
        )

    def _validate(self) -> tuple[float | None, float | None]:
        """Loss and accuracy. What is not finite there, or a solve that fails, ends the training."""
        if self.validation is None:
            return None, None
        batches = evaluation_batches(self.validation, self.config.data, batch_size=1000, device=self.device)
        try:
            loss, hits = self.learner.judge(batches, self.solver)
        except SolveFailed as failure:
            self.status = failure.status
            return None, None
        if not math.isfinite(loss) and self.status == "ok":
            self.status = "nonfinite"
        return loss / len(self.validation), hits / len(self.validation)

    def _line(self, record: TrainingRecord) -> str:
        losses = f"loss {_show(record.train_loss)} / {_show(record.validation_loss)}"
        accuracies = f"accuracy {_show(record.train_accuracy)} / {_show(record.validation_accuracy)}"
        return f"epoch {record.epoch}/{self.config.train.epochs}  {losses}  {accuracies}  {record.status}"


def _show(x: float | None) -> str:
    return "-" if x is None else f"{x:.4f}"
