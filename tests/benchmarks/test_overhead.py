"""What a solve costs beyond its convolutions, as ratios within one run: `pytest -m slow -s tests/benchmarks`."""

import time

import pytest
import torch
import torch.nn.functional as F

from gode_core.bases import clamped
from gode_core.fields import preactivation
from gode_core.integrate import integrate
from gode_core.solvers import Fixed

pytestmark = pytest.mark.slow

N, C, GROUPS = 20, 64, 32  # the Neural-GODE authors' block on MNIST: 20 Euler steps on 64 channels of 6 x 6


def resnet(h, blocks):
    """N pre-activation blocks by hand, each with weights of its own."""
    for a, b, u, c, d, v in blocks:
        y = F.conv2d(F.relu(F.group_norm(h, GROUPS, a, b)), u, padding=1)
        y = F.conv2d(F.relu(F.group_norm(y, GROUPS, c, d)), v, padding=1)
        h = torch.add(h, y, alpha=1 / N)
    return h


def fastest(*functions, rounds=15):
    """The least CPU seconds of each function's forward and backward pass, in turns, so that all see the same load."""
    best = [float("inf")] * len(functions)
    for _ in range(rounds):
        for i, function in enumerate(functions):
            start = time.process_time()
            function().sum().backward()
            best[i] = min(best[i], time.process_time() - start)
    return best


def test_a_solve_costs_what_the_hand_written_resnet_costs():
    torch.set_num_threads(1)
    h = torch.randn(32, C, 6, 6, generator=torch.Generator().manual_seed(0)).contiguous(
        memory_format=torch.channels_last
    )
    pieces, spline = preactivation(C, GROUPS, clamped(0, N)), preactivation(C, GROUPS, clamped(3, 8))
    for field in (pieces, spline):
        for parameter in field.parameters():
            torch.nn.init.normal_(parameter, 0, 0.05)
    blocks = [[p.detach()[i].clone().requires_grad_() for p in pieces.parameters()] for i in range(N)]
    solver = Fixed("euler", N)
    by_hand, by_pieces, by_spline = fastest(
        lambda: resnet(h, blocks),
        lambda: integrate(pieces, h, solver).h1,
        lambda: integrate(spline, h, solver).h1,
    )
    print(f"\nforward and backward, against {N} blocks by hand ({1000 * by_hand:.0f} ms):")
    print(f"  degree 0, {N} coefficients: {by_pieces / by_hand:.3f}")
    print(f"  degree 3, 8 coefficients: {by_spline / by_hand:.3f}")
    assert by_pieces / by_hand < 1.15
    assert by_spline / by_hand < 1.15
