"""Several networks of one shape side by side, as one computation.

For nets as small as those on points in the plane, what a step costs is the calls, not the arithmetic: S networks in
batched products take little longer than one, and give each the numbers that it has alone, to rounding. On images the
convolutions are one in S groups, which on a CPU uses what a few channels leave idle.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy

import torch
from torch import Tensor, nn

from gode_core.free_knots import FreeKnots
from gode_core.integrate import Gradient, integrate
from gode_core.layers import DepthConv, DepthLinear, ReLU, affine, beside
from gode_core.networks import Block, Network
from gode_core.solvers import Fixed, num_evals
from gode_core.stepping import breaks_of
from gode_core.transitions import PadChannels

ALIKE = (DepthConv, DepthLinear, ReLU)  # layers that take several models' weights as they are


class Stack(nn.Module):
    """(S, B, 1, d) points or (S, B, C, H, W) images, a batch for each network, to (S, B, classes) logits. Its
    parameters are those of the networks with an axis more in front, in the same order.

    Raises ValueError for networks that are no ODE on the input itself, or not alike in all but the numbers: with a stem
    or norms, discrete ones, weights with an ODE of their own, learnt knots, time as a channel; two shapes, bases or
    scales.
    """

    def __init__(self, networks: Sequence[Network]):
        super().__init__()
        self.network = deepcopy(networks[0])
        for part in self.network.parts:
            fits = isinstance(part, Block | PadChannels | nn.Flatten | nn.Linear)
            if not fits or (isinstance(part, Block) and not _takes_several(part)):
                raise ValueError(f"networks with a {type(part).__name__} such as this one cannot be stacked")
        if len({_kind(network) for network in networks}) > 1:
            raise ValueError("networks of several shapes, bases or scales cannot be stacked")
        self.size = len(networks)
        self._fill(networks)
        for field in self.network.fields:
            field.is_stacked = True

    @torch.no_grad()
    def _fill(self, networks: Sequence[Network]) -> None:
        together = zip(*(network.parameters() for network in networks))
        modules = [(m, name) for m in self.network.modules() for name, p in m._parameters.items() if p is not None]
        for (module, name), own in zip(modules, together, strict=True):
            setattr(module, name, nn.Parameter(torch.stack(list(own))))

    def forward(self, inputs: Tensor, solver: Fixed, gradient: Gradient = "direct") -> Tensor:
        h = inputs
        for part in self.network.parts:
            if isinstance(part, Block):
                h0 = beside(h) if h.dim() == 5 else h
                h = integrate(part.field, h0, solver, gradient=gradient).h1
            elif isinstance(part, PadChannels):
                h = part(h.flatten(0, 1)).unflatten(0, h.shape[:2])
            elif isinstance(part, nn.Flatten):
                h = h.flatten(2)
            else:
                assert isinstance(part, nn.Linear)
                h = affine(h, part.weight, part.bias)
        return h

    def num_evals(self, solver: Fixed) -> int:
        """Field evaluations of a forward pass of one of them."""
        return sum(num_evals(solver, breaks_of(field)) for field in self.network.fields)

    @torch.no_grad()
    def unstack(self, networks: Sequence[Network]) -> None:
        """Give the networks their weights."""
        for stacked, *own in zip(self.parameters(), *(network.parameters() for network in networks), strict=True):
            for weights, parameter in zip(stacked, own, strict=True):
                parameter.copy_(weights)


def _takes_several(block: Block) -> bool:
    field = block.field
    plain = all(isinstance(layer, ALIKE) for layer in field.layers)
    mixing = all(layer.cardinality == 1 for layer in field.layers if isinstance(layer, DepthConv))
    return plain and mixing and field.evolution is None and not isinstance(field.basis, FreeKnots)


def _kind(network: Network) -> tuple:
    """What all must have in common."""
    shapes = tuple((name, parameter.shape) for name, parameter in network.named_parameters())
    return shapes, tuple((field.basis, field.scale) for field in network.fields)
