"""Laws of weights that obey an ODE of their own (float64, forward and gradient)."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from gode_core.bases import Moment, StageTimes, clamped, constant
from gode_core.evolution import Coupled, PathTimes, evolve
from gode_core.fields import Field, bottleneck, perceptron, preactivation
from gode_core.initialisation import initialise
from gode_core.integrate import integrate, prepare
from gode_core.laws import EVOLUTIONS
from gode_core.layers import DepthLinear
from gode_core.networks import raw_network
from gode_core.smooth_bases import Fourier
from gode_core.solvers import Adaptive, Fixed, parse_solver

OPTIONS = {
    "linear": {"rank": 2},
    "network": {"width": 3},
    "path": {"basis": clamped(2, 3)},
    "reaction_diffusion": {"sigma": "tanh"},
}
KINDS = list(EVOLUTIONS)


def draw(parameters, size=0.4, seed=0):
    generator = torch.Generator().manual_seed(seed)
    for parameter in parameters:
        parameter.data.normal_(0, size, generator=generator)


def small_field(seed=0):
    """On (B, 2, 5) states; weights of moderate size."""
    field = bottleneck(2, 4, 1, constant()).double()
    draw(field.parameters(), seed=seed)
    return field


def evolving(kind, method="euler", num_steps=4, *, begins=False, **options):
    """begins: with g = 0, as it is made. Otherwise g is random."""
    field = evolve(small_field(), kind, method=method, num_steps=num_steps, **OPTIONS[kind], **options)
    if not begins:
        draw(field.evolution.parameters(), 0.15, seed=5)
    return field


def state(seed=1):
    return torch.randn(3, 2, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


class Linear(nn.Module):
    """dh/dt = theta, a vector, whatever h: then h(1) - h(0) is the mean of theta over t."""

    def __init__(self, *shape):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1, *shape, dtype=torch.float64))

    def at(self, t, weight):
        return lambda h: weight.expand_as(h)


def vector_field(kind, theta0, method="rk4", num_steps=64, **options):
    layer = Linear(*theta0.shape)
    layer.weight.data[0] = theta0
    return evolve(Field([layer], constant()), kind, method=method, num_steps=num_steps, **options)


def law(field):
    return field.evolution.g.layers[0]


def theta(field, t=1.0):
    """The weights of a field with one layer at t."""
    return field.weights(Moment(t))[0][0]["weight"].detach()


def gradients(field, solver, gradient="direct"):
    h, parameters = state().requires_grad_(), list(field.parameters())
    h1 = integrate(field, h, parse_solver(solver), gradient=gradient).h1
    return h1.detach(), torch.autograd.grad(h1.square().sum(), [h, *parameters], allow_unused=True)


def assert_close(found, wanted, tolerance=1e-12):
    for a, b in zip(found, wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("solver", ["kutta3@2", "ab2@4", "dopri5@1e-3"])
def test_it_begins_as_the_neural_ode(kind, solver):
    """g = 0: the same forward, and the same gradient for h and theta_0."""
    plain, field = small_field(), evolving(kind, begins=True)
    wanted, wanted_gradients = gradients(plain, solver)
    found, found_gradients = gradients(field, solver)
    assert_close([found], [wanted])
    assert_close(found_gradients[: len(wanted_gradients)], wanted_gradients, 1e-10)


@pytest.mark.parametrize("kind", KINDS)
def test_every_parameter_gets_a_gradient_after_one_step(kind):
    """In the first step already for what multiplies the rest of g; see each law's docstring."""
    field = evolving(kind, begins=True)
    optimiser = torch.optim.SGD(field.parameters(), lr=1e-3)
    for _ in range(2):
        optimiser.zero_grad()
        integrate(field, state(), Fixed("euler", 4)).h1.square().sum().backward()
        moved = {name for name, p in field.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}
        assert any(name.startswith("evolution") for name in moved)
        optimiser.step()
    assert moved == {name for name, _ in field.named_parameters()}


@pytest.mark.parametrize("kind", KINDS)
def test_euler_is_the_resnet_whose_weights_follow_g(kind):
    """Against a loop by hand: theta_{j+1} = theta_j + g(theta_j, t_j) / N, h_{j+1} = h_j + f(h_j, theta_j) / N."""
    n, field = 4, evolving(kind, num_steps=3)
    parameters, g = list(field.layers.parameters()), field.evolution.g
    h = state()
    weights = torch.cat([p[0].flatten() for p in parameters])
    for j in range(n):
        parts = weights.split([p.numel() for p in parameters])
        w = [part.view(p.shape[1:]) for part, p in zip(parts, parameters)]
        y = F.relu(F.conv1d(h, w[0], w[1]))
        y = F.relu(F.conv1d(y, w[2], w[3], padding=1))
        h = h + F.conv1d(y, w[4], w[5]) / n
        weights = weights + g(j / n, weights) / n
    wanted = torch.autograd.grad(h.square().sum(), list(field.parameters()))
    found, found_gradients = gradients(field, f"euler@{n}")
    assert_close([found], [h.detach()])
    assert_close(found_gradients[1:], wanted)


def test_a_free_path_of_degree_0_is_any_resnet():
    """And back: each ResNet has such a path, theta_0 its first layer and g_j = N (theta_{j+1} - theta_j)."""
    n = 5
    resnet = bottleneck(2, 4, 1, clamped(0, n)).double()
    draw(resnet.parameters())
    field = evolve(small_field(), "path", method="euler", num_steps=1, basis=clamped(0, n))
    layers = [p.detach().flatten(1) for p in resnet.parameters()]
    weights = torch.cat(layers, dim=1)
    for p, many in zip(field.layers.parameters(), resnet.parameters()):
        p.data.copy_(many.data[:1])
    law(field).velocity.data[: n - 1] = n * (weights[1:] - weights[:-1])
    wanted, (wanted_h, *wanted_weights) = gradients(resnet, f"euler@{n}")
    found, (found_h, *found_weights) = gradients(field, f"euler@{n}")
    assert_close([found, found_h], [wanted, wanted_h])
    # theta_j = theta_0 + sum_{i < j} g_i / N: theta_0 reaches all layers, g_i those after i; nothing asks for g_{N-1}
    each = torch.cat([grad.flatten(1) for grad in wanted_weights], dim=1)
    assert_close([torch.cat([grad.flatten() for grad in found_weights[:-1]])], [each.sum(0)])
    behind = torch.stack([each[i + 1 :].sum(0) / n for i in range(n)])
    assert_close([found_weights[-1]], [behind])


# --- what is solved, and when ---


def test_theta_has_exact_times_and_no_step_longer_than_asked():
    for solver in (StageTimes("rk4", 3, 0, 3), StageTimes("ralston", 7, 0, 7), StageTimes("euler", 49, 0, 49)):
        times = PathTimes((solver,), "midpoint", 10)
        assert set(times.wanted()) == {t for t, _ in solver.points()}
        assert all((end - start) <= num / 10 for start, end, num in times.gaps())
        assert all((end - start) > (num - 1) / 10 for start, end, num in times.gaps())
        assert len(times.points()) == 2 * sum(num for _, _, num in times.gaps())
    assert PathTimes((StageTimes("euler", 4, 0, 4),), "euler", 4).points() == StageTimes("euler", 4, 0, 3).points()
    for j in range(1, 50):  # a float meets the step that was meant
        assert PathTimes((Moment(j / 49),), "euler", 49).gaps()[0][2] == j


def test_the_path_does_not_depend_on_how_the_solve_is_cut():
    field, whole = evolving("network"), StageTimes("rk4", 5, 0, 5)
    runs = tuple(StageTimes("rk4", 5, a, b) for a, b in ((0, 2), (2, 3), (3, 5)))
    path = field.path(runs)
    pieces = [weights for run in runs for weights in field.weights(run, path)]
    for found, wanted in zip(pieces, field.weights(whole), strict=True):
        for mine, theirs in zip(found, wanted):
            for name in theirs:
                torch.testing.assert_close(mine[name], theirs[name], rtol=0, atol=0)


@pytest.mark.parametrize("kind", KINDS)
def test_weights_at_a_moment_are_those_of_the_solve(kind):
    """Where theta's steps divide those of the solve."""
    field, times = evolving(kind, "rk4", 6), StageTimes("euler", 6, 0, 6)
    for (t, _), weights in zip(times.points(), field.weights(times)):
        for mine, theirs in zip(field.weights(Moment(float(t)))[0], weights):
            for name in theirs:
                torch.testing.assert_close(mine[name], theirs[name], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("gradient", ["direct", "checkpoint"])
def test_g_is_asked_once_for_each_stage_of_theta(gradient, monkeypatch):
    """Not once per sample, nor again for each recomputed run, nor in the backward pass."""
    field, calls = evolving("network", "heun", 16), []
    original = law(field).at

    def counted(t, **weights):
        function = original(t, **weights)

        def call(theta):
            calls.append(theta.shape)
            return function(theta)

        return call

    monkeypatch.setattr(law(field), "at", counted)
    integrate(field, state().requires_grad_(), Fixed("euler", 16), gradient=gradient).h1.sum().backward()
    assert calls == [(sum(p.numel() for p in field.layers.parameters()),)] * (2 * 15)


def test_checkpoint_gives_the_same_gradient():
    for solver in ("euler@9", "rk4@4", "ab2@7"):
        field = evolving("network", "midpoint", 8)
        direct, recomputed = (gradients(field, solver, gradient) for gradient in ("direct", "checkpoint"))
        assert_close(direct[1], recomputed[1], 1e-13)


def test_two_forwards_before_a_backward_do_not_mix():
    """A recomputed run takes the path of its own forward pass."""
    field = evolving("linear")
    losses = [integrate(field, state(s), Fixed("euler", 9), gradient="checkpoint").h1.square().sum() for s in (1, 2)]
    with torch.no_grad():
        integrate(evolving("linear"), state(3), Fixed("euler", 9))
    both = torch.autograd.grad(losses[0] + losses[1], list(field.parameters()))
    one, two = (
        torch.autograd.grad(integrate(field, state(s), Fixed("euler", 9)).h1.square().sum(), list(field.parameters()))
        for s in (1, 2)
    )
    assert_close(both, [a + b for a, b in zip(one, two)])


@pytest.mark.parametrize(
    ("kind", "gradient"),
    [
        ("path", "checkpoint"),
        *(pytest.param(kind, "direct", marks=pytest.mark.slow) for kind in KINDS),
        *(pytest.param(kind, "checkpoint", marks=pytest.mark.slow) for kind in KINDS if kind != "path"),
    ],
)
def test_compiled_is_eager(kind, gradient):
    field, solver = evolving(kind, "euler", 4), Fixed("midpoint", 2)
    prepare(field, solver, gradient)

    def loss(h):
        return integrate(field, h, solver, gradient=gradient).h1.square().sum()

    eager = torch.autograd.grad(loss(state()), list(field.parameters()))
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    assert_close(torch.autograd.grad(compiled(state()), list(field.parameters())), eager)


def test_compiling_unprepared_says_what_to_do():
    field = evolving("linear")
    for parameter in field.layers.parameters():
        assert len(parameter) == 1
    with pytest.raises(Exception, match="prepare"):
        torch.compile(lambda h: integrate(field, h, Fixed("euler", 2)).h1, fullgraph=True, backend="eager")(state())


# --- adaptive solvers ---


def smooth_field(kind, **options):
    """Without ReLU, so that tolerances mean something: h' = theta_1 theta_2 h + ..., in three linear layers."""
    layers = [DepthLinear(5, 4, 1, 1), DepthLinear(4, 4, 1, 1), DepthLinear(4, 5, 1, 1)]
    field = Field(layers, constant()).double()
    draw(field.parameters(), 0.5)
    evolve(field, kind, **{"method": "rk4", "num_steps": 60, **OPTIONS[kind], **options})
    draw(field.evolution.parameters(), 0.15, seed=5)
    return field


@pytest.mark.parametrize("gradient", ["direct", "adjoint"])
@pytest.mark.parametrize(("kind", "options"), [*((kind, {}) for kind in KINDS), ("path", {"basis": clamped(0, 3)})])
def test_adaptive_is_the_limit_of_fixed_steps(kind, options, gradient):
    """Forward and gradient; so the coupled adjoint is that of the tight direct solve."""
    field = smooth_field(kind, **options)
    fine, fine_gradients = gradients(field, "rk4@60")
    found, found_gradients = gradients(field, "dopri5@1e-10", gradient)
    assert_close([found], [fine], 1e-6)
    assert_close(found_gradients, fine_gradients, 1e-5)


def test_the_coupled_adjoint_by_hand():
    """h' = theta h, theta' = u v theta + b with numbers: a' = -a theta, b' = -a h - b u v, dL/dw = integral of
    b dg/dw; solved backwards here by many steps of rk4."""
    h0, theta0, u, v, c = 0.8, 0.4, 0.5, -0.9, 0.3
    layer = DepthLinear(1, 1, 1, 0).double()
    layer.weight.data.fill_(theta0)
    field = evolve(Field([layer], constant()), "linear", method="euler", num_steps=1, rank=1)
    for parameter, value in zip((law(field).outwards, law(field).inwards, law(field).bias), (u, v, c)):
        parameter.data.fill_(value)

    def slope(z):  # h, theta, a, b, dL/du, dL/dv, dL/dc
        h, theta, a, b = z[:4]
        return torch.stack(
            [theta * h, u * v * theta + c, -a * theta, -a * h - b * u * v, -b * v * theta, -b * u * theta, -b]
        )

    def rk4(z, step, num):
        for _ in range(num):
            k1 = slope(z)
            k2 = slope(z + step / 2 * k1)
            k3 = slope(z + step / 2 * k2)
            z = z + step / 6 * (k1 + 2 * k2 + 2 * k3 + slope(z + step * k3))
        return z

    start = torch.tensor([h0, theta0, 0, 0, 0, 0, 0], dtype=torch.float64)
    end = rk4(start, 1 / 400, 400)
    end[2] = 2 * end[0]  # the loss is h(1)^2
    end[3:] = 0
    wanted = rk4(end, -1 / 400, 400)[2:]
    h = torch.full((1, 1), h0, dtype=torch.float64, requires_grad=True)
    h1 = integrate(field, h, Adaptive("dopri5", 1e-10, 1e-10), gradient="adjoint").h1
    parameters = [h, layer.weight, law(field).outwards, law(field).inwards, law(field).bias]
    found = torch.autograd.grad(h1.square().sum(), parameters)
    torch.testing.assert_close(torch.stack([grad.squeeze() for grad in found]), wanted, rtol=1e-7, atol=1e-7)


def test_the_error_is_that_of_the_worse_part():
    """A mean over both would let a thousand numbers at rest hide one that moves."""
    field = evolving("linear")
    both = Coupled(field, state().shape)
    z = torch.zeros_like(both.pack(state()))
    z[0] = 1.0
    size = state().numel()
    assert both.norm(z).item() == pytest.approx(size**-0.5)
    z[size:] = 3.0
    assert both.norm(z).item() == pytest.approx(3.0)


def test_an_error_of_theta_alone_is_seen_behind_a_large_state():
    """h is long and its slope small; theta moves fast: the tolerance must hold for theta."""
    theta0 = torch.tensor([1.0], dtype=torch.float64)
    field = vector_field("linear", theta0, rank=1)
    law(field).inwards.data.fill_(1.0)
    law(field).outwards.data.fill_(-30.0)
    h0 = torch.zeros(4000, 1, dtype=torch.float64)
    h1 = integrate(field, h0, Adaptive("bosh3", 1e-6, 1e-6)).h1
    torch.testing.assert_close(h1, h0 + (1 - math.exp(-30)) / 30, rtol=0, atol=1e-6)


@pytest.mark.parametrize("solver", ["rk4@4", "dopri5@1e-6"])
def test_a_solution_holds_h_alone(solver):
    solution = integrate(evolving("path"), state(), parse_solver(solver), depths=(0, 0.25, 1))
    assert solution.h1.shape == state().shape
    assert [s.shape for s in solution.states] == [state().shape] * 3
    assert_close([solution.states[0], solution.states[2]], [state(), solution.h1])


def test_breaks_of_a_path_are_breaks_of_the_field():
    basis = clamped(1, 3)
    field = evolve(small_field(), "path", method="euler", num_steps=4, basis=basis)
    assert field.breaks == basis.breaks
    assert field.continuity(basis.breaks[0]) == 1  # theta is once smoother than the kink of g
    assert evolving("linear").breaks == ()


def test_an_adaptive_solve_that_is_given_up_returns_a_state():
    solution = integrate(evolving("network"), state(), Adaptive("dopri5", 1e-9, 1e-9), max_steps=1)
    assert solution.status == "budget"
    assert solution.h1.shape == state().shape


# --- which weights, saving, drawing, refusals ---


@torch.no_grad()
def test_a_lost_sample_leaves_the_others_and_the_weights_alone():
    """Under an adaptive solver; weights that are lost take all samples with them."""
    field, solver, h0 = evolving("linear"), Adaptive("dopri5", 1e-6, 1e-6), state()
    alone = integrate(field, h0[[0, 2]], solver)
    h0[1, 0, 0] = math.inf
    solution = integrate(field, h0, solver)
    assert (solution.status, solution.stopped) == ("nonfinite", None)
    assert torch.equal(solution.h1[[0, 2]], alone.h1)
    assert solution.h1[1].isnan().all()
    next(law(field).parameters()).fill_(math.inf)
    assert integrate(field, state(), solver).stopped == "nonfinite"


def test_kernels_alone_evolve_when_told_so():
    field = evolve(preactivation(4, 2, constant()), "path", vary_all=False, method="euler", num_steps=4)
    assert field.evolution.names == [(2, "weight"), (5, "weight")]
    law(field).velocity.data.fill_(1.0)
    draw(field.layers.parameters())
    before, after = field.weights(Moment(0.0))[0], field.weights(Moment(0.5))[0]
    torch.testing.assert_close(after[2]["weight"], before[2]["weight"] + 0.5)
    torch.testing.assert_close(after[0]["weight"], before[0]["weight"], rtol=0, atol=0)


def test_weights_on_a_basis_may_stand_beside_evolving_ones():
    layers = [DepthLinear(5, 5, 1, 0), DepthLinear(5, 5, 1, 3)]
    field = Field(layers, clamped(1, 3)).double()
    draw(field.parameters())
    evolve(field, "path", vary_all=False, method="euler", num_steps=4)
    law(field).velocity.data.fill_(2.0)
    first, second = field.weights(Moment(0.5))[0]
    torch.testing.assert_close(first["weight"], layers[0].weight[0] + 1.0)
    torch.testing.assert_close(second["bias"], layers[1].bias[1])


@pytest.mark.parametrize("kind", KINDS)
def test_save_and_load(kind):
    field, other = evolving(kind), evolve(small_field(seed=9), kind, method="euler", num_steps=4, **OPTIONS[kind])
    other.load_state_dict(field.state_dict())
    assert_close(integrate(other, state(), Fixed("euler", 4)).h1, integrate(field, state(), Fixed("euler", 4)).h1, 0.0)


@pytest.mark.parametrize("kind", ["linear", "network"])
def test_a_generator_names_what_is_random(kind):
    field, other = evolving(kind, begins=True), evolving(kind, begins=True)
    for f in (field, other):
        f.evolution.draw(torch.Generator().manual_seed(4))
    assert_close(list(field.parameters()), list(other.parameters()), 0.0)
    assert law(field).inwards.std().item() == pytest.approx(law(field).inwards.shape[-1] ** -0.5, rel=0.2)


def test_theta_is_solved_without_autocast(monkeypatch):
    """Asked inside g: which products autocast would round to 16 bits depends on the device."""
    field, seen = evolve(perceptron(5, 4, constant()), "path", method="euler", num_steps=4), []

    def at(t, velocity):
        seen.append(torch.is_autocast_enabled("cpu"))
        return lambda theta: velocity

    draw(field.parameters())
    monkeypatch.setattr(law(field), "at", at)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        for solver in ("euler@4", "adaptive_heun@1e-1"):
            integrate(field, torch.randn(2, 1, 5), parse_solver(solver))
        assert torch.is_autocast_enabled("cpu")
    assert len(seen) > 4
    assert not any(seen)


def test_it_stands_in_a_network_and_is_drawn_with_it():
    network = raw_network((1, 6, 6), 3, 4, constant())
    for field in network.fields:
        evolve(field, "linear", method="euler", num_steps=4, rank=2)
    initialise(network, "kaiming_normal", torch.Generator().manual_seed(4))
    first = law(network.fields[0]).inwards.clone()
    initialise(network, "kaiming_normal", torch.Generator().manual_seed(4))
    torch.testing.assert_close(law(network.fields[0]).inwards, first, rtol=0, atol=0)
    initialise(network, "kaiming_normal", torch.Generator().manual_seed(5))
    assert (law(network.fields[0]).inwards != first).any()
    assert network(torch.randn(2, 1, 6, 6), Fixed("euler", 4)).shape == (2, 3)


def test_what_is_random_in_g_is_as_large_on_any_basis():
    """V from N(0, 1 / P). The scheme gode_release shares a kernel's size out among its coefficients, and on a basis
    without knots gives it back to the first; V was never shared out."""
    sizes = []
    for basis in (constant(), Fourier(5)):
        network = raw_network((1, 6, 6), 3, 4, constant())
        evolve(network.fields[0], "linear", method="euler", num_steps=4, basis=basis, rank=8)
        initialise(network, "gode_release", torch.Generator().manual_seed(0))
        inwards = law(network.fields[0]).inwards
        sizes.append(inwards[0].std().item() * inwards.shape[-1] ** 0.5)
        assert (inwards[1:] == 0).all()
    assert sizes == pytest.approx([1, 1], rel=0.1)


def test_refusals():
    with pytest.raises(ValueError, match="linear, network, path, reaction_diffusion"):
        evolve(small_field(), "quadratic", method="euler", num_steps=4)
    with pytest.raises(ValueError, match="must have one"):
        evolve(bottleneck(2, 4, 1, clamped(1, 4)), "path", method="euler", num_steps=4)
    with pytest.raises(ValueError, match="weights' ODE"):
        evolve(small_field(), "path", method="dopri5", num_steps=4)
    for kind, options in (("linear", {"rank": 0}), ("network", {"width": 0})):
        with pytest.raises(ValueError, match="at least 1"):
            evolve(small_field(), kind, method="euler", num_steps=4, **options)
    with pytest.raises(ValueError, match="at least 1"):
        evolve(small_field(), "path", method="euler", num_steps=0)
    with pytest.raises(ValueError, match="bfloat16"):
        integrate(evolving("path"), state().bfloat16(), parse_solver("dopri5@1e-3"))
