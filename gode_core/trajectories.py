"""What the paths of samples through depth show about a model of low dimension: does it fold, do its paths cross?

The map x -> h(t) of an ODE dh/dt = f(t, h), h(0) = x, with the Jacobian J(t), has by Liouville's formula

    det J(t) = exp( integral_0^t div f ds ) > 0,

so a discrete map from points to states after n steps with det J <= 0 is the flow of no ODE, neither of its own f nor of
any other. And where f does not depend on t, two solutions never share a point unless they share the path: discrete
paths in the plane that cross are no solutions (Ott et al. 2021, figure 1). If f depends on t, solutions may pass one
place at different times, and a crossing proves nothing.

States are (B, d) or (B, 1, d), or any (B, ...) of d elements each. Samples must not mix: no batch norm in train mode.
"""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from gode_core.integrate import integrate
from gode_core.solvers import Fixed

CHUNK = 1 << 18  # orientations at a time: 2 MiB in float64, and a few such tensors


def flow_jacobian(flow: Callable[[Tensor], Tensor], points: Tensor, *, forward: bool = False) -> Tensor:
    """(B, d, d): entry (b, i, j) is the derivative of coordinate i of the image of point b by the point's coordinate j.

    flow: of the points (B, ...) to images of their shape, for example `lambda x: integrate(field, x, solver).h1`. By
    one backward pass for each coordinate, through its sum over the batch. The step sizes of an adaptive solver are
    taken as given. forward: by one forward pass for each coordinate, which keeps no graph of all the steps: for flows
    of fixed explicit steps. Raises ValueError if the images have another shape, or, by backward passes, no derivative.
    """
    if forward:
        return _derivatives(lambda x: _same_shape(flow(x), points).flatten(1), points)
    with torch.enable_grad():
        points = points.detach().requires_grad_()
        images = _same_shape(flow(points), points)
        if not images.requires_grad:
            raise ValueError("the flow's images have no derivative: does it run under torch.no_grad, or detach them?")
        sums = images.flatten(1).sum(0).unbind()
    rows = [torch.autograd.grad(each, points, retain_graph=True, materialize_grads=True)[0] for each in sums]
    return torch.stack([row.flatten(1) for row in rows], dim=1)


def _same_shape(images: Tensor, points: Tensor) -> Tensor:
    if images.shape != points.shape:
        raise ValueError(f"the flow must keep the shape {tuple(points.shape)}, it gives {tuple(images.shape)}")
    return images


@torch.no_grad()
def _derivatives(function: Callable[[Tensor], Tensor], points: Tensor) -> Tensor:
    """(..., d): of the function's values by each coordinate of the points, which it carries along as directions."""
    columns = []
    for direction in torch.eye(points[0].numel(), dtype=points.dtype, device=points.device):
        with forward_ad.dual_level():
            dual = forward_ad.make_dual(points, direction.view_as(points[0]).expand_as(points).clone())
            values, tangent = forward_ad.unpack_dual(function(dual))
            columns.append(torch.zeros_like(values) if tangent is None else tangent)
    return torch.stack(columns, dim=-1)


@torch.no_grad()
def paths(field: Any, points: Tensor, solver: Fixed) -> Tensor:
    """(B, N + 1, d): the points and the states after each of the solver's N steps, flattened."""
    return torch.stack([state.flatten(1) for state in (points, *_states(field, points, solver))], dim=1)


def _states(field: Any, points: Tensor, solver: Fixed) -> list[Tensor]:
    n = solver.num_steps
    return integrate(field, points, solver, depths=[Fraction(k, n) for k in range(1, n + 1)]).states


@torch.no_grad()
def step_determinants(field: Any, points: Tensor, solver: Fixed) -> Tensor:
    """(B, N), float64: det of the Jacobian of the map from each point to its state after n = 1..N steps.

    By forward differentiation: d solves, each of which carries one direction along, give all N at once. Use a field and
    points in float64: where a map contracts one direction much more than another, rounding decides the sign.
    """
    jacobians = _derivatives(lambda x: torch.stack([h.flatten(1) for h in _states(field, x, solver)], dim=1), points)
    return torch.linalg.det(jacobians.double())


def share_folded(determinants: Tensor) -> float:
    """Of determinants (B, N), the share of points with one that is not positive. nan counts: such a state was lost."""
    return (~(determinants > 0)).any(1).double().mean().item()


def separation(jacobians: Tensor) -> Tensor:
    """(B,): log of the largest singular value of each (d, d), the finite-time Lyapunov exponent over t in [0, 1]: near
    points move apart by at most its exponential. nan where the Jacobian is not finite."""
    finite = torch.isfinite(jacobians).all((1, 2))
    values = torch.linalg.matrix_norm(jacobians.where(finite[:, None, None], 0.0), ord=2).log()
    return values.where(finite, torch.nan)


@torch.no_grad()
def crossings(paths: Tensor) -> Tensor:
    """(P, P) bool: which of the polylines (P, N + 1, 2) cross each other properly.

    Two segments do if the ends of each lie strictly on different sides of the other's line. Paths that touch, or
    share an end, do not; one that passes another through a vertex of it is not found, which by chance does not happen.
    None crosses itself here. Points that are not finite cross nothing.

    Solutions are curves: between them and their polylines lies O(step^2), so give enough points where they run close.
    """
    if paths.dim() != 3 or paths.shape[1] < 2 or paths.shape[2] != 2:
        raise ValueError(f"paths must be (P, N + 1, 2) with N >= 1, got {tuple(paths.shape)}")
    paths, num_paths = paths.double(), len(paths)
    found = torch.zeros(num_paths, num_paths, dtype=torch.bool, device=paths.device)
    low, high = paths.amin(1), paths.amax(1)
    size = max(1, CHUNK // paths.shape[1] ** 2)
    for i in range(num_paths):
        boxes_meet = ((low[i] <= high) & (low <= high[i])).all(1)
        boxes_meet[: i + 1] = False  # each pair once
        for others in boxes_meet.nonzero()[:, 0].split(size):
            one, other = paths[i].expand(len(others), -1, -1), paths[others]
            found[i, others] = (_separates(one, other) & _separates(other, one).mT).flatten(1).any(1)
    return found | found.T


def _separates(one: Tensor, other: Tensor) -> Tensor:
    """(K, N, N): whether the line of segment s of `one` has the ends of segment r of `other` strictly on two sides."""
    start, along = one[:, :-1, None], one.diff(dim=1)[:, :, None]
    x, y = (other[:, None, :, k] - start[..., k] for k in (0, 1))
    side = x.mul_(along[..., 1]) - y.mul_(along[..., 0])  # differences first: exactly 0 at a shared point
    return side[..., :-1] * side[..., 1:] < 0


def share_crossing(paths: Tensor) -> float:
    """The share of the pairs of paths that cross. Raises ValueError for fewer than two paths."""
    num_paths = len(paths)
    if num_paths < 2:
        raise ValueError(f"at least 2 paths are needed for a pair, got {num_paths}")
    return crossings(paths).sum().item() / (num_paths * (num_paths - 1))
