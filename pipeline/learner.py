"""What learns in one phase of a training: a network, and its optimiser. The solver is an argument."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from gode_core.conversion import carry, carry_optimiser
from gode_core.integrate import SolveFailed
from gode_core.networks import Network
from gode_core.solvers import Fixed, Layers, Solver
from pipeline.build import build_network, build_optimiser, is_random
from pipeline.config import JobConfig
from pipeline.streams import stream
from pipeline.train_config import Phase


@dataclass(frozen=True)
class Solved:
    """One batch through the network: logits (B, classes), field evaluations, and what the loss may add."""

    logits: Tensor
    num_evals: int
    kinetic: Tensor
    jacobian: Tensor


class Learner:
    """Begins with the first weights of the job's seed; those of a former phase are carried over by `take_over`."""

    def __init__(self, config: JobConfig, phase: Phase, device: torch.device, compile: bool):
        """compile: if the solve can be compiled, which it cannot where steps are not fixed or numbers are drawn."""
        self.config, self.phase, self.device = config, phase, device
        self.network = build_network(config, phase).to(device)
        self.optimiser = build_optimiser(self.network, config)
        self.compiled: Callable | None = None
        solver = phase.parsed_solver
        fixed = isinstance(solver, Fixed | Layers) and config.train.adapt is None
        if compile and fixed and not is_random(config):
            self.network.prepare(solver, phase.gradient)
            self.compiled = torch.compile(self.network, fullgraph=True)

    def take_over(self, former: Learner) -> float:
        """The weights and the optimiser's state of a former phase. Returns the largest relative L2 error of a weight
        over depth; 0: exact."""
        carried = carry(former.network, self.network)
        carry_optimiser(carried, former.network, self.network, former.optimiser, self.optimiser)
        return carried.error

    def network_in(self, phase: Phase) -> Network:
        """The network on the basis of a phase: its own, or a converted one."""
        if phase == self.phase:
            return self.network
        network = build_network(self.config, phase).to(self.device)
        carry(self.network, network)
        return network

    def generator(self, epoch: int, batch: int) -> torch.Generator | None:
        """Of a step's random numbers: a function of (seed, step), so that a resume draws the same."""
        if not is_random(self.config):
            return None
        seed = stream(self.config.seed, "network", epoch, batch).initial_seed()
        return torch.Generator(self.device).manual_seed(seed)

    def solve(self, images: Tensor, solver: Solver, generator: torch.Generator | None = None) -> Solved:
        """Raises SolveFailed."""
        train, nothing = self.config.train, torch.zeros((), device=self.device)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=train.autocast == "bf16"):
            if self.compiled and isinstance(solver, Fixed | Layers):
                logits = self.compiled(images, solver, self.phase.gradient)
                return Solved(logits, self.network.num_evals(solver), nothing, nothing)
            training = self.network.training
            prediction = self.network.predict(
                images,
                solver,
                self.phase.gradient,
                generator=generator,
                kinetic=training and train.kinetic > 0,
                jacobian=training and train.jacobian > 0,
                random_end=train.random_end if training else 0.0,
            )
        if not isinstance(solver, Fixed | Layers):  # those are checked by what follows, without a host read
            for solution in prediction.solutions:
                if solution.status != "ok":
                    raise SolveFailed(solution.status, solution.t)
        evals = sum(solution.num_evals for solution in prediction.solutions)
        kinetic, jacobian = (nothing if x is None else x for x in (prediction.kinetic, prediction.jacobian))
        return Solved(prediction.logits, evals, kinetic, jacobian)

    @torch.no_grad()
    def judge(self, batches: Iterable[tuple[Tensor, Tensor]], solver: Solver) -> tuple[float, int]:
        """Loss and hits, summed over all batches; the network is left in evaluation mode. Raises SolveFailed."""
        self.network.eval()
        loss, hits = 0.0, 0
        for images, labels in batches:
            logits = self.solve(images, solver).logits.float()
            loss += F.cross_entropy(logits, labels, reduction="sum").item()
            hits += int((logits.argmax(1) == labels).sum())
        return loss, hits
