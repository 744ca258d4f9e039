"""Laws of implicit steps: order, stability, exact gradients, samples apart, and no result without convergence."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from gode_core import krylov
from gode_core.bases import clamped
from gode_core.fields import bottleneck, preactivation
from gode_core.integrate import SolveFailed, integrate
from gode_core.krylov import gmres, norm
from gode_core.methods import IMPLICIT_METHODS
from gode_core.solvers import Implicit

ONE = torch.ones(1, 1, dtype=torch.float64)
METHODS = pytest.mark.parametrize("name", IMPLICIT_METHODS)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def normal(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=generator(seed))


class Smooth(nn.Module):
    """f(t, h) = tanh(h A + b) cos t, on (B, 5) states."""

    def __init__(self):
        super().__init__()
        self.matrix, self.bias = nn.Parameter(2 * normal(5, 5)), nn.Parameter(normal(5, seed=1))

    def forward(self, t, h):
        return torch.tanh(h @ self.matrix + self.bias) * math.cos(t)


def small_field(basis):
    field = bottleneck(2, 4, 1, basis).double()
    for parameter in field.parameters():
        parameter.data.normal_(0, 0.4, generator=generator())
    return field


@METHODS
def test_the_error_falls_at_the_stated_order(name):
    """dy/dt = y cos t, y(0) = 1, has y(1) = exp(sin 1)."""

    def error(n):
        return abs(integrate(lambda t, h: h * math.cos(t), ONE, Implicit(name, n)).h1.item() - math.exp(math.sin(1)))

    assert math.log2(error(40) / error(80)) == pytest.approx(IMPLICIT_METHODS[name].order, abs=0.15)


@METHODS
def test_the_order_holds_for_matrices_and_across_jumps(name):
    """Steps that end at a jump see it from the left, those that begin there from the right."""
    pieces = normal(4, 3, 3)

    class Pieces:
        def at(self, times):
            numbers = [clamped(0, 4).row(*point).index(1.0) for point in times.points()]
            return [lambda h, i=i: h @ pieces[i] for i in numbers]

    h0 = exact = torch.eye(3, dtype=torch.float64)
    for piece in pieces:
        exact = exact @ torch.linalg.matrix_exp(piece / 4)
    coarse, fine = (float((integrate(Pieces(), h0, Implicit(name, n)).h1 - exact).norm()) for n in (64, 128))
    assert math.log2(coarse / fine) == pytest.approx(IMPLICIT_METHODS[name].order, abs=0.15)


@METHODS
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_stiff_decay_has_the_method_s_own_factor(name, dtype):
    """y' = -1000 y: bounded, (1 - (1 - theta) z) / (1 + theta z) a step with z = 1000 h, where Euler explodes."""
    theta = float(IMPLICIT_METHODS[name].theta)
    z = 1000 / 8
    solution = integrate(lambda t, h: -1000 * h, ONE.to(dtype), Implicit(name, 8))
    expected = ((1 - (1 - theta) * z) / (1 + theta * z)) ** 8
    assert solution.status == "ok"
    assert solution.h1.item() == pytest.approx(expected, rel=1e-3 if dtype == torch.float32 else 1e-9)


def test_a_stiff_nonlinear_solve_stays_bounded():
    """y' = -1000 (y^3 - cos t): the state follows cos^(1/3)."""
    solution = integrate(lambda t, h: -1000 * (h**3 - math.cos(t)), ONE, Implicit("backward_euler", 8))
    assert solution.status == "ok"
    assert solution.h1.item() == pytest.approx(math.cos(1) ** (1 / 3), abs=1e-2)


def test_trapezoid_keeps_the_norm_of_a_rotation():
    turn = torch.tensor([[0.0, 3.0], [-3.0, 0.0]], dtype=torch.float64)
    h0 = normal(4, 2)
    kept = norm(integrate(lambda t, h: h @ turn, h0, Implicit("trapezoid", 16)).h1) / norm(h0)
    torch.testing.assert_close(kept, torch.ones_like(kept), rtol=1e-10, atol=0)
    lost = norm(integrate(lambda t, h: h @ turn, h0, Implicit("backward_euler", 16)).h1) / norm(h0)
    assert (lost < 0.9).all()


@METHODS
def test_the_gradient_of_a_linear_equation_is_the_closed_form(name):
    theta, n = float(IMPLICIT_METHODS[name].theta), 3
    rates = normal(4, 1).requires_grad_()
    h0 = normal(4, 1, seed=1).requires_grad_()
    factor = ((1 + (1 - theta) * rates / n) / (1 - theta * rates / n)) ** n
    found = integrate(lambda t, h: rates * h, h0, Implicit(name, n)).h1
    torch.testing.assert_close(found, factor * h0, rtol=1e-10, atol=1e-11)
    wanted = torch.autograd.grad((factor * h0).square().sum(), [rates, h0])
    for a, b in zip(torch.autograd.grad(found.square().sum(), [rates, h0]), wanted):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-10)


@METHODS
def test_the_gradient_equals_finite_differences(name):
    field = Smooth()

    def loss(h, matrix, bias):
        def rhs(t, h):
            return torch.func.functional_call(field, {"matrix": matrix, "bias": bias}, (t, h))

        return integrate(rhs, h, Implicit(name, 3)).h1.square().sum()

    assert torch.autograd.gradcheck(
        loss,
        (normal(2, 5).requires_grad_(), field.matrix, field.bias),
        atol=1e-6,
        fast_mode=True,
        check_undefined_grad=False,
    )


@METHODS
def test_a_field_s_coefficients_get_their_gradient(name):
    """Along a random direction, against a central difference."""
    field, h0 = small_field(clamped(1, 3)), normal(3, 2, 5)
    directions = [normal(*p.shape, seed=i) for i, p in enumerate(field.parameters())]

    def loss():
        return integrate(field, h0, Implicit(name, 4)).h1.square().sum()

    gradients = torch.autograd.grad(loss(), list(field.parameters()))
    along = sum((g * d).sum().item() for g, d in zip(gradients, directions))
    values = []
    for sign in (1, -2):
        for p, d in zip(field.parameters(), directions):
            p.data += sign * 1e-6 * d
        values.append(loss().item())
    assert along == pytest.approx((values[0] - values[1]) / 2e-6, rel=1e-5)


def test_what_needs_no_gradient_gets_none():
    field = small_field(clamped(1, 3)).requires_grad_(False)
    assert not integrate(field, normal(3, 2, 5), Implicit("trapezoid", 2)).h1.requires_grad


def saved_bytes(rate):
    """What autograd keeps of one step, and the calls that the step took."""
    seen = {}

    def pack(tensor):
        seen[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    weight = (rate * normal(5, 5)).requires_grad_()
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        solution = integrate(lambda t, h: torch.tanh(h @ weight), normal(2, 5, seed=1), Implicit("backward_euler", 1))
    return sum(t.untyped_storage().nbytes() for t in seen.values()), solution.num_evals


def test_memory_does_not_grow_with_the_iterations():
    (few_bytes, few), (many_bytes, many) = saved_bytes(0.01), saved_bytes(2.0)
    assert many > 2 * few
    assert many_bytes == few_bytes


@METHODS
def test_num_evals_counts_every_call_and_product(name):
    calls = []

    def field(t, h):
        calls.append(t)
        return torch.tanh(3 * h) * math.cos(t)

    with torch.no_grad():
        assert integrate(field, normal(2, 5), Implicit(name, 4)).num_evals == len(calls)
    calls.clear()
    assert integrate(field, normal(2, 5), Implicit(name, 4)).num_evals == len(calls)


@METHODS
def test_a_sample_does_not_depend_on_its_batch_mates(name):
    """One of them stiff: it needs many iterations, in which the others must not move."""
    rates = torch.tensor([[0.1], [1.0], [20.0]], dtype=torch.float64)
    weight, h0 = normal(5, 5), normal(3, 5, seed=1)

    def solve(samples):
        return integrate(
            lambda t, h: rates[samples] * torch.tanh(-h @ weight @ weight.T), h0[samples], Implicit(name, 4)
        ).h1

    together = solve(torch.tensor([0, 1, 2]))
    for i in range(3):
        torch.testing.assert_close(solve(torch.tensor([i]))[0], together[i], rtol=1e-13, atol=1e-14)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("basis", [clamped(0, 4), clamped(1, 4)], ids=["degree 0", "degree 1"])
def test_networks_of_convolutions_converge(dtype, basis):
    """Kinks (ReLU), group norm, untied weights; the fine trapezoid meets the fine Runge-Kutta solve."""
    field = preactivation(8, 4, basis).to(dtype)
    for parameter in field.parameters():
        if parameter.dim() > 2:
            parameter.data.copy_(normal(*parameter.shape) * 0.1)
    h0 = normal(2, 8, 4, 4).to(dtype)
    solution = integrate(field, h0, Implicit("trapezoid", 4))
    assert (solution.status, solution.t, solution.num_accepted) == ("ok", 1.0, 4)
    solution.h1.sum().backward()
    assert all(torch.isfinite(p.grad).all() for p in field.parameters())


def test_an_equation_without_a_solution_is_a_status():
    """z = y + h (z^2 + 1) has no real root for h = 1, y = 1; the second step of two is the first without one."""
    solution = integrate(lambda t, h: h * h + 1, ONE, Implicit("backward_euler", 1))
    assert (solution.status, solution.t, solution.num_accepted) == ("unconverged", 0.0, 0)
    assert torch.equal(solution.h1, ONE)
    later = integrate(lambda t, h: (t > 0.5) * 4 * (h * h + 1), ONE, Implicit("backward_euler", 4), depths=(0, 0.5, 1))
    assert (later.status, later.t, later.num_accepted, len(later.states)) == ("unconverged", 0.5, 2, 2)


@pytest.mark.parametrize("bad", [1.0, math.inf], ids=["unconverged", "nonfinite"])
def test_without_a_gradient_a_lost_sample_does_not_take_the_others_along(bad):
    """z = y + (z^2 + 1) / 2 in each of two steps: from -2 there is a root, from 1 there is none."""
    h0 = torch.tensor([[-2.0], [bad], [-1.5]], dtype=torch.float64)
    solver, status = Implicit("backward_euler", 2), "unconverged" if bad == 1 else "nonfinite"
    with torch.no_grad():
        together = integrate(lambda t, h: h * h + 1, h0, solver)
        alone = [integrate(lambda t, h: h * h + 1, h0[i : i + 1], solver).h1[0] for i in (0, 2)]
    assert (together.status, together.stopped, together.t) == (status, None, 1.0)
    assert together.h1[1].isnan()
    torch.testing.assert_close(together.h1[[0, 2]], torch.stack(alone), rtol=1e-10, atol=1e-12)
    assert integrate(lambda t, h: h * h + 1, h0, solver).stopped == status


def test_non_finite_is_a_status():
    solution = integrate(lambda t, h: h * (math.nan if t > 0.5 else 1), ONE, Implicit("trapezoid", 4))
    assert (solution.status, solution.t) == ("nonfinite", 0.5)


def test_a_backward_solve_that_does_not_converge_says_so(monkeypatch):
    field = Smooth()
    h1 = integrate(field, normal(2, 5), Implicit("backward_euler", 2)).h1
    monkeypatch.setattr(krylov, "NEWTON_LIMIT", 0)
    with pytest.raises(SolveFailed, match="t = 1: unconverged"):
        h1.sum().backward()


def test_depths():
    exact = [math.exp(math.sin(t)) for t in (0, 0.5, 1)]
    solution = integrate(lambda t, h: h * math.cos(t), ONE, Implicit("trapezoid", 64), depths=(0, 0.5, 1))
    assert [s.item() for s in solution.states] == pytest.approx(exact, abs=1e-3)
    with pytest.raises(ValueError, match="no step that ends at 1/3"):
        integrate(lambda t, h: h, ONE, Implicit("trapezoid", 4), depths=("1/3",))


def test_refusals():
    solver = Implicit("backward_euler", 2)
    for gradient in ("checkpoint", "adjoint"):
        with pytest.raises(ValueError, match=f"`{gradient}` is not for backward_euler@2: take `direct`"):
            integrate(lambda t, h: h, ONE, solver, gradient=gradient)
    with pytest.raises(ValueError, match="bfloat16"):
        integrate(lambda t, h: h, ONE.bfloat16(), solver)
    with pytest.raises(ValueError, match="batch norm in train mode"):
        integrate(preactivation(4, 2, clamped(0, 2), norm="batch"), torch.ones(2, 4, 3, 3), solver)
    h1 = integrate(Smooth(), normal(2, 5), solver).h1
    with pytest.raises(RuntimeError, match="no second derivatives"):
        h1.sum().backward(create_graph=True)


def test_gmres_leaves_the_share_of_the_residual_that_it_says():
    """Samples of quite different scale, one of them zero and one that a single vector solves."""
    matrices = torch.eye(12, dtype=torch.float64) + 0.1 * normal(4, 12, 12)
    matrices[3] = 2 * torch.eye(12)
    b = normal(4, 12, seed=1) * torch.tensor([[1.0], [1e-200], [0.0], [1e10]], dtype=torch.float64)
    x = gmres(lambda v: torch.einsum("bij,bj->bi", matrices, v), b)
    left = norm(b - torch.einsum("bij,bj->bi", matrices, x))
    assert (left <= krylov.FORCING * norm(b) * (1 + 1e-9)).all()
    assert torch.equal(x[2], torch.zeros(12, dtype=torch.float64))
