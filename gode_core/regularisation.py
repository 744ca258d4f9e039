"""What a training may ask of a block's path beside its end: that it be straight, and that it may end elsewhere.

    kinetic    integral_0^1 |f(t, h)|^2 / D dt
    jacobian   integral_0^1 |e^T df/dh|^2 / D dt, whose mean over e is the integral of |df/dh|_F^2 / D

for a sample of D elements: the weight of a penalty then does not depend on the image's size (Finlay et al. 2020, How to
train your Neural ODE). e has independent signs and is drawn once for a solve (Hutchinson's estimate), so that
the integrand is smooth in t. Both integrals ride along with the state, z = (h flattened, energies) of shape (B, D + 2),
so that every solver and gradient gives them as exactly as h. Under a batch norm in train mode a sample's row of
e^T df/dh takes in how it acts on the others.

    random end  dh/ds = T f(s, h) on [0, 1], T uniform in [1 - b, 1 + b]          (STEER, Ghosh et al. 2020)

For weights that are constant in depth this is the solve of f to the end time T; weights that vary are stretched along,
since they are defined on [0, 1] only. T multiplies the energies too, which are those of the path to T.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from gode_core.bases import Basis, Moment, StageTimes, Times
from gode_core.depth_norms import DepthBatchNorm
from gode_core.fields import Field
from gode_core.integrate import integrate
from gode_core.layers import Function
from gode_core.solution import Solution
from gode_core.solvers import Implicit, Solver

if TYPE_CHECKING:
    from gode_core.evolution import Evolution, Path


class Changed(nn.Module):
    """A field whose functions of h alone are changed, each in the same way. In all else it is the field."""

    def __init__(self, field: Field | Changed, change: Callable[[Function], Function], error_norm=None):
        super().__init__()
        self.field = field
        self.change = change
        self.error_norm = error_norm or getattr(field, "error_norm", None)  # what an adaptive solve keeps small

    @property
    def layers(self) -> nn.ModuleList:
        return self.field.layers

    @property
    def basis(self) -> Basis:
        return self.field.basis

    @property
    def evolution(self) -> Evolution | None:
        return self.field.evolution

    @property
    def batch_norms(self) -> list[DepthBatchNorm]:
        return self.field.batch_norms

    @property
    def breaks(self) -> tuple[Fraction, ...]:
        return self.field.breaks

    def continuity(self, k: Fraction) -> int:
        return self.field.continuity(k)

    def at(self, times: Times, path: Path | None = None) -> list[Function]:
        return [self.change(function) for function in self.field.at(times, path)]

    def path(self, runs: tuple[Times, ...]) -> Path | None:
        return self.field.path(runs)

    def forward(self, t: float, h: Tensor) -> Tensor:
        return self.at(Moment(float(t)))[0](h)

    def prepare(self, *runs: StageTimes) -> None:
        self.field.prepare(*runs)

    def begin_solve(self) -> None:
        self.field.begin_solve()

    def end_solve(self) -> None:
        self.field.end_solve()


def stretched(field: Field | Changed, end: float) -> Changed:
    """end * f(s, h)."""
    return Changed(field, lambda function: partial(_times, end, function))


def _times(factor: float, function: Function, h: Tensor) -> Tensor:
    return factor * function(h)


def regularised(field: Field | Changed, shape: tuple[int, ...], epsilon: Tensor | None = None) -> Changed:
    """The field of z = (h, kinetic, jacobian), (B, D + 2), for states h of (B, *shape). epsilon: e, of h's shape;
    without it z = (h, kinetic), (B, D + 1)."""
    norm = partial(_norm_by_parts, 1 if epsilon is None else 2)
    return Changed(field, lambda function: partial(_slope_of_all, shape, epsilon, function), norm)


def _norm_by_parts(num_energies: int, z: Tensor) -> Tensor:
    """The larger of the root mean squares of the states and of the energies, which in one mean would count for little
    beside so many entries of h."""
    states, energies = z.tensor_split([z.shape[1] - num_energies], dim=1)
    return torch.maximum(states.square().mean().sqrt(), energies.square().mean().sqrt())


def pack(h: Tensor, num_energies: int) -> Tensor:
    """(B, ...) -> (B, D + num_energies): a state at the start of its path."""
    return torch.cat([h.flatten(1), h.new_zeros(len(h), num_energies)], dim=1)


def unpack(z: Tensor, shape: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """(B, D + num_energies) -> the state (B, *shape) and the energies (B, num_energies)."""
    size = torch.Size(shape).numel()
    return z[:, :size].reshape(-1, *shape), z[:, size:]


def _slope_of_all(shape: tuple[int, ...], epsilon: Tensor | None, function: Function, z: Tensor) -> Tensor:
    h = unpack(z, shape)[0]
    slope, *row = (function(h),) if epsilon is None else _with_row(function, h, epsilon)
    slope = slope.to(z.dtype).flatten(1)  # under autocast it has 16 bits
    energies = [v.to(z.dtype).flatten(1).square().mean(1, keepdim=True) for v in (slope, *row)]
    return torch.cat([slope, *energies], dim=1)


def _with_row(function: Function, h: Tensor, epsilon: Tensor) -> tuple[Tensor, Tensor]:
    """f(h) and e^T df/dh. By torch.autograd, which leaves no wrapped tensors in running statistics as torch.func.vjp
    does."""
    further = torch.is_grad_enabled()
    with torch.enable_grad():
        if not (further and h.requires_grad):
            h = h.detach().requires_grad_()
        slope = function(h)
        (row,) = torch.autograd.grad(slope, h, epsilon.to(slope.dtype), create_graph=further, materialize_grads=True)
    return (slope, row) if further else (slope.detach(), row)


def integrate_path(
    field: Field | Changed,
    h0: Tensor,
    solver: Solver,
    *,
    kinetic: bool = False,
    jacobian: bool = False,
    end: float = 1.0,
    generator: torch.Generator | None = None,
    **settings: Any,
) -> Solution:
    """`integrate` to the time `end`; the solution has the energies asked for. generator: draws e, on any device.

    Raises what `integrate` raises, and ValueError for `jacobian` with the gradient `checkpoint`: the derivative that it
    takes on the way would recompute each run of steps once per evaluation, and update running statistics again; and
    with an implicit solver, whose own derivatives (torch.func) cannot go through that one.
    """
    if jacobian and isinstance(solver, Implicit):
        raise ValueError(f"jacobian does not go with {solver}; take an explicit solver, or kinetic alone")
    if jacobian and settings.get("gradient") == "checkpoint":
        raise ValueError("jacobian does not go with the gradient `checkpoint`; take `direct`, or kinetic alone")
    shape, num_energies = tuple(h0.shape[1:]), 1 + jacobian if kinetic or jacobian else 0
    if num_energies:
        field = regularised(field, shape, _signs(h0, generator) if jacobian else None)
    if end != 1.0:
        field = stretched(field, end)
    solution = integrate(field, pack(h0, num_energies) if num_energies else h0, solver, **settings)
    if not num_energies:
        return solution
    h1, energies = unpack(solution.h1, shape)
    states, means = [unpack(z, shape)[0] for z in solution.states], energies.mean(0)
    found = {"kinetic": means[0] if kinetic else None, "jacobian": means[1] if jacobian else None}
    return replace(solution, h1=h1, states=states, **found)


def _signs(like: Tensor, generator: torch.Generator | None) -> Tensor:
    """Independent, -1 or 1 with probability 1/2, of the shape, dtype and device of `like`."""
    device = like.device if generator is None else generator.device
    drawn = torch.randint(0, 2, like.shape, generator=generator, device=device)
    return drawn.to(like.device, like.dtype) * 2 - 1


def draw_end(spread: float, generator: torch.Generator | None) -> float:
    """Uniform in [1 - spread, 1 + spread]."""
    device = "cpu" if generator is None else generator.device
    return 1 + spread * (2 * torch.rand((), dtype=torch.float64, generator=generator, device=device).item() - 1)
