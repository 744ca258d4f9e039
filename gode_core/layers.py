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
TINY = 1e-30
MAX_PLACES = 6  # of a one-dimensional convolution that is made a matrix; at 10 the library is as fast


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


def weights_at(coefficients: Tensor, depths: Depths, axis: int = 0) -> list[Tensor]:
    """theta(t) for each depth: `coefficients` without the axis over which they are numbered, 1 behind that of several
    models. Equal rows share one tensor."""
    if coefficients.shape[axis] == 1:
        return [coefficients.select(axis, 0)] * len(depths.index)
    if depths.table is None:
        if torch.compiler.is_compiling():  # it cannot recompute the unbinding of a parameter (torch 2.15)
            return [coefficients.select(axis, i) for i in depths.index]
        distinct = coefficients.unbind(axis)
    else:
        values = _product(depths.table, coefficients.flatten(axis + 1))
        distinct = values.unflatten(-1, coefficients.shape[axis + 1 :]).unbind(axis)
    return [distinct[i] for i in depths.index]


def _product(table: Tensor, coefficients: Tensor) -> Tensor:
    """Outside autocast, which would round the weights to 16 bits."""
    device = coefficients.device.type
    if torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device):
        with torch.autocast(device, enabled=False):
            return table @ coefficients
    return table @ coefficients


def affine(h: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """h W^T + b over the last axis: (..., d_in) -> (..., d_out). Several models side by side: weight (S, d_out, d_in)
    and bias (S, d_out) act on h (S, ..., d_in), as `gode_core.stacked` has it."""
    if weight.dim() == 2:
        return F.linear(h, weight, bias)
    flat = h if h.dim() == 3 else h.flatten(1, -2)
    out = flat @ weight.mT if bias is None else torch.baddbmm(bias[:, None], flat, weight.mT)
    return out if h.dim() == 3 else out.unflatten(1, h.shape[1:-1])


class _OnPoints:
    """A convolution over a few places, (..., B, C_in, L) -> (..., B, C_out, L), as one matrix product: the library's
    convolution takes five times as long for two places. The matrix is made at the first call and serves all others.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None):
        self.weight, self.bias = weight, bias
        self.made: tuple[Tensor, Tensor | None] | None = None

    def __call__(self, h: Tensor) -> Tensor:
        length = h.shape[-1]
        if length > MAX_PLACES and self.weight.dim() == 3:
            return F.conv1d(h, self.weight, self.bias, padding=self.weight.shape[-1] // 2)
        matrix, bias = self._make(length)
        return affine(h.flatten(-2), matrix, bias).unflatten(-1, (self.weight.shape[-3], length))

    def _make(self, length: int) -> tuple[Tensor, Tensor | None]:
        """The matrix and the bias. Anew where a gradient is wanted and what was made without one would swallow it: an
        implicit step asks in both ways."""
        wanted = torch.is_grad_enabled() and self.weight.requires_grad
        if self.made is None or (wanted and not self.made[0].requires_grad):
            bias = None if self.bias is None else self.bias.repeat_interleave(length, dim=-1)
            self.made = self._matrix(length), bias
        return self.made

    def _matrix(self, length: int) -> Tensor:
        """(..., C_out L, C_in L): place i of the output sees place j of the input through tap j - i + middle."""
        middle = self.weight.shape[-1] // 2
        taps = F.pad(self.weight, (length, length))
        seen = [taps.narrow(-1, length + middle - i, length) for i in range(length)]
        return torch.stack(seen, dim=-3).flatten(-2).flatten(-3, -2)


class _Pointwise(torch.autograd.Function):
    """A 1x1 convolution of each of S models' images, (B, S, C_in, L) -> (B, S, C_out, L), as products of matrices: in a
    training step the library's takes twice as long, for one model too, and for one its bits are others than for two."""

    @staticmethod
    def forward(ctx, h: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(h, weight)
        ctx.has_bias = bias is not None
        flat, each = h.flatten(0, 1), weight.expand(len(h), -1, -1, -1).flatten(0, 1)
        out = torch.bmm(each, flat).unflatten(0, h.shape[:2])
        return out if bias is None else out.add_(bias[..., None])

    @staticmethod
    def backward(ctx, upstream: Tensor):  # type: ignore[override]
        h, weight = ctx.saved_tensors
        flat, each = upstream.flatten(0, 1), weight.expand(len(h), -1, -1, -1).flatten(0, 1)
        back = torch.bmm(each.mT, flat).unflatten(0, h.shape[:2])
        own = torch.bmm(flat, h.flatten(0, 1).mT).unflatten(0, h.shape[:2]).sum(0)
        return back, own, upstream.sum((0, 3)) if ctx.has_bias else None


class _SideBySide:
    """Convolutions of S models' images, (S, B, C_in, H, W) -> (S, B, C_out, H, W), as one in groups that do not mix.
    What lies in memory as `beside` has it, and all that is made of it, is copied nowhere."""

    def __init__(self, weight: Tensor, bias: Tensor | None):
        self.size, kernel = weight.shape[0], weight.shape[-1]
        self.padding = kernel // 2
        self.weight = weight.flatten(0, 1) if kernel > 1 else weight.flatten(2)
        self.bias = bias.flatten() if kernel > 1 and bias is not None else bias

    def __call__(self, h: Tensor) -> Tensor:
        images = h.transpose(0, 1)
        if self.padding:
            out = F.conv2d(images.flatten(1, 2), self.weight, self.bias, padding=self.padding, groups=self.size)
            return out.unflatten(1, (self.size, -1)).transpose(0, 1)
        out = _Pointwise.apply(images.flatten(3), self.weight, self.bias)
        assert isinstance(out, Tensor)
        return out.unflatten(3, h.shape[3:]).transpose(0, 1)


def beside(h: Tensor) -> Tensor:
    """(S, B, C, H, W), the same numbers, in memory in the order B, S, C, H, W."""
    return h.transpose(0, 1).contiguous().transpose(0, 1)


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
        self.dims = dims

    def at(self, t: float, weight: Tensor, bias: Tensor | None = None) -> Function:
        if self.dims == 1 and self.cardinality == 1:
            return _OnPoints(weight, bias)
        if weight.dim() == self.dims + 3:
            return _SideBySide(weight, bias)
        convolve = {1: F.conv1d, 2: F.conv2d}[self.dims]
        return partial(convolve, weight=weight, bias=bias, padding=weight.shape[-1] // 2, groups=self.cardinality)


class DepthLinear(nn.Module):
    """Linear map of the last axis: (..., d_in) -> (..., d_out). Coefficients as for DepthConv."""

    def __init__(self, d_in: int, d_out: int, num_kernels: int, num_biases: int):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(num_kernels, d_out, d_in))
        self.bias = nn.Parameter(torch.empty(num_biases, d_out)) if num_biases else None

    def at(self, t: float, weight: Tensor, bias: Tensor | None = None) -> Function:
        return partial(affine, weight=weight, bias=bias)


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


class Oscillator(nn.Module):
    """z -> [[alpha, 1], [-gamma |z|^delta, beta]] z of points (B, 1, 2) in the plane: the fan of Ott et al. 2021,
    section 2.2, which spreads the errors of one step over all that follow. Its numbers are not trained."""

    def __init__(self, alpha: float, beta: float, gamma: float, delta: float):
        super().__init__()
        self.numbers = nn.Parameter(torch.tensor([[alpha, beta, gamma, delta]]), requires_grad=False)

    def at(self, t: float, numbers: Tensor) -> Function:
        return partial(_oscillate, *numbers)


def _oscillate(alpha: Tensor, beta: Tensor, gamma: Tensor, delta: Tensor, z: Tensor) -> Tensor:
    x, y = z.unbind(-1)
    size = (x.square() + y.square()).clamp(min=TINY) ** (delta / 2)  # at 0 the power has no derivative
    return torch.stack([alpha * x + y, beta * y - gamma * size * x], dim=-1)


class ReLU(nn.Module):
    def at(self, t: float) -> Function:
        return torch.relu


class ConcatTime(nn.Module):
    """Adds t along an axis, in front: as a channel (B, C, ...) -> (B, C + 1, ...) (Chen et al. 2018, their MNIST
    example), or with axis -1 as a coordinate."""

    knows_time = True  # its functions of two depths differ where its weights do not: see `fields`

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
