"""How weights begin. Each is drawn from the generator that is given, so that a seed names a network.

    kaiming_normal      N(0, 2 / fan_in), biases 0                                     (Ott et al. 2021)
    kaiming_normal_out  convolutions N(0, 2 / fan_out), the rest as torch_default       (He et al. 2015; LM-ResNet)
    torch_default       U(-1, 1) / sqrt(fan_in), biases too
    gode_release        as torch_default, but kernels that depend on depth U(-1, 1) sqrt(1.5 / (fan_in A)): the authors
                        initialise the tensor with its A coefficients as one, so that weights start smaller the more
                        coefficients there are (Yu, Miao, Wu 2022, released code)

Each coefficient of a weight is drawn by itself, with the fans of one slice; of a basis without knots (Fourier,
Legendre, Chebyshev) only the first, and the others begin at zero. A grouped convolution has fan_in k^2 c_in /
groups and fan_out k^2 c_out, as in the released ResNeXt and in torch: its groups are not counted on the way out.

The k of a linear multistep net is drawn from U(k_range) under every scheme.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from gode_core.bases import Chebyshev, Fourier, Legendre
from gode_core.evolution import Evolution
from gode_core.fields import Field
from gode_core.layers import DepthConv, DepthLinear
from gode_core.networks import Network
from gode_core.rules import Multistep

SCHEMES = ("kaiming_normal", "kaiming_normal_out", "gode_release", "torch_default")


def initialise(network: Network, scheme: str, generator: torch.Generator) -> None:
    """Draw all weights anew, in the order of the modules. The generator must live on the weights' device."""
    if scheme not in SCHEMES:
        raise ValueError(f"unknown initialisation `{scheme}`; known: {', '.join(SCHEMES)}")
    for module in network.modules():
        if isinstance(module, DepthConv | DepthLinear):
            for kernel in module.weight.data:
                _draw_weight(kernel, scheme, generator, num_coefficients=len(module.weight))
            for bias in () if module.bias is None else module.bias.data:
                _draw_bias(bias, module.weight.data[0], scheme, generator)
        elif isinstance(module, Evolution):
            module.draw(generator)
        elif isinstance(module, Multistep):
            if module.k is not None:
                module.k.data.uniform_(*module.k_range, generator=generator)
        elif isinstance(module, nn.Conv2d | nn.Linear):
            _draw_weight(module.weight.data, scheme, generator, num_coefficients=1)
            if module.bias is not None:
                _draw_bias(module.bias.data, module.weight.data, scheme, generator)
    laws = [module.g for module in network.modules() if isinstance(module, Evolution)]  # these drew by themselves
    for module in network.modules():
        if isinstance(module, Field) and isinstance(module.basis, Fourier | Legendre | Chebyshev):
            _start_constant(module, shared_out=scheme == "gode_release" and module not in laws)


def _start_constant(field: Field, shared_out: bool) -> None:
    """theta(t) = theta_1: of these bases the first function is 1, and the others reach over all depths, so that drawn
    alike they would make weights several times as large as one coefficient's. shared_out: a kernel's size was, among
    its coefficients."""
    for parameter in field.layers.parameters():
        if len(parameter) > 1:
            parameter.data[1:] = 0
            if shared_out and parameter.dim() > 2:
                parameter.data[0] *= math.sqrt(len(parameter))


def _draw_weight(weight: Tensor, scheme: str, generator: torch.Generator, num_coefficients: int) -> None:
    fan_in, fan_out = weight[0].numel(), weight.shape[0] * weight[0, 0].numel()
    if scheme == "kaiming_normal":
        weight.normal_(0, math.sqrt(2 / fan_in), generator=generator)
    elif scheme == "kaiming_normal_out" and weight.dim() > 2:
        weight.normal_(0, math.sqrt(2 / fan_out), generator=generator)
    elif scheme == "gode_release" and num_coefficients > 1:
        bound = math.sqrt(1.5 / (fan_in * num_coefficients))
        weight.uniform_(-bound, bound, generator=generator)
    else:
        weight.uniform_(-1 / math.sqrt(fan_in), 1 / math.sqrt(fan_in), generator=generator)


def _draw_bias(bias: Tensor, weight: Tensor, scheme: str, generator: torch.Generator) -> None:
    if scheme == "kaiming_normal":
        bias.zero_()
    else:
        bound = 1 / math.sqrt(weight[0].numel())
        bias.uniform_(-bound, bound, generator=generator)
