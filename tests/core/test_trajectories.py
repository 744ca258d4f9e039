"""Jacobians, folds and crossings against closed forms, finite differences and exact integer geometry."""

from __future__ import annotations

import math
import random
from functools import partial
from itertools import combinations, pairwise

import pytest
import torch
from torch import nn

from gode_core import trajectories
from gode_core.bases import clamped, constant
from gode_core.evolution import evolve
from gode_core.fields import bottleneck, perceptron
from gode_core.integrate import integrate
from gode_core.solvers import Adaptive, Fixed, Implicit
from gode_core.trajectories import (
    crossings,
    flow_jacobian,
    paths,
    separation,
    share_crossing,
    share_folded,
    step_determinants,
)

MATRIX = torch.tensor([[0.3, -1.2], [0.7, -0.5]], dtype=torch.float64)


def linear(matrix=MATRIX):
    return lambda t, h: h @ matrix.T


def points(*shape, seed=1):
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def drawn(field, std):
    generator = torch.Generator().manual_seed(0)
    for parameter in field.parameters():
        nn.init.normal_(parameter, 0, std, generator=generator)
    return field.double()


def net(std=0.6, basis=None):
    """Ott et al.'s field for points in the plane: a convolution over the two coordinates."""
    return drawn(bottleneck(1, 8, 1, basis or clamped(1, 3)), std)


def flow(field, solver):
    return lambda x: integrate(field, x, solver).h1


@pytest.mark.parametrize(
    "solver",
    [Fixed("euler", 4), Fixed("rk4", 3), Fixed("ab2", 5), Implicit("trapezoid", 3)],
    ids=str,
)
def test_jacobian_of_a_network_by_central_differences(solver):
    x, step = points(6, 1, 2), 1e-5
    image = flow(net(), solver)
    found = flow_jacobian(image, x)
    assert found.shape == (6, 2, 2)
    assert not found.requires_grad
    with torch.no_grad():
        for j in range(2):
            e = torch.tensor([[float(i == j) for i in range(2)]], dtype=torch.float64) * step
            column = (image(x + e) - image(x - e)).flatten(1) / (2 * step)
            torch.testing.assert_close(found[:, :, j], column, rtol=1e-5, atol=1e-6)


def test_jacobian_of_a_linear_flow_is_the_matrix_exponential():
    """Also where no gradients are asked for, of states of another shape, and of a coordinate that does not depend."""
    for matrix in (MATRIX, points(3, 3), torch.zeros(2, 2, dtype=torch.float64)):
        d = len(matrix)
        for x in (points(5, d), points(5, 1, d)):
            for solver in (Fixed("rk4", 128), Adaptive("dopri5", 1e-9, 1e-9)):
                with torch.no_grad():
                    found = flow_jacobian(flow(linear(matrix), solver), x)
                torch.testing.assert_close(found, torch.matrix_exp(matrix).expand(5, d, d), rtol=1e-7, atol=1e-7)
    held = flow_jacobian(lambda x: torch.stack([x[:, 1] ** 2, torch.ones_like(x[:, 0])], dim=1), points(4, 2))
    torch.testing.assert_close(held[:, 0, 1], 2 * points(4, 2)[:, 1])
    assert held[:, 0, 0].eq(0).all()
    assert held[:, 1].eq(0).all()
    weight = nn.Parameter(torch.ones(()))
    assert flow_jacobian(lambda x: weight * torch.ones_like(x), points(4, 2)).eq(0).all()


@pytest.mark.parametrize("solver", [Fixed("euler", 7), Fixed("rk4", 3), Fixed("leapfrog", 6)], ids=str)
def test_the_jacobian_is_the_same_forwards(solver):
    """Of fixed steps, weights that evolve among them; and of a map that does not depend on a coordinate."""
    evolving = evolve(perceptron(2, 4, constant()), "linear", method="rk4", num_steps=6, rank=2)
    for field in (net(basis=clamped(0, 3)), drawn(evolving, 0.5)):
        backward, forward = (flow_jacobian(flow(field, solver), points(5, 1, 2), forward=way) for way in (False, True))
        torch.testing.assert_close(forward, backward, rtol=1e-12, atol=1e-14)
    assert flow_jacobian(torch.ones_like, points(4, 2), forward=True).eq(0).all()
    with pytest.raises(ValueError, match=r"keep the shape \(5, 2\), it gives \(5, 3\)"):
        flow_jacobian(lambda x: torch.cat([x, x[:, :1]], dim=1), points(5, 2), forward=True)


def test_forwards_nothing_is_kept_of_the_steps():
    """No call of the field has a gradient to remember."""
    seen = []

    def field(t, h):
        seen.append(torch.is_grad_enabled())
        return linear()(t, h)

    flow_jacobian(flow(field, Fixed("euler", 5)), points(3, 2), forward=True)
    assert seen == [False] * 10


def test_jacobian_of_what_is_no_differentiable_map_of_the_points_is_refused():
    with pytest.raises(ValueError, match=r"keep the shape \(5, 2\), it gives \(5, 3\)"):
        flow_jacobian(lambda x: torch.cat([x, x[:, :1]], dim=1), points(5, 2))
    with pytest.raises(ValueError, match="no derivative"):
        flow_jacobian(torch.no_grad()(lambda x: 2 * x), points(5, 2))


@pytest.mark.parametrize("method", ["euler", "midpoint", "rk4", "ab2", "leapfrog"])
def test_determinants_are_those_of_the_jacobians_after_each_step(method):
    """Of the map from the start, multistep methods included, by the backward passes."""
    evolving = evolve(perceptron(2, 4, constant()), "linear", method="rk4", num_steps=6, rank=2)
    for field, d in (
        (net(basis=clamped(0, 3)), 2),
        (drawn(perceptron(3, 6, constant()), 0.7), 3),
        (drawn(evolving, 0.5), 2),
    ):
        x, solver = points(5, 1, d), Fixed(method, 6)
        found = step_determinants(field, x, solver)
        assert found.shape == (5, 6)
        assert found.dtype == torch.float64
        for n in range(6):
            image = partial(_after, field, solver, n)
            torch.testing.assert_close(found[:, n], torch.linalg.det(flow_jacobian(image, x)), rtol=1e-9, atol=1e-12)


def _after(field, solver, n, x):
    return integrate(field, x, solver, depths=[f"{n + 1}/{solver.num_steps}"]).states[0]


def test_determinants_of_linear_fields():
    """Euler: det(1 + h M)^n exactly; h -> 0: exp(t trace M), Liouville's formula."""
    n = torch.arange(1, 9, dtype=torch.float64)
    euler = step_determinants(linear(), points(3, 2), Fixed("euler", 8))
    one = torch.linalg.det(torch.eye(2, dtype=torch.float64) + MATRIX / 8)
    torch.testing.assert_close(euler, (one**n).expand(3, 8), rtol=1e-12, atol=0)
    fine = step_determinants(linear(), points(3, 2), Fixed("rk4", 64))[:, 7::8]
    torch.testing.assert_close(fine, torch.exp(n / 8 * MATRIX.trace()).expand(3, 8), rtol=1e-7, atol=0)


def test_one_euler_step_of_a_fast_decay_folds_and_two_do_not():
    """y' = -3 y: a step of Euler multiplies by 1 - 3 h."""
    for num_steps, share in ((1, 1.0), (2, 1.0), (3, 1.0), (4, 0.0), (6, 0.0)):
        found = step_determinants(lambda t, h: -3 * h, points(7, 1), Fixed("euler", num_steps))
        factors = (1 - 3 / num_steps) ** torch.arange(1, num_steps + 1, dtype=torch.float64)
        torch.testing.assert_close(found, factors.expand(7, num_steps), rtol=1e-12, atol=1e-15)
        assert share_folded(found) == share


def test_a_coarse_network_folds_some_points_and_its_flow_none():
    """With steps that meet the knots."""
    field, x = net(std=1.2), points(200, 1, 2)
    shares = [share_folded(step_determinants(field, x, Fixed("euler", n))) for n in (2, 256)]
    assert 0.05 < shares[0] < 0.95
    assert shares[1] == 0


def test_a_fold_is_seen_at_any_step_and_a_lost_state_counts():
    positive = torch.tensor([1.0, 0.1, 1e-300], dtype=torch.float64)
    rows = [positive, -positive, positive.where(positive != 0.1, -1.0), positive.where(positive != 0.1, 0.0)]
    assert [share_folded(row[None]) for row in rows] == [0, 1, 1, 1]
    assert share_folded(torch.stack(rows)) == 0.75
    assert share_folded(torch.tensor([[1.0, math.nan], [1.0, math.inf]])) == 0.5


def test_separation_of_linear_flows():
    """A rotation keeps distances; diag(a) stretches by the exponential of its largest entry; and a shear."""
    turn = torch.tensor([[0.0, -2.0], [2.0, 0.0]], dtype=torch.float64)
    stretch = torch.diag(torch.tensor([0.4, -3.0], dtype=torch.float64))
    shear = torch.tensor([[0.0, 1.0], [0.0, 0.0]], dtype=torch.float64)
    for matrix, wanted in ((turn, 0.0), (stretch, 0.4), (shear, math.log((1 + math.sqrt(5)) / 2))):
        found = separation(flow_jacobian(flow(linear(matrix), Fixed("rk4", 128)), points(4, 2)))
        torch.testing.assert_close(found, torch.full((4,), wanted, dtype=torch.float64), rtol=1e-6, atol=1e-6)


def test_a_lost_sample_has_no_separation_and_the_others_have():
    jacobians = torch.eye(2).repeat(3, 1, 1) * torch.tensor([1.0, math.nan, 2.0])[:, None, None]
    jacobians[1, 0, 1] = math.inf
    found = separation(jacobians)
    assert found[1].isnan()
    torch.testing.assert_close(found[[0, 2]], torch.tensor([0.0, math.log(2)]))


@pytest.mark.parametrize("method", ["euler", "ab2"])
def test_paths_begin_at_the_points_and_end_where_the_solve_does(method):
    field, x, solver = net(), points(4, 1, 2), Fixed(method, 5)
    found = paths(field, x, solver)
    assert found.shape == (4, 6, 2)
    assert not found.requires_grad
    assert torch.equal(found[:, 0], x.flatten(1))
    torch.testing.assert_close(found[:, -1], integrate(field, x, solver).h1.flatten(1))
    torch.testing.assert_close(found[:, 2], _after(field, solver, 1, x).flatten(1))


def lines(*polylines):
    """The shorter ones stand still at their end."""
    n = max(map(len, polylines))
    return torch.tensor([[*line, *[line[-1]] * (n - len(line))] for line in polylines], dtype=torch.float64)


@pytest.mark.parametrize(
    ("one", "other", "cross"),
    [
        ([(0, 0), (2, 2)], [(0, 2), (2, 0)], True),
        ([(0, 0), (2, 2)], [(0, 2), (0.9, 1.1)], False),  # boxes meet, segments do not
        ([(0, 0), (2, 2)], [(0, 1), (2, 3)], False),  # parallel
        ([(0, 0), (2, 2)], [(0, 2), (1, 1)], False),  # touches from one side
        ([(0, 0), (2, 2)], [(2, 2), (3, 0)], False),  # shares an end
        ([(0, 0), (2, 2)], [(0, 0), (2, 1)], False),  # shares a start
        ([(0, 0), (2, 2)], [(1, 1), (3, 3)], False),  # lies upon it
        ([(0, 0), (2, 2)], [(0, 0), (2, 2)], False),  # is it
        ([(0, 0), (1, 0), (2, 0), (3, 0)], [(0, 1), (2.5, 1), (2.5, -1)], True),  # not at the same step
        ([(0, 0), (4, 0)], [(0.5, 1), (1, -1), (1.5, 1), (2, -1)], True),  # three times
        ([(0, 0), (4, 0), (4, 4), (0, 4)], [(1, 1), (3, 1), (3, 3), (1, 3)], False),  # nested
    ],
)
def test_hand_made_pairs(one, other, cross):
    found = crossings(lines(one, other))
    assert found.tolist() == [[False, cross], [cross, False]]
    assert share_crossing(lines(one, other)) == float(cross)


def test_a_known_count_of_crossings():
    """A fence of 3 uprights and 2 rails, and one path far away: 6 of the 15 pairs."""
    uprights = [[(x, -1), (x, 1), (x, 3)] for x in (1, 2, 3)]
    rails = [[(0.5, y), (1.5, y), (3.5, y)] for y in (0, 2)]
    fence = lines(*uprights, *rails, [(9, 9), (10, 10)])
    found = crossings(fence)
    assert torch.equal(found, found.T)
    assert found[:3, 3:5].all()
    assert found.sum() == 12
    assert share_crossing(fence) == 6 / 15


def crosses(one, other):
    """In integers, so without rounding."""

    def side(a, b, p):
        s = (b[0] - a[0]) * (p[1] - a[1]) - (b[1] - a[1]) * (p[0] - a[0])
        return (s > 0) - (s < 0)

    return any(
        side(a, b, p) * side(a, b, q) < 0 and side(p, q, a) * side(p, q, b) < 0
        for a, b in pairwise(one)
        for p, q in pairwise(other)
    )


@pytest.mark.parametrize("chunk", [1, 60, 1 << 18])
def test_crossings_are_those_of_integer_geometry(chunk, monkeypatch):
    """On a grid, where most that meet do so at vertices, along each other or at right angles. In chunks of any size."""
    monkeypatch.setattr(trajectories, "CHUNK", chunk)
    rng = random.Random(0)
    for size in (3, 6, 40):
        walks = [[(rng.randrange(size), rng.randrange(size)) for _ in range(4)] for _ in range(14)]
        found = crossings(torch.tensor(walks))
        wanted = [crosses(walks[i], walks[j]) for i, j in combinations(range(14), 2)]
        assert 0.1 < sum(wanted) / len(wanted) < 0.9
        assert [bool(found[i, j]) for i, j in combinations(range(14), 2)] == wanted
        assert torch.equal(found, found.T)


def spirals(num_steps, turns=2.0, decay=1.5):
    """Euler's paths of a rotation with contraction, from 12 points on three rings."""
    matrix = torch.tensor([[-decay, -turns], [turns, -decay]], dtype=torch.float64)
    angles = torch.arange(12, dtype=torch.float64) * math.tau / 12
    start = torch.stack([angles.cos(), angles.sin()], dim=1) * torch.tensor([0.5, 0.75, 1.0]).repeat(4)[:, None]
    return paths(linear(matrix), start, Fixed("euler", num_steps))


def test_a_coarse_path_crosses_what_a_fine_one_does_not():
    assert share_crossing(spirals(2, turns=5.0)) > 0.1
    for turns, decay in ((5.0, 1.5), (3.0, 0.0)):  # a contraction, and a rotation alone
        assert share_crossing(spirals(256, turns, decay)) == 0


def test_crossings_do_not_depend_on_direction_place_or_size():
    walks = points(12, 9, 2).cumsum(1)
    found = crossings(walks)
    assert 0.1 < found.double().mean() < 0.9
    turn = torch.matrix_exp(torch.tensor([[0.0, -0.7], [0.7, 0.0]], dtype=torch.float64))
    for same in (walks.flip(1), walks @ turn.T, -3e-3 * walks, walks + 40, walks.flip(2)):
        assert torch.equal(crossings(same), found)
    assert torch.equal(crossings(1e-13 * walks.float()), found)  # products of areas, far below the least float32
    backward = walks.clone()
    backward[::2] = walks[::2].flip(1)
    assert torch.equal(crossings(backward), found)
    order = torch.randperm(12, generator=torch.Generator().manual_seed(0))
    assert torch.equal(crossings(walks[order]), found[order][:, order])


def test_what_is_not_finite_crosses_nothing_and_what_is_still_does():
    walks = lines([(0, 0), (2, 2)], [(0, 2), (2, 0)], [(0, 1.5), (2, 0.1)])
    walks[2, 1] = math.nan
    assert crossings(walks).sum() == 2
    walks[2, 1] = math.inf
    assert crossings(walks).sum() == 2


def test_what_are_no_paths_in_the_plane_is_refused():
    for shape in ((3, 5, 3), (3, 1, 2), (5, 2)):
        with pytest.raises(ValueError, match=r"must be \(P, N \+ 1, 2\)"):
            crossings(torch.zeros(shape))
    with pytest.raises(ValueError, match="at least 2 paths"):
        share_crossing(torch.zeros(1, 5, 2))
