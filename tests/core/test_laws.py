"""The right-hand sides g of a weights' ODE against closed forms and their limits (float64)."""

import math

import pytest
import torch
from test_evolution import draw, law, theta, vector_field

from gode_core.methods import TABLEAUS


def test_linear_follows_the_matrix_exponential():
    theta0 = torch.tensor([0.3, -1.0, 0.7], dtype=torch.float64)
    field = vector_field("linear", theta0, rank=2)
    draw(field.evolution.parameters(), 0.8)
    matrix = law(field).outwards[0] @ law(field).inwards[0]
    system = torch.zeros(4, 4, dtype=torch.float64)  # of (theta, 1): the last column is the bias
    system[:3, :3], system[:3, 3] = matrix, law(field).bias[0]
    for t in (0.0, 0.25, 0.6, 1.0):
        wanted = torch.linalg.matrix_exp(t * system)[:3] @ torch.cat([theta0, theta0.new_ones(1)])
        torch.testing.assert_close(theta(field, t), wanted.detach(), rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("method", TABLEAUS)
def test_the_path_converges_at_the_order_of_its_method(method):
    """theta' = U tanh(V theta + s t + c) + b: smooth, and it depends on t and theta."""
    theta0 = torch.tensor([0.3, -1.0, 0.7], dtype=torch.float64)

    def at_the_end(method, num_steps):
        field = vector_field("network", theta0, method, num_steps, width=4)
        draw(field.evolution.parameters(), 1.0)
        return theta(field)

    fine = at_the_end("rk4", 640)
    coarse, finer = ((at_the_end(method, n) - fine).norm() for n in (20, 40))
    assert abs(math.log2(coarse / finer) - TABLEAUS[method].order) < 0.25


# --- reaction, diffusion, advection ---


def kernel_field(kernel, sigma="identity", **rates):
    field = vector_field("reaction_diffusion", kernel, sigma=sigma)
    for name, value in rates.items():
        getattr(law(field), name).data[0] = torch.as_tensor(value, dtype=torch.float64)
    return field


def kernel(*shape):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(3))


def test_reaction_alone_is_a_factor():
    w = kernel(2, 3, 3, 3)
    field = kernel_field(w, reaction=[-0.7])
    torch.testing.assert_close(theta(field, 0.8), math.exp(-0.7 * 0.8) * w, rtol=1e-8, atol=1e-8)
    matrix = kernel(4, 5)  # without spatial extent: nothing else to learn
    assert law(kernel_field(matrix)).diffusion is None
    torch.testing.assert_close(theta(kernel_field(matrix, reaction=[0.5])), math.exp(0.5) * matrix)


def test_diffusion_keeps_the_sum_and_smooths_at_the_rate_of_the_discrete_laplacian():
    """On three periodic cells all patterns but constants have the eigenvalue -3 for each axis that they vary along."""
    w, d = kernel(2, 3, 3, 3), 0.4
    smooth = theta(kernel_field(w, diffusion=[d]))
    torch.testing.assert_close(smooth.sum((2, 3)), w.sum((2, 3)))
    mean, rows, columns = w.mean((2, 3), keepdim=True), w.mean(3, keepdim=True), w.mean(2, keepdim=True)
    wanted = mean + math.exp(-3 * d) * (rows + columns - 2 * mean) + math.exp(-6 * d) * (w - rows - columns + mean)
    torch.testing.assert_close(smooth, wanted, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(theta(kernel_field(w, diffusion=[9.0])), mean.expand_as(w), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("axis", [2, 3])
def test_advection_alone_is_a_shift(axis):
    """w(x, t) = w(x + v t): on n cells with an error of order 1 / n^2, in the axis of its velocity alone."""
    gaps = []
    for n in (9, 18, 36):
        x = 2 * math.pi * torch.arange(n, dtype=torch.float64) / n
        shape = [1, 1, n, 1] if axis == 2 else [1, 1, 1, n]
        profile, moved = torch.cos(x).view(shape), torch.cos(x + 0.5).view(shape)
        w, wanted = profile.expand(1, 1, n, n).contiguous(), moved.expand(1, 1, n, n)
        cells = 0.5 * n / (2 * math.pi)  # that go by in t = 1
        velocity = [[cells if axis == 2 else 0.0, cells if axis == 3 else 0.0]]
        gaps.append((theta(kernel_field(w, advection=velocity)) - wanted).abs().max().item())
    assert gaps[0] < 0.05
    assert gaps[0] / gaps[1] == pytest.approx(4, abs=0.4)
    assert gaps[1] / gaps[2] == pytest.approx(4, abs=0.4)


def test_no_rate_is_no_change_and_sigma_bounds_the_slope():
    w = kernel(2, 2, 3)
    torch.testing.assert_close(theta(kernel_field(w)), w, rtol=0, atol=0)
    fast = theta(kernel_field(w, sigma="tanh", reaction=[50.0]))
    assert (fast - w).abs().max() <= 1 + 1e-12
    assert (fast - w).abs().max() > 0.9
    with pytest.raises(ValueError, match="identity, tanh"):
        kernel_field(w, sigma="relu")
