"""The classifiers that the papers trained: something before the block, the block, something behind it.

    raw     zero channels up to `pad_channels` - block on the image itself - linear head         (Ott et al. 2021)
    stem    conv 3, conv 4 /2, conv 4 /2 - block - norm, ReLU, mean over the image, linear head   (Yu, Miao, Wu 2022)
    stages  conv 3 - three times: residual transition, block - norm, ReLU, mean, linear head      (CIFAR ResNets)

The solver is an argument of the forward pass: `logits = network(images, solver)`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gode_core.bases import Basis
from gode_core.fields import Field, bottleneck, perceptron
from gode_core.integrate import Gradient, Solution, integrate, prepare
from gode_core.layers import groups
from gode_core.solvers import Fixed, Solver

MakeField = Callable[[int], Field]  # channels -> field


@dataclass
class Prediction:
    """logits: (B, classes). solutions: of each block, in turn."""

    logits: Tensor
    solutions: list[Solution]


class Block(nn.Module):
    """A field, integrated over t in [0, 1]. It keeps the shape of its state."""

    def __init__(self, field: Field):
        super().__init__()
        self.field = field


class Network(nn.Module):
    """Plain modules and blocks in turn. (B, C, H, W) images, or (B, 1, d) points, to (B, classes) logits."""

    def __init__(self, *parts: nn.Module):
        super().__init__()
        self.parts = nn.ModuleList(parts)

    def forward(self, images: Tensor, solver: Solver, gradient: Gradient = "direct") -> Tensor:
        return self.predict(images, solver, gradient).logits

    def predict(
        self, images: Tensor, solver: Solver, gradient: Gradient = "direct", max_steps: int = 10_000
    ) -> Prediction:
        """Logits together with how each block's solve went. Raises what `integrate` raises."""
        h, solutions = channels_last(images), []
        for part in self.parts:
            if isinstance(part, Block):
                h = channels_last(h.float() if h.dtype.itemsize < 4 else h)  # autocast: 16-bit slopes, 32-bit state
                solutions.append(integrate(part.field, h, solver, gradient=gradient, max_steps=max_steps))
                h = solutions[-1].h1
            else:
                h = part(h)
        return Prediction(h, solutions)

    @property
    def fields(self) -> list[Field]:
        return [part.field for part in self.parts if isinstance(part, Block)]

    def prepare(self, solver: Fixed, gradient: Gradient = "direct") -> None:
        """Make the tables for this solver: once before torch.compile traces the network."""
        for field in self.fields:
            prepare(field, solver, gradient)


def channels_last(h: Tensor) -> Tensor:
    """The same images with a pixel's channels side by side in memory: convolutions of narrow nets take a third less
    time on a CPU, and tensor cores want it. Points stay as they are."""
    return h.contiguous(memory_format=torch.channels_last) if h.dim() == 4 else h


class PadChannels(nn.Module):
    """(B, C, ...) -> (B, channels, ...), zeros behind."""

    def __init__(self, channels: int):
        super().__init__()
        self.channels = channels

    def forward(self, h: Tensor) -> Tensor:
        before_channels = (0, 0) * (h.dim() - 2)
        return F.pad(h, (*before_channels, 0, self.channels - h.shape[1]))


class Transition(nn.Module):
    """A pre-activation residual block that may change width and size: (B, C, H, W) -> (B, C', H / stride, W / stride).

    shortcut(x) + conv(ReLU norm(conv_stride(ReLU norm(x)))); the shortcut is the identity, or norm - ReLU - 1x1
    convolution where the shape changes.
    """

    def __init__(self, c_in: int, c_out: int, stride: int, num_groups: int):
        super().__init__()
        self.norm1, self.norm2 = norm(num_groups, c_in), norm(num_groups, c_out)
        self.conv1 = nn.Conv2d(c_in, c_out, 3, stride, 1, bias=False)
        self.conv2 = nn.Conv2d(c_out, c_out, 3, 1, 1, bias=False)
        changes = stride != 1 or c_in != c_out
        project = nn.Conv2d(c_in, c_out, 1, stride, bias=False)
        self.shortcut = nn.Sequential(norm(num_groups, c_in), nn.ReLU(), project) if changes else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv1(torch.relu(self.norm1(x)))
        return self.shortcut(x) + self.conv2(torch.relu(self.norm2(h)))


def norm(num_groups: int, channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(groups(num_groups, channels), channels)


def raw_network(
    shape: tuple[int, ...],
    classes: int,
    width: int,
    basis: Basis,
    *,
    pad_channels: int | None = None,
    dense: bool = False,
    vary_all: bool = True,
    scale: float = 1.0,
) -> Network:
    """The ODE acts on the input itself, of `shape` (C, H, W) or (1, d), padded with zeros to `pad_channels`. dense: its
    field is a perceptron of the point's coordinates (without channels beside them) instead of convolutions."""
    channels, size = pad_channels or shape[0], shape[1:]
    if dense:
        field = perceptron(size[0], width, basis, vary_all, scale)
    else:
        field = bottleneck(channels, width, len(size), basis, vary_all, scale)
    head = nn.Linear(channels * torch.Size(size).numel(), classes)
    pad = [PadChannels(channels)] if channels != shape[0] else []
    return Network(*pad, Block(field), nn.Flatten(), head)


def stem_network(c_in: int, classes: int, width: int, num_groups: int, make_field: MakeField) -> Network:
    """The net of Yu, Miao and Wu: images of 28 x 28 reach the block at 6 x 6, 32 x 32 at 7 x 7, of `width` channels."""
    stem = [
        nn.Conv2d(c_in, width, 3),
        norm(num_groups, width),
        nn.ReLU(),
        nn.Conv2d(width, width, 4, 2, 1),
        norm(num_groups, width),
        nn.ReLU(),
        nn.Conv2d(width, width, 4, 2, 1),
    ]
    return Network(*stem, Block(make_field(width)), *_head(width, classes, num_groups))


def stage_network(c_in: int, classes: int, width: int, num_groups: int, make_field: MakeField) -> Network:
    """The CIFAR net in three stages of `width`, 2 and 4 times `width` channels; the later two halve the image.

    Each stage is a residual transition and a block: under Euler with n - 1 steps a pre-activation ResNet of
    6 n + 2 layers (He et al. 2016; the first block of a stage is plain, as in the released LM-ResNet).
    """
    parts: list[nn.Module] = [nn.Conv2d(c_in, width, 3, 1, 1, bias=False)]
    c = width
    for stage in range(3):
        c_out = width * 2**stage
        parts += [Transition(c, c_out, 1 if stage == 0 else 2, num_groups), Block(make_field(c_out))]
        c = c_out
    return Network(*parts, *_head(c, classes, num_groups))


def _head(channels: int, classes: int, num_groups: int) -> list[nn.Module]:
    return [
        norm(num_groups, channels),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(channels, classes),
    ]
