"""Right-hand sides f(t, h), built of layers whose weights depend on depth."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor, nn

from gode_core.bases import Basis, Moment, StageTimes, Times
from gode_core.layers import ConcatTime, DepthConv, DepthGroupNorm, DepthLinear, Depths, Function, ReLU, weights_at


class Field(nn.Module):
    """f(t, h) = scale * (the layers in turn), their weights on one basis.

    A ResNet's block, a Neural ODE's and a Neural-GODE's right-hand side are all this; they differ in the basis: with
    degree 0 and N coefficients an Euler solve of N steps is an N-block ResNet with branches scaled by scale / N, with
    one coefficient it is a Neural ODE.

    `at(times)` gives f as a function of h alone for each time; `field(t, h)` is f for a float t.
    """

    def __init__(self, layers: Sequence[nn.Module], basis: Basis, scale: float = 1.0):
        super().__init__()
        self.layers = nn.ModuleList(layers)
        self.basis = basis
        self.scale = scale
        self._depths: dict[tuple[Times, torch.dtype, torch.device], Depths] = {}

    def at(self, times: Times) -> list[Function]:
        return self.functions(times, self.weights(times))

    def weights(self, times: Times) -> list[list[dict[str, Tensor]]]:
        """For each time and layer the values of the layer's parameters, by name."""
        depths = self._depths_of(times)
        layers = [{name: weights_at(p, depths) for name, p in layer.named_parameters()} for layer in self.layers]
        return [
            [{name: values[i] for name, values in layer.items()} for layer in layers] for i in range(len(depths.times))
        ]

    def functions(self, times: Times, weights: list[list[dict[str, Tensor]]]) -> list[Function]:
        """f as a function of h alone for each time, with these weights."""
        return [
            partial(_in_turn, [layer.at(t, **values) for layer, values in zip(self.layers, each)], self.scale)  # type: ignore[operator]
            for t, each in zip(self._depths_of(times).times, weights)
        ]

    def forward(self, t: float, h: Tensor) -> Tensor:
        return self.at(Moment(float(t)))[0](h)

    def prepare(self, times: StageTimes) -> None:
        """Make the tables for a fixed-step solve; torch.compile needs this before it traces one."""
        self._depths_of(times)

    def _depths_of(self, times: Times) -> Depths:
        like = next(self.parameters())
        if isinstance(times, Moment):
            return Depths.of(self.basis, times, like)
        key = (times, like.dtype, like.device)
        if key not in self._depths:
            if torch.compiler.is_compiling():
                raise RuntimeError(
                    "call `prepare(solver)` before torch.compile traces a solve: tables are made in Python"
                )
            self._depths[key] = Depths.of(self.basis, times, like)
        return self._depths[key]


def _in_turn(functions: Sequence[Function], scale: float, h: Tensor) -> Tensor:
    for function in functions:
        h = function(h)
    return h if scale == 1.0 else scale * h


def bottleneck(channels: int, width: int, dims: int, basis: Basis, vary_all: bool = True, scale: float = 1.0) -> Field:
    """1x1 - ReLU - 3x3 - ReLU - 1x1 with biases, no norm, no time (Ott et al. 2021, their `odenet`): (B, channels, ...)
    to itself, `width` channels inside, over `dims` = 1 or 2 dimensions."""
    a = basis.num_coefficients
    biases = a if vary_all else 1
    layers = [
        DepthConv(channels, width, 1, dims, a, biases),
        ReLU(),
        DepthConv(width, width, 3, dims, a, biases),
        ReLU(),
        DepthConv(width, channels, 1, dims, a, biases),
    ]
    return Field(layers, basis, scale)


def perceptron(d: int, width: int, basis: Basis, vary_all: bool = True, scale: float = 1.0) -> Field:
    """Linear - ReLU - linear - ReLU - linear over the last axis, `width` inside: (B, 1, d) to itself (Ott et al. 2021,
    their `linear_odenet`)."""
    a = basis.num_coefficients
    biases = a if vary_all else 1
    layers = [
        DepthLinear(d, width, a, biases),
        ReLU(),
        DepthLinear(width, width, a, biases),
        ReLU(),
        DepthLinear(width, d, a, biases),
    ]
    return Field(layers, basis, scale)


def preactivation(channels: int, num_groups: int, basis: Basis, vary_all: bool = True, scale: float = 1.0) -> Field:
    """norm - ReLU - 3x3 - norm - ReLU - 3x3 without biases (Yu, Miao, Wu 2022; pre-activation ResNets)."""
    a = basis.num_coefficients
    norms = a if vary_all else 1
    layers = [
        DepthGroupNorm(num_groups, channels, norms),
        ReLU(),
        DepthConv(channels, channels, 3, 2, a, 0),
        DepthGroupNorm(num_groups, channels, norms),
        ReLU(),
        DepthConv(channels, channels, 3, 2, a, 0),
    ]
    return Field(layers, basis, scale)


def concat_time(channels: int, num_groups: int, basis: Basis, vary_all: bool = True, scale: float = 1.0) -> Field:
    """norm - ReLU - 3x3 - norm - ReLU - 3x3 - norm, with biases and t as a channel of each convolution: the Neural ODE
    that the Neural-GODE authors compare with (Chen et al. 2018, their MNIST example)."""
    a = basis.num_coefficients
    constants = a if vary_all else 1
    layers = [
        DepthGroupNorm(num_groups, channels, constants),
        ReLU(),
        ConcatTime(),
        DepthConv(channels + 1, channels, 3, 2, a, constants),
        DepthGroupNorm(num_groups, channels, constants),
        ReLU(),
        ConcatTime(),
        DepthConv(channels + 1, channels, 3, 2, a, constants),
        DepthGroupNorm(num_groups, channels, constants),
    ]
    return Field(layers, basis, scale)
