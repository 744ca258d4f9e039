"""Bridges between families: the weights of one net as those of another, and the optimiser's state with them.

    ResNet -> ODE               none is needed: a ResNet's weights are a spline of degree 0, which any solver reads
    discrete net -> ODE         `carry`: N layers are N Euler steps with time_scale N (LM-ResNets: where k = 0)
    ODE -> ResNet, discrete     `resnet_of`: theta(n / N) as the weights of layer n; exact under N Euler steps
    Neural ODE -> GODE, GODE -> more coefficients      `carry`: exact where the new basis contains the old one
    GODE -> fewer coefficients  `carry`: the L2 projection over depth, with its error

theta(t) = sum_a phi_a(t) theta_a becomes sum_b psi_b(t) theta'_b with theta' = M theta (gode_core.refinement), the same
M for every weight. Momentum and mean gradients are carried by M too: what is kept is the motion of theta(t), not that
of the coefficients. The mean squares of Adam become means over a, weighted with |M_ba|: as positive as they were (M
alone may undershoot, and Adam would divide by nothing), and where they are equal over depth Adam moves theta(t) as
before, too.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from gode_core.bases import Basis, StageTimes, clamped, constant
from gode_core.depth_norms import DepthBatchNorm
from gode_core.discrete import DiscreteBlock
from gode_core.fields import Field
from gode_core.free_knots import FreeKnots
from gode_core.layers import Depths, weights_at
from gode_core.refinement import change_of_basis, projection_error
from gode_core.rules import Multistep, Residual, Rule

SQUARES = ("exp_avg_sq", "max_exp_avg_sq")  # what an optimiser keeps of squares
Tensors = dict[str, Tensor]


@dataclass(frozen=True)
class Carried:
    """matrices: by the name of a parameter or buffer that depends on depth, (A', A) in float64; others are copied.
    exact: theta(t), and the statistics of batch norms, are what they were, to rounding. error: the largest relative L2
    error over depth of a parameter."""

    matrices: Tensors
    exact: bool
    error: float


@torch.no_grad()
def carry(old: nn.Module, new: nn.Module) -> Carried:
    """Fill `new` with the weights of `old`: nets that differ in the bases of their fields alone, or in a k that is 0.

    Raises ValueError for nets that differ in more, and leaves `new` as it was.
    """
    source, target = _comparable(old, new)
    before, after = _bases(old), _bases(new)
    learned = {name for name, _ in new.named_parameters()}
    matrices: Tensors = {}
    values: Tensors = {}
    exact, error = True, 0.0
    for name, weight in source.items():
        one, other = before.get(name), after.get(name)
        same = _is_same(one, other)
        first = 0 if same else 1
        if (one is None) != (other is None) or weight.shape[first:] != target[name].shape[first:]:
            raise _differ(f"{name} is {list(weight.shape)} here and {list(target[name].shape)} there")
        if same or one is None or other is None:
            values[name] = weight
            continue
        change = change_of_basis(one, other)
        matrices[name] = change.matrix
        values[name] = _apply(change.matrix, weight)
        exact = exact and change.exact
        if name in learned:
            error = max(error, projection_error(one, other, weight))
        elif name.endswith(".variance"):  # a projection may undershoot, below zero too
            values[name] = values[name].clamp(weight.amin(0), weight.amax(0))
    _fill(target, values)
    return Carried(matrices, exact, error)


def carry_optimiser(carried: Carried, old: nn.Module, new: nn.Module, before, after) -> None:
    """Fill `after`, an optimiser of `new`, with the state of `before`, one of `old` of the same kind. A parameter that
    `old` has not begins without."""
    names = {parameter: name for name, parameter in old.named_parameters()}
    targets = dict(new.named_parameters())
    for parameter, state in before.state.items():
        name = names[parameter]
        if name in targets:  # else a k that was 0
            after.state[targets[name]] = {
                key: _carried_state(key, value, parameter, carried.matrices.get(name)) for key, value in state.items()
            }


@torch.no_grad()
def resnet_of(old: nn.Module, new: nn.Module) -> None:
    """Fill `new`, a net whose fields have N pieces of degree 0, with the weights that `old` has at depths n / N, n = 0
    .. N - 1, and the statistics of its batch norms there. Under N Euler steps (a discrete net: in its layers) the two
    are one function in eval mode, whatever carries the old weights: a basis, free knots, an ODE of their own. What does
    not depend on depth is copied; each k of an LM-ResNet becomes 0.

    Raises ValueError for other nets, and leaves `new` as it was.
    """
    _check_schemes(old, new)
    for name, k in _ks(old).items():
        _check_zero(name, k)
    source, target = old.state_dict(), new.state_dict()
    formers, fields = _fields(old), _fields(new)
    values: Tensors = {}
    for prefix, field in fields.items():
        if field.basis != clamped(0, field.basis.num_coefficients) or field.evolution is not None:
            raise ValueError("a ResNet's weights are a spline of degree 0: make the new net with that basis")
        for name, pieces, basis in _pieces(formers[prefix], field, prefix):
            _check_pieces(name, pieces, basis)
            values[name] = _apply(change_of_basis(clamped(0, len(pieces)), basis).matrix, pieces)
    values |= {name: target[name].new_zeros(target[name].shape) for name in _ks(new)}
    values |= {name: source[name] for name in target if name in source and name not in values}
    inside = tuple(f"{prefix}." if prefix else "" for prefix in fields)
    odd = target.keys() ^ values.keys() | {
        name for name in source.keys() - target.keys() if not name.startswith(inside)
    }
    if odd := odd - _ks(old).keys():
        raise _differ(", ".join(sorted(odd)[:3]))
    for name, value in values.items():
        if value.shape != target[name].shape:
            raise _differ(f"{name} is {list(value.shape)} here and {list(target[name].shape)} there")
    _fill(target, values)


def _pieces(former: Field, field: Field, prefix: str) -> Iterator[tuple[str, Tensor, Basis]]:
    """The name of each parameter and statistic in `field`, what it is at the N depths (N, ...) in `former`, and the
    basis that it is to be written on."""
    n = field.basis.num_coefficients
    times = StageTimes("euler", n, 0, n)
    path = former.weights(times)
    for i, (before, after) in enumerate(zip(former.layers, field.layers)):
        start = _within(prefix, f"layers.{i}")
        for key, parameter in after.named_parameters():
            if key not in path[0][i]:
                raise _differ(f"{start}.{key}")
            yield f"{start}.{key}", torch.stack([each[i][key] for each in path]), _own_basis(field.basis, parameter)
        if isinstance(after, DepthBatchNorm):
            if not isinstance(before, DepthBatchNorm):
                raise _differ(f"{start}.mean")
            for key, buffer in before.named_buffers():
                rows = weights_at(buffer, Depths.of(before.basis, times, buffer))
                yield f"{start}.{key}", torch.stack(rows), after.basis


def _check_pieces(name: str, pieces: Tensor, basis: Basis) -> None:
    if basis.num_coefficients == 1 and not all(torch.equal(piece, pieces[0]) for piece in pieces):
        raise ValueError(f"{name} depends on depth: make the new net so that it does there too (vary: all)")
    if basis.num_coefficients > 1 and not change_of_basis(clamped(0, len(pieces)), basis).exact:
        raise ValueError(f"{name} needs a basis that holds {len(pieces)} pieces: take as many, or their multiple")


def _comparable(old: nn.Module, new: nn.Module) -> tuple[Tensors, Tensors]:
    """The tensors of both by the same names. A k that only one has is 0: it is left out there, or put in."""
    _check_schemes(old, new)
    source, target = old.state_dict(), new.state_dict()
    for name, k in _ks(old).items():
        if name not in target:
            _check_zero(name, k)
            del source[name]
    source |= {name: torch.zeros_like(k) for name, k in _ks(new).items() if name not in source}
    if odd := sorted(source.keys() ^ target.keys()):
        raise _differ(", ".join(odd[:3]))
    return source, target


def _check_zero(name: str, k: Tensor) -> None:
    if k.any():
        raise ValueError(f"{name} is not 0: an LM-ResNet is Euler's method, and so a ResNet or an ODE, for k = 0 alone")


def _check_schemes(old: nn.Module, new: nn.Module) -> None:
    """Raises ValueError unless each field's functions are put together in the same way."""
    before, after = _schemes(old), _schemes(new)
    for prefix in sorted(before.keys() | after.keys()):
        one, other = before.get(prefix, "none"), after.get(prefix, "none")
        if one != other:
            raise _differ(f"the field {prefix or 'itself'}, {one} here and {other} there")


def _schemes(network: nn.Module) -> dict[str, str]:
    """By a field's name, in words. A discrete net is Euler's method with time_scale N, or a rule of its own."""
    found = {prefix: f"time_scale {float(field.scale)}" for prefix, field in _fields(network).items()}
    for prefix, block in network.named_modules():
        if isinstance(block, DiscreteBlock):
            rule = block.rule
            euler = isinstance(rule, Residual | Multistep)
            own = f"{rule.num_layers} layers {type(rule).__name__}-{rule.evals_per_layer}"
            found[_within(prefix, "field")] = f"time_scale {float(rule.num_layers)}" if euler else own
    return found


def _fields(network: nn.Module) -> dict[str, Field]:
    """By name, but for those that are the g of another's weights: these are part of it."""
    found = {prefix: module for prefix, module in network.named_modules() if isinstance(module, Field)}
    return {prefix: field for prefix, field in found.items() if not prefix.endswith("evolution.g")}


def _ks(network: nn.Module) -> Tensors:
    """The k of linear multistep rules, by name."""
    rules = {prefix: rule for prefix, rule in network.named_modules() if isinstance(rule, Rule)}
    return {_within(prefix, "k"): rule.k.detach() for prefix, rule in rules.items() if rule.k is not None}


def _bases(network: nn.Module) -> dict[str, Basis]:
    """By name, of each parameter and statistic in the layers of a field. The rest does not depend on depth."""
    found: dict[str, Basis] = {}
    for prefix, field in network.named_modules():
        if isinstance(field, Field):
            for i, layer in enumerate(field.layers):
                start = _within(prefix, f"layers.{i}")
                found |= {name: _own_basis(field.basis, p) for name, p in layer.named_parameters(start)}
                if isinstance(layer, DepthBatchNorm):
                    found |= {name: _own_basis(layer.basis, buffer) for name, buffer in layer.named_buffers(start)}
    return found


def _own_basis(basis: Basis, coefficients: Tensor) -> Basis:
    """What has one coefficient is constant, whatever the field's basis."""
    if len(coefficients) == 1:
        return constant()
    assert len(coefficients) == basis.num_coefficients
    return basis


def _is_same(one: Basis | None, other: Basis | None) -> bool:
    if isinstance(one, FreeKnots) and isinstance(other, FreeKnots):
        if (one.degree, one.num_coefficients) != (other.degree, other.num_coefficients):
            raise ValueError("learnable knots cannot be carried to another degree or number of coefficients")
        return True  # the knots are carried along
    return one == other


def _within(prefix: str, name: str) -> str:
    return f"{prefix}.{name}" if prefix else name


def _differ(what: str) -> ValueError:
    return ValueError(f"only nets that differ in their bases alone can be carried over; these differ in {what}")


def _fill(target: Tensors, values: Tensors) -> None:
    for name, value in values.items():
        target[name].copy_(value)  # a state_dict shares its tensors with the module


def _apply(matrix: Tensor, weight: Tensor) -> Tensor:
    product = matrix.to(weight.device) @ weight.double().flatten(1)
    return product.view(-1, *weight.shape[1:]).to(weight.dtype)


def _carried_state(key: str, value, parameter: Tensor, matrix: Tensor | None):
    if not isinstance(value, Tensor):
        return value
    if matrix is None or value.shape != parameter.shape:
        return value.clone()
    return _apply(_shares(matrix) if key in SQUARES else matrix, value)


def _shares(matrix: Tensor) -> Tensor:
    """|M_ba| / sum_a |M_ba|; a coefficient that is new takes the mean of all."""
    size = matrix.abs()
    size[size.sum(1) == 0] = 1
    return size / size.sum(1, keepdim=True)
