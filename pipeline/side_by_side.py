"""Trainings that differ in nothing but numbers, as one computation (gode_core.stacked): in the seed, the learning rate
and its schedule, weight decay, the largest gradient norm, label smoothing.

Each ends with the weights, rows and checkpoints that it has when trained alone, which is a stack of one: in a batched
product a network's numbers do not depend on how many others there are. On a CPU that is so to the bit where batches and
width are multiples of 16, as in spheres-critical-step.yaml, and images have two channels or more, as in digits.yaml;
elsewhere to rounding, since the library's products depend on whether a matrix begins at a multiple of 64 bytes, and
whether it is one. Means over an epoch are added up in another order: to rounding.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from gode_core.solvers import Fixed
from gode_core.stacked import Stack
from pipeline.training import Training
from pipeline.updates import Updates


class SideBySide:
    """The trainings must stand at the same place, and be `pipeline.stacks.alike`. While they run, their weights and the
    optimisers' state are here; `settle` gives them back."""

    def __init__(self, trainings: Sequence[Training]):
        assert len({(training.epoch, training.batch) for training in trainings}) == 1
        self.gradient = trainings[0].config.train.gradient
        assert isinstance(trainings[0].solver, Fixed)
        self.solver = trainings[0].solver
        self.running = [training for training in trainings if not training.finished]
        self._join()

    @property
    def finished(self) -> bool:
        return not self.running

    @property
    def epoch(self) -> int:
        return self.running[0].epoch

    def _join(self) -> None:
        """Take the weights and the optimiser's state of those that go on."""
        if not self.running:
            return
        self.stack = Stack([training.learner.network for training in self.running]).to(self.running[0].device)
        optimisers = [training.learner.optimiser for training in self.running]
        self.updates = Updates(list(self.stack.parameters()), optimisers)
        self.totals = torch.stack([training.sums.device for training in self.running])
        norms = [training.config.train.clip_norm for training in self.running]
        self.clips = any(norm is not None for norm in norms)
        self.largest = torch.tensor([math.inf if norm is None else norm for norm in norms]).to(self.totals.device)

    @torch.no_grad()
    def settle(self) -> None:
        """Give each training what is its own."""
        if not self.running:
            return
        self.stack.unstack([training.learner.network for training in self.running])
        self.updates.give_back()
        for total, training in zip(self.totals, self.running):
            training.sums.device = total.clone()

    def run_epoch(self, after_step: Callable[[], bool]) -> bool:
        """Train to the end of the epoch. False if `after_step()` asked to stop before it."""
        self.stack.train()
        members = tuple(self.running)  # some may leave before the epoch ends
        for batches in zip(*(training.batches() for training in members), strict=True):
            places = {id(training): batch for training, batch in zip(members, batches, strict=True)}
            while self.running and not self._train_on([places[id(training)] for training in self.running]):
                self._leave_failed()
            for training in self.running:
                training.batch += 1
            if not self.running:
                return True
            if after_step():
                return False
        self._end_epoch()
        return True

    def _train_on(self, batches: list[tuple[Tensor, Tensor]]) -> bool:
        """One optimiser step of all. False, and none is made, if something of one is not finite: it has its status."""
        images, labels = (torch.stack(each) for each in zip(*batches))
        for training in self.running:
            training.set_rate()
        self.stack.zero_grad()
        logits = self.stack(images, self.solver, self.gradient)
        losses = self._losses(logits, labels)
        losses.sum().backward()
        norms = self._gradient_norms()
        finite = torch.isfinite(norms + losses).tolist()  # the one host read of a step
        for training, fine in zip(self.running, finite):
            training.status = "ok" if fine else "nonfinite"
        if not all(finite):
            return False
        if self.clips:
            factors = (self.largest * (norms + 1e-6).reciprocal()).clamp(max=1.0)
            for parameter in self.stack.parameters():
                assert parameter.grad is not None
                parameter.grad.mul_(factors.view(-1, *[1] * (parameter.dim() - 1)))
        self.updates.step()
        hits = (logits.detach().argmax(2) == labels).float().mean(1)
        nothing = torch.zeros_like(hits)
        self.totals += torch.stack([losses.detach(), hits, nothing, nothing], dim=1).double() * labels.shape[1]
        evals = self.stack.num_evals(self.solver)
        for training in self.running:
            training.sums.images += labels.shape[1]
            training.sums.evals += evals
            training.sums.batches += 1
        return True

    def _losses(self, logits: Tensor, labels: Tensor) -> Tensor:
        """(S,): each network's mean; those of one label smoothing together, which is nearly always all of them."""
        smoothings = [training.config.train.label_smoothing for training in self.running]
        if len(distinct := set(smoothings)) == 1:
            return _means(logits, labels, distinct.pop())
        losses = torch.empty(len(labels), dtype=logits.dtype, device=logits.device)
        for smoothing in distinct:
            own = torch.tensor([each == smoothing for each in smoothings], device=logits.device).nonzero()[:, 0]
            losses = losses.index_copy(0, own, _means(logits[own], labels[own], smoothing))
        return losses

    def _gradient_norms(self) -> Tensor:
        """(S,): of each network's whole gradient."""
        squares = [p.grad.flatten(1).square().sum(1) for p in self.stack.parameters() if p.grad is not None]
        return torch.stack(squares, dim=1).sum(1).sqrt()

    def _leave_failed(self) -> None:
        """Those that failed end here, the others go on without them."""
        self.settle()
        for training in self.running:
            if training.finished:
                training.end_epoch()
        self.running = [training for training in self.running if not training.finished]
        self._join()

    def _end_epoch(self) -> None:
        self.settle()
        for training in self.running:
            training.end_epoch()
        going_on = [training for training in self.running if not training.finished]
        if len(going_on) < len(self.running):  # at the end of all, or where a validation has failed
            self.running = going_on
            self._join()
        else:
            self.totals = torch.stack([training.sums.device for training in self.running])


def _means(logits: Tensor, labels: Tensor, smoothing: float) -> Tensor:
    """Over each network's batch: (S, B, classes) and (S, B) -> (S,)."""
    each = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="none", label_smoothing=smoothing)
    return each.view(labels.shape).mean(1)
