"""How the layers of a discrete net follow one another, and the schemes for ODEs that they are (Lu et al. 2018).

    u_{n+1} = (1 - k_n) u_n + k_n u_{n-1} + F_n(u_n)            n = 0 .. N - 1

    residual     k = 0, F = f_n                   forward Euler
    multistep    k_n trained, F = f_n             a linear two-step method
    polynet      k = 0, F = f_n + f_n(f_n) + ...  backward Euler, its Neumann series cut off
    fractal      k = 0, F of several f's          a Runge-Kutta-like method
    shake_shake  k = 0, F a random mean of two    dX = (f1 + f2) / 2 dt + (f1 - f2) / sqrt(12) dB

The f's are the functions of a field of degree 0 with a coefficient for each, so that norms and kinds of field are the
same for all families. A rule's branch F is what stochastic depth drops; `reversible.py` has the rule of RevNets.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from gode_core.bases import StageTimes
from gode_core.fields import Field
from gode_core.layers import Function
from gode_core.stochastic import Chance, add_branch


class Rule(nn.Module):
    """N layers of the update above, to be given F by `branch` (and k, which is 0 where it is None).

    functions_per_layer: how many f's a layer has. evals_per_layer: how many calls of one.
    """

    functions_per_layer = 1
    evals_per_layer = 1
    channel_split = 1  # the field acts on that part of the channels
    k: nn.Parameter | None  # (N, 1) or (N, C); one row less where the first layer has no state before it

    def __init__(self, num_layers: int, channels: int, has_previous: bool = False):
        """channels: of the state. has_previous: `forward` will be given the state before the first layer."""
        super().__init__()
        if num_layers < 1:
            raise ValueError(f"the number of layers must be at least 1, got {num_layers}")
        self.num_layers, self.has_previous = num_layers, has_previous
        self.register_parameter("k", None)

    def branch(self, functions: Sequence[Function], chance: Chance, h: Tensor) -> Tensor:
        raise NotImplementedError

    @property
    def times(self) -> StageTimes:
        """Where the field is asked for its functions: one at the start of each of its pieces."""
        number = self.num_layers * self.functions_per_layer
        return StageTimes("euler", number, 0, number)

    def forward(self, field: Field, h: Tensor, previous: Tensor | None, chance: Chance) -> tuple[Tensor, int]:
        """The state behind the last layer, and the number of calls of an f."""
        functions, each = field.at(self.times), self.functions_per_layer
        factors = chance.factors(self.num_layers)
        for n, factor in enumerate(factors):
            carried = self._carried(n, h, previous)
            previous = h
            mine = functions[n * each : (n + 1) * each]
            h = chance.disturbed(add_branch(carried, partial(self.branch, mine, chance), h, factor))
        return h, self.evals_per_layer * sum(factor > 0 for factor in factors)

    def _carried(self, n: int, h: Tensor, previous: Tensor | None) -> Tensor:
        """(1 - k_n) u_n + k_n u_{n-1}."""
        row = n if self.has_previous else n - 1
        if self.k is None or row < 0:
            return h
        assert previous is not None, "the rule was made for a block that is given the state before its first layer"
        k = self.k[row].view(-1, *[1] * (h.dim() - 2)).to(h.dtype)
        return torch.lerp(h, previous.to(h.dtype), k)


class Residual(Rule):
    """u_{n+1} = u_n + f_n(u_n): the ResNet (He et al. 2016), and ResNeXt with grouped convolutions in f."""

    def branch(self, functions: Sequence[Function], chance: Chance, h: Tensor) -> Tensor:
        return functions[0](h)


class Multistep(Rule):
    """u_{n+1} = (1 - k_n) u_n + k_n u_{n-1} + f_n(u_n): LM-ResNet (Lu et al. 2018).

    k is a trained number for each layer, or for each channel of each layer; it begins in U(k_range). This is the
    paper's sign: the released code has kappa = 1 - k on u_n instead, in U(1, 1.1). (Its class with a kappa for each
    channel begins in U(-0.1, 0) with that formula, nearly u_{n+1} = u_{n-1} + f; here both begin near the ResNet.) The
    first layer of a block is plain, unless it is given the state before: at the start of a stage that is the shortcut
    of the transition, so that no state of another stage's shape is needed. k = 0 is the ResNet, k = 1 the leapfrog.

    Modified equation for f = h g, u_n = u(n h):      (1 + k) u' + (1 - k) (h / 2) u'' = g
    so it goes along (1 + k) u' = g with error O(h), O(h^2) for k = 1: k < 0 runs faster than the ResNet and has more
    momentum. Without f the solutions are 1 and (-k)^n: zero-stable for -1 < k <= 1 (k = 1 only weakly, it may
    oscillate; at k = -1 the root 1 is double, and errors grow linearly). Training does not bound k.
    """

    def __init__(
        self,
        num_layers: int,
        channels: int,
        has_previous: bool = False,
        *,
        per_channel: bool = False,
        k_range: tuple[float, float] = (-0.1, 0.0),
    ):
        super().__init__(num_layers, channels, has_previous)
        if not -1 < k_range[0] <= k_range[1] <= 1:
            raise ValueError(f"k_range must increase within (-1, 1], where the scheme is zero-stable, got {k_range}")
        self.k_range = k_range
        used = num_layers - (not has_previous)
        if used:
            self.k = nn.Parameter(torch.zeros(used, channels if per_channel else 1))

    def branch(self, functions: Sequence[Function], chance: Chance, h: Tensor) -> Tensor:
        return functions[0](h)


class PolyNet(Rule):
    """u_{n+1} = u_n + f_n(u_n) + f_n(f_n(u_n)) + ... up to `order` f's: Zhang et al. 2017 ("poly-2": order 2).

    For a linear f these are the first terms of (I - f)^{-1} u_n, the step of backward Euler. Order 1 is the ResNet.
    A batch norm in f has one set of running statistics for all calls of a layer's f.
    """

    def __init__(self, num_layers: int, channels: int, has_previous: bool = False, *, order: int = 2):
        super().__init__(num_layers, channels, has_previous)
        if order < 1:
            raise ValueError(f"the order of a PolyNet must be at least 1, got {order}")
        self.evals_per_layer = order

    def branch(self, functions: Sequence[Function], chance: Chance, h: Tensor) -> Tensor:
        power = total = functions[0](h)
        for _ in range(self.evals_per_layer - 1):
            power = functions[0](power)
            total = total + power
        return total


class Fractal(Rule):
    """u_{n+1} = f_C(u_n) with f_1 = u + f, f_{C+1}(u) = mean of u + f(u) and f_C(f_C(u)), each f with weights of its
    own: FractalNet (Larsson et al. 2017) of C = `expansion` columns, its join the mean.

    Each unit has a shortcut, as in Lu et al.'s reading of it as a Runge-Kutta-like method (with f = 0 in the short
    column and equal f's in the long one, expansion 2 is Heun's). The original has plain units in place of u + f, and
    drop-path within the joins; both are left out: without shortcuts a block is no step of an ODE, and stochastic depth
    drops blocks here as in the other families. Expansion 1 is the ResNet.
    """

    def __init__(self, num_layers: int, channels: int, has_previous: bool = False, *, expansion: int = 2):
        super().__init__(num_layers, channels, has_previous)
        if expansion < 1:
            raise ValueError(f"the expansion of a FractalNet must be at least 1, got {expansion}")
        self.expansion = expansion
        self.functions_per_layer = self.evals_per_layer = 2**expansion - 1

    def branch(self, functions: Sequence[Function], chance: Chance, h: Tensor) -> Tensor:
        return _fractal(iter(functions), self.expansion, h)


def _fractal(functions: Iterator[Function], expansion: int, h: Tensor) -> Tensor:
    """f_C(h) - h."""
    short = next(functions)(h)
    if expansion == 1:
        return short
    half = _fractal(functions, expansion - 1, h)
    long = half + _fractal(functions, expansion - 1, h + half)
    return (short + long) / 2


class ShakeShake(Rule):
    """u_{n+1} = u_n + a f1_n(u_n) + (1 - a) f2_n(u_n) with a in U(0, 1) for each image, another a for the backward
    pass, and a = 1/2 in eval mode (Gastaldi 2017, "shake-shake-image")."""

    functions_per_layer = 2
    evals_per_layer = 2

    def branch(self, functions: Sequence[Function], chance: Chance, h: Tensor) -> Tensor:
        one, two = (f(h) for f in functions)
        return _Mix.apply(one, two, *chance.mix(one)) if chance.training else (one + two) / 2  # type: ignore[return-value]


class _Mix(torch.autograd.Function):
    @staticmethod
    def forward(ctx, one: Tensor, two: Tensor, ahead: Tensor, back: Tensor) -> Tensor:
        ctx.save_for_backward(back)
        return torch.lerp(two, one, ahead)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor):  # type: ignore[override]
        (back,) = ctx.saved_tensors
        return grad * back, grad * (1 - back), None, None
