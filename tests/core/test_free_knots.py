"""Knots that learn: always increasing, the same functions as frozen splines, and a gradient that is the true one."""

from __future__ import annotations

from fractions import Fraction

import pytest
import torch
from torch import nn

from gode_core.bases import Moment, StageTimes, clamped
from gode_core.fields import Field, bottleneck
from gode_core.free_knots import FreeKnots, distinct_points
from gode_core.integrate import integrate, prepare
from gode_core.layers import DepthLinear
from gode_core.solvers import Fixed, Solver, parse_solver

F = Fraction
SHAPES = [(1, 3), (1, 6), (2, 4), (3, 5), (3, 9)]


def moved(degree: int, num_coefficients: int, seed: int = 0, size: float = 1.0) -> FreeKnots:
    """In float64, with knots away from the uniform ones."""
    basis = FreeKnots(degree, num_coefficients).double()
    basis.log_gaps.data.normal_(0, size, generator=torch.Generator().manual_seed(seed))
    return basis


class Tanh(nn.Module):
    """Smooth, so that finite differences and adaptive steps meet no kinks but those of the weights."""

    def at(self, t):
        return torch.tanh


def field_on(basis):
    a, generator = basis.num_coefficients, torch.Generator().manual_seed(1)
    field = Field([DepthLinear(3, 4, a, a), Tanh(), DepthLinear(4, 3, a, 1)], basis).double()
    for parameter in field.layers.parameters():
        parameter.data.normal_(0, 0.7, generator=generator)
    return field


def state(seed: int = 2) -> torch.Tensor:
    return torch.randn(2, 1, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(("degree", "num_coefficients"), SHAPES)
def test_the_model_begins_on_uniform_knots(degree, num_coefficients):
    found = FreeKnots(degree, num_coefficients).knots().tolist()
    assert found == pytest.approx([float(k) for k in clamped(degree, num_coefficients).knots], abs=1e-15)


def test_knots_begin_where_they_are_told():
    basis = FreeKnots(2, 6, ["1/10", 0.3, "2/3"]).double()
    assert [float(k) for k in basis.breaks] == pytest.approx([0.1, 0.3, 2 / 3], abs=1e-6)


@pytest.mark.parametrize("size", [1.0, 100.0])
def test_knots_increase_whatever_the_parameters(size):
    """And keep the smallest gap, a hundredth of the uniform one."""
    for seed in range(5):
        knots = moved(2, 9, seed, size).knots()[2:-2]
        assert (knots[0], knots[-1]) == (0, 1)
        assert (knots.diff() > 0.99 * 0.01 / 7).all()


@pytest.mark.parametrize(("degree", "num_coefficients"), SHAPES)
def test_the_table_is_that_of_the_frozen_spline(degree, num_coefficients):
    """Between knots and on them, from either side, at the ends and beyond."""
    basis = moved(degree, num_coefficients)
    for t in (*(i / 37 for i in range(38)), *map(float, basis.breaks), -0.5, 1.5):
        for from_left in (False, True):
            points, index = distinct_points(Moment(t, from_left), torch.device("cpu"))
            assert index == [0]
            assert basis.table(points)[0].tolist() == pytest.approx(basis.spline().row(t, from_left), abs=1e-14)
            assert basis.row(t, from_left) == basis.spline().row(t, from_left)


@pytest.mark.parametrize(("degree", "num_coefficients"), SHAPES)
def test_the_contract_is_that_of_the_frozen_spline(degree, num_coefficients):
    basis = moved(degree, num_coefficients)
    frozen = basis.spline()
    for name in ("num_coefficients", "breaks", "sums_to_one"):
        assert getattr(basis, name) == getattr(frozen, name)
    assert basis.constant_coefficients() == frozen.constant_coefficients()
    assert [basis.continuity(k) for k in basis.breaks] == [frozen.continuity(k) for k in frozen.breaks]


def test_a_solve_asks_once_at_each_point():
    points, index = distinct_points(StageTimes("rk4", 3, 0, 3), torch.device("cpu"))
    asked = [tuple(points[i].tolist()) for i in index]
    assert len(points) == len(set(asked)) == 9
    assert asked == [(float(t), float(side)) for t, side in StageTimes("rk4", 3, 0, 3).points()]


@pytest.mark.parametrize("solver", ["euler@7", "rk4@5", "dopri5@1e-6"])
@pytest.mark.parametrize(("degree", "num_coefficients"), SHAPES)
def test_a_solve_is_that_on_the_frozen_spline(degree, num_coefficients, solver):
    field = field_on(moved(degree, num_coefficients))
    frozen = field_on(field.basis.spline())
    ours, theirs = (integrate(f, state(), parse_solver(solver)) for f in (field, frozen))
    torch.testing.assert_close(ours.h1, theirs.h1, rtol=1e-12, atol=1e-12)
    assert ours.num_evals == theirs.num_evals


STATE = state()


def loss(field, solver: Solver, gradient="direct") -> torch.Tensor:
    return integrate(field, STATE, solver, gradient=gradient).h1.square().sum()


@pytest.mark.parametrize(("solver", "gradient"), [("euler@7", "direct"), ("rk4@5", "direct"), ("rk4@5", "checkpoint")])
@pytest.mark.parametrize(("degree", "num_coefficients"), [(1, 4), (3, 6)])
def test_the_knots_gradient_is_that_of_finite_differences(degree, num_coefficients, solver, gradient):
    field = field_on(moved(degree, num_coefficients, size=0.3))
    w = field.basis.log_gaps
    (found,) = torch.autograd.grad(loss(field, parse_solver(solver), gradient), [w])
    for i in range(len(w)):
        values = []
        for step in (1e-5, -2e-5):
            w.data[i] += step
            values.append(loss(field, parse_solver(solver)).item())
        w.data[i] += 1e-5
        assert found[i].item() == pytest.approx((values[0] - values[1]) / 2e-5, rel=1e-6, abs=1e-8)
    assert found.abs().min() > 1e-3


@pytest.mark.parametrize("gradient", ["direct", "adjoint"])
@pytest.mark.parametrize(("degree", "num_coefficients"), [(1, 4), (3, 6)])
def test_the_knots_gradient_of_an_adaptive_solve_is_that_of_finite_differences(degree, num_coefficients, gradient):
    """Along one direction. The pieces of the solve end at the knots, so that even kinks lie where a step ends."""
    field, solver = field_on(moved(degree, num_coefficients, size=0.3)), parse_solver("dopri5@1e-7")
    w = field.basis.log_gaps
    (found,) = torch.autograd.grad(loss(field, solver, gradient), [w])
    direction = torch.linspace(-1, 1, len(w), dtype=torch.float64)
    with torch.no_grad():
        values = []
        for step in (1e-3, -2e-3):
            w += step * direction
            values.append(loss(field, solver).item())
    assert abs(found @ direction) > 0.01
    assert (found @ direction).item() == pytest.approx((values[0] - values[1]) / 2e-3, rel=1e-3)


def test_on_a_knot_the_gradient_is_that_of_the_side_that_is_seen():
    """Left of the knot x the hats are 1 - t / x, t / x, 0, right of it 0, (1 - t) / (1 - x), (t - x) / (1 - x)."""
    for from_left, slopes in ((True, [2, -2, 0]), (False, [0, 2, -2])):
        basis = FreeKnots(1, 3).double()
        points, _ = distinct_points(Moment(0.5, from_left), torch.device("cpu"))
        values, knots = basis.table(points)[0], basis.knots()
        (unit,) = torch.autograd.grad(knots[2], basis.log_gaps)
        for value, slope in zip(values, slopes):
            (found,) = torch.autograd.grad(value, basis.log_gaps, retain_graph=True)
            torch.testing.assert_close(found, slope * unit)


@pytest.mark.slow
@pytest.mark.parametrize("gradient", ["direct", "checkpoint"])
@pytest.mark.parametrize("degree", [1, 3])
def test_a_fixed_step_solve_is_one_compiled_graph_that_follows_the_knots(gradient, degree):
    field, solver = field_on(moved(degree, 6)), Fixed("midpoint", 4)
    prepare(field, solver, gradient)
    parameters = list(field.parameters())
    compiled = torch.compile(lambda: loss(field, solver, gradient), fullgraph=True, backend="aot_eager")
    for _ in range(2):
        eager = torch.autograd.grad(loss(field, solver, gradient), parameters)
        for wanted, found in zip(eager, torch.autograd.grad(compiled(), parameters)):
            torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-12)
        field.basis.log_gaps.data.add_(torch.linspace(-1, 1, len(field.basis.log_gaps)))


def test_a_fixed_step_solve_reads_nothing_from_the_device():
    """On the meta device any read of a value raises."""
    field = bottleneck(2, 4, 1, FreeKnots(2, 5)).to("meta")
    assert integrate(field, torch.empty(3, 2, 5, device="meta"), Fixed("rk4", 3)).h1.shape == (3, 2, 5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_knots_are_saved_and_loaded(dtype):
    field, other = (field_on(basis).to(dtype) for basis in (moved(2, 6), FreeKnots(2, 6)))
    other.load_state_dict(field.state_dict())
    assert other.basis.breaks == field.basis.breaks != FreeKnots(2, 6).breaks
    h, solver = state().to(dtype), Fixed("heun", 3)
    assert torch.equal(integrate(other, h, solver).h1, integrate(field, h, solver).h1)


def test_a_step_of_the_optimiser_moves_the_knots():
    field = field_on(FreeKnots(1, 4))
    before = field.basis.breaks
    optimiser = torch.optim.SGD(field.parameters(), 0.1)
    loss(field, Fixed("euler", 7)).backward()
    optimiser.step()
    assert all(a != b for a, b in zip(before, field.basis.breaks))


def test_a_diverged_training_ends_as_a_nonfinite_solve():
    field = field_on(moved(1, 4))
    field.basis.log_gaps.data.fill_(float("nan"))
    assert integrate(field, state(), Fixed("euler", 2)).status == "nonfinite"
    assert integrate(field, state(), parse_solver("dopri5@1e-3")).status == "nonfinite"
    with pytest.raises(ValueError, match="the training diverged"):
        field.basis.spline()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0, 4), "free knots need degree 1 or more: .* gradient is zero almost everywhere"),
        ((2, 3), "3 coefficients of degree 2 have no interior knots; take 4 or more"),
        ((3, 3), "degree < number of coefficients"),
        ((1, 4, ["1/2", "0.501"]), "free knots must begin more than 0.00333333 apart, got 0.001"),
        ((1, 4, ["1/2", "1/2"]), "free knots must begin more than 0.00333333 apart, got 0"),
    ],
)
def test_what_cannot_learn_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        FreeKnots(*arguments)


def test_multistep_methods_do_not_restart_at_learnt_knots():
    """At the start the knot 1/2 is met by a step of six, after an update no longer: the method is to stay the same."""
    field = Field([DepthLinear(2, 2, 3, 0)], FreeKnots(1, 3)).double()
    field.layers[0].weight.data.fill_(0.1)
    counts = []
    for shift in (0.0, 0.1):
        with torch.no_grad():
            next(field.basis.parameters())[0] += shift
        counts.append(integrate(field, torch.ones(1, 1, 2, dtype=torch.float64), Fixed("ab3", 6)).num_evals)
    assert counts == [Fixed("ab3", 6).num_evals] * 2
