"""What small nets gain by being computed together, as ratios within one run: `pytest -m slow -s tests/benchmarks`."""

import time

import pytest
import torch
import torch.nn.functional as F

from gode_core.bases import constant
from gode_core.layers import DepthConv
from gode_core.networks import raw_network
from gode_core.solvers import Fixed
from gode_core.stacked import Stack

pytestmark = pytest.mark.slow

S, BATCH, WIDTH, D = 5, 128, 32, 2  # the Sphere2 nets of Ott et al. 2021, five seeds of them


def fastest(*functions, rounds=7, calls=10):
    """The least CPU seconds of so many calls of each function, in turns, so that all see the same load."""
    best = [float("inf")] * len(functions)
    for function in functions:
        function()
    for _ in range(rounds):
        for i, function in enumerate(functions):
            start = time.process_time()
            for _ in range(calls):
                function()
            best[i] = min(best[i], time.process_time() - start)
    return best


def step(model, optimiser, points, labels, solver):
    """One optimiser step of a network, or of a stack with the sum of its losses."""
    optimiser.zero_grad()
    logits = model(points, solver).flatten(0, -2)
    F.cross_entropy(logits, labels.flatten(), reduction="sum").div(BATCH).backward()
    optimiser.step()


@pytest.mark.parametrize("num_steps", [1, 16])
def test_five_trainings_take_less_time_together_than_one_by_one(num_steps):
    torch.set_num_threads(1)
    solver, generator = Fixed("euler", num_steps), torch.Generator().manual_seed(0)
    networks = [raw_network((1, D), 2, WIDTH, constant()) for _ in range(S)]
    for parameter in (p for network in networks for p in network.parameters()):
        torch.nn.init.normal_(parameter, 0, 0.1, generator=generator)
    points = torch.randn(S, BATCH, 1, D, generator=generator)
    labels = torch.randint(2, (S, BATCH), generator=generator)
    stack = Stack(networks)
    together = torch.optim.Adam(stack.parameters(), 1e-4)
    alone = [torch.optim.Adam(network.parameters(), 1e-4) for network in networks]

    def one_by_one():
        for i, (network, optimiser) in enumerate(zip(networks, alone)):
            step(network, optimiser, points[i], labels[i], solver)

    apart, joint = fastest(one_by_one, lambda: step(stack, together, points, labels, solver))
    print(f"\n{S} trainings with {solver}, one by one against side by side: {apart / joint:.2f}")
    assert apart / joint > 1.3


def test_a_convolution_over_two_places_is_faster_as_a_matrix():
    """Forward and backward, of one function for 16 depths, as constant weights have it."""
    torch.set_num_threads(1)
    layer, generator = DepthConv(WIDTH, WIDTH, 3, 1, 1, 1), torch.Generator().manual_seed(0)
    for parameter in layer.parameters():
        torch.nn.init.normal_(parameter, 0, 0.1, generator=generator)
    h = torch.randn(BATCH, WIDTH, D, generator=generator)

    def through(function):
        y = h
        for _ in range(16):
            y = function(y)
        y.sum().backward()

    library, matrix = fastest(
        lambda: through(lambda y: F.conv1d(y, layer.weight[0], layer.bias[0], padding=1)),
        lambda: through(layer.at(0.0, layer.weight[0], layer.bias[0])),
    )
    print(f"\na convolution over {D} places, the library's against the matrix: {library / matrix:.2f}")
    assert library / matrix > 2
