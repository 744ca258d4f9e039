"""What stands between a network's blocks: residual blocks that change width and size, norms, padding with channels."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gode_core.depth_norms import Norm
from gode_core.layers import groups


class PadChannels(nn.Module):
    """(B, C, ...) -> (B, channels, ...), zeros behind; with axis -1 points get more coordinates. An augmented state
    (Dupont et al. 2019): the flow of an ODE cannot exchange two points of a line, in a plane it can."""

    def __init__(self, channels: int, axis: int = 1):
        super().__init__()
        self.channels, self.axis = channels, axis

    def forward(self, h: Tensor) -> Tensor:
        axes_behind = h.dim() - 1 - self.axis % h.dim()
        return F.pad(h, (*(0, 0) * axes_behind, 0, self.channels - h.shape[self.axis]))


class Transition(nn.Module):
    """A pre-activation residual block that may change width and size: (B, C, H, W) -> (B, C', H / stride, W / stride).

    shortcut(x) + conv(ReLU norm(conv_stride(ReLU norm(x)))); the shortcut is the identity, or norm - ReLU - 1x1
    convolution where the shape changes.
    """

    def __init__(self, c_in: int, c_out: int, stride: int, num_groups: int, norm: Norm = "group"):
        super().__init__()
        self.norm1, self.norm2 = (plain_norm(norm, c, num_groups) for c in (c_in, c_out))
        self.conv1 = nn.Conv2d(c_in, c_out, 3, stride, 1, bias=False)
        self.conv2 = nn.Conv2d(c_out, c_out, 3, 1, 1, bias=False)
        self.shortcut = _shortcut(c_in, c_out, stride, num_groups, norm)

    def forward(self, x: Tensor) -> Tensor:
        return self.shortcut(x) + self.branch(x)

    def branch(self, x: Tensor) -> Tensor:
        h = self.conv1(torch.relu(self.norm1(x)))
        return self.conv2(torch.relu(self.norm2(h)))


@dataclass(frozen=True)
class Bottleneck:
    """Blocks of 1x1 - 3x3 - 1x1: in the first stage `inner` channels for the 3x3, in `cardinality` groups, and outside
    `expansion` times the stage's width. ResNet-164: inner 16 of width 16; ResNeXt-29 8x64d: inner 512 of width 64,
    cardinality 8."""

    inner: int
    cardinality: int = 1
    expansion: int = 4


class BottleneckTransition(nn.Module):
    """As `Transition`, with `inner` channels within; its 3x3 convolution has the stride (as in ResNeXt)."""

    def __init__(
        self,
        c_in: int,
        c_out: int,
        stride: int,
        num_groups: int,
        norm: Norm = "group",
        *,
        inner: int,
        cardinality: int = 1,
    ):
        super().__init__()
        if inner % cardinality:
            raise ValueError(f"bottleneck: cardinality {cardinality} does not divide {inner} channels")
        self.norm1, self.norm2, self.norm3 = (plain_norm(norm, c, num_groups) for c in (c_in, inner, inner))
        self.conv1 = nn.Conv2d(c_in, inner, 1, bias=False)
        self.conv2 = nn.Conv2d(inner, inner, 3, stride, 1, groups=cardinality, bias=False)
        self.conv3 = nn.Conv2d(inner, c_out, 1, bias=False)
        self.shortcut = _shortcut(c_in, c_out, stride, num_groups, norm)

    def forward(self, x: Tensor) -> Tensor:
        return self.shortcut(x) + self.branch(x)

    def branch(self, x: Tensor) -> Tensor:
        h = self.conv1(torch.relu(self.norm1(x)))
        h = self.conv2(torch.relu(self.norm2(h)))
        return self.conv3(torch.relu(self.norm3(h)))


def _shortcut(c_in: int, c_out: int, stride: int, num_groups: int, norm: Norm) -> nn.Module:
    if stride == 1 and c_in == c_out:
        return nn.Identity()
    return nn.Sequential(plain_norm(norm, c_in, num_groups), nn.ReLU(), nn.Conv2d(c_in, c_out, 1, stride, bias=False))


def plain_norm(kind: Norm, channels: int, num_groups: int) -> nn.Module:
    """Outside fields, where a norm is met once in a forward pass and plain batch norm is right."""
    if kind == "batch":
        return nn.BatchNorm2d(channels)
    return nn.GroupNorm(groups(num_groups if kind == "group" else 1, channels), channels)
