"""The rules of discrete nets against the schemes that they are (float64, forward and gradient)."""

import math
from functools import partial

import pytest
import torch

from gode_core.bases import clamped
from gode_core.discrete import RULES, Discrete, DiscreteBlock
from gode_core.fields import preactivation
from gode_core.integrate import integrate
from gode_core.rules import Fractal, Multistep, PolyNet, Residual, ShakeShake
from gode_core.solvers import Fixed, Layers
from gode_core.stochastic import NOTHING, Chance

B, C, SIZE = 2, 4, 5


def normal(*shape, seed=1):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def block_of(rule, seed=0):
    """A block with the same random f's for every rule that has as many."""
    field = preactivation(C, 2, clamped(0, rule.num_layers * rule.functions_per_layer)).double()
    generator = torch.Generator().manual_seed(seed)
    for parameter in field.parameters():
        parameter.data.normal_(0, 0.3, generator=generator)
    return DiscreteBlock(field, rule.double())


class Given:
    """A field with these functions."""

    def __init__(self, functions):
        self.functions = functions

    def at(self, times):
        assert len(times.points()) == len(self.functions)
        return self.functions


def run(rule, functions, h, previous=None):
    return rule(Given(functions), h, previous, Chance(NOTHING, rule.num_layers))[0]


def multistep(k, num_layers, has_previous=True):
    rule = Multistep(num_layers, 1, has_previous).double()
    rule.k.data.fill_(k)
    return rule


def forward_and_gradients(block, solve):
    h = normal(B, C, SIZE, SIZE).requires_grad_()
    h1 = solve(h)
    return [h1, *torch.autograd.grad(h1.square().sum(), [h, *block.field.parameters()])]


@pytest.mark.parametrize(
    "rule",
    [partial(Multistep, has_previous=True), Multistep, partial(PolyNet, order=1), partial(Fractal, expansion=1)],
    ids=["multistep, k = 0", "multistep, k = 0, plain first layer", "polynet of order 1", "fractal of expansion 1"],
)
def test_what_is_a_resnet_is_the_resnet_bit_for_bit(rule):
    previous = normal(B, C, SIZE, SIZE, seed=2)
    resnet, other = block_of(Residual(4, C)), block_of(rule(4, C))
    wanted = forward_and_gradients(resnet, lambda h: resnet(h).h1)
    found = forward_and_gradients(other, lambda h: other(h, previous).h1)
    assert all(map(torch.equal, found, wanted))


@pytest.mark.parametrize("n", [1, 3, 4])
def test_the_resnet_is_euler_with_scale_n(n):
    block = block_of(Residual(n, C))
    wanted = forward_and_gradients(block, lambda h: block(h).h1)
    block.field.scale = float(n)
    found = forward_and_gradients(block, lambda h: integrate(block.field, h, Fixed("euler", n)).h1)
    if n in (1, 4):  # where n and 1 / n are powers of two
        assert all(map(torch.equal, found, wanted))
    torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("per_channel", [False, True])
@pytest.mark.parametrize("has_previous", [False, True])
def test_multistep_by_hand(per_channel, has_previous):
    block = block_of(Multistep(3, C, has_previous, per_channel=per_channel))
    k = block.rule.k
    assert k.shape == (3 if has_previous else 2, C if per_channel else 1)
    k.data.copy_(normal(*k.shape, seed=3))
    h = normal(B, C, SIZE, SIZE).requires_grad_()
    before = normal(B, C, SIZE, SIZE, seed=2).requires_grad_()
    ours = block(h, before).h1
    functions, rows = block.field.at(block.rule.times), list(k if has_previous else [torch.zeros(1), *k])
    states = [before, h]
    for f, row in zip(functions, rows):
        row = row.view(1, -1, 1, 1)
        states.append((1 - row) * states[-1] + row * states[-2] + f(states[-1]))
    torch.testing.assert_close(ours, states[-1], rtol=1e-13, atol=1e-13)
    inputs = [h, k, *block.field.parameters()] + ([before] if has_previous else [])
    found, wanted = (torch.autograd.grad(x.square().sum(), inputs) for x in (ours, states[-1]))
    torch.testing.assert_close(found, wanted, rtol=1e-11, atol=1e-11)


def test_k_of_one_is_the_leapfrog():
    functions = [lambda u, n=n: 0.1 * (n + 1) * u.cos() for n in range(4)]
    states = [normal(3, 1), normal(3, 1, seed=2)]
    ours = run(multistep(1.0, 4), functions, states[1], states[0])
    for f in functions:
        states.append(states[-2] + f(states[-1]))
    torch.testing.assert_close(ours, states[-1], rtol=1e-14, atol=1e-14)


@pytest.mark.parametrize("k", [-0.9, -0.1, 0.5, 1.0, -1.0, 1.2])
def test_without_f_a_perturbation_follows_the_roots_1_and_minus_k(k):
    """Zero-stable for -1 < k <= 1: bounded; at k = -1 it grows linearly, beyond like |k|^n."""
    n, zero = 60, torch.zeros(1, 1, dtype=torch.float64)
    end = run(multistep(k, n), [torch.zeros_like] * n, zero + 1, zero).item()
    wanted = n + 1 if k == -1 else (1 - (-k) ** (n + 1)) / (1 + k)  # sum of (-k)^j
    assert end == pytest.approx(wanted, rel=1e-12)
    assert (abs(end) <= 2 / (1 + k)) if -1 < k <= 1 else abs(end) > n


def observed_order(error_at):
    return math.log2(error_at(200) / error_at(400))


@pytest.mark.parametrize(("k", "order"), [(-0.3, 1), (0.0, 1), (0.5, 1), (1.0, 2)])
@pytest.mark.parametrize("rescaled", [True, False], ids=["f rescaled by 1 + k", "f as it is"])
def test_order_of_the_two_step_scheme(k, order, rescaled):
    """With f = h g the scheme goes along (1 + k) u' = g; du/dt = s (1 + t) u has u = exp(s (t + t^2 / 2))."""
    factor, speed = (1 + k, 1.0) if rescaled else (1.0, 1 / (1 + k))

    def exact(t):
        return torch.full((1, 1), speed * (t + t * t / 2), dtype=torch.float64).exp()

    def error(n):
        functions = [lambda u, t=j / n: factor / n * (1 + t) * u for j in range(n)]
        return (run(multistep(k, n), functions, exact(0), exact(-1 / n)) - exact(1)).abs().item()

    assert observed_order(error) == pytest.approx(order, abs=0.1)


@pytest.mark.parametrize("k", [-0.3, 0.0, 0.5])
def test_modified_equation(k):
    """For g = -u the solution exp(mu t) of (1 + k) u' + (1 - k) (h / 2) u'' = g is met to second order."""

    def error(n):
        a, b = (1 - k) / (2 * n), 1 + k
        mu = (-b + math.sqrt(b * b - 4 * a)) / (2 * a)
        start = torch.ones(1, 1, dtype=torch.float64)
        end = run(multistep(k, n), [lambda u: -u / n] * n, start, math.exp(-mu / n) * start)
        return abs(end.item() - math.exp(mu))

    assert observed_order(error) == pytest.approx(2, abs=0.1)


@pytest.mark.parametrize("order", [1, 2, 5])
def test_polynet_is_backward_euler_cut_off(order):
    """For a linear f the step's error against (I - f)^{-1} u is f^{order + 1} (I - f)^{-1} u."""
    matrix, h = 0.1 * normal(C, C), normal(3, C, seed=2)
    ours = run(PolyNet(1, C, order=order), [lambda u: u @ matrix], h)
    backward_euler = torch.linalg.solve(torch.eye(C, dtype=torch.float64) - matrix, h, left=False)
    left_over = backward_euler @ torch.linalg.matrix_power(matrix, order + 1)
    torch.testing.assert_close(backward_euler - ours, left_over, rtol=1e-9, atol=1e-14)


def test_polynet_calls_its_f_again():
    f = torch.sin
    h = normal(3, C)
    torch.testing.assert_close(run(PolyNet(2, C), [f, f], h), (lambda u: u + f(u) + f(f(u)))(h + f(h) + f(f(h))))


def test_fractal_with_an_idle_short_column_is_heun():
    def field(t, h):
        return h.sin()

    n, h = 3, normal(3, C)
    functions = [torch.zeros_like, *[lambda u: u.sin() / n] * 2] * n
    torch.testing.assert_close(run(Fractal(n, C), functions, h), integrate(field, h, Fixed("heun", n)).h1)


def test_fractal_of_expansion_3_by_hand():
    weights, h = normal(7).tolist(), normal(3, C, seed=2)
    functions = [lambda u, w=w: w * u.sin() for w in weights]
    unit = [lambda u, f=f: u + f(u) for f in functions]

    def columns(i, u):
        return (unit[i](u) + unit[i + 2](unit[i + 1](u))) / 2

    wanted = (unit[0](h) + columns(4, columns(1, h))) / 2
    torch.testing.assert_close(run(Fractal(1, C, expansion=3), functions, h), wanted, rtol=1e-13, atol=1e-13)


def test_shake_shake_is_the_mean_in_eval_mode():
    h = normal(3, C)
    ours = run(ShakeShake(1, C), [torch.sin, torch.cos], h)
    torch.testing.assert_close(ours, h + (h.sin() + h.cos()) / 2)


def test_shake_shake_mixes_each_image_forward_and_another_way_backward():
    one, two = (torch.full((50, 2), x, dtype=torch.float64, requires_grad=True) for x in (1.0, 0.0))
    chance = Chance(NOTHING, 1, training=True, generator=torch.Generator().manual_seed(0))
    h1, num_evals = ShakeShake(1, 2)(Given([lambda h: one, lambda h: two]), torch.zeros_like(one), None, chance)
    h1.sum().backward()
    ahead, back = h1.detach(), one.grad
    assert num_evals == 2
    torch.testing.assert_close(back + two.grad, torch.ones_like(back))
    for share in (ahead, back):
        assert torch.equal(share[:, 0], share[:, 1])
        assert 0 <= share.min() < 0.1
        assert 0.9 < share.max() <= 1
    assert (ahead - back).abs().mean() > 0.1


@pytest.mark.parametrize("name", RULES)
def test_counts_are_the_calls_of_f(name):
    """num_evals is what was called; every function is."""
    rule, calls = RULES[name](3, C), []
    if name == "reversible":
        rule.recompute = False
    field = preactivation(C // rule.channel_split, 2, clamped(0, 3 * rule.functions_per_layer))
    at = field.functions

    def counted(times, weights):
        return [lambda h, i=i, f=f: calls.append(i) or f(h) for i, f in enumerate(at(times, weights))]

    field.functions = counted
    solution = DiscreteBlock(field, rule)(torch.zeros(1, C, SIZE, SIZE), torch.zeros(1, C, SIZE, SIZE))
    assert solution.num_evals == len(calls)
    assert solution.num_accepted == 3
    assert set(calls) == set(range(3 * rule.functions_per_layer))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "training", "norm"),
    [(name, False, "group") for name in RULES] + [("multistep", True, "batch"), ("reversible", True, "batch")],
)
def test_a_block_is_one_graph_and_the_same_compiled(name, training, norm):
    torch._dynamo.reset()
    make = partial(preactivation, num_groups=2, norm=norm)
    block = Discrete(Layers((2,)), RULES[name]).block(make, 0, C, True).double().train(training)
    for parameter in block.parameters():
        parameter.data.copy_(normal(*parameter.shape))
    block.prepare()
    h = normal(B, C, SIZE, SIZE).requires_grad_()
    before = normal(B, C, SIZE, SIZE, seed=2)
    compiled = torch.compile(lambda h: block(h, before).h1, fullgraph=True, backend="eager")
    found, wanted = compiled(h), block(h, before).h1
    torch.testing.assert_close(found, wanted, rtol=1e-11, atol=1e-11)
    grads = [torch.autograd.grad(x.square().sum(), [h, *block.field.parameters()]) for x in (found, wanted)]
    torch.testing.assert_close(*grads, rtol=1e-9, atol=1e-9)


def test_refusals():
    with pytest.raises(ValueError, match="at least 1"):
        Residual(0, C)
    with pytest.raises(ValueError, match="zero-stable"):
        Multistep(2, C, k_range=(-1.5, 0.0))
    with pytest.raises(ValueError, match="order of a PolyNet"):
        PolyNet(2, C, order=0)
    with pytest.raises(ValueError, match="expansion of a FractalNet"):
        Fractal(2, C, expansion=0)
    with pytest.raises(ValueError, match="6 functions needs a basis of degree 0 on as many equal pieces"):
        DiscreteBlock(preactivation(C, 2, clamped(0, 3)), Fractal(2, C))
    with pytest.raises(ValueError, match="scale 1, got 2"):
        DiscreteBlock(preactivation(C, 2, clamped(0, 2), scale=2.0), Residual(2, C))
