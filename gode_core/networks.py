"""The classifiers that the papers trained: something before the block, the block, something behind it.

    raw       zero channels up to `pad_channels` - block on the image itself - linear head         (Ott et al. 2021)
    stem      conv 3, conv 4 /2, conv 4 /2 - block - norm, ReLU, mean over the image, linear head   (Yu, Miao, Wu 2022)
    stages    conv 3 - three times: residual transition, block - norm, ReLU, mean, linear head      (CIFAR ResNets)
    imagenet  conv 7 /2, max-pool 3 /2 - four times: transition, block - norm, ReLU, mean, head     (ImageNet ResNets)

A block is an ODE with a field, or N layers of a discrete net (`Discrete`). The solver is an argument of the forward
pass: `logits = network(images, solver)`; that of a discrete net is `layers@N`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import nn

from gode_core.bases import Basis
from gode_core.classifier import Block, Network, Prediction
from gode_core.depth_norms import Norm
from gode_core.discrete import Discrete, DiscreteBlock
from gode_core.fields import Field, bottleneck, oscillator, perceptron
from gode_core.stochastic import NOTHING
from gode_core.transitions import Bottleneck, BottleneckTransition, PadChannels, Transition, plain_norm

__all__ = [
    "Block",
    "Bottleneck",
    "Network",
    "Prediction",
    "Transition",
    "imagenet_network",
    "raw_network",
    "stage_network",
    "stem_network",
]

# channels -> field; called with inner=, cardinality= for bottlenecks, and with basis= for discrete nets
MakeField = Callable[..., Field]


def raw_network(
    shape: tuple[int, ...],
    classes: int,
    width: int,
    basis: Basis | None,
    *,
    pad_channels: int | None = None,
    dense: bool = False,
    vary_all: bool = True,
    scale: float = 1.0,
    time_channel: bool = False,
    discrete: Discrete | None = None,
    fan: Sequence[float] = (),
) -> Network:
    """The block acts on the input itself, of `shape` (C, H, W) or (1, d), padded with zeros to `pad_channels`. dense:
    its field is a perceptron of the point's coordinates (without channels beside them) instead of convolutions; then
    `pad_channels` counts coordinates. basis: of the ODE's weights; None for a discrete net. fan: the numbers of a field
    that is not trained (`fields.oscillator`)."""
    axis = -1 if dense else 0
    padded = list(shape)
    padded[axis] = pad_channels or shape[axis]
    channels, size = padded[0], padded[1:]
    options = {"vary_all": vary_all, "scale": scale, "time_channel": time_channel}

    def make_field(channels: int, basis: Basis | None = basis) -> Field:
        assert basis is not None, "an ODE's weights need a basis"
        if fan:
            return oscillator(fan, basis, scale)
        if dense:
            return perceptron(size[0], width, basis, **options)
        return bottleneck(channels, width, len(size), basis, **options)

    head = nn.Linear(channels * torch.Size(size).numel(), classes)
    pad = [PadChannels(padded[axis], -1 if dense else 1)] if padded[axis] != shape[axis] else []
    block = _block(make_field, discrete, 0, channels, has_previous=False)
    return _network([*pad, block, nn.Flatten(), head], discrete)


def stem_network(
    c_in: int,
    classes: int,
    width: int,
    num_groups: int,
    make_field: MakeField,
    *,
    pad_channels: int | None = None,
    norm: Norm = "group",
    discrete: Discrete | None = None,
) -> Network:
    """The net of Yu, Miao and Wu: images of 28 x 28 reach the block at 6 x 6, 32 x 32 at 7 x 7, of `width` channels,
    padded with zeros to `pad_channels`, which the head sees too."""
    stem = [
        nn.Conv2d(c_in, width, 3),
        plain_norm(norm, width, num_groups),
        nn.ReLU(),
        nn.Conv2d(width, width, 4, 2, 1),
        plain_norm(norm, width, num_groups),
        nn.ReLU(),
        nn.Conv2d(width, width, 4, 2, 1),
    ]
    channels = pad_channels or width
    pad = [PadChannels(channels)] if channels != width else []
    block = _block(make_field, discrete, 0, channels, has_previous=False)
    return _network([*stem, *pad, block, *_head(channels, classes, num_groups, norm)], discrete)


def stage_network(
    c_in: int,
    classes: int,
    width: int,
    num_groups: int,
    make_field: MakeField,
    *,
    norm: Norm = "group",
    bottleneck: Bottleneck | None = None,
    discrete: Discrete | None = None,
) -> Network:
    """The CIFAR net in three stages of `width`, 2 and 4 times `width` channels; the later two halve the image.

    Each stage is a residual transition and a block: under Euler with n - 1 steps, or with n - 1 layers, a
    pre-activation ResNet of 6 n + 2 layers (He et al. 2016), of 9 n + 2 with bottlenecks. The first block of a stage is
    plain, as in the released LM-ResNet; the multistep rule takes its shortcut for the state before.
    """
    stem = [nn.Conv2d(c_in, width, 3, 1, 1, bias=False)]
    stages, channels = _stages(3, width, num_groups, make_field, norm, bottleneck, discrete)
    return _network([*stem, *stages, *_head(channels, classes, num_groups, norm)], discrete)


def imagenet_network(
    c_in: int,
    classes: int,
    width: int,
    num_groups: int,
    make_field: MakeField,
    *,
    norm: Norm = "batch",
    bottleneck: Bottleneck | None = None,
    discrete: Discrete | None = None,
) -> Network:
    """The ImageNet net: `width` (64) channels at a quarter of the image's size, then four stages, the later three of
    which halve it. With bottlenecks of inner width 64, `layers@2-3-5-2` is a pre-activation ResNet-50 and
    `layers@2-3-22-2` a ResNet-101. The stem is without norm and ReLU, as the CIFAR net's."""
    stem = [nn.Conv2d(c_in, width, 7, 2, 3, bias=False), nn.MaxPool2d(3, 2, 1)]
    stages, channels = _stages(4, width, num_groups, make_field, norm, bottleneck, discrete)
    return _network([*stem, *stages, *_head(channels, classes, num_groups, norm)], discrete)


def _stages(
    number: int,
    width: int,
    num_groups: int,
    make_field: MakeField,
    norm: Norm,
    bottleneck: Bottleneck | None,
    discrete: Discrete | None,
) -> tuple[list[nn.Module], int]:
    """The transitions and blocks in turn, and the channels behind them."""
    parts: list[nn.Module] = []
    c = width
    for stage in range(number):
        stride, times = 1 if stage == 0 else 2, 2**stage
        if bottleneck is None:
            c_out, make = width * times, make_field
            parts.append(Transition(c, c_out, stride, num_groups, norm))
        else:
            c_out = width * times * bottleneck.expansion
            shape = {"inner": bottleneck.inner * times, "cardinality": bottleneck.cardinality}
            make = _within(make_field, c_out, **shape)
            parts.append(BottleneckTransition(c, c_out, stride, num_groups, norm, **shape))
        parts.append(_block(make, discrete, stage, c_out, has_previous=True))
        c = c_out
    return parts, c


def _within(make_field: MakeField, c_out: int, inner: int, cardinality: int) -> MakeField:
    """For fewer channels (a RevNet's halves) the inner ones are as many fewer."""
    return lambda c, **more: make_field(c, inner=inner * c // c_out, cardinality=cardinality, **more)


def _block(
    make_field: MakeField, discrete: Discrete | None, index: int, channels: int, has_previous: bool
) -> Block | DiscreteBlock:
    """Block number `index`. has_previous: it stands behind a transition."""
    if discrete is None:
        return Block(make_field(channels))
    return discrete.block(make_field, index, channels, has_previous)


def _network(parts: list[nn.Module], discrete: Discrete | None) -> Network:
    return Network(*parts, stochastic=discrete.stochastic if discrete else NOTHING)


def _head(channels: int, classes: int, num_groups: int, norm: Norm) -> list[nn.Module]:
    return [
        plain_norm(norm, channels, num_groups),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(channels, classes),
    ]
