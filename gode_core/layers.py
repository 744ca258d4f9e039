"""Layers whose weights are functions of depth, theta(t) = sum_a phi_a(t) theta_a.

A layer's parameters are coefficients (A, *shape); a parameter with one coefficient is constant in depth, whatever the
basis. `layer.at(t, **weights)` is the layer as a function of h alone, given the values of its parameters at depth t:
where they come from (a basis, an ODE of their own) is the field's business. The values at all depths come from one
product of the basis table with the coefficients, so that the spline costs next to nothing beside the convolution.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gode_core.bases import Basis, Times, basis_rows
from gode_core.free_knots import FreeKnots, distinct_points

Function = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Depths:
    """The times at which weights are wanted, and the basis there.

    table: (M, A), its distinct rows; None where each row picks one coefficient (a piecewise constant basis).
    index: for each time its row of the table, or the coefficient that it picks.
    points: (M, 2), of a basis with free knots, whose table moves with them: `now` makes it.
    """

    times: list[float]
    table: Tensor | None
    index: list[int]
    points: Tensor | None = None

    @staticmethod
    def of(basis: Basis, times: Times, like: Tensor) -> Depths:
        """The table is computed in float64 and has the dtype and device of `like`."""
        floats = [float(t) for t, _ in times.points()]
        if isinstance(basis, FreeKnots):
            points, index = distinct_points(times, like.device)
            return Depths(floats, None, index, points)
        rows, index = basis_rows(basis, times)
        if all(sorted(row) == [0.0] * (len(row) - 1) + [1.0] for row in rows):
            return Depths(floats, None, [rows[i].index(1.0) for i in index])
        table = torch.tensor(rows, dtype=torch.float64).to(device=like.device, dtype=like.dtype)
        return Depths(floats, table, index)

    def now(self, basis: Basis, like: Tensor) -> Depths:
        """With the table of the knots as they stand, and their gradient. The same object for any other basis."""
        if self.points is None or not isinstance(basis, FreeKnots):
            return self
        return Depths(self.times, basis.table(self.points).to(like.dtype), self.index)


def weights_at(coefficients: Tensor, depths: Depths) -> list[Tensor]:
    """theta(t), of shape `coefficients.shape[1:]`, for each depth. Equal rows share one tensor."""
    if coefficients.shape[0] == 1:
        return [coefficients[0]] * len(depths.index)
    if depths.table is None:
        if torch.compiler.is_compiling():  # it cannot recompute the unbinding of a parameter (torch 2.15)
            return [coefficients[i] for i in depths.index]
        distinct = coefficients.unbind(0)
    else:
        distinct = _product(depths.table, coefficients.flatten(1)).view(-1, *coefficients.shape[1:]).unbind(0)
    return [distinct[i] for i in depths.index]


def _product(table: Tensor, coefficients: Tensor) -> Tensor:
    """Outside autocast, which would round the weights to 16 bits."""
    device = coefficients.device.type
    if torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device):
        with torch.autocast(device, enabled=False):
            return table @ coefficients
    return table @ coefficients


class DepthConv(nn.Module):
    """Convolution over 1 or 2 dimensions, `same` padding, odd kernel: (B, C_in, ...) -> (B, C_out, ...).

    `num_kernels` and `num_biases` are the coefficients of each: the basis's A, or 1 for constant in depth; 0 biases
    for none. cardinality: groups of channels that do not mix (ResNeXt). Raises ValueError if it does not divide them.
    """

    def __init__(
        self, c_in: int, c_out: int, kernel: int, dims: int, num_kernels: int, num_biases: int, cardinality: int = 1
    ):
        super().__init__()
        if c_in % cardinality or c_out % cardinality:
            raise ValueError(f"convolution: cardinality {cardinality} does not divide {c_in} and {c_out} channels")
        self.cardinality = cardinality
        self.weight = nn.Parameter(torch.empty(num_kernels, c_out, c_in // cardinality, *[kernel] * dims))
        self.bias = nn.Parameter(torch.empty(num_biases, c_out)) if num_biases else None
        self._convolve = {1: F.conv1d, 2: F.conv2d}[dims]

    def at(self, t: float, weight: Tensor, bias: Tensor | None = None) -> Function:
        padding, cardinality = weight.shape[-1] // 2, self.cardinality
        return partial(self._convolve, weight=weight, bias=bias, padding=padding, groups=cardinality)


class DepthLinear(nn.Module):
    """Linear map of the last axis: (..., d_in) -> (..., d_out). Coefficients as for DepthConv."""

    def __init__(self, d_in: int, d_out: int, num_kernels: int, num_biases: int):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(num_kernels, d_out, d_in))
        self.bias = nn.Parameter(torch.empty(num_biases, d_out)) if num_biases else None

    def at(self, t: float, weight: Tensor, bias: Tensor | None = None) -> Function:
        return partial(F.linear, weight=weight, bias=bias)


class DepthGroupNorm(nn.Module):
    """Group norm (eps 1e-5) of `channels` channels in at most `num_groups` groups: it keeps no statistics, so it is the
    same function for every solver. Its scale and shift may depend on depth (`num_coefficients` > 1)."""

    def __init__(self, num_groups: int, channels: int, num_coefficients: int):
        super().__init__()
        self.num_groups = groups(num_groups, channels)
        self.weight = nn.Parameter(torch.ones(num_coefficients, channels))
        self.bias = nn.Parameter(torch.zeros(num_coefficients, channels))

    def at(self, t: float, weight: Tensor, bias: Tensor) -> Function:
        return partial(F.group_norm, num_groups=self.num_groups, weight=weight, bias=bias)


class ReLU(nn.Module):
    def at(self, t: float) -> Function:
        return torch.relu


class ConcatTime(nn.Module):
    """Adds t along an axis, in front: as a channel (B, C, ...) -> (B, C + 1, ...) (Chen et al. 2018, their MNIST
    example), or with axis -1 as a coordinate."""

    def __init__(self, axis: int = 1):
        super().__init__()
        self.axis = axis

    def at(self, t: float) -> Function:
        return partial(_with_time, t, self.axis)


def _with_time(t: float, axis: int, h: Tensor) -> Tensor:
    return torch.cat([torch.full_like(h.narrow(axis, 0, 1), t), h], dim=axis)


def groups(num_groups: int, channels: int) -> int:
    """The number of groups for so many channels: min(num_groups, channels), which must divide them."""
    number = min(num_groups, channels)
    if channels % number:
        raise ValueError(f"group norm: {number} groups do not divide {channels} channels")
    return number
