"""Right-hand sides f(t, h), built of layers whose weights depend on depth."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from gode_core.bases import Basis, Moment, StageTimes, Times
from gode_core.depth_norms import DepthBatchNorm, Norm, make_norm, refuse_batch_norm
from gode_core.layers import ConcatTime, DepthConv, DepthLinear, Depths, Function, Oscillator, ReLU, weights_at

if TYPE_CHECKING:
    from gode_core.evolution import Evolution, Path
    from gode_core.solvers import Breaks


class Field(nn.Module):
    """f(t, h) = scale * (the layers in turn), their weights on one basis.

    A ResNet's block, a Neural ODE's and a Neural-GODE's right-hand side are all this; they differ in the basis: with
    degree 0 and N coefficients an Euler solve of N steps is an N-block ResNet with branches scaled by scale / N, with
    one coefficient it is a Neural ODE.

    `at(times)` gives f as a function of h alone for each time; `field(t, h)` is f for a float t. All batch norms in it
    have their statistics on one basis.
    """

    def __init__(self, layers: Sequence[nn.Module], basis: Basis, scale: float = 1.0):
        super().__init__()
        self.layers = nn.ModuleList(layers)
        refuse_batch_norm(self.layers)
        self.basis = basis
        self.scale = scale
        self.evolution: Evolution | None = None  # see evolution.evolve
        self.is_stacked = False  # its parameters are those of several models: see `stacked`
        self.batch_norms = [layer for layer in layers if isinstance(layer, DepthBatchNorm)]
        assert len({layer.basis for layer in self.batch_norms}) <= 1, "statistics on different bases"
        self._depths: dict[tuple[bool, Times, torch.dtype, torch.device], Depths] = {}

    @property
    def breaks(self) -> tuple[Fraction, ...]:
        """Where f is not smooth in t, within (0, 1): at the breaks of its weights, and of the running statistics."""
        return tuple(sorted({k for part in self._parts() for k in part.breaks}))

    def continuity(self, k: Fraction) -> int:
        """How many derivatives in t are continuous at the break k, as a basis says it: -1 where f may jump."""
        return min(part.continuity(k) for part in self._parts() if k in part.breaks)

    def _parts(self) -> list[Breaks]:
        """What f's dependence on t is made of."""
        statistics = [] if self.training or not self.batch_norms else [self.batch_norms[0].basis]
        return [self.basis, *([] if self.evolution is None else [self.evolution]), *statistics]

    def begin_solve(self) -> None:
        for layer in self.batch_norms:
            layer.begin_solve()

    def end_solve(self) -> None:
        for layer in self.batch_norms:
            layer.end_solve()

    def at(self, times: Times, path: Path | None = None) -> list[Function]:
        return self.functions(times, self.weights(times, path))

    def path(self, runs: tuple[Times, ...]) -> Path | None:
        """The evolving weights through all the runs of a solve, or at one Moment; None if none evolve."""
        return None if self.evolution is None else self.evolution.path(self.evolution.start(self.layers), runs)

    def weights(self, times: Times, path: Path | None = None) -> list[list[dict[str, Tensor]]]:
        """For each time and layer the values of the layer's parameters, by name. path: of the whole solve, of which
        `times` is a run; None: of these times alone."""
        depths = self._depths_of(times).now(self.basis, next(self.parameters()))
        axis = int(self.is_stacked)
        layers = [{name: weights_at(p, depths, axis) for name, p in layer.named_parameters()} for layer in self.layers]
        if self.evolution is not None:
            path = self.path((times,)) if path is None else path
            assert path is not None
            for (i, name), values in zip(self.evolution.names, self.evolution.weights(path, times)):
                layers[i][name] = values
        return [
            [{name: values[i] for name, values in layer.items()} for layer in layers] for i in range(len(depths.times))
        ]

    def functions(self, times: Times, weights: list[list[dict[str, Tensor]]]) -> list[Function]:
        """f as a function of h alone for each time, with these weights."""
        values = weights
        if self.batch_norms:
            values = [[own | more for own, more in zip(*each)] for each in zip(weights, self._statistics(times))]
        depths, layers = self._depths_of(times).times, list(zip(*values))
        functions = [_functions(layer, depths, own) for layer, own in zip(self.layers, layers)]
        return [partial(_in_turn, each, self.scale) for each in zip(*functions)]

    def _statistics(self, times: Times) -> list[list[dict[str, Tensor]]]:
        """For each time and layer what a batch norm needs beside its weights."""
        depths = self._depths_of(times, statistics=True)
        layers = [
            layer.statistics_at(depths) if isinstance(layer, DepthBatchNorm) else [{}] * len(depths.times)
            for layer in self.layers
        ]
        return [list(each) for each in zip(*layers)]

    def forward(self, t: float, h: Tensor) -> Tensor:
        return self.at(Moment(float(t)))[0](h)

    def prepare(self, *runs: StageTimes) -> None:
        """Make the tables for the runs of a fixed-step solve; torch.compile needs this before it traces one."""
        if self.evolution is not None:
            self.evolution.prepare(runs)
        for times in runs:
            self._prepare(times)

    def _prepare(self, times: StageTimes) -> None:
        self._depths_of(times)
        if self.batch_norms:
            self._depths_of(times, statistics=True)

    def _depths_of(self, times: Times, statistics: bool = False) -> Depths:
        """The basis of the weights, or that of the batch norms' statistics, at the times."""
        basis, like = self.batch_norms[0].basis if statistics else self.basis, next(self.parameters())
        if isinstance(times, Moment):
            return Depths.of(basis, times, like)
        key = (statistics, times, like.dtype, like.device)
        if key not in self._depths:
            if torch.compiler.is_compiling():
                raise RuntimeError(
                    "call `prepare(solver)` before torch.compile traces a solve: tables are made in Python"
                )
            self._depths[key] = Depths.of(basis, times, like)
        return self._depths[key]


def _functions(layer: nn.Module, depths: Sequence[float], values: Sequence[dict[str, Tensor]]) -> list[Function]:
    """The layer at each depth. Where nothing changes from one to the next, they share a function and what it makes."""
    found: list[Function] = []
    for i, (t, own) in enumerate(zip(depths, values)):
        before = values[i - 1] if i and not getattr(layer, "knows_time", False) else None
        same = before is not None and all(own[name] is before[name] for name in own)
        found.append(found[-1] if same else layer.at(t, **own))  # type: ignore[operator]
    return found


def _in_turn(functions: Sequence[Function], scale: float, h: Tensor) -> Tensor:
    for function in functions:
        h = function(h)
    return h if scale == 1.0 else scale * h


def bottleneck(
    channels: int,
    width: int,
    dims: int,
    basis: Basis,
    vary_all: bool = True,
    scale: float = 1.0,
    *,
    time_channel: bool = False,
) -> Field:
    """1x1 - ReLU - 3x3 - ReLU - 1x1 with biases, no norm (Ott et al. 2021, their `odenet`): (B, channels, ...) to
    itself, `width` channels inside, over `dims` = 1 or 2 dimensions. time_channel: t as one more of each convolution's
    channels."""
    a, time = basis.num_coefficients, [ConcatTime()] if time_channel else []
    biases, more = a if vary_all else 1, len(time)
    layers = [
        *time,
        DepthConv(channels + more, width, 1, dims, a, biases),
        ReLU(),
        *time,
        DepthConv(width + more, width, 3, dims, a, biases),
        ReLU(),
        *time,
        DepthConv(width + more, channels, 1, dims, a, biases),
    ]
    return Field(layers, basis, scale)


def perceptron(
    d: int, width: int, basis: Basis, vary_all: bool = True, scale: float = 1.0, *, time_channel: bool = False
) -> Field:
    """Linear - ReLU - linear - ReLU - linear over the last axis, `width` inside: (B, 1, d) to itself (Ott et al. 2021,
    their `linear_odenet`). time_channel: t as one more of each map's coordinates."""
    a, time = basis.num_coefficients, [ConcatTime(axis=-1)] if time_channel else []
    biases, more = a if vary_all else 1, len(time)
    layers = [
        *time,
        DepthLinear(d + more, width, a, biases),
        ReLU(),
        *time,
        DepthLinear(width + more, width, a, biases),
        ReLU(),
        *time,
        DepthLinear(width + more, d, a, biases),
    ]
    return Field(layers, basis, scale)


def oscillator(numbers: Sequence[float], basis: Basis, scale: float = 1.0) -> Field:
    """The fan of Ott et al. 2021, which has nothing to train: (B, 1, 2) to itself. numbers: alpha, beta, gamma,
    delta."""
    return Field([Oscillator(*numbers)], basis, scale)


def preactivation(
    channels: int,
    num_groups: int,
    basis: Basis,
    vary_all: bool = True,
    scale: float = 1.0,
    *,
    norm: Norm = "group",
    statistics: int = 9,
    time_channel: bool = False,
) -> Field:
    """norm - ReLU - 3x3 - norm - ReLU - 3x3 without biases (Yu, Miao, Wu 2022; pre-activation ResNets).

    norm, statistics: see `make_norm`. time_channel: t as one more of each convolution's channels.
    """
    a, time = basis.num_coefficients, [ConcatTime()] if time_channel else []
    norms, more = a if vary_all else 1, len(time)
    layers = [
        make_norm(norm, channels, num_groups, norms, basis, statistics),
        ReLU(),
        *time,
        DepthConv(channels + more, channels, 3, 2, a, 0),
        make_norm(norm, channels, num_groups, norms, basis, statistics),
        ReLU(),
        *time,
        DepthConv(channels + more, channels, 3, 2, a, 0),
    ]
    return Field(layers, basis, scale)


def preactivation_bottleneck(
    channels: int,
    inner: int,
    cardinality: int,
    num_groups: int,
    basis: Basis,
    vary_all: bool = True,
    scale: float = 1.0,
    *,
    norm: Norm = "group",
    statistics: int = 9,
    time_channel: bool = False,
) -> Field:
    """norm - ReLU - 1x1 - norm - ReLU - 3x3 - norm - ReLU - 1x1 without biases, `inner` channels inside, in
    `cardinality` groups that the 3x3 does not mix (pre-activation ResNet-164, the ImageNet ResNets; ResNeXt).

    norm, statistics: see `make_norm`. time_channel: t as one more of the 1x1 convolutions' channels.
    """
    a, time = basis.num_coefficients, [ConcatTime()] if time_channel else []
    norms, more = a if vary_all else 1, len(time)
    layers = [
        make_norm(norm, channels, num_groups, norms, basis, statistics),
        ReLU(),
        *time,
        DepthConv(channels + more, inner, 1, 2, a, 0),
        make_norm(norm, inner, num_groups, norms, basis, statistics),
        ReLU(),
        DepthConv(inner, inner, 3, 2, a, 0, cardinality),
        make_norm(norm, inner, num_groups, norms, basis, statistics),
        ReLU(),
        *time,
        DepthConv(inner + more, channels, 1, 2, a, 0),
    ]
    return Field(layers, basis, scale)


def concat_time(
    channels: int,
    num_groups: int,
    basis: Basis,
    vary_all: bool = True,
    scale: float = 1.0,
    *,
    norm: Norm = "group",
    statistics: int = 9,
) -> Field:
    """norm - ReLU - 3x3 - norm - ReLU - 3x3 - norm, with biases and t as a channel of each convolution: the Neural ODE
    that the Neural-GODE authors compare with (Chen et al. 2018, their MNIST example). norm, statistics: see
    `make_norm`."""
    a = basis.num_coefficients
    constants = a if vary_all else 1
    layers = [
        make_norm(norm, channels, num_groups, constants, basis, statistics),
        ReLU(),
        ConcatTime(),
        DepthConv(channels + 1, channels, 3, 2, a, constants),
        make_norm(norm, channels, num_groups, constants, basis, statistics),
        ReLU(),
        ConcatTime(),
        DepthConv(channels + 1, channels, 3, 2, a, constants),
        make_norm(norm, channels, num_groups, constants, basis, statistics),
    ]
    return Field(layers, basis, scale)
