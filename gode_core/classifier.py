"""A network: plain modules and blocks in turn, from images to logits. The solver is an argument of the forward pass."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from gode_core.discrete import DiscreteBlock
from gode_core.fields import Field
from gode_core.integrate import Gradient, Solution, integrate, prepare
from gode_core.regularisation import draw_end, integrate_path
from gode_core.rules import Rule
from gode_core.solvers import FIXED_METHODS, Fixed, Layers, Solver, num_evals
from gode_core.starting import starting_step
from gode_core.stepping import breaks_of
from gode_core.stochastic import NOTHING, Chance, Stochastic, add_branch
from gode_core.transitions import BottleneckTransition, Transition


@dataclass
class Prediction:
    """logits: (B, classes). solutions: of each block, in turn."""

    logits: Tensor
    solutions: list[Solution]

    @property
    def kinetic(self) -> Tensor | None:
        """The energy of the paths (see `regularisation`), the mean over the batch, summed over the blocks; None if it
        was not asked for."""
        return _sum([solution.kinetic for solution in self.solutions])

    @property
    def jacobian(self) -> Tensor | None:
        """As `kinetic`."""
        return _sum([solution.jacobian for solution in self.solutions])


def _sum(energies: list[Tensor | None]) -> Tensor | None:
    asked = [energy for energy in energies if energy is not None]
    return torch.stack(asked).sum() if asked else None


class Block(nn.Module):
    """A field, integrated over t in [0, 1]. It keeps the shape of its state."""

    def __init__(self, field: Field):
        super().__init__()
        self.field = field


class Network(nn.Module):
    """Plain modules and blocks in turn. (B, C, H, W) images, or (B, 1, d) points, to (B, classes) logits.

    stochastic: what is random in a discrete net's training; its residual transitions are blocks as well.
    """

    def __init__(self, *parts: nn.Module, stochastic: Stochastic = NOTHING):
        super().__init__()
        self.parts = nn.ModuleList(parts)
        self.stochastic = stochastic

    def forward(self, images: Tensor, solver: Solver, gradient: Gradient = "direct") -> Tensor:
        return self.predict(images, solver, gradient).logits

    def predict(
        self,
        images: Tensor,
        solver: Solver,
        gradient: Gradient = "direct",
        max_steps: int = 10_000,
        generator: torch.Generator | None = None,
        *,
        kinetic: bool = False,
        jacobian: bool = False,
        random_end: float = 0.0,
    ) -> Prediction:
        """Logits together with how each block's solve went. Raises what `integrate` raises, and ValueError for a
        solver that is not a discrete net's own layers.

        generator: for what is random in train mode, and for the estimate `jacobian`; None for torch's default one.
        kinetic, jacobian: these energies are wanted too. random_end: the spread of the end time in train mode, drawn
            once for all blocks. A discrete net refuses them.
        """
        self._check(solver, gradient)
        if isinstance(solver, Layers) and (kinetic or jacobian or random_end):
            raise ValueError(f"{solver} has no path through time: kinetic, jacobian and random_end belong to ODEs")
        end = draw_end(random_end, generator) if self.training and random_end else 1.0
        path = partial(integrate_path, kinetic=kinetic, jacobian=jacobian, end=end, generator=generator)
        h, previous, solutions = channels_last(images), None, []
        chance = Chance(self.stochastic, self.num_residual, self.training, generator)
        for part in self.parts:
            if isinstance(part, Transition | BottleneckTransition):
                previous = part.shortcut(h)
                (factor,) = chance.factors(1)
                h = chance.disturbed(add_branch(previous, part.branch, h, factor))
            elif isinstance(part, Block | DiscreteBlock):
                h = channels_last(h.float() if h.dtype.itemsize < 4 else h)  # autocast: 16-bit slopes, 32-bit state
                if isinstance(part, DiscreteBlock):
                    solutions.append(part(h, previous, chance))
                else:
                    solutions.append(path(part.field, h, solver, gradient=gradient, max_steps=max_steps))
                h, previous = solutions[-1].h1, None
            else:
                h, previous = part(h), None
        return Prediction(h, solutions)

    @property
    def fields(self) -> list[Field]:
        return [part.field for part in self.parts if isinstance(part, Block | DiscreteBlock)]

    @property
    def layers(self) -> Layers | None:
        """The only "solver" of a discrete net; None for one that any solver can judge."""
        counts = tuple(part.num_layers for part in self.parts if isinstance(part, DiscreteBlock))
        return Layers(counts[:1] if len(set(counts)) == 1 else counts) if counts else None

    @property
    def num_residual(self) -> int:
        """Residual transitions and layers of discrete blocks: the blocks of the ResNet that a discrete net is."""
        transitions = sum(isinstance(part, Transition | BottleneckTransition) for part in self.parts)
        return transitions + sum(part.num_layers for part in self.parts if isinstance(part, DiscreteBlock))

    @property
    def multistep_coefficients(self) -> list[nn.Parameter]:
        """The k of linear multistep blocks, block after block: (layers, 1) or (layers, C). Weight decay would pull
        them towards the ResNet."""
        rules = (module for module in self.modules() if isinstance(module, Rule))
        return [rule.k for rule in rules if rule.k is not None]

    def num_evals(self, solver: Fixed | Layers) -> int:
        """Field evaluations of a forward pass, summed over the blocks."""
        blocks = [part for part in self.parts if isinstance(part, Block | DiscreteBlock)]
        return sum(
            part.num_layers * part.rule.evals_per_layer
            if isinstance(part, DiscreteBlock)
            else num_evals(solver, breaks_of(part.field))  # type: ignore[arg-type]
            for part in blocks
        )

    @torch.no_grad()
    def starting_step(self, images: Tensor, method: str) -> float:
        """The step with which a solve of these images by this method would begin (see `starting`), the
        smallest over the blocks. Costs two field evaluations a block, and a solve with such steps of all but the last.
        """
        h, smallest = channels_last(images), 1.0
        blocks = [part for part in self.parts if isinstance(part, Block)]
        for part in self.parts:
            if isinstance(part, Block):
                begin = partial(part.field, 0.0)
                step = starting_step(lambda _, state, f=begin: f(state), h, FIXED_METHODS[method].order)
                smallest = min(smallest, step)
                if part is blocks[-1]:
                    break
                h = integrate(part.field, h, Fixed(method, math.ceil(1 / max(smallest, 1e-3)))).h1
            else:
                h = part(h)
        return smallest

    def prepare(self, solver: Solver, gradient: Gradient = "direct") -> None:
        """Make the tables for this solver: once before torch.compile traces the network."""
        self._check(solver, gradient)
        for part in self.parts:
            if isinstance(part, DiscreteBlock):
                part.prepare()
            elif isinstance(part, Block):
                assert isinstance(solver, Fixed), f"{solver} cannot be traced"
                prepare(part.field, solver, gradient)

    def _check(self, solver: Solver, gradient: Gradient) -> None:
        own = self.layers
        if own is None:
            return  # `integrate` refuses layers
        if not isinstance(solver, Layers):
            raise ValueError(f"this net is discrete, no solver of ODEs can judge it: take `{own}`, got {solver}")
        number = len(self.fields)
        if solver.counts not in (own.counts, own.counts * number):
            raise ValueError(f"a discrete net has its own number of layers: take `{own}`, got {solver}")
        if gradient != "direct":
            raise ValueError(
                f"a discrete net has the gradient `direct`, got `{gradient}` (a reversible one saves memory by itself)"
            )


def channels_last(h: Tensor) -> Tensor:
    """The same images with a pixel's channels side by side in memory: convolutions of narrow nets take a third less
    time on a CPU, and tensor cores want it. Points stay as they are."""
    return h.contiguous(memory_format=torch.channels_last) if h.dim() == 4 else h
