"""Bridges between families: the weights of one net as those of another, and the optimiser's state with them.

    ResNet -> ODE               none is needed: a ResNet's weights are a spline of degree 0, which any solver reads
    ODE -> ResNet               `resnet_of`: theta(n / N) as the weights of layer n; exact under N Euler steps
    Neural ODE -> GODE, GODE -> more coefficients      `carry`: exact where the new basis contains the old one
    GODE -> fewer coefficients  `carry`: the L2 projection over depth, with its error

theta(t) = sum_a phi_a(t) theta_a becomes sum_b psi_b(t) theta'_b with theta' = M theta (gode_core.refinement), the same
M for every weight. Momentum and mean gradients are carried by M too: what is kept is the motion of theta(t), not that
of the coefficients. The mean squares of Adam likewise, cut off at zero, since a projection may undershoot.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from gode_core.bases import Basis, StageTimes, clamped
from gode_core.fields import Field
from gode_core.refinement import change_of_basis, projection_error

SQUARES = ("exp_avg_sq", "max_exp_avg_sq")  # what an optimiser keeps of squares


@dataclass(frozen=True)
class Carried:
    """matrices: by the name of a parameter or buffer that depends on depth, (A', A) in float64; others are copied.
    exact: theta(t) is what it was, to rounding. error: the largest relative L2 error over depth of a parameter."""

    matrices: dict[str, Tensor]
    exact: bool
    error: float


@torch.no_grad()
def carry(old: nn.Module, new: nn.Module) -> Carried:
    """Fill `new` with the weights of `old`: nets that differ in the bases of their fields alone.

    Raises ValueError for nets that differ in more.
    """
    source, target = old.state_dict(), new.state_dict()
    if source.keys() != target.keys():
        odd = ", ".join(sorted(source.keys() ^ target.keys())[:3])
        raise ValueError(f"only nets that differ in their bases alone can be carried over; these differ in {odd}")
    matrices: dict[str, Tensor] = {}
    exact, error = True, 0.0
    learned = {name for name, _ in new.named_parameters()}
    for name, weight in source.items():
        before, after = _basis_of(old, name, len(weight)), _basis_of(new, name, len(target[name]))
        if before == after:
            target[name].copy_(weight)  # a state_dict shares its tensors with the module
            continue
        if before is None or after is None:
            raise ValueError(f"only nets that differ in their bases alone can be carried over; {name} differs in more")
        change = change_of_basis(before, after)
        matrices[name] = change.matrix
        target[name].copy_(_apply(change.matrix, weight))
        if name in learned and not change.exact:
            exact = False
            error = max(error, projection_error(before, after, weight.double().flatten(1)))
    return Carried(matrices, exact, error)


def carry_optimiser(carried: Carried, old: nn.Module, new: nn.Module, before, after) -> None:
    """Fill `after`, an optimiser of `new`, with the state of `before`, one of `old` of the same kind."""
    names = {parameter: name for name, parameter in old.named_parameters()}
    targets = dict(new.named_parameters())
    for parameter, state in before.state.items():
        name = names[parameter]
        after.state[targets[name]] = {
            key: _carried_state(key, value, parameter, carried.matrices.get(name)) for key, value in state.items()
        }


@torch.no_grad()
def resnet_of(old: nn.Module, new: nn.Module) -> None:
    """Fill `new`, a net whose fields have N pieces of degree 0, with the weights that `old` has at depths n / N, n = 0
    .. N - 1. Under N Euler steps the two are one function: whatever carries the old weights (a basis, free knots, an
    ODE of their own). What does not depend on depth is copied. Raises ValueError for other nets."""
    fields = {name: field for name, field in new.named_modules() if isinstance(field, Field)}
    source, target = old.state_dict(), new.state_dict()
    for prefix, field in fields.items():
        n = field.basis.num_coefficients
        if field.basis != clamped(0, n) or field.evolution is not None:
            raise ValueError("a ResNet's weights are a spline of degree 0: make the new net with that basis")
        former = old.get_submodule(prefix)
        assert isinstance(former, Field)
        path = former.weights(StageTimes("euler", n, 0, n))
        for i, layer in enumerate(field.layers):
            for key, parameter in layer.named_parameters():
                values = [each[i][key] for each in path]
                parameter.copy_(torch.stack(values) if len(parameter) == n else values[0][None])
    inside = tuple(f"{prefix}." for prefix in fields)
    for name in target.keys() - {name for name in target if name.startswith(inside)}:
        target[name].copy_(source[name])


def _basis_of(network: nn.Module, name: str, rows: int) -> Basis | None:
    """That of a parameter or buffer inside a field; None for what does not depend on depth."""
    prefix, found, rest = name.partition(".layers.")
    if not found:
        return None
    try:
        field = network.get_submodule(prefix)
    except AttributeError:
        return None
    if not isinstance(field, Field):
        return None
    layer = field.layers[int(rest.partition(".")[0])]
    is_buffer = rest.rpartition(".")[2] in dict(layer.named_buffers(recurse=False))
    basis: Basis = layer.basis if is_buffer else field.basis  # type: ignore[assignment]
    return basis if rows == basis.num_coefficients else clamped(0, 1)


def _apply(matrix: Tensor, weight: Tensor) -> Tensor:
    product = matrix.to(weight.device) @ weight.double().flatten(1)
    return product.view(-1, *weight.shape[1:]).to(weight.dtype)


def _carried_state(key: str, value, parameter: Tensor, matrix: Tensor | None):
    if not isinstance(value, Tensor):
        return value
    if matrix is None or value.shape != parameter.shape:
        return value.clone()
    moved = _apply(matrix, value)
    return moved.clamp(min=0) if key in SQUARES else moved
