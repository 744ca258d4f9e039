"""The right-hand sides g of a weights' ODE, dtheta/dt = g(theta, t; w), theta a vector of P numbers.

    linear              g = U V theta + b, of low rank
    network             g = U tanh(V theta + s t + c) + b
    path                g = sum_a psi_a(t) g_a: any continuous theta(t), and under Euler with one piece of degree 0 for
                        each of N steps any N-layer ResNet (g_j = N (theta_{j+1} - theta_j); Euler asks for no g_N)
    reaction_diffusion  g = sigma(d Laplace(theta) + v . grad(theta) + rho theta) on the cells of each kernel (ANODEV2)

Each is a layer of a field whose state is theta: its parameters are coefficients (A, *shape) on a basis. Made for the
shapes of the tensors that theta is made of, in turn. Each begins with g = 0.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor, nn

from gode_core.layers import Function

Shapes = Sequence[torch.Size]
SIGMAS = {"identity": lambda x: x, "tanh": torch.tanh}


class LowRank(nn.Module):
    """g = U V theta + b with U (P, rank), V (rank, P). V is random, U and b begin at zero: V's gradient is zero in the
    first step, which moves U, and not after it."""

    def __init__(self, shapes: Shapes, num_coefficients: int, rank: int):
        super().__init__()
        check_positive("rank", rank)
        a, p = num_coefficients, total(shapes)
        self.inwards = nn.Parameter(torch.empty(a, rank, p))
        self.outwards = nn.Parameter(torch.zeros(a, p, rank))
        self.bias = nn.Parameter(torch.zeros(a, p))

    def draw(self, generator: torch.Generator | None) -> None:
        """V from N(0, 1 / P), so that V theta is as large as an entry of theta."""
        self.inwards.data.normal_(0, self.inwards.shape[-1] ** -0.5, generator=generator)

    def at(self, t: float, inwards: Tensor, outwards: Tensor, bias: Tensor) -> Function:
        return lambda theta: torch.addmv(bias, outwards, torch.mv(inwards, theta))


class TanhNetwork(nn.Module):
    """g = U tanh(V theta + s t + c) + b with `width` hidden units. V and s are random, the rest begins at zero: the
    gradients of V, s and c are zero in the first step, which moves U, and not after it."""

    knows_time = True

    def __init__(self, shapes: Shapes, num_coefficients: int, width: int):
        super().__init__()
        check_positive("width", width)
        a, p = num_coefficients, total(shapes)
        self.inwards = nn.Parameter(torch.empty(a, width, p))
        self.time = nn.Parameter(torch.empty(a, width))
        self.shift = nn.Parameter(torch.zeros(a, width))
        self.outwards = nn.Parameter(torch.zeros(a, p, width))
        self.bias = nn.Parameter(torch.zeros(a, p))

    def draw(self, generator: torch.Generator | None) -> None:
        """V from N(0, 1 / P), s from N(0, 1)."""
        self.inwards.data.normal_(0, self.inwards.shape[-1] ** -0.5, generator=generator)
        self.time.data.normal_(0, 1, generator=generator)

    def at(self, t: float, inwards: Tensor, time: Tensor, shift: Tensor, outwards: Tensor, bias: Tensor) -> Function:
        offset = torch.add(shift, time, alpha=t)
        return lambda theta: torch.addmv(bias, outwards, torch.tanh(torch.addmv(offset, inwards, theta)))


class FreePath(nn.Module):
    """g = g(t) alone: the weights' velocity on a basis. All of it gets a gradient at once."""

    def __init__(self, shapes: Shapes, num_coefficients: int):
        super().__init__()
        self.velocity = nn.Parameter(torch.zeros(num_coefficients, total(shapes)))

    def draw(self, generator: torch.Generator | None) -> None:
        """Nothing in it is random."""

    def at(self, t: float, velocity: Tensor) -> Function:
        return lambda theta: velocity


class ReactionDiffusion(nn.Module):
    """g = sigma(d Laplace(w) + v . grad(w) + rho w) for each evolving tensor w, with a d, v and rho of its own.

    The grid is a kernel's own cells, one apart, and periodic: then diffusion keeps a kernel's sum and advection moves
    it round, and the only stationary patterns are constants. Laplace and grad are the central differences. What has no
    spatial extent (1x1 kernels, matrices, biases, norms) only reacts. d may become negative (it sharpens): on so few
    cells that is an ODE like any other. All begin at zero; rho of a tensor that is zero (biases at first) gets its
    gradient once the tensor has moved.
    """

    def __init__(self, shapes: Shapes, num_coefficients: int, sigma: str = "identity"):
        super().__init__()
        if sigma not in SIGMAS:
            raise ValueError(f"unknown sigma `{sigma}`; known: {', '.join(SIGMAS)}")
        self.shapes, self.sigma = list(shapes), SIGMAS[sigma]
        self.spatial = {i: len(shape) - 2 for i, shape in enumerate(shapes) if total([shape[2:]]) > 1}
        a, axes = num_coefficients, max(self.spatial.values(), default=0)
        self.reaction = nn.Parameter(torch.zeros(a, len(shapes)))
        self.diffusion = nn.Parameter(torch.zeros(a, len(self.spatial))) if self.spatial else None
        self.advection = nn.Parameter(torch.zeros(a, len(self.spatial), axes)) if self.spatial else None

    def draw(self, generator: torch.Generator | None) -> None:
        """Nothing in it is random."""

    def at(
        self, t: float, reaction: Tensor, diffusion: Tensor | None = None, advection: Tensor | None = None
    ) -> Function:
        return partial(self._slope, reaction, diffusion, advection)

    def _slope(self, reaction: Tensor, diffusion: Tensor | None, advection: Tensor | None, theta: Tensor) -> Tensor:
        slopes, place = [], 0
        for i, (shape, w) in enumerate(zip(self.shapes, theta.split([total([shape]) for shape in self.shapes]))):
            slope = reaction[i] * w
            if i in self.spatial:
                assert diffusion is not None
                assert advection is not None
                moved = _diffuse_and_move(w.view(shape), diffusion[place], advection[place])
                slope, place = slope + moved.flatten(), place + 1
            slopes.append(slope)
        return self.sigma(torch.cat(slopes))


def _diffuse_and_move(w: Tensor, d: Tensor, v: Tensor) -> Tensor:
    """d Laplace(w) + v . grad(w) over the axes of w from the third on, periodic. v: one number per axis."""
    slope = torch.zeros_like(w)
    for axis in range(2, w.dim()):
        ahead, behind = w.roll(-1, axis), w.roll(1, axis)
        slope = slope + d * (ahead + behind - 2 * w) + v[axis - 2] / 2 * (ahead - behind)
    return slope


EVOLUTIONS = {
    "linear": LowRank,
    "network": TanhNetwork,
    "path": FreePath,
    "reaction_diffusion": ReactionDiffusion,
}


def total(shapes: Sequence[Sequence[int]]) -> int:
    """Numbers in tensors of these shapes, together."""
    return sum(math.prod(shape) for shape in shapes)


def check_positive(name: str, number: int) -> None:
    if number < 1:
        raise ValueError(f"{name} must be at least 1, got {number}")
