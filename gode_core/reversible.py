"""RevNet (Gomez et al. 2017): forward Euler of the coupled system x1' = f(x2), x2' = g(x1), on halves of the channels.

    y1 = x1 + f_n(x2)        y2 = x2 + g_n(y1)

Each layer can be undone, x2 = y2 - g_n(y1) and x1 = y1 - f_n(x2), so that backpropagation needs no stored states: it
keeps the block's output and recomputes what was before, one layer at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from gode_core.bases import StageTimes
from gode_core.fields import Field
from gode_core.layers import Function
from gode_core.rules import Rule
from gode_core.stochastic import Chance

Weights = list[list[dict[str, Tensor]]]  # for each function and layer of the field, by name


class Reversible(Rule):
    """The rule of RevNets: the field has half of the channels and two functions, f_n and g_n, for each layer.

    recompute: backpropagate from the output alone. The gradient is that of backpropagation, to rounding; the memory
    does not grow with the number of layers; each f and g is called once more. Not while torch.compile traces (it
    cannot follow the inner backward pass): there the states are stored. Second derivatives need `recompute=False`.
    """

    functions_per_layer = 2
    evals_per_layer = 2
    channel_split = 2

    def __init__(self, num_layers: int, channels: int, has_previous: bool = False, *, recompute: bool = True):
        super().__init__(num_layers, channels, has_previous)
        if channels % 2:
            raise ValueError(f"a reversible block halves its channels, which must be even, got {channels}")
        self.recompute = recompute

    def forward(self, field: Field, h: Tensor, previous: Tensor | None, chance: Chance) -> tuple[Tensor, int]:
        factors = chance.factors(self.num_layers)
        weights = field.weights(self.times)
        if self.recompute and torch.is_grad_enabled() and not torch.compiler.is_compiling():
            flat = [value for function in weights for layer in function for value in layer.values()]
            h1: Tensor = _Recomputed.apply(field, self.times, _names(weights), factors, h, *flat)  # type: ignore[assignment]
        else:
            h1 = _ahead(field.functions(self.times, weights), factors, h)
        return h1, self.evals_per_layer * sum(factor > 0 for factor in factors)

    def inverse(self, field: Field, h: Tensor) -> Tensor:
        """The state before the first layer, from the one behind the last (without stochastic depth)."""
        functions = field.at(self.times)
        y1, y2 = h.chunk(2, dim=1)
        for n in reversed(range(self.num_layers)):
            y2 = y2 - _branch(functions[2 * n + 1], 1.0, y1)
            y1 = y1 - _branch(functions[2 * n], 1.0, y2)
        return torch.cat([y1, y2], dim=1)


def _ahead(functions: Sequence[Function], factors: Sequence[float], h: Tensor) -> Tensor:
    x1, x2 = h.chunk(2, dim=1)
    for n, factor in enumerate(factors):
        if factor:
            x1 = x1 + _branch(functions[2 * n], factor, x2)
            x2 = x2 + _branch(functions[2 * n + 1], factor, x1)
    return torch.cat([x1, x2], dim=1)


def _branch(function: Function, factor: float, x: Tensor) -> Tensor:
    """In the state's own dtype: under autocast a branch has 16 bits."""
    y = function(x).to(x.dtype)
    return y if factor == 1 else factor * y


def _names(weights: Weights) -> list[list[list[str]]]:
    return [[list(layer) for layer in function] for function in weights]


class _Recomputed(torch.autograd.Function):
    """The weights come in as tensors, so that autograd hands their gradients on to whatever they were made of."""

    @staticmethod
    def forward(ctx, field: Field, times: StageTimes, names, factors: list[float], h: Tensor, *flat: Tensor) -> Tensor:
        ctx.field, ctx.times, ctx.names, ctx.factors = field, times, names, factors
        ctx.autocast = _autocast_now(h.device.type)
        h1 = _ahead(field.functions(times, _rebuilt(names, flat)), factors, h)
        ctx.save_for_backward(h1, *flat)
        return h1

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor):  # type: ignore[override]
        h, *flat = ctx.saved_tensors
        wanted = ctx.needs_input_grad[5:]
        leaves = [value.detach().requires_grad_(want) for value, want in zip(flat, wanted)]
        weights = _rebuilt(ctx.names, leaves)
        functions, position = ctx.field.functions(ctx.times, weights), {id(leaf): i for i, leaf in enumerate(leaves)}
        grads: list[Tensor | None] = [None] * len(leaves)

        def undo(function: int, factor: float, x: Tensor, upstream: Tensor) -> tuple[Tensor, Tensor]:
            """The branch at x, and its gradient in x; the weights' gradients are put in place."""
            mine = [v for layer in weights[function] for v in layer.values() if v.requires_grad]
            with torch.enable_grad(), ctx.autocast():
                x = x.detach().requires_grad_()
                y = _branch(functions[function], factor, x)
            grad_x, *grad_weights = torch.autograd.grad(y, [x, *mine], upstream, allow_unused=True)
            for weight, grad_weight in zip(mine, grad_weights):
                grads[position[id(weight)]] = grad_weight
            return y.detach(), torch.zeros_like(x) if grad_x is None else grad_x

        y1, y2 = h.chunk(2, dim=1)
        grad1, grad2 = grad.chunk(2, dim=1)
        for n in reversed(range(len(ctx.factors))):
            if factor := ctx.factors[n]:
                branch, more = undo(2 * n + 1, factor, y1, grad2)
                y2, grad1 = y2 - branch, grad1 + more
                branch, more = undo(2 * n, factor, y2, grad1)
                y1, grad2 = y1 - branch, grad2 + more
        return None, None, None, None, torch.cat([grad1, grad2], dim=1), *grads


def _rebuilt(names, flat: Sequence[Tensor]) -> Weights:
    """The inverse of laying the weights out in one row."""
    values = iter(flat)
    return [[{name: next(values) for name in layer} for layer in function] for function in names]


def _autocast_now(device: str) -> Callable[[], object]:
    """A context under which recomputation rounds as the forward pass did."""
    if not torch.amp.is_autocast_available(device):
        return nullcontext
    enabled, dtype = torch.is_autocast_enabled(device), torch.get_autocast_dtype(device)
    return lambda: torch.autocast(device, dtype=dtype, enabled=enabled)
