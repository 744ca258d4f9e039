"""Normalisation inside a field.

    group   channels in groups, over space: keeps no statistics, so it is the same function for every solver
    layer   all channels together, over space: group norm with one group
    batch   over the batch and space, with running statistics that are functions of depth

A plain BatchNorm is refused: its one set of statistics would mix all depths and depend on the training's solver, and a
recomputation or an adjoint's backward solve would update it again. Here the running mean and variance stand on a basis
of their own (as the state of Queiruga et al. 2021), so that they are defined at any t, under any solver.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from gode_core.bases import Basis, BSpline, clamped
from gode_core.layers import DepthGroupNorm, Depths, Function, weights_at

Norm = Literal["group", "layer", "batch"]


def make_norm(
    kind: Norm, channels: int, num_groups: int, num_coefficients: int, basis: Basis, statistics: int
) -> nn.Module:
    """A norm of `channels` channels whose scale and shift have so many coefficients on the field's `basis`.

    statistics: of a batch norm, see `statistics_basis`.
    """
    if kind == "group":
        return DepthGroupNorm(num_groups, channels, num_coefficients)
    if kind == "layer":
        return DepthGroupNorm(1, channels, num_coefficients)
    if kind == "batch":
        return DepthBatchNorm(channels, num_coefficients, statistics_basis(basis, statistics))
    raise ValueError(f"unknown norm `{kind}`; known: group, layer, batch")


def statistics_basis(basis: Basis, statistics: int) -> BSpline:
    """The basis of a batch norm's statistics: the field's, if that is piecewise constant (one set for each piece, as
    for each layer of a ResNet), else hat functions on `statistics` equally spaced nodes."""
    if isinstance(basis, BSpline) and basis.degree == 0 and basis.num_coefficients > 1:
        return basis
    if statistics < 2:
        raise ValueError(f"batch norm: statistics needs at least 2 nodes over depth, got {statistics}")
    return clamped(1, statistics)


class DepthBatchNorm(nn.Module):
    """Batch norm (eps 1e-5) of `channels` channels: (B, C, ...) to itself, with running statistics on `basis`.

    mean, variance: (A_s, C), the running statistics' coefficients. In eval mode the layer normalises by their values at
    t, in train mode by the batch's own, as every batch norm does.

    A solve in train mode, from `begin_solve` to `end_solve`, gathers the statistics s_m of its evaluations at t_m, then
    moves each coefficient a by `momentum` towards sum_m phi_a(t_m) s_m / sum_m phi_a(t_m): a projection with lumped
    mass, which is exact for constants and keeps variances positive, where least squares might not. Rejected steps of an
    adaptive solver count. What the solve did not see: a piece keeps what it has; a hat's node, which lies between nodes
    that were seen, takes part in the line between those (beyond the last: its value). Else a solve with few steps would
    leave nodes at their start, for other solvers to meet. A solve in which a channel was not finite leaves the channel.

    With one coefficient per Euler step this is torch's BatchNorm of that layer, running statistics and all.
    """

    momentum = 0.1

    def __init__(self, channels: int, num_coefficients: int, basis: BSpline):
        super().__init__()
        self.basis = basis
        self.weight = nn.Parameter(torch.ones(num_coefficients, channels))
        self.bias = nn.Parameter(torch.zeros(num_coefficients, channels))
        self.mean: Tensor
        self.variance: Tensor
        self.register_buffer("mean", torch.zeros(basis.num_coefficients, channels))
        self.register_buffer("variance", torch.ones(basis.num_coefficients, channels))
        self._sums: Tensor | None = None  # (A_s, 1 + 2 C) within a solve: sum_m phi(t_m) [1, mean_m, variance_m]

    def statistics_at(self, depths: Depths) -> list[dict[str, Tensor]]:
        """What `at` needs beside the weights for each depth, by name; `depths` are of this layer's basis."""
        if not self.training:
            means, variances = weights_at(self.mean, depths), weights_at(self.variance, depths)
            return [{"mean": mean, "variance": variance} for mean, variance in zip(means, variances)]
        table = depths.table
        if table is None:
            table = torch.eye(len(self.mean), dtype=self.mean.dtype, device=self.mean.device)
        return [{"row": table[i]} for i in depths.index]

    def at(self, t: float, weight: Tensor, bias: Tensor, **statistics: Tensor) -> Function:
        if "row" not in statistics:
            return lambda h: F.batch_norm(h, statistics["mean"], statistics["variance"], weight, bias)
        return lambda h: self._by_the_batch(h, weight, bias, statistics["row"])

    def _by_the_batch(self, h: Tensor, weight: Tensor, bias: Tensor, row: Tensor) -> Tensor:
        mean, variance = torch.zeros_like(self.mean[0]), torch.ones_like(self.mean[0])
        # momentum 1: it leaves the batch's mean and unbiased variance there
        normalised = F.batch_norm(h, mean, variance, weight, bias, training=True, momentum=1.0)
        if self._sums is not None:
            sample = torch.cat([torch.ones_like(mean[:1]), mean, variance])
            self._sums = self._sums + row.unsqueeze(1) * sample
        return normalised

    def begin_solve(self) -> None:
        coefficients, channels = self.mean.shape
        # in eval mode too: a solve that an error broke off has left its sums
        self._sums = self.mean.new_zeros(coefficients, 1 + 2 * channels) if self.training else None

    @torch.no_grad()
    def end_solve(self) -> None:
        if self._sums is None:
            return
        mass, sums = self._sums[:, :1], self._sums[:, 1:]
        self._sums = None
        estimate = sums / mass
        if self.basis.degree == 1:
            estimate = _between_seen(estimate, mass[:, 0] > 0)
        means, variances = estimate.chunk(2, dim=1)
        finite = torch.isfinite(means) & torch.isfinite(variances)
        for statistics, new in ((self.mean, means), (self.variance, variances)):
            statistics.copy_(torch.where(finite, torch.lerp(statistics, new, self.momentum), statistics))


def _between_seen(values: Tensor, seen: Tensor) -> Tensor:
    """(A, n) values on equally spaced nodes, those not `seen` (A,) on the line between the next that are."""
    last = len(seen) - 1
    node = torch.arange(len(seen), device=seen.device)
    left = torch.where(seen, node, -1).cummax(0).values
    right = torch.where(seen, node, last + 1).flip(0).cummin(0).values.flip(0)
    left, right = torch.where(left < 0, right, left), torch.where(right > last, left, right)
    share = (node - left) / (right - left).clamp(min=1)
    left, right = left.clamp(0, last), right.clamp(0, last)
    return torch.lerp(values[left], values[right], share.to(values.dtype).unsqueeze(1))


def refuse_batch_norm(module: nn.Module) -> None:
    """Raises ValueError if a plain BatchNorm is within."""
    for name, part in module.named_modules():
        if isinstance(part, _BatchNorm):
            raise ValueError(
                f"a {type(part).__name__}{f' (`{name}`)' if name else ''} cannot be part of a field: its running "
                "statistics would mix all depths, and a recomputation or an adjoint's backward solve would update them "
                'twice; take make_norm("batch", ...), whose statistics are functions of depth, or "group" or "layer"'
            )
