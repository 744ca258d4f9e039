"""Several networks as one computation: each has the output and the gradients that it has alone. And what the layers do
for it: short convolutions as matrices, functions shared between depths."""

import dis
import inspect
import itertools

import pytest
import torch
import torch.nn.functional as F

from gode_core import depth_norms, laws, layers
from gode_core.bases import clamped, constant
from gode_core.discrete import RULES, Discrete
from gode_core.evolution import evolve
from gode_core.fields import _functions, bottleneck, perceptron
from gode_core.free_knots import FreeKnots
from gode_core.integrate import integrate
from gode_core.layers import MAX_PLACES, ConcatTime, DepthConv, Depths, ReLU, affine, weights_at
from gode_core.networks import raw_network, stem_network
from gode_core.solvers import Fixed, Layers
from gode_core.stacked import Stack

SIZE, BATCH, D = 3, 7, 3
BASES = {
    "neural_ode": constant(),
    "pieces": clamped(0, 4),  # under euler@4: a resnet
    "hats": clamped(1, 3),
    "cubic": clamped(3, 5),
}
SOLVERS = [Fixed("euler", 4), Fixed("rk4", 2), Fixed("ab2", 8)]
TOLERANCES = {torch.float64: 1e-12, torch.float32: 2e-5}


def drawn(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def network(seed=0, basis=BASES["hats"], dtype=torch.float64, shape=(1, D), **options):
    found = raw_network(shape, 4, 5, basis, **options).to(dtype)
    generator = torch.Generator().manual_seed(seed)
    for parameter in found.parameters():
        torch.nn.init.normal_(parameter, 0, 0.5, generator=generator)
    return found


def apart(found, expected):
    """The largest difference, as a share of the largest value."""
    return ((found - expected).abs().max() / expected.abs().max()).item()


@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
@pytest.mark.parametrize("gradient", ["direct", "checkpoint"])
@pytest.mark.parametrize("solver", SOLVERS, ids=str)
@pytest.mark.parametrize("dense", [False, True], ids=["bottleneck", "perceptron"])
@pytest.mark.parametrize("name", BASES)
def test_each_network_has_the_output_and_the_gradients_that_it_has_alone(name, dense, solver, gradient, dtype):
    """Of the inputs too; with an upstream gradient for each network."""
    networks = [network(seed, BASES[name], dtype, dense=dense, scale=0.7) for seed in range(SIZE)]
    check_each(networks, (1, D), solver, gradient, dtype)


def test_points_may_be_padded_too():
    for options in ({"pad_channels": 3}, {"pad_channels": 5, "dense": True}):
        networks = [network(seed, **options) for seed in range(SIZE)]
        check_each(networks, (1, D), SOLVERS[0], "direct", torch.float64)


def check_each(networks, shape, solver, gradient, dtype):
    stack = Stack(networks)
    points = drawn(SIZE, BATCH, *shape, dtype=dtype).requires_grad_()
    upstream = drawn(SIZE, BATCH, 4, seed=1, dtype=dtype)
    logits = stack(points, solver, gradient)
    assert logits.shape == (SIZE, BATCH, 4)
    logits.backward(upstream)
    assert points.grad is not None
    for i, alone in enumerate(networks):
        own = points.detach()[i].requires_grad_()
        expected = alone(own, solver, gradient)
        expected.backward(upstream[i])
        assert own.grad is not None
        assert apart(logits[i], expected) < TOLERANCES[dtype]
        assert apart(points.grad[i], own.grad) < TOLERANCES[dtype]
        for stacked, parameter in zip(stack.parameters(), alone.parameters(), strict=True):
            assert stacked.grad is not None
            assert parameter.grad is not None
            assert parameter.grad.abs().max() > 0
            assert apart(stacked.grad[i], parameter.grad) < 5 * TOLERANCES[dtype]


def test_weights_that_are_constant_beside_others_that_vary():
    networks = [network(seed, vary_all=False) for seed in range(SIZE)]
    points = drawn(SIZE, BATCH, 1, D)
    found = Stack(networks)(points, SOLVERS[0])
    for i, alone in enumerate(networks):
        assert apart(found[i], alone(points[i], SOLVERS[0])) < 1e-12


def test_one_network_is_a_stack_too_and_it_counts_what_one_counts():
    alone, points = network(), drawn(1, BATCH, 1, D)
    stack = Stack([alone])
    for solver in SOLVERS:
        assert apart(stack(points, solver)[0], alone(points[0], solver)) < 1e-12
        assert stack.num_evals(solver) == alone.num_evals(solver)


def test_unstacked_the_networks_have_the_stacks_weights_and_a_stack_has_its_own():
    networks = [network(seed) for seed in range(SIZE)]
    before = [[p.detach().clone() for p in alone.parameters()] for alone in networks]
    stack = Stack(networks)
    with torch.no_grad():
        for parameter in stack.parameters():
            parameter += torch.arange(1.0, SIZE + 1).view(-1, *[1] * (parameter.dim() - 1))
    for alone, own in zip(networks, before):
        assert all(torch.equal(p, q) for p, q in zip(alone.parameters(), own))
    stack.unstack(networks)
    for i, (alone, own) in enumerate(zip(networks, before)):
        assert all(torch.equal(p, q + (i + 1)) for p, q in zip(alone.parameters(), own, strict=True))


def evolving():
    found = network(basis=constant())
    evolve(found.fields[0], "linear", method="euler", num_steps=2, rank=1)
    return found


REFUSED = {
    "a stem": lambda: [stem_network(1, 2, 4, 2, lambda c: bottleneck(c, 2, 2, constant()))],
    "discrete": lambda: [
        network(basis=None, discrete=Discrete(Layers((2,)), RULES["residual"])),
    ],
    "evolving": lambda: [evolving()],
    "free knots": lambda: [network(basis=FreeKnots(1, 4))],
    "time channel": lambda: [network(time_channel=True)],
    "a fan": lambda: [network(shape=(1, 2), basis=constant(), fan=(0.0, 0.0, 1.0, 2.0))],
    "two shapes": lambda: [network(), network(dense=True)],
    "two numbers of coefficients": lambda: [network(), network(basis=BASES["cubic"])],
    "two bases": lambda: [network(basis=clamped(1, 4)), network(basis=clamped(0, 4))],
    "two scales": lambda: [network(), network(scale=2.0)],
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_cannot_be_stacked_is_refused(kind):
    with pytest.raises(ValueError, match="cannot be stacked"):
        Stack(REFUSED[kind]())


# A convolution over a few places as a matrix


@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no bias"])
@pytest.mark.parametrize("kernel", [1, 3, 5])
@pytest.mark.parametrize("length", range(1, MAX_PLACES + 3))
def test_a_short_convolution_is_conv1d(length, kernel, bias):
    """Gradients too; called twice, since the matrix of the first call serves the second."""
    layer = DepthConv(2, 3, kernel, 1, 1, int(bias)).double()
    values = {name: drawn(*p.shape[1:], seed=len(name)).requires_grad_() for name, p in layer.named_parameters()}
    function = layer.at(0.0, **values)
    both = drawn(2, BATCH, 2, length).requires_grad_()
    inputs = [both, *values.values()]
    found = torch.stack([function(h) for h in both])
    expected = torch.stack([F.conv1d(h, values["weight"], values.get("bias"), padding=kernel // 2) for h in both])
    assert found.shape == (2, BATCH, 3, length)
    assert (found - expected).abs().max() < 1e-13
    upstream = drawn(*found.shape, seed=3)
    grads, wanted = (torch.autograd.grad(y, inputs, upstream) for y in (found, expected))
    assert all((a - b).abs().max() < 1e-12 for a, b in zip(grads, wanted, strict=True))


@pytest.mark.parametrize(("length", "calls"), [(MAX_PLACES, 0), (MAX_PLACES + 1, 2)])
def test_beyond_a_few_places_it_is_the_librarys_own(monkeypatch, length, calls):
    counted, convolve = [], F.conv1d
    monkeypatch.setattr(F, "conv1d", lambda *given, **more: (counted.append(1), convolve(*given, **more))[1])
    function = DepthConv(1, 1, 3, 1, 1, 1).at(0.0, drawn(1, 1, 3), drawn(1))
    for _ in range(2):
        function(drawn(4, 1, length))
    assert len(counted) == calls


@pytest.mark.parametrize("shape", [(D,), (2, D), (1, 2, D)])
def test_affine_maps_of_several_models_are_theirs(shape):
    weight, bias, h = drawn(SIZE, 4, D), drawn(SIZE, 4, seed=1), drawn(SIZE, BATCH, *shape, seed=2)
    for b in (bias, None):
        found = affine(h, weight, b)
        own = [F.linear(h[i], weight[i], None if b is None else b[i]) for i in range(SIZE)]
        assert torch.allclose(found, torch.stack(own), rtol=0, atol=1e-14)


@pytest.mark.parametrize("name", BASES)
def test_the_weights_of_several_models_at_depth_are_theirs(name):
    """weights_at with the models' axis in front."""
    basis = BASES[name]
    field = bottleneck(1, 2, 1, basis).double()
    for solver in (Fixed("euler", 4), Fixed("rk4", 3)):
        times = _times(field, solver)
        depths = Depths.of(basis, times, torch.zeros((), dtype=torch.float64))
        together = drawn(SIZE, basis.num_coefficients, 2, 3)
        found = weights_at(together, depths, 1)
        for i in range(SIZE):
            for one, other in zip(found, weights_at(together[i], depths), strict=True):
                assert torch.allclose(one[i], other, rtol=0, atol=1e-14)


def _times(field, solver):
    """The stage times of a solve's first run."""
    asked = []
    spy = field.at
    field.at = lambda times, *more: (asked.append(times), spy(times, *more))[1]
    integrate(field, torch.zeros(1, 1, D, dtype=torch.float64), solver)
    del field.at
    return asked[0]


# Functions shared between depths


@pytest.mark.parametrize("make", [bottleneck, perceptron], ids=lambda make: make.__name__)
def test_functions_are_shared_exactly_where_weights_are(make):
    """Constant weights: one function for all depths. Pieces: one for each run of equal weights. Hats: rk4's two stages
    in the middle of a step alone."""
    size = (1, 2, 1) if make is bottleneck else (D, 2)
    solver = Fixed("rk4", 2)
    for basis, distinct in ((constant(), 1), (clamped(0, 2), 2), (clamped(1, 3), 5)):
        field = make(*size, basis)
        times = _times(field.double(), solver)
        values = [each[0] for each in field.weights(times)]
        functions = _functions(field.layers[0], [float(t) for t, _ in times.points()], values)
        assert len(functions) == 8
        runs = [list(run) for _, run in itertools.groupby(functions, key=id)]
        assert len(runs) == distinct


def test_layers_without_weights_are_shared_unless_they_know_the_time():
    depths, nothing = [0.0, 0.5, 0.5, 1.0], [{}] * 4
    assert len(set(map(id, _functions(ReLU(), depths, nothing)))) == 1
    h = torch.zeros(1, 1, 2)
    for axis in (1, -1):
        found = [function(h).max().item() for function in _functions(ConcatTime(axis), depths, nothing)]
        assert found == depths


def test_equal_weights_that_are_other_tensors_are_not_shared():
    """Equality is not looked at: it would read the device."""
    weight = drawn(1, 1, 3)
    values = [{"weight": weight}, {"weight": weight.clone()}, {"weight": weight}]
    functions = _functions(DepthConv(1, 1, 3, 1, 1, 0), [0.0, 0.5, 1.0], values)
    assert len(set(map(id, functions))) == 3


def _knowing():
    """Each class of layer whose `at` reads t."""
    classes = {c for m in (layers, laws, depth_norms) for _, c in inspect.getmembers(m, inspect.isclass)}
    for made in sorted((c for c in classes if hasattr(c, "at")), key=lambda c: c.__name__):
        codes = [made.at.__code__, *(c for c in made.at.__code__.co_consts if inspect.iscode(c))]
        if any(
            str(i.argval) == "t" and i.opname.startswith("LOAD") for code in codes for i in dis.get_instructions(code)
        ):
            yield made


def test_each_layer_that_reads_the_time_says_so():
    """Else its function of one depth would serve at another, where its weights are constant."""
    names = {made.__name__ for made in _knowing()}
    assert {"ConcatTime", "TanhNetwork"} <= names
    assert not [made.__name__ for made in _knowing() if not getattr(made, "knows_time", False)]


def test_a_matrix_made_without_a_gradient_swallows_none_later():
    """An implicit step asks its field without a gradient first, then with one."""
    conv = DepthConv(1, 3, 3, 1, 1, 1)
    for parameter in conv.parameters():
        torch.nn.init.normal_(parameter)
    function, h = conv.at(0.0, conv.weight[0], conv.bias[0]), torch.randn(4, 1, 2)
    with torch.no_grad():
        before = function(h)
    after = function(h)
    torch.testing.assert_close(after, before, rtol=0, atol=0)
    after.square().sum().backward()
    expected = torch.autograd.grad(
        F.conv1d(h, conv.weight[0], conv.bias[0], padding=1).square().sum(), (conv.weight, conv.bias)
    )
    torch.testing.assert_close((conv.weight.grad, conv.bias.grad), expected)
