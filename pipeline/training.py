"""A training under way: what happens in a step and in an epoch, and the state that a resume needs."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from gode_core.conversion import carry, carry_optimiser
from gode_core.integrate import SolveFailed
from gode_core.networks import Network
from gode_core.solvers import Fixed, Layers
from pipeline.adapt import Answer
from pipeline.adapting import Adapting
from pipeline.build import build_network, build_optimiser, is_random, learning_rate
from pipeline.config import JobConfig
from pipeline.data import Split, evaluation_batches, load_split, num_batches, stream, training_batches
from pipeline.device import choose_device
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


@dataclass
class Sums:
    """Of the epoch so far, over its images. What is on the device stays there until it is asked for."""

    device: Tensor  # (4,) float64: loss, hits, kinetic energy, Jacobian norm
    images: int = 0
    evals: int = 0
    batches: int = 0
    check_evals: int = 0


@dataclass(frozen=True)
class Solved:
    """One batch through the network: logits (B, classes), field evaluations, and what the loss may add."""

    logits: Tensor
    num_evals: int
    kinetic: Tensor
    jacobian: Tensor


class Training:
    """A training under way: weights, optimiser, place in the data, rows so far. `state` and `restore` are inverse."""

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
        """The network as it is at the start of a phase, with the first weights of the job's seed."""
        self.phase, self.solver = phase, phase.parsed_solver
        self.network = build_network(self.config, phase).to(self.device)
        self.optimiser = build_optimiser(self.network, self.config)
        self.compiled: Callable | None = None
        fixed = isinstance(self.solver, Fixed | Layers) and self.config.train.adapt is None
        if self.run.compile and fixed and not is_random(self.config):
            self.network.prepare(self.solver, phase.gradient)
            self.compiled = torch.compile(self.network, fullgraph=True)

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
            "network": self.network.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "place": [self.epoch, self.batch],
            "phase": self.phase.until,
            "status": self.status,
            "lr": self.lr,
            "sums": [*sums.device.tolist(), sums.images, sums.evals, sums.batches, sums.check_evals],
            "records": [vars(record) for record in self.records],
            "converted": self.converted,
            "adapting": None if self.adapting is None else self.adapting.state(),
        }

    def restore(self, state: dict[str, Any]) -> None:
        if state["phase"] != self.phase.until:
            self._begin(self.config.phase(state["phase"] - 1))
        self.network.load_state_dict(state["network"])
        self.optimiser.load_state_dict(state["optimiser"])
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
        if self.config.phase(self.epoch) != self.phase:
            self._convert()
        self.network.train()
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

    def set_rate(self, optimiser: torch.optim.Optimizer) -> None:
        """The learning rate of the step that comes."""
        self.lr = learning_rate(self.config.train, self.step, self.steps_per_epoch)
        for group in optimiser.param_groups:
            group["lr"] = self.lr

    def _train_on(self, images: Tensor, labels: Tensor) -> Status:
        """One optimiser step, unless something is not finite: then weights stay as they were."""
        train, sums = self.config.train, self.sums
        self.set_rate(self.optimiser)
        self.optimiser.zero_grad()
        if self.adapting is not None and self.step == 0:
            sums.check_evals += self.adapting.begin(self.network, images)
            self.solver = self.adapting.solver
        try:
            solved = self._solve(images, self._generator())
            loss = F.cross_entropy(solved.logits.float(), labels, label_smoothing=train.label_smoothing)
            total = loss + train.kinetic * solved.kinetic + train.jacobian * solved.jacobian
            total.backward()
        except SolveFailed as failure:
            return failure.status
        gradients = [p.grad for p in self.network.parameters() if p.grad is not None]
        norm = torch.nn.utils.get_total_norm(gradients)
        if not bool(torch.isfinite(norm + total)):  # the one host read of a step
            return "nonfinite"
        if self.adapting is not None:
            trained = Answer(solved.logits.detach().float(), labels, solved.num_evals)
            if self.step + 1 < train.epochs * self.steps_per_epoch:  # what is judged is what was trained with
                sums.check_evals += self.adapting.after_step(self.network, (images, labels), trained, self.step)
                self.solver = self.adapting.solver
        if train.clip_norm is not None:
            torch.nn.utils.clip_grads_with_norm_(self.network.parameters(), train.clip_norm, norm)
        self.optimiser.step()
        hits = (solved.logits.detach().argmax(1) == labels).sum()
        means = torch.stack(
            [loss.detach(), hits / len(labels), *(t.detach() for t in (solved.kinetic, solved.jacobian))]
        )
        sums.device += means.double() * len(labels)
        sums.images += len(labels)
        sums.evals += solved.num_evals
        sums.batches += 1
        return "ok"

    def _generator(self) -> torch.Generator | None:
        """Of this step's random numbers: a function of (seed, step), so that a resume draws the same."""
        if not is_random(self.config):
            return None
        seed = stream(self.config.seed, "network", self.epoch, self.batch).initial_seed()
        return torch.Generator(self.device).manual_seed(seed)

    def _solve(self, images: Tensor, generator: torch.Generator | None = None) -> Solved:
        """Under the training solver. Raises SolveFailed."""
        train, nothing = self.config.train, torch.zeros((), device=self.device)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=train.autocast == "bf16"):
            if self.compiled and isinstance(self.solver, Fixed | Layers):
                logits = self.compiled(images, self.solver, self.phase.gradient)
                return Solved(logits, self.network.num_evals(self.solver), nothing, nothing)
            training = self.network.training
            prediction = self.network.predict(
                images,
                self.solver,
                self.phase.gradient,
                generator=generator,
                kinetic=training and train.kinetic > 0,
                jacobian=training and train.jacobian > 0,
                random_end=train.random_end if training else 0.0,
            )
        if not isinstance(self.solver, Fixed | Layers):  # those are checked by what follows, without a host read
            for solution in prediction.solutions:
                if solution.status != "ok":
                    raise SolveFailed(solution.status, solution.t)
        evals = sum(solution.num_evals for solution in prediction.solutions)
        kinetic, jacobian = (nothing if x is None else x for x in (prediction.kinetic, prediction.jacobian))
        return Solved(prediction.logits, evals, kinetic, jacobian)

    def _convert(self) -> None:
        """Go on in the phase that now begins, with the weights and the optimiser's state of the last one."""
        network, optimiser, solver = self.network, self.optimiser, self.solver
        self._begin(self.config.phase(self.epoch))
        carried = carry(network, self.network)
        carry_optimiser(carried, network, self.network, optimiser, self.optimiser)
        loss, accuracy = self._validate()
        self.converted = {"converted_loss": loss, "converted_accuracy": accuracy, "converted_error": carried.error}
        text = "%s -> %s: at once loss - / %s  accuracy - / %s, error of the weights %.2g"
        log.info(text, solver, self.solver, _show(loss), _show(accuracy), carried.error)

    def final_network(self) -> Network:
        """The network on the basis of the last phase, even if the training stopped in an earlier one."""
        last = self.config.phase(self.config.train.epochs)
        if self.phase == last:
            return self.network
        network = build_network(self.config, last).to(self.device)
        carry(self.network, network)
        return network

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
            num_coefficients=self.config.basis_of(self.phase).num_coefficients,
            **self.converted,
            kinetic=means[2] if train.kinetic else None,
            jacobian=means[3] if train.jacobian else None,
            check_evals=sums.check_evals / max(sums.batches, 1) if train.adapt else None,
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
                logits = self._solve(images).logits.float()
            except SolveFailed as failure:
                self.status = failure.status
                return None, None
            loss += F.cross_entropy(logits, labels, reduction="sum").item()
            correct += (logits.argmax(1) == labels).sum().item()
        if not math.isfinite(loss) and self.status == "ok":
            self.status = "nonfinite"
        return loss / len(self.validation), correct / len(self.validation)

    def _line(self, record: TrainingRecord) -> str:
        losses = f"loss {_show(record.train_loss)} / {_show(record.validation_loss)}"
        accuracies = f"accuracy {_show(record.train_accuracy)} / {_show(record.validation_accuracy)}"
        return f"epoch {record.epoch}/{self.config.train.epochs}  {losses}  {accuracies}  {record.status}"


def _show(x: float | None) -> str:
    return "-" if x is None else f"{x:.4f}"
