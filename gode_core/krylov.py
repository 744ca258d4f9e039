"""Equations r(z) = 0 of a batch, each sample its own: Newton's method, its linear systems solved by GMRES.

Nothing but products with the Jacobian is asked for. All norms, Krylov spaces and stopping rules are per sample, and a
sample that has arrived does not move again: its result does not depend on the others in the batch beyond rounding.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from gode_core.solution import Status

NEWTON_LIMIT = 20  # steps of Newton's method
HALVING_LIMIT = 8  # of each step
KRYLOV_LIMIT = 30  # products with the Jacobian in each
FORCING = 1e-3  # share of the residual that a linear solve leaves

Product = Callable[[Tensor], Tensor]  # v -> J v


class Residual(NamedTuple):
    """r: of the shape (B, ...) of z. tolerance: (B,) float64, the norm below which r counts as zero."""

    r: Tensor
    tolerance: Tensor


def newton_krylov(
    z: Tensor, at_z: Residual, residual: Callable[[Tensor], Residual], jacobian: Callable[[Tensor], Product]
) -> tuple[Tensor, Status, Tensor]:
    """z with |residual(z)| within its tolerance, from a guess z whose residual is `at_z`; the worst status of a sample;
    and (B,) bool, the samples that have not arrived.

    Status `nonfinite` if a residual is not finite, `unconverged` if a sample has not arrived after NEWTON_LIMIT steps.
    """
    for number in range(NEWTON_LIMIT + 1):
        size = norm(at_z.r)
        still = (size > at_z.tolerance) & torch.isfinite(size)
        if number == NEWTON_LIMIT or not bool(still.any()):
            break
        direction = gmres(jacobian(z), choose(still, -at_z.r, torch.zeros_like(z)))
        z, at_z = _descend(z, direction, still, size, residual)
    lost = ~(size <= at_z.tolerance)
    if not bool(lost.any()):
        return z, "ok", lost
    return z, "unconverged" if bool(torch.isfinite(size).all()) else "nonfinite", lost


def _descend(
    z: Tensor, direction: Tensor, still: Tensor, size: Tensor, residual: Callable[[Tensor], Residual]
) -> tuple[Tensor, Residual]:
    """The state one step on, and its residual. A sample whose residual would not fall below its `size` takes half the
    step, and again: far from the solution a field that saturates (tanh) would let whole steps go to and fro."""
    there = residual(z + direction)
    for _ in range(HALVING_LIMIT):
        worse = still & ~(norm(there.r) < size)
        if not bool(worse.any()):
            break
        direction = choose(worse, direction / 2, direction)
        there = residual(z + direction)
    return z + direction, there


def gmres(product: Product, b: Tensor) -> Tensor:
    """x with |b - A x| <= FORCING |b| for each sample, or the best after KRYLOV_LIMIT products (Saad and Schultz 1986).

    Arnoldi's vectors by modified Gram-Schmidt; the least squares by Givens rotations, which give the residual's norm on
    the way. Once a sample's is small its further vectors are zero, and so are their weights.
    """
    left = norm(b)
    target = FORCING * left
    vectors, columns, rotations, weights = [_over(b, left)], [], [], []
    for _ in range(KRYLOV_LIMIT):
        w, column = product(vectors[-1]), []
        for v in vectors:
            column.append((w * v).flatten(1).sum(1, dtype=torch.float64))
            w = w - _times(column[-1], v)
        length = norm(w)
        for i, (c, s) in enumerate(rotations):
            column[i], column[i + 1] = c * column[i] + s * column[i + 1], c * column[i + 1] - s * column[i]
        radius = torch.hypot(column[-1], length)
        radius = torch.where(radius == 0, 1.0, radius)  # a zero vector: its weight is zero
        c, s = column[-1] / radius, length / radius
        column[-1] = radius
        columns.append(column)
        rotations.append((c, s))
        weights.append(c * left)
        left = -s * left
        left = torch.where(left.abs() > target, left, 0.0)  # nan: a sample that is lost
        if not bool(left.any()):
            break
        vectors.append(_over(w, torch.where(left == 0, 0.0, length)))
    for i in reversed(range(len(columns))):
        for k in range(i + 1, len(columns)):
            weights[i] = weights[i] - columns[k][i] * weights[k]
        weights[i] = weights[i] / columns[i][i]
    x = torch.zeros_like(b)
    for weight, v in zip(weights, vectors):
        x = x + _times(weight, v)
    return x


def norm(x: Tensor) -> Tensor:
    """(B,) in float64: the 2-norm of each sample."""
    return torch.linalg.vector_norm(x.flatten(1), dim=1, dtype=torch.float64)


def choose(samples: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """x for the samples (B,) that are True, y for the others."""
    return torch.where(_wide(samples, x), x, y)


def _over(x: Tensor, size: Tensor) -> Tensor:
    """x / size for each sample; zero where the size is."""
    return x / _wide(torch.where(size == 0, torch.inf, size), x).to(x.dtype)


def _times(weight: Tensor, x: Tensor) -> Tensor:
    return _wide(weight, x).to(x.dtype) * x


def _wide(samples: Tensor, x: Tensor) -> Tensor:
    """(B,) as (B, 1, ...), to stand beside x."""
    return samples.view(-1, *[1] * (x.dim() - 1))
