"""Identities between the families, against nets written by hand in plain torch (float64, forward and gradient)."""

import pytest
import torch
import torch.nn.functional as F

from gode_core.bases import clamped, constant
from gode_core.fields import bottleneck, concat_time, perceptron, preactivation
from gode_core.integrate import integrate
from gode_core.solvers import Fixed

B, C, SIZE = 2, 4, 6


def random_(module, seed=0):
    generator = torch.Generator().manual_seed(seed)
    for parameter in module.parameters():
        parameter.data.normal_(0, 0.3, generator=generator)
    return module


def perceptron_resnet(h, blocks):
    for w in blocks:
        y = F.relu(F.linear(h, w[0], w[1]))
        h = h + F.linear(F.relu(F.linear(y, w[2], w[3])), w[4], w[5]) / len(blocks)
    return h


def images(seed=1):
    return torch.randn(B, C, SIZE, SIZE, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def preactivation_resnet(h, blocks):
    """x + 1/N conv(ReLU norm(conv(ReLU norm(x)))), one block after the other, each with weights of its own."""
    for w in blocks:
        y = F.conv2d(F.relu(F.group_norm(h, 2, w[0], w[1])), w[2], padding=1)
        y = F.conv2d(F.relu(F.group_norm(y, 2, w[3], w[4])), w[5], padding=1)
        h = h + y / len(blocks)
    return h


def bottleneck_resnet(h, blocks):
    for w in blocks:
        y = F.relu(F.conv2d(h, w[0], w[1]))
        y = F.relu(F.conv2d(y, w[2], w[3], padding=1))
        h = h + F.conv2d(y, w[4], w[5]) / len(blocks)
    return h


@pytest.mark.parametrize(
    ("make", "resnet"),
    [
        (lambda basis: preactivation(C, 2, basis), preactivation_resnet),
        (lambda basis: bottleneck(C, 5, 2, basis), bottleneck_resnet),
        (lambda basis: perceptron(SIZE, 5, basis), perceptron_resnet),
    ],
    ids=["preactivation", "bottleneck", "perceptron"],
)
@pytest.mark.parametrize("n", [1, 3, 6, 7])
def test_degree_0_under_euler_is_the_resnet(make, resnet, n):
    field = random_(make(clamped(0, n)).double())
    h = images().requires_grad_()
    blocks = [[p.detach()[i].clone().requires_grad_() for p in field.parameters()] for i in range(n)]
    ours = integrate(field, h, Fixed("euler", n)).h1
    theirs = resnet(h, blocks)
    torch.testing.assert_close(ours, theirs, rtol=1e-13, atol=1e-13)
    grads = torch.autograd.grad(ours.square().sum(), [h, *field.parameters()])
    wanted = torch.autograd.grad(theirs.square().sum(), [h, *(w for block in blocks for w in block)])
    torch.testing.assert_close(grads[0], wanted[0], rtol=1e-12, atol=1e-12)
    per_block = len(blocks[0])
    for j, grad in enumerate(grads[1:]):
        for i in range(n):
            torch.testing.assert_close(grad[i], wanted[1 + i * per_block + j], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("basis", [clamped(0, 5), clamped(1, 4), clamped(3, 6)], ids=["0", "1", "3"])
@pytest.mark.parametrize("method", ["euler", "rk4"])
def test_equal_coefficients_are_the_neural_ode(basis, method):
    """On a basis that sums to one: the same forward; the coefficients' gradients add up to the Neural ODE's."""
    gode, node = preactivation(C, 2, basis).double(), random_(preactivation(C, 2, constant()).double())
    for many, one in zip(gode.parameters(), node.parameters()):
        many.data.copy_(one.data.expand_as(many))
    ours, theirs = (integrate(f, images(), Fixed(method, 5)).h1 for f in (gode, node))
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)
    ours.square().sum().backward()
    theirs.square().sum().backward()
    for many, one in zip(gode.parameters(), node.parameters()):
        torch.testing.assert_close(many.grad.sum(0, keepdim=True), one.grad, rtol=1e-11, atol=1e-11)


def test_one_coefficient_is_the_neural_ode_by_hand():
    field = random_(bottleneck(C, 5, 2, constant()).double())
    w = [p[0] for p in field.parameters()]
    h = images()
    ours = integrate(field, h, Fixed("midpoint", 3)).h1

    def f(h):
        y = F.relu(F.conv2d(h, w[0], w[1]))
        return F.conv2d(F.relu(F.conv2d(y, w[2], w[3], padding=1)), w[4], w[5])

    for _ in range(3):
        h = h + f(h + f(h) / 6) / 3
    torch.testing.assert_close(ours, h, rtol=1e-13, atol=1e-13)


def test_theta_of_t_is_the_spline_of_the_coefficients():
    """The field at t under a varying basis is the constant field with the weights theta(t), by scipy's B-splines."""
    from scipy.interpolate import BSpline

    basis = clamped(3, 7)
    field, frozen = random_(preactivation(C, 2, basis).double()), preactivation(C, 2, constant()).double()
    knots = [float(k) for k in basis.knots]
    for t in (0.0, 0.1, 0.25, 0.4999, 0.77, 1.0):
        for many, one in zip(field.parameters(), frozen.parameters()):
            theta = BSpline(knots, many.detach().flatten(1).numpy(), 3)(t)
            one.data.copy_(torch.from_numpy(theta).view_as(one))
        torch.testing.assert_close(field(t, images()), frozen(0.0, images()), rtol=1e-11, atol=1e-11)


def test_time_channel_by_hand():
    field = random_(concat_time(C, 2, constant()).double())
    w = [p[0] for p in field.parameters()]
    h, t = images(), 0.3
    time = torch.full((B, 1, SIZE, SIZE), t, dtype=torch.float64)
    y = F.relu(F.group_norm(h, 2, w[0], w[1]))
    y = F.conv2d(torch.cat([time, y], 1), w[2], w[3], padding=1)
    y = F.relu(F.group_norm(y, 2, w[4], w[5]))
    y = F.conv2d(torch.cat([time, y], 1), w[6], w[7], padding=1)
    torch.testing.assert_close(field(t, h), F.group_norm(y, 2, w[8], w[9]))


def test_only_kernels_vary_when_told_so():
    field = preactivation(C, 2, clamped(1, 4), vary_all=False)
    sizes = {name: len(parameter) for name, parameter in field.named_parameters()}
    assert set(sizes.values()) == {1, 4}
    assert {name for name, size in sizes.items() if size == 4} == {"layers.2.weight", "layers.5.weight"}


def test_scale_multiplies_the_field():
    """scale = N under N Euler steps gives unit branches."""
    plain, scaled = (random_(bottleneck(C, 5, 2, clamped(0, 3), scale=s).double()) for s in (1.0, 3.0))
    torch.testing.assert_close(scaled(0.5, images()), 3 * plain(0.5, images()))
