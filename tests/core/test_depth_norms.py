"""Norms inside fields: batch norm with depth-varying statistics against torch's own, and what it must never do."""

import copy
from fractions import Fraction

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from gode_core.bases import Moment, clamped, constant
from gode_core.depth_norms import DepthBatchNorm, make_norm
from gode_core.fields import Field, concat_time, preactivation
from gode_core.integrate import integrate, prepare
from gode_core.layers import DepthGroupNorm, Depths
from gode_core.solvers import Adaptive, Fixed

B, C, SIZE = 4, 3, 5


def random_(module, seed=0):
    generator = torch.Generator().manual_seed(seed)
    for parameter in module.parameters():
        parameter.data.normal_(0, 0.3, generator=generator)
    return module


def images(seed=1, shift=0.0):
    return shift + torch.randn(B, C, SIZE, SIZE, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def normed(basis, **options):
    return random_(preactivation(C, 1, basis, norm="batch", **options).double())


def trained(basis, solver=None, **options):
    """Its statistics have met some batches; in eval mode."""
    field = normed(basis, **options)
    for seed in range(20):
        integrate(field, images(seed, shift=0.5), solver or Fixed("rk4", 8))
    return field.eval()


class PlainResNet(nn.Module):
    """x + 1/N conv(ReLU BatchNorm(conv(ReLU BatchNorm(x)))), each block with weights and statistics of its own."""

    def __init__(self, field, n):
        super().__init__()
        w = [[p.detach()[i].clone() for p in field.parameters()] for i in range(n)]
        self.norms = nn.ModuleList(nn.BatchNorm2d(C).double() for _ in range(2 * n))
        self.kernels = nn.ParameterList(nn.Parameter(w[i][k]) for i in range(n) for k in (2, 5))
        for j, norm in enumerate(self.norms):
            norm.weight.data, norm.bias.data = w[j // 2][3 * (j % 2)], w[j // 2][3 * (j % 2) + 1]

    def forward(self, h):
        n = len(self.norms) // 2
        for i in range(n):
            y = h
            for j in (2 * i, 2 * i + 1):
                y = F.conv2d(F.relu(self.norms[j](y)), self.kernels[j], padding=1)
            h = h + y / n
        return h


@pytest.mark.parametrize("n", [1, 2, 5])
def test_degree_0_under_euler_is_the_resnet_with_a_batch_norm_per_layer(n):
    field = normed(clamped(0, n))
    resnet = PlainResNet(field, n)
    for step, training in enumerate((True, True, True, False)):
        field.train(training)
        resnet.train(training)
        h = images(step, shift=0.7).requires_grad_()
        ours, theirs = integrate(field, h, Fixed("euler", n)).h1, resnet(h)
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)
        for layer, norms in zip((0, 3), (resnet.norms[::2], resnet.norms[1::2])):
            for i, norm in enumerate(norms):
                torch.testing.assert_close(field.layers[layer].mean[i], norm.running_mean, rtol=1e-12, atol=1e-12)
                torch.testing.assert_close(field.layers[layer].variance[i], norm.running_var, rtol=1e-12, atol=1e-12)
        grads = torch.autograd.grad(ours.square().sum(), [h, *field.parameters()])
        wanted = torch.autograd.grad(theirs.square().sum(), [h, *resnet.kernels, *resnet.norms.parameters()])
        torch.testing.assert_close(grads[0], wanted[0], rtol=1e-10, atol=1e-10)
        kernels, scales = wanted[1 : 2 * n + 1], wanted[2 * n + 1 :]
        for i in range(n):
            own = [*scales[4 * i : 4 * i + 2], kernels[2 * i], *scales[4 * i + 2 : 4 * i + 4], kernels[2 * i + 1]]
            for grad, w in zip(grads[1:], own):
                torch.testing.assert_close(grad[i], w, rtol=1e-10, atol=1e-10)


def solved(layer, samples):
    """The layer's statistics after one solve that saw the samples [(t, h)], which replace what was there."""
    layer.momentum = 1.0
    layer.begin_solve()
    for t, h in samples:
        depths = Depths.of(layer.basis, Moment(float(t)), layer.mean)
        (own,) = layer.statistics_at(depths)
        layer.at(float(t), layer.weight[0], layer.bias[0], **own)(h)
    layer.end_solve()
    return layer.mean, layer.variance


def test_what_is_constant_in_depth_is_met_exactly():
    """Whatever the times, few or many, at the nodes or between."""
    h = images(shift=2.0)
    variance, mean = torch.var_mean(h, dim=(0, 2, 3))
    for times in ([0.0], [0.3], [0, 0.25, 0.5], [0.01 * i for i in range(101)]):
        layer = make_norm("batch", C, 1, 1, constant(), 9).double()
        means, variances = solved(layer, [(t, h) for t in times])
        torch.testing.assert_close(means, mean.expand(9, C), rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(variances, variance.expand(9, C), rtol=1e-12, atol=1e-12)


def test_statistics_lie_between_the_samples():
    """So that no variance is ever negative: here they differ by 1e6 from one time to the next."""
    samples = [(0.037 * i, images(i) * (1e3 if i % 2 else 1.0)) for i in range(27)]
    layer = make_norm("batch", C, 1, 1, constant(), 9).double()
    _, variances = solved(layer, samples)
    seen = torch.stack([torch.var(h, dim=(0, 2, 3)) for _, h in samples])
    assert (variances >= seen.min(0).values).all()
    assert (variances <= seen.max(0).values).all()


def test_nodes_between_the_samples_lie_on_the_line():
    """Four Euler steps see every second of nine nodes: all are usable by a finer solver all the same."""
    layer = make_norm("batch", C, 1, 1, constant(), 9).double()
    means, _ = solved(layer, [(t, images(shift=10 * t)) for t in (0, 0.25, 0.5, 0.75)])
    at_0 = images().mean((0, 2, 3))
    wanted = at_0 + 10 * torch.tensor([0, 1, 2, 3, 4, 5, 6, 6, 6], dtype=torch.float64).unsqueeze(1) / 8
    torch.testing.assert_close(means, wanted, rtol=1e-12, atol=1e-12)
    late, _ = solved(make_norm("batch", C, 1, 1, constant(), 9).double(), [(0.5, images())])
    torch.testing.assert_close(late, at_0.expand(9, C), rtol=1e-12, atol=1e-12)


def test_pieces_that_were_not_seen_keep_what_they_have():
    field = normed(clamped(0, 4))
    integrate(field, images(shift=1.0), Fixed("euler", 2))
    layer = field.layers[0]
    for piece, changed in enumerate((True, False, True, False)):
        assert bool((layer.mean[piece] != 0).all()) == changed
        assert bool((layer.variance[piece] != 1).all()) == changed


def test_channels_that_are_not_finite_keep_what_they_have():
    h = images(shift=1.0)
    h[0, 1, 0, 0] = float("inf")
    layer = make_norm("batch", C, 1, 1, constant(), 9).double()
    means, variances = solved(layer, [(0.1, h), (0.6, images())])
    assert torch.equal(means[:, 1], torch.zeros(9, dtype=torch.float64))
    assert torch.equal(variances[:, 1], torch.ones(9, dtype=torch.float64))
    assert (means[:, [0, 2]] != 0).all()


@pytest.mark.parametrize("basis", [clamped(0, 3), constant(), clamped(2, 4)], ids=["pieces", "constant", "spline"])
@pytest.mark.parametrize("t", [0.0, 0.2, 0.5, 0.71, 1.0])
def test_in_eval_mode_the_statistics_are_functions_of_depth(basis, t):
    """The norm is torch's with mean(t) and var(t), interpolated by hand."""
    layer = trained(basis).layers[0]
    if basis.degree == 0 and basis.num_coefficients > 1:
        mean, variance = (s[min(int(3 * t), 2)] for s in (layer.mean, layer.variance))
    else:
        assert layer.mean.shape == (9, C)
        i = min(int(8 * t), 7)
        mean, variance = (torch.lerp(s[i], s[i + 1], 8 * t - i) for s in (layer.mean, layer.variance))
    (own,) = layer.statistics_at(Depths.of(layer.basis, Moment(t), layer.mean))
    w, b = torch.rand(2, C, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    wanted = F.batch_norm(images(), mean, variance, w, b)
    torch.testing.assert_close(layer.at(t, w, b, **own)(images()), wanted, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("solver", [Fixed("euler", 7), Fixed("rk4", 3), Adaptive("dopri5", 1e-6, 1e-6)], ids=str)
def test_in_eval_mode_nothing_is_updated_and_images_do_not_meet(solver):
    field = trained(constant(), Fixed("euler", 4))
    before = copy.deepcopy(field.state_dict())
    h = images()
    together = integrate(field, h, solver).h1
    alone = torch.cat([integrate(field, image, solver).h1 for image in h.split(1)])
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-4)
    assert all(torch.equal(before[name], value) for name, value in field.state_dict().items())


@pytest.mark.parametrize("basis", [clamped(0, 4), constant()], ids=["pieces", "hats"])
def test_recomputation_updates_nothing(basis):
    one = normed(basis)
    two = copy.deepcopy(one)
    for field, gradient in ((one, "direct"), (two, "checkpoint")):
        h1 = integrate(field, images(), Fixed("rk4", 9), gradient=gradient).h1
        h1.square().sum().backward()
    for (name, a), b in zip(one.named_buffers(), two.buffers()):
        assert torch.equal(a, b), name
    for a, b in zip(one.parameters(), two.parameters()):
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-12, atol=1e-12)


def test_an_adjoint_updates_nothing():
    field = normed(constant())
    start = copy.deepcopy(list(field.buffers()))
    h1 = integrate(field, images(), Adaptive("dopri5", 1e-4, 1e-4), gradient="adjoint").h1
    after = copy.deepcopy(list(field.buffers()))
    assert not any(torch.equal(a, b) for a, b in zip(start, after))
    h1.square().sum().backward()
    assert all(torch.equal(a, b) for a, b in zip(after, field.buffers()))


def test_calls_outside_a_solve_update_nothing():
    field = normed(constant())
    start = copy.deepcopy(list(field.buffers()))
    field(0.3, images())
    assert all(torch.equal(a, b) for a, b in zip(start, field.buffers()))


def test_breaks_of_the_statistics_are_breaks_of_the_field_in_eval_mode():
    field = trained(clamped(1, 4))
    eighths, thirds = {Fraction(i, 8) for i in range(1, 8)}, {Fraction(1, 3), Fraction(2, 3)}
    assert set(field.breaks) == eighths | thirds
    assert field.breaks == tuple(sorted(field.breaks))
    assert set(field.train().breaks) == thirds


def test_adaptive_solves_do_not_step_over_the_nodes():
    field = trained(constant())
    solution = integrate(field, images(), Adaptive("dopri5", 1e-2, 1e-2))
    assert solution.num_accepted >= 8
    precise = integrate(field, images(), Fixed("rk4", 64)).h1
    torch.testing.assert_close(solution.h1, precise, rtol=1e-2, atol=1e-2)


@pytest.mark.slow
@pytest.mark.parametrize(("basis", "training"), [(clamped(0, 3), True), (constant(), True), (constant(), False)])
def test_compiles_into_one_graph(basis, training):
    """The updates of the statistics with it."""
    one = trained(basis).train(training)
    two, solver = copy.deepcopy(one), Fixed("euler", 2)
    prepare(two, solver)
    compiled = torch.compile(lambda h: integrate(two, h, solver).h1, fullgraph=True, backend="aot_eager")
    for seed in (1, 2):
        ours, theirs = integrate(one, images(seed), solver).h1, compiled(images(seed))
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)
    grads = [torch.autograd.grad(h.square().sum(), list(f.parameters())) for f, h in ((one, ours), (two, theirs))]
    torch.testing.assert_close(*grads, rtol=1e-10, atol=1e-10)
    for a, b in zip(one.buffers(), two.buffers()):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("plain", [nn.BatchNorm1d, nn.BatchNorm2d, nn.SyncBatchNorm])
def test_plain_batch_norm_is_refused(plain):
    class Layer(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = nn.Sequential(nn.ReLU(), plain(C))

        def at(self, t):
            return self.inner

        def forward(self, t, h):
            return self.inner(h)

    for attempt in (lambda: Field([Layer()], constant()), lambda: integrate(Layer(), images(), Fixed("euler", 2))):
        with pytest.raises(ValueError, match=f"{plain.__name__}.*mix all depths.*twice; take make_norm"):
            attempt()


def test_kinds_of_norm():
    group, layer = (make_norm(kind, 6, 3, 2, constant(), 9) for kind in ("group", "layer"))
    assert isinstance(group, DepthGroupNorm)
    assert (group.num_groups, layer.num_groups) == (3, 1)
    h = torch.randn(2, 6, 4, 4, generator=torch.Generator().manual_seed(0))
    mean, std = h.mean((1, 2, 3), keepdim=True), h.var((1, 2, 3), correction=0, keepdim=True).add(1e-5).sqrt()
    torch.testing.assert_close(layer.at(0.5, layer.weight[0], layer.bias[0])(h), (h - mean) / std)
    for make in (preactivation, concat_time):
        field = make(6, 3, clamped(1, 2), norm="batch", statistics=5)
        assert {tuple(buffer.shape) for buffer in field.buffers()} == {(5, 6)}
        assert any(isinstance(part, DepthBatchNorm) for part in field.layers)
    with pytest.raises(ValueError, match="unknown norm `bach`; known: group, layer, batch"):
        make_norm("bach", 6, 3, 2, constant(), 9)
    with pytest.raises(ValueError, match="at least 2 nodes over depth, got 1"):
        make_norm("batch", 6, 3, 2, constant(), 1)


def test_a_training_solve_that_was_broken_off_leaves_nothing_to_a_solve_in_eval_mode():
    norm = DepthBatchNorm(2, 1, clamped(1, 2)).train()
    norm.begin_solve()
    norm._by_the_batch(torch.randn(4, 2, 3, 3) + 5, norm.weight[0], norm.bias[0], torch.tensor([1.0, 0.0]))
    norm.eval()  # as after an interrupt
    norm.begin_solve()
    norm.end_solve()
    assert torch.equal(norm.mean, torch.zeros(2, 2))
