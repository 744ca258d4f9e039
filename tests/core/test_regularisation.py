"""Energies of a solve's path against closed forms and finite differences, and solves that end elsewhere."""

import copy
import math
from itertools import product

import pytest
import torch
from torch import nn

from gode_core.bases import clamped, constant
from gode_core.fields import Field, bottleneck, perceptron, preactivation
from gode_core.integrate import integrate, prepare
from gode_core.layers import DepthLinear
from gode_core.networks import raw_network, stage_network
from gode_core.regularisation import draw_end, integrate_path, regularised, stretched, unpack
from gode_core.solvers import Adaptive, Fixed, Implicit

RATES = torch.tensor([0.5, -1.0, 0.25], dtype=torch.float64)


class Tanh(nn.Module):
    def at(self, t):
        return torch.tanh


def linear(matrix=None, basis=None):
    """dh/dt = M h; M = diag(RATES) unless given."""
    field = Field([DepthLinear(3, 3, 1, 0)], basis or constant()).double()
    field.layers[0].weight.data[0] = torch.diag(RATES) if matrix is None else matrix
    return field


def random_(module):
    generator = torch.Generator().manual_seed(0)
    for parameter in module.parameters():
        parameter.data.normal_(0, 0.5, generator=generator)
    return module


def smooth(basis):
    a = basis.num_coefficients
    return random_(Field([DepthLinear(3, 4, a, a), Tanh(), DepthLinear(4, 3, a, 1)], basis).double())


def points(seed=1, *shape):
    return torch.randn(shape or (5, 3), dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def seeded():
    return torch.Generator().manual_seed(3)


SOLVERS = [Fixed("rk4", 64), Adaptive("dopri5", 1e-9, 1e-9)]


@pytest.mark.parametrize("end", [1.0, 0.6, 1.3])
@pytest.mark.parametrize("solver", SOLVERS, ids=str)
def test_energies_of_a_linear_field(solver, end):
    """h_i = exp(a_i t) c_i: the integral of a_i^2 h_i^2 to T is a_i c_i^2 (exp(2 a_i T) - 1) / 2; |e^T M|^2 = |M|^2."""
    c = points()
    solution = integrate_path(linear(), c, solver, kinetic=True, jacobian=True, end=end)
    torch.testing.assert_close(solution.h1, torch.exp(end * RATES) * c, rtol=1e-7, atol=1e-7)
    kinetic = (RATES * c**2 * (torch.exp(2 * end * RATES) - 1) / 2).mean()
    torch.testing.assert_close(solution.kinetic, kinetic, rtol=1e-7, atol=1e-7)
    torch.testing.assert_close(solution.jacobian, end * (RATES**2).mean(), rtol=1e-7, atol=1e-7)


def test_the_tolerance_holds_for_the_energies_beside_many_coordinates():
    """One of 900 moves: h = 30 exp(-4 t), energy 16 * 900 / 900 * (1 - exp(-8)) / 8."""
    rates, c = torch.zeros(900, dtype=torch.float64), torch.zeros(1, 900, dtype=torch.float64)
    rates[0], c[0, 0] = -4.0, 30.0
    field = Field([DepthLinear(900, 900, 1, 0)], constant()).double()
    field.layers[0].weight.data[0] = torch.diag(rates)
    kinetic = torch.tensor(16 * (1 - math.exp(-8)) / 8, dtype=torch.float64)
    for run in (field, stretched(field, 1.0)):
        solution = integrate_path(run, c, Adaptive("bosh3", 1e-5, 1e-5), kinetic=True)
        torch.testing.assert_close(solution.kinetic, kinetic, rtol=1e-4, atol=0)


def test_jacobian_is_estimated_without_bias():
    """The mean over all sign vectors is |M|_F^2 / D, and one alone is not."""
    matrix = points(2, 3, 3)
    estimates = []
    for signs in product([-1.0, 1.0], repeat=3):
        epsilon = torch.tensor([signs], dtype=torch.float64)
        z = torch.cat([points(1, 1, 3), torch.zeros(1, 2, dtype=torch.float64)], dim=1)
        z1 = integrate(regularised(linear(matrix), (3,), epsilon), z, Fixed("euler", 2)).h1
        estimates.append(unpack(z1, (3,))[1][0, 1])
    exact = matrix.square().sum() / 3
    torch.testing.assert_close(torch.stack(estimates).mean(), exact, rtol=1e-12, atol=1e-12)
    assert (estimates[0] - exact).abs() > 1e-2


GRADIENTS = [
    (Fixed("midpoint", 5), "direct"),
    (Fixed("midpoint", 5), "checkpoint"),
    (Fixed("ab2", 6), "direct"),
    (Adaptive("dopri5", 1e-8, 1e-8), "direct"),
    (Adaptive("dopri5", 1e-8, 1e-8), "adjoint"),
]


@pytest.mark.parametrize(("solver", "gradient"), GRADIENTS, ids=lambda x: str(x))
def test_gradient_of_the_penalties_by_finite_differences(solver, gradient):
    """Along one direction of all parameters together."""
    field, h = smooth(clamped(2, 3)), points()
    jacobian = gradient != "checkpoint"

    def penalty(gradient="direct"):
        solution = integrate_path(
            field, h, solver, kinetic=True, jacobian=jacobian, end=1.2, generator=seeded(), gradient=gradient
        )
        assert solution.status == "ok"
        further = 2 * solution.jacobian if jacobian else 0
        return solution.kinetic + further + solution.h1.square().mean()

    penalty(gradient).backward()
    generator = torch.Generator().manual_seed(5)
    direction = [torch.randn(p.shape, dtype=torch.float64, generator=generator) for p in field.parameters()]
    slope = sum((p.grad * d).sum() for p, d in zip(field.parameters(), direction)).item()
    ends = []
    for step in (1e-4, -2e-4):
        with torch.no_grad():
            for p, d in zip(field.parameters(), direction):
                p += step * d
            ends.append(penalty().item())
    assert slope == pytest.approx((ends[0] - ends[1]) / 2e-4, rel=1e-5)


@pytest.mark.parametrize("norm", ["group", "batch"])
@pytest.mark.parametrize("method", ["euler", "rk4", "ab3"])
def test_carrying_the_energies_changes_nothing_else(norm, method):
    """The state, the number of evaluations, and the running statistics."""
    one = random_(preactivation(3, 1, clamped(1, 3), norm=norm).double())
    two = copy.deepcopy(one)
    h, solver = points(1, 4, 3, 5, 5), Fixed(method, 6)
    for gradient in ("direct", "checkpoint"):
        plain = integrate(one, h, solver)
        carried = integrate_path(
            two, h, solver, kinetic=True, jacobian=gradient == "direct", generator=seeded(), gradient=gradient
        )
        torch.testing.assert_close(carried.h1, plain.h1, rtol=1e-12, atol=1e-12)
        assert carried.num_evals == plain.num_evals
        (carried.h1.square().sum() + carried.kinetic).backward()
        for a, b in zip(one.buffers(), two.buffers()):
            torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


def test_jacobian_within_a_recomputation_is_refused():
    with pytest.raises(ValueError, match="jacobian does not go with the gradient `checkpoint`"):
        integrate_path(linear(), points(), Fixed("euler", 2), jacobian=True, gradient="checkpoint")


def test_what_is_not_asked_for_costs_nothing():
    plain = integrate(linear(), points(), Fixed("rk4", 3))
    none = integrate_path(linear(), points(), Fixed("rk4", 3))
    assert torch.equal(plain.h1, none.h1)
    assert none.kinetic is None
    assert none.jacobian is None
    for asked in ("kinetic", "jacobian"):
        solution = integrate_path(linear(), points(), Fixed("rk4", 3), **{asked: True})
        assert {name for name in ("kinetic", "jacobian") if getattr(solution, name) is not None} == {asked}


@pytest.mark.slow
def test_the_energies_compile():
    field, solver = smooth(clamped(1, 3)), Fixed("euler", 2)
    prepare(field, solver)

    def loss(h):
        solution = integrate_path(field, h, solver, kinetic=True)
        return solution.h1.sum() + solution.kinetic

    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    ours, theirs = loss(points()), compiled(points())
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)
    grads = [torch.autograd.grad(value, list(field.parameters())) for value in (ours, theirs)]
    torch.testing.assert_close(*grads, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("solver", [Fixed("rk4", 8), Adaptive("dopri5", 1e-8, 1e-8)], ids=str)
def test_stretching_moves_the_weights_along(solver):
    """dh/ds = T f(s, h) is the field of scale T, breaks and all."""
    for basis in (constant(), clamped(0, 3)):
        one, two = (perceptron(3, 4, basis, scale=scale).double() for scale in (1.0, 1.5))
        generator = torch.Generator().manual_seed(0)
        for a, b in zip(one.parameters(), two.parameters()):
            a.data.normal_(0, 0.5, generator=generator)
            b.data.copy_(a.data)
        ours, theirs = (integrate(f, points(1, 2, 1, 3), solver) for f in (stretched(one, 1.5), two))
        torch.testing.assert_close(ours.h1, theirs.h1, rtol=1e-12, atol=1e-12)
        assert ours.num_accepted == theirs.num_accepted


def test_ends_are_uniform_and_follow_the_generator():
    generator = seeded()
    ends = [draw_end(0.25, generator) for _ in range(4000)]
    assert 0.75 <= min(ends) < 0.752
    assert 1.248 < max(ends) <= 1.25
    assert sum(ends) / 4000 == pytest.approx(1, abs=4 * 0.25 / math.sqrt(3 * 4000))
    assert draw_end(0.25, seeded()) == ends[0]


def network():
    return random_(stage_network(1, 3, 2, 2, lambda c: preactivation(c, 2, clamped(1, 2))).double())


def test_a_network_ends_at_random_in_train_mode_only():
    net, solver, images = network(), Fixed("rk4", 3), points(1, 2, 1, 8, 8)
    plain = net(images, solver)
    one = net.predict(images, solver, generator=seeded(), random_end=0.3).logits
    assert torch.equal(one, net.predict(images, solver, generator=seeded(), random_end=0.3).logits)
    assert not torch.equal(one, plain)
    end = draw_end(0.3, seeded())
    for field in net.fields:
        field.scale = end  # one end for all blocks
    torch.testing.assert_close(one, net(images, solver), rtol=1e-12, atol=1e-12)
    for field in net.fields:
        field.scale = 1.0
    assert torch.equal(net.eval().predict(images, solver, random_end=0.3).logits, plain)


def test_a_networks_energies_are_the_sums_over_its_blocks():
    net, images = network(), points(1, 2, 1, 8, 8)
    prediction = net.predict(images, Fixed("rk4", 3), generator=seeded(), kinetic=True, jacobian=True)
    torch.testing.assert_close(prediction.logits, net(images, Fixed("rk4", 3)), rtol=1e-12, atol=1e-12)
    for name in ("kinetic", "jacobian"):
        parts = [getattr(solution, name) for solution in prediction.solutions]
        assert len(parts) == 3
        torch.testing.assert_close(getattr(prediction, name), sum(parts))
    (prediction.kinetic + prediction.jacobian).backward()
    assert all(p.grad.abs().sum() > 0 for field in net.fields for p in field.parameters() if p.dim() > 2)
    plain = net.predict(images, Fixed("rk4", 3))
    assert plain.kinetic is plain.jacobian is None


def test_energies_under_autocast_keep_the_states_precision():
    field = bottleneck(2, 3, 2, constant())
    for parameter in field.parameters():
        nn.init.normal_(parameter, 0, 0.3, generator=seeded())
    with torch.autocast("cpu", torch.bfloat16):
        h = torch.randn(2, 2, 4, 4, generator=seeded())
        solution = integrate_path(field, h, Fixed("euler", 3), kinetic=True, jacobian=True)
    assert {solution.h1.dtype, solution.kinetic.dtype, solution.jacobian.dtype} == {torch.float32}
    exact = integrate_path(field, h, Fixed("euler", 3), kinetic=True)
    torch.testing.assert_close(solution.kinetic, exact.kinetic, rtol=0.05, atol=0)
    (solution.kinetic + solution.jacobian).backward()


def test_a_discrete_net_has_no_path():
    from gode_core.discrete import Discrete
    from gode_core.solvers import Layers

    net = raw_network((1, 4, 4), 2, 3, None, discrete=Discrete(Layers((2,))))
    for option in ({"kinetic": True}, {"jacobian": True}, {"random_end": 0.1}):
        with pytest.raises(ValueError, match="layers@2 has no path through time"):
            net.predict(torch.rand(1, 1, 4, 4), Layers((2,)), **option)


def test_implicit_steps_refuse_what_they_refuse_of_the_field_itself():
    """Batch norm in train mode, under a changed field too; and the derivative within the derivative."""
    field, h0 = preactivation(4, 2, clamped(0, 1), norm="batch"), torch.randn(2, 4, 3, 3)
    for settings in ({"end": 1.2}, {"kinetic": True}):
        with pytest.raises(ValueError, match="batch norm in train mode"):
            integrate_path(field, h0, Implicit("trapezoid", 2), **settings)
    with pytest.raises(ValueError, match="jacobian does not go with"):
        integrate_path(field.eval(), h0, Implicit("trapezoid", 2), jacobian=True)
