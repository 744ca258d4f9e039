"""The classifiers of the papers: parameter counts to the unit, shapes, gradients everywhere, initial weights."""

from functools import partial

import pytest
import torch

from gode_core.bases import Chebyshev, Fourier, Legendre, Moment, clamped, constant, unclamped
from gode_core.fields import concat_time, preactivation
from gode_core.initialisation import SCHEMES, initialise
from gode_core.layers import DepthConv
from gode_core.networks import Transition, raw_network, stage_network, stem_network
from gode_core.solvers import Adaptive, Fixed


def kernels_of(basis):
    return partial(preactivation, num_groups=32, basis=basis, vary_all=False)


def all_of(basis):
    return partial(preactivation, num_groups=32, basis=basis)


PUBLISHED = {
    "Ott: Sphere2, 32 channels": (lambda: raw_network((1, 2), 2, 32, constant()), 3_207),
    "Ott: CIFAR-10, 128 channels": (lambda: raw_network((3, 32, 32), 10, 128, constant()), 179_213),
    "Ott: MNIST, 32 channels": (lambda: raw_network((1, 28, 28), 10, 32, constant()), 17_195),
    "Neural-GODE: MNIST, 4 coefficients": (lambda: stem_network(1, 10, 64, 32, kernels_of(unclamped(1, 4))), 428_042),
    "Neural ODE (t as channel): MNIST": (
        lambda: stem_network(1, 10, 64, 32, partial(concat_time, num_groups=32, basis=constant())),
        208_266,
    ),
    "Neural ODE (t as channel): CIFAR-10": (
        lambda: stem_network(3, 10, 64, 32, partial(concat_time, num_groups=32, basis=constant())),
        209_418,
    ),
    "ResNet-20, pre-activation": (lambda: stage_network(3, 10, 16, 32, all_of(clamped(0, 2))), 272_378),
    "ResNet-56, pre-activation": (lambda: stage_network(3, 10, 16, 32, all_of(clamped(0, 8))), 855_674),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_parameter_counts_are_the_published_ones(name):
    make, count = PUBLISHED[name]
    assert sum(p.numel() for p in make().parameters()) == count


NETWORKS = {
    "raw": ((2, 1, 8, 8), lambda basis: raw_network((1, 8, 8), 10, 6, basis, pad_channels=4)),
    "raw points": ((2, 1, 3), lambda basis: raw_network((1, 3), 10, 6, basis)),
    "raw points, perceptron": ((2, 1, 3), lambda basis: raw_network((1, 3), 10, 6, basis, dense=True)),
    "stem": ((2, 1, 28, 28), lambda basis: stem_network(1, 10, 8, 4, all_of(basis))),
    "stages": ((2, 3, 16, 16), lambda basis: stage_network(3, 10, 4, 4, all_of(basis))),
}


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("solver", [Fixed("euler", 3), Fixed("rk4", 2), Adaptive("dopri5", 1e-3, 1e-3)], ids=str)
@pytest.mark.parametrize("basis", [constant(), clamped(0, 3), clamped(2, 3)], ids=["constant", "pieces", "spline"])
def test_logits_and_a_gradient_for_every_parameter(name, solver, basis):
    shape, make = NETWORKS[name]
    network = make(basis)
    initialise(network, "torch_default", torch.Generator().manual_seed(0))
    prediction = network.predict(torch.rand(shape, generator=torch.Generator().manual_seed(1)), solver)
    assert prediction.logits.shape == (2, 10)
    assert len(prediction.solutions) == len(network.fields) == (3 if name == "stages" else 1)
    assert all(solution.status == "ok" for solution in prediction.solutions)
    prediction.logits.square().sum().backward()
    for key, parameter in network.named_parameters():
        assert parameter.grad is not None, key
        assert parameter.grad.abs().sum() > 0, key


@pytest.mark.parametrize("scheme", SCHEMES)
def test_initial_weights_follow_the_scheme_and_the_seed(scheme):
    def weights(seed):
        network = stem_network(1, 10, 64, 32, kernels_of(unclamped(1, 4)))
        initialise(network, scheme, torch.Generator().manual_seed(seed))
        return network

    one, again, other = weights(0), weights(0), weights(1)
    for a, b in zip(one.parameters(), again.parameters()):
        assert torch.equal(a, b)
    assert not torch.equal(one.parts[0].weight, other.parts[0].weight)
    kernel = next(m for m in one.modules() if isinstance(m, DepthConv)).weight
    fan = 64 * 9
    standard_deviation = {
        "kaiming_normal": (2 / fan) ** 0.5,
        "kaiming_normal_out": (2 / fan) ** 0.5,
        "torch_default": (1 / (3 * fan)) ** 0.5,
        "gode_release": (1.5 / (fan * 4) / 3) ** 0.5,
    }[scheme]
    assert kernel.std().item() == pytest.approx(standard_deviation, rel=0.02)
    if scheme == "gode_release":
        assert kernel.abs().max().item() == pytest.approx(0.0255, abs=1e-4)  # the figure for 64 channels and n = 4


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("basis", [Fourier(5), Legendre(5), Chebyshev(5)], ids=["fourier", "legendre", "chebyshev"])
def test_weights_on_a_basis_without_knots_begin_constant_and_as_large_as_one_set(scheme, basis):
    def weights(basis, t):
        network = stem_network(1, 10, 64, 32, all_of(basis))
        initialise(network, scheme, torch.Generator().manual_seed(0))
        return network.fields[0].weights(Moment(t))[0]

    for many, later, one in zip(weights(basis, 0.0), weights(basis, 0.37), weights(constant(), 0.0)):
        for name in many:
            torch.testing.assert_close(many[name], later[name])
            spread = 1.5**0.5 if scheme == "gode_release" and "weight" in name and many[name].dim() > 1 else 1
            assert many[name].std().item() == pytest.approx(one[name].std().item() * spread, rel=0.02)
            assert many[name].mean().item() == pytest.approx(one[name].mean().item(), abs=2e-3)


def test_unknown_scheme_is_refused():
    with pytest.raises(ValueError, match="known: kaiming_normal"):
        initialise(raw_network((1, 2), 2, 4, constant()), "he", torch.Generator())


def test_transition_is_a_residual_block():
    same, change = Transition(4, 4, 1, 2), Transition(4, 8, 2, 2)
    x = torch.randn(2, 4, 6, 6, generator=torch.Generator().manual_seed(0))
    assert change(x).shape == (2, 8, 3, 3)
    torch.nn.init.zeros_(same.conv2.weight)
    assert torch.equal(same(x), x)


def test_channels_are_padded_with_zeros_behind():
    network = raw_network((1, 8, 8), 10, 6, constant(), pad_channels=4)
    images = torch.rand(2, 1, 8, 8)
    padded = network.parts[0](images)
    assert torch.equal(padded[:, :1], images)
    assert padded.shape == (2, 4, 8, 8)
    assert padded[:, 1:].abs().sum() == 0


def test_groups_must_divide_channels():
    with pytest.raises(ValueError, match="4 groups do not divide 6 channels"):
        preactivation(6, 4, constant())


def test_weights_are_not_rounded_by_autocast():
    """The product with the basis table keeps float32 under bf16 autocast; the state too."""
    network = raw_network((1, 8, 8), 10, 6, clamped(2, 5), pad_channels=2)
    initialise(network, "torch_default", torch.Generator().manual_seed(0))
    field = network.fields[0]
    from gode_core.bases import Moment
    from gode_core.layers import Depths, weights_at

    kernel = field.layers[0].weight
    with torch.autocast("cpu", torch.bfloat16):
        inside = weights_at(kernel, Depths.of(field.basis, Moment(0.3), kernel))[0]
        prediction = network.predict(torch.rand(2, 1, 8, 8), Fixed("euler", 4))
    assert torch.equal(inside, weights_at(kernel, Depths.of(field.basis, Moment(0.3), kernel))[0])
    assert prediction.solutions[0].h1.dtype == torch.float32
