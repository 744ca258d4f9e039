"""How long the first step of a solve may be, before anything is known of the solution.

The rule of Hairer, Norsett and Wanner (Solving ODEs I, II.4, p. 169) for h' = f(t, h), h(0) = h0 and order p:

    d0 = |h0|,  d1 = |f(0, h0)|        a = 0.01 d0 / d1             (10^-6 if d0 or d1 is below 10^-5)
    d2 = |f(a, h0 + a f(0, h0)) - f(0, h0)| / a                     (about |h''|, from one Euler step of size a)
    b = (0.01 / max(d1, d2))^(1 / (p + 1))                          (max(10^-6, 10^-3 a) if max(d1, d2) < 10^-15)
    step = min(100 a, b)

The book's norm is scaled by the tolerances, and so it is for adaptive solves. Where there are none, |.| is that of Ott
et al. (2021, released code), who leave t at 0 in d2 too: the 2-norm along the last axis, then the mean over all the
others, with no scale. Of a batch of points (B, d) this is the mean length of a point; of images (B, C, H, W) the mean
length of a row, which other layouts of the same numbers do not share.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor


def mean_norm(x: Tensor) -> float:
    """Mean over everything of the 2-norm along the last axis, in float64."""
    return torch.linalg.vector_norm(x.double(), dim=-1).mean().item()


@torch.no_grad()
def starting_step(
    f: Callable[[float, Tensor], Tensor],
    h0: Tensor,
    order: int,
    norm: Callable[[Tensor], float] = mean_norm,
) -> float:
    """The step that the rule proposes, in units of depth: at least 0, and not bounded by the end of the interval.

    f: the field as a function of how far ahead of the start, and the state; called twice. h0: states (B, ..., d).
    order: p.
    0.0 stands for `no step is short enough`: the state or a slope is not finite.
    Raises ValueError for an order below 1.
    """
    if order < 1:
        raise ValueError(f"order must be at least 1, got {order}")
    slope = f(0.0, h0)
    d0, d1 = norm(h0), norm(slope)
    if not math.isfinite(d0 + d1):
        return 0.0
    probe = 1e-6 if min(d0, d1) < 1e-5 else 0.01 * d0 / d1
    d2 = norm(f(probe, torch.add(h0, slope, alpha=probe)) - slope) / probe
    if not math.isfinite(d2):
        return 0.0
    steepest = max(d1, d2)
    bound = max(1e-6, 1e-3 * probe) if steepest < 1e-15 else (0.01 / steepest) ** (1 / (order + 1))
    return min(100 * probe, bound)
