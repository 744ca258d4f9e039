"""Time as a channel of any field, and states with more channels or coordinates than the input has."""

from functools import partial

import pytest
import torch
import torch.nn.functional as F

from gode_core.bases import clamped, constant
from gode_core.fields import Field, bottleneck, perceptron, preactivation
from gode_core.initialisation import initialise
from gode_core.integrate import integrate
from gode_core.layers import DepthLinear
from gode_core.networks import raw_network, stem_network
from gode_core.solvers import Adaptive, Fixed
from gode_core.transitions import PadChannels

B, C, SIZE = 2, 4, 5


def random_(module, seed=0):
    generator = torch.Generator().manual_seed(seed)
    for parameter in module.parameters():
        parameter.data.normal_(0, 0.3, generator=generator)
    return module


def inputs(*shape):
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def with_time(t, h, axis=1):
    return torch.cat([torch.full_like(h.narrow(axis, 0, 1), t), h], axis)


def bottleneck_by_hand(w, t, h):
    y = F.relu(F.conv2d(with_time(t, h), w[0], w[1]))
    y = F.relu(F.conv2d(with_time(t, y), w[2], w[3], padding=1))
    return F.conv2d(with_time(t, y), w[4], w[5])


def perceptron_by_hand(w, t, h):
    y = F.relu(F.linear(with_time(t, h, -1), w[0], w[1]))
    y = F.relu(F.linear(with_time(t, y, -1), w[2], w[3]))
    return F.linear(with_time(t, y, -1), w[4], w[5])


def preactivation_by_hand(w, t, h):
    y = F.conv2d(with_time(t, F.relu(F.group_norm(h, 2, w[0], w[1]))), w[2], padding=1)
    return F.conv2d(with_time(t, F.relu(F.group_norm(y, 2, w[3], w[4]))), w[5], padding=1)


FIELDS = {
    "bottleneck": (lambda basis, **o: bottleneck(C, 3, 2, basis, **o), bottleneck_by_hand, (B, C, SIZE, SIZE)),
    "perceptron": (lambda basis, **o: perceptron(3, 6, basis, **o), perceptron_by_hand, (B, 1, 3)),
    "preactivation": (lambda basis, **o: preactivation(C, 2, basis, **o), preactivation_by_hand, (B, C, SIZE, SIZE)),
}


@pytest.mark.parametrize("name", FIELDS)
@pytest.mark.parametrize("t", [0.0, 0.3, 1.0])
def test_time_channel_by_hand(name, t):
    make, by_hand, shape = FIELDS[name]
    field = random_(make(constant(), time_channel=True).double())
    weights, h = [p[0] for p in field.parameters()], inputs(*shape)
    ours, theirs = field(t, h), by_hand(weights, t, h)
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)
    for a, b in zip(*(torch.autograd.grad(y.square().sum(), list(field.parameters())) for y in (ours, theirs))):
        torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("name", FIELDS)
def test_without_weight_on_time_nothing_changes(name):
    make, _, shape = FIELDS[name]
    plain, timed = make(clamped(1, 3)).double(), random_(make(clamped(1, 3), time_channel=True).double())
    for a, b in zip(plain.parameters(), timed.parameters()):
        if a.shape != b.shape:
            b.data[:, :, 0] = 0
            a.data.copy_(b.data[:, :, 1:])
        else:
            a.data.copy_(b.data)
    solutions = [integrate(field, inputs(*shape), Fixed("rk4", 3)).h1 for field in (plain, timed)]
    torch.testing.assert_close(*solutions, rtol=1e-12, atol=1e-12)


def test_zeros_stand_behind():
    images, points = inputs(2, 3, 4, 4), inputs(2, 1, 3)
    more, wider = PadChannels(5)(images), PadChannels(4, axis=-1)(points)
    assert more.shape == (2, 5, 4, 4)
    assert wider.shape == (2, 1, 4)
    assert torch.equal(more[:, :3], images)
    assert torch.equal(wider[..., :3], points)
    assert more[:, 3:].abs().sum() == wider[..., 3:].abs().sum() == 0


AUGMENTED = {
    "stem": (
        (2, 1, 28, 28),
        8,
        lambda: stem_network(1, 5, 4, 4, partial(preactivation, num_groups=4, basis=constant()), pad_channels=8),
    ),
    "points": ((2, 1, 3), 5, lambda: raw_network((1, 3), 5, 6, constant(), dense=True, pad_channels=5)),
    "raw": ((2, 3, 8, 8), 4, lambda: raw_network((3, 8, 8), 5, 6, constant(), pad_channels=4)),
}


@pytest.mark.parametrize("name", AUGMENTED)
def test_networks_with_an_augmented_state(name):
    """The widened state goes through the block to the head; a gradient reaches every parameter."""
    shape, width, make = AUGMENTED[name]
    network = make()
    initialise(network, "torch_default", torch.Generator().manual_seed(0))
    prediction = network.predict(torch.rand(shape, generator=torch.Generator().manual_seed(1)), Fixed("rk4", 2))
    state = prediction.solutions[0].h1
    assert state.shape[-1 if name == "points" else 1] == width
    assert prediction.logits.shape == (2, 5)
    prediction.logits.square().sum().backward()
    for key, parameter in network.named_parameters():
        assert parameter.grad.abs().sum() > 0, key
    channels_before_mean = {"stem": width, "points": width, "raw": width * 64}[name]
    assert network.parts[-1].in_features == channels_before_mean


def test_one_more_coordinate_lets_a_flow_exchange_two_points():
    """Half a turn of the plane takes 1 to -1 and -1 to 1 (linear, so an Euler solve would spiral out: dopri5)."""
    turn = Field([DepthLinear(2, 2, 1, 0)], constant(), scale=torch.pi).double()
    turn.layers[0].weight.data[0] = torch.tensor([[0.0, -1.0], [1.0, 0.0]])
    points = torch.tensor([[[1.0]], [[-1.0]]], dtype=torch.float64)
    ends = integrate(turn, PadChannels(2, axis=-1)(points), Adaptive("dopri5", 1e-9, 1e-9)).h1
    torch.testing.assert_close(ends[..., :1], -points, rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("seed", range(5))
def test_on_a_line_the_order_of_points_is_kept(seed):
    field = random_(perceptron(1, 16, clamped(2, 4), scale=5.0).double(), seed)
    points = torch.linspace(-1, 1, 21, dtype=torch.float64).view(-1, 1, 1)
    ends = integrate(field, points, Adaptive("dopri5", 1e-8, 1e-8)).h1.flatten()
    assert (ends.diff() > 0).all()
