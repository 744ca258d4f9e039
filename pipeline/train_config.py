"""The train section of a job. No torch here."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

from gode_core.solvers import Adaptive, Fixed, Implicit, Solver, parse_solver
from pipeline.adapt_config import AdaptConfig
from pipeline.model_config import BasisConfig
from pipeline.reading import added, need

Gradient = Literal["direct", "checkpoint", "adjoint"]


def check_gradient(gradient: Gradient, solver: str) -> None:
    """Raises ValueError if the solver cannot give such a gradient."""
    parsed = parse_solver(solver)
    adaptive, steps = isinstance(parsed, Adaptive), isinstance(parsed, Fixed)
    need(adaptive or gradient != "adjoint", "gradient `adjoint` needs an adaptive solver, got {}", solver)
    need(steps or gradient != "checkpoint", "gradient `checkpoint` needs fixed steps, got {}", solver)


@dataclass(frozen=True)
class Phase:
    """The first epochs of a training, cheaper than the rest: fewer steps, a smaller basis, another gradient. At its end
    the weights and the optimiser's state are carried over (gode_core.conversion)."""

    until: int  # epochs, counted from the start of the training
    solver: str
    basis: BasisConfig | None = None  # None: that of the model
    gradient: Gradient = "direct"

    def __post_init__(self):
        need(self.until >= 1, "until must be at least 1, got {}", self.until)
        object.__setattr__(self, "solver", str(parse_solver(self.solver)))
        check_gradient(self.gradient, self.solver)

    @property
    def parsed_solver(self) -> Solver:
        return parse_solver(self.solver)

    def __str__(self) -> str:
        """All that tells it from others: jobs whose phases read alike are seeds of one model (pipeline.collect)."""
        basis = "" if self.basis is None else f" with {self.basis.label}"
        if self.basis is not None and not isinstance(self.basis.knots, str):
            basis += f" at {', '.join(self.basis.knots)}"
        gradient = "" if self.gradient == "direct" else f", gradient {self.gradient},"
        return f"{self.solver}{basis}{gradient} until epoch {self.until}"


@dataclass(frozen=True)
class Change:
    """Other numbers from the start of an epoch on: what population based training has come to, as a plain schedule."""

    epoch: int  # counted from 0
    lr: float
    weight_decay: float

    def __post_init__(self):
        need(self.epoch >= 1, "epoch must be at least 1, got {}", self.epoch)
        need(self.lr > 0, "lr must be positive, got {}", self.lr)
        need(self.weight_decay >= 0, "weight_decay must be at least 0, got {}", self.weight_decay)

    def __str__(self) -> str:
        return f"lr {self.lr:g}, weight decay {self.weight_decay:g} from epoch {self.epoch} on"


@dataclass(frozen=True)
class TrainConfig:
    """How a job is trained. Learning rates are per step; epochs may stand for schedules only through `milestones`."""

    solver: str
    epochs: int
    batch_size: int
    optimiser: Literal["sgd", "adam", "adamw"]
    lr: float
    gradient: Gradient = "direct"
    momentum: float = 0.0  # sgd
    weight_decay: float = 0.0
    schedule: Literal["constant", "multistep", "cosine"] = "constant"
    milestones: tuple[int, ...] = ()  # multistep: the epochs (counted from 0) before which lr is multiplied by decay
    decay: float = 0.1
    warmup_epochs: float = 0.0  # lr rises linearly from 0
    label_smoothing: float = 0.0
    clip_norm: float | None = None  # of the whole gradient, 2-norm
    drop_last: bool = False  # leave out the last, smaller batch of an epoch
    autocast: Literal["none", "bf16"] = "none"
    record_every: int = 1  # epochs between two records (and validations)
    phases: tuple[Phase, ...] = added(())  # before the last one, which is what stands above
    kinetic: float = added(0.0)  # weight in the loss of the mean kinetic energy of a solve
    jacobian: float = added(0.0)  # weight in the loss of the field's Jacobian norm along a solve
    random_end: float = added(0.0)  # STEER: the end time is uniform in 1 -+ this, in training
    adapt: AdaptConfig | None = added(None)  # the solver changes while training
    changes: tuple[Change, ...] = added(())  # of lr, to which the schedule's factor still belongs, and weight decay

    def __post_init__(self):
        object.__setattr__(self, "solver", str(self.parsed_solver))  # rk4@08 and rk4@8 are one solver, and one id
        check_gradient(self.gradient, self.solver)
        mixed = "adjoint" in (self.gradient, *(p.gradient for p in self.phases)) and self.autocast == "bf16"
        need(not mixed, "gradient `adjoint` goes without autocast: its backward solve would not be under it")
        for name in ("epochs", "batch_size", "record_every"):
            need(getattr(self, name) >= 1, "{} must be at least 1, got {}", name, getattr(self, name))
        need(self.lr > 0, "lr must be positive, got {}", self.lr)
        need(0 <= self.momentum < 1, "momentum must lie in [0, 1), got {}", self.momentum)
        need(self.optimiser == "sgd" or self.momentum == 0, "momentum belongs to sgd, not to {}", self.optimiser)
        need(self.weight_decay >= 0, "weight_decay must be at least 0, got {}", self.weight_decay)
        need(self.schedule == "multistep" or not self.milestones, "milestones belong to the schedule multistep")
        need(self.schedule != "multistep" or len(self.milestones) > 0, "the schedule multistep needs milestones")
        increasing = all(a < b for a, b in zip((0, *self.milestones), self.milestones))
        need(increasing, "milestones must increase from 1 on, got {}", self.milestones)
        implicit = any(isinstance(parse_solver(s), Implicit) for s in (self.solver, *(p.solver for p in self.phases)))
        need(
            not (implicit and self.autocast == "bf16"), "an implicit solver goes without autocast: it iterates to 1e-5"
        )
        need(0 < self.decay <= 1, "decay must lie in (0, 1], got {}", self.decay)
        warm = self.warmup_epochs
        need(0 <= warm <= self.epochs, "warmup_epochs must lie in [0, epochs], got {}", warm)
        need(0 <= self.label_smoothing < 1, "label_smoothing must lie in [0, 1), got {}", self.label_smoothing)
        need(self.clip_norm is None or self.clip_norm > 0, "clip_norm must be positive, got {}", self.clip_norm)
        ends = [0, *(phase.until for phase in self.phases), self.epochs]
        ordered = all(a < b for a, b in pairwise(ends))
        free = any(phase.basis is not None and phase.basis.knots == "free" for phase in self.phases)
        need(not free, "phases: free knots cannot be carried to another basis")
        need(ordered, "phases must end one after the other and before the last epoch, got {}", ends[1:-1])
        for name in ("kinetic", "jacobian"):
            need(getattr(self, name) >= 0, "{} must be at least 0, got {}", name, getattr(self, name))
        need(0 <= self.random_end < 1, "random_end must lie in [0, 1), got {}", self.random_end)
        starts = [0, *(change.epoch for change in self.changes), self.epochs]
        in_order = all(a < b for a, b in pairwise(starts))
        need(in_order, "changes must come one after the other and before the last epoch, got {}", starts[1:-1])
        if self.adapt is not None:
            need(not self.phases, "adapt goes without phases: both change the solver")
            self.adapt.check(self.parsed_solver)

    @property
    def parsed_solver(self) -> Solver:
        return parse_solver(self.solver)

    def base_rates(self, epoch: int) -> tuple[float, float]:
        """The learning rate, schedule apart, and the weight decay of an epoch, counted from 0."""
        rates = self.lr, self.weight_decay
        for change in self.changes:
            if epoch >= change.epoch:
                rates = change.lr, change.weight_decay
        return rates
