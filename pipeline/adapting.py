"""A rule that changes the solver, at work in a training: what it asks of the network, and what it has decided."""

from __future__ import annotations

import dataclasses
import math
from functools import partial
from typing import Any

import torch
from torch import Tensor

from gode_core.networks import Network
from gode_core.solvers import Fixed, Solver
from pipeline.adapt import Answer, Decision, build_adaptation
from pipeline.config import JobConfig
from pipeline.data import Split, evaluation_batches
from pipeline.provenance import code_fingerprint
from pipeline.records import DecisionRecord
from pipeline.streams import stream

NUM_HELD_OUT = 512  # validation images of one check, if there are so many: fewer can hardly allow a growth


class Adapting:
    """The rule of a job with `train.adapt`, and its decisions so far. `state` and `restore` are inverse."""

    def __init__(self, config: JobConfig, job: str, validation: Split | None, device: torch.device):
        assert config.train.adapt is not None
        self.config, self.job, self.validation, self.device = config, job, validation, device
        self.rule = build_adaptation(config.train.adapt, config.train.parsed_solver)
        self.decisions: list[DecisionRecord] = []

    @property
    def solver(self) -> Solver:
        return self.rule.solver

    def state(self) -> dict[str, Any]:
        return {"rule": self.rule.state(), "decisions": [vars(decision) for decision in self.decisions]}

    def restore(self, state: dict[str, Any]) -> None:
        self.rule.restore(state["rule"])
        self.decisions = [DecisionRecord(**row) for row in state["decisions"]]

    def begin(self, network: Network, images: Tensor) -> int:
        """The first decision, on the first batch of the training. Returns the field evaluations that it took."""
        solver, step = self.solver, math.nan
        if isinstance(solver, Fixed):
            network.eval()  # no statistics move
            step = network.starting_step(images, solver.method)
            network.train()
        first = self.rule.begin(step)
        evals = 2 * len(network.fields) if isinstance(solver, Fixed) else 0
        return self._note(dataclasses.replace(first, num_evals=evals), 0)

    def after_step(self, network: Network, batch: tuple[Tensor, Tensor], trained: Answer, step: int) -> int:
        """Let the rule look at a training step, and check the solver if that is due, with the weights that the step
        was made with, for the steps that follow. Returns the field evaluations that it took."""
        self.rule.observe(trained.num_evals)
        if not self.rule.due(step):
            return 0
        images, labels = self._held_out(step) if self.rule.held_out else batch
        network.eval()
        decision = self.rule.check(partial(self._ask, network, images, labels), trained)
        network.train()
        return self._note(decision, step)

    def _note(self, decision: Decision, step: int) -> int:
        self.decisions.append(DecisionRecord(self.job, code_fingerprint(), step, **vars(decision)))
        return decision.num_evals

    def _held_out(self, step: int) -> tuple[Tensor, Tensor]:
        assert self.validation is not None
        drawn = torch.randperm(len(self.validation), generator=stream(self.config.seed, "check", step))
        chosen = drawn[:NUM_HELD_OUT].to(self.validation.labels.device)
        some = Split(*self.validation.batch(chosen))
        return next(evaluation_batches(some, self.config.data, batch_size=NUM_HELD_OUT, device=self.device))

    @torch.no_grad()
    def _ask(self, network: Network, images: Tensor, labels: Tensor, solver: Solver) -> Answer:
        """What the network says under another solver; nan where its solve was given up."""
        prediction = network.predict(images, solver)
        ended = all(solution.stopped is None for solution in prediction.solutions)
        logits = prediction.logits if ended else torch.full_like(prediction.logits, math.nan)
        return Answer(logits.float(), labels, sum(solution.num_evals for solution in prediction.solutions))
