"""Laws of linear multistep methods: exact conditions, stability, order across breaks, one evaluation a step."""

from __future__ import annotations

import math
from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
import torch

from gode_core.bases import StageTimes, clamped
from gode_core.fields import bottleneck
from gode_core.integrate import integrate, prepare
from gode_core.methods import MULTISTEPS, TABLEAUS, LinearMultistep
from gode_core.solvers import Fixed, num_evals, parse_solver, phases
from gode_core.stepping import functions_at

F = Fraction
ONE = torch.ones(1, 1, dtype=torch.float64)


def y_cos_t(t, h):
    """dy/dt = y cos t, y(0) = 1, has y(1) = exp(sin 1)."""
    return h * math.cos(t)


def small_field(basis, seed=0):
    """A field on (B, 2, 5) states with weights of moderate size, in float64."""
    field = bottleneck(2, 4, 1, basis).double()
    generator = torch.Generator().manual_seed(seed)
    for parameter in field.parameters():
        parameter.data.normal_(0, 0.4, generator=generator)
    return field


def state(seed=1):
    return torch.randn(3, 2, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


class Turning:
    """f(t, h) = h A(t), 3 x 3 matrices on a basis: not commuting, and as smooth as the basis."""

    def __init__(self, basis, smooth_for_solver=False):
        self.spline = basis
        if not smooth_for_solver:
            self.basis = basis
        generator = torch.Generator().manual_seed(3)
        shape = (basis.num_coefficients, 3, 3)
        self.matrices = 2 * torch.randn(shape, dtype=torch.float64, generator=generator)

    def at(self, times):
        rows = torch.tensor([self.spline.row(*point) for point in times.points()], dtype=torch.float64)
        return [lambda h, a=a: h @ a for a in torch.einsum("ma,aij->mij", rows, self.matrices)]


def order(field, h0, exact, method, n):
    coarse, fine = (float((integrate(field, h0, Fixed(method, m)).h1 - exact).norm()) for m in (n, 2 * n))
    return math.log2(coarse / fine)


@pytest.mark.parametrize("name", MULTISTEPS)
def test_the_order_is_the_stated_one_and_no_higher(name):
    method = MULTISTEPS[name]
    with pytest.raises(ValueError, match=f"a method of order {method.order + 1} takes"):
        replace(method, order=method.order + 1, start="rk4")
    exact = ONE * math.exp(math.sin(1))
    assert order(y_cos_t, ONE, exact, name, 128) == pytest.approx(method.order, abs=0.15)


@pytest.mark.parametrize("name", MULTISTEPS)
def test_the_order_holds_for_matrices_that_do_not_commute(name):
    field, h0 = Turning(clamped(3, 4)), torch.eye(3, dtype=torch.float64)
    fine = integrate(field, h0, Fixed("rk4", 1024)).h1
    assert order(field, h0, fine, name, 128) == pytest.approx(MULTISTEPS[name].order, abs=0.15)


@pytest.mark.parametrize("name", MULTISTEPS)
def test_zero_stability(name):
    """Roots of z^k = sum_j alpha_j z^(k-1-j): none beyond the unit circle, those on it simple."""
    alpha = MULTISTEPS[name].float_alpha
    roots = np.roots([1.0, *(-a for a in alpha)])
    assert (abs(roots) <= 1 + 1e-12).all()
    on_circle = roots[abs(roots) > 1 - 1e-6]
    assert all(abs(a - b) > 1e-3 for i, a in enumerate(on_circle) for b in on_circle[:i])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"beta": (F(3, 2), F(-1, 3))}, "takes t\\^1"),
        ({"alpha": (F(1, 2),)}, "takes t\\^0"),
        ({"order": 3}, "takes t\\^3"),
        ({"order": 0}, "order must be at least 1"),
        ({"beta": ()}, "need a number each"),
        ({"start": "ab2"}, "start must be one of"),
    ],
)
def test_wrong_numbers_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        replace(MULTISTEPS["ab2"], **change)


def test_a_start_that_is_too_weak_is_refused():
    with pytest.raises(ValueError, match="a start of order 2 at least"):
        replace(MULTISTEPS["ab3"], start="euler")
    assert LinearMultistep(2, (F(1),), (F(3, 2), F(-1, 2)), "euler").num_steps_back == 1


@pytest.mark.parametrize("name", MULTISTEPS)
def test_the_first_steps_are_those_of_the_start(name):
    """Also where the solve has no others: fewer steps than the method looks back."""
    method = MULTISTEPS[name]
    for n in range(1, method.num_steps_back + 1):
        ours, theirs = (integrate(y_cos_t, ONE, Fixed(m, n)) for m in (name, method.start))
        assert torch.equal(ours.h1, theirs.h1)
        assert ours.num_evals == theirs.num_evals
    n = 12
    depths = [F(i, n) for i in range(1, method.num_steps_back + 1)]
    ours, theirs = (integrate(y_cos_t, ONE, Fixed(m, n), depths=depths).states for m in (name, method.start))
    assert all(map(torch.equal, ours, theirs))


def test_leapfrog_is_the_two_step_midpoint_rule():
    field, n = small_field(clamped(2, 4)), 6
    h = [state(), integrate(field, state(), Fixed("midpoint", n), depths=("1/6",)).states[0]]
    for i, f in enumerate(functions_at(field, StageTimes("euler", n, 1, n)), 1):
        h.append(h[i - 1] + 2 / n * f(h[i]))
    torch.testing.assert_close(integrate(field, state(), Fixed("leapfrog", n)).h1, h[-1], rtol=1e-14, atol=1e-14)


BROKEN = [(name, degree) for name in MULTISTEPS for degree in (0, 1, 2) if degree + 1 < MULTISTEPS[name].order]


@pytest.mark.parametrize(("name", "degree"), BROKEN)
def test_the_order_holds_across_breaks_by_starting_anew(name, degree):
    basis, h0 = clamped(degree, degree + 4), torch.eye(3, dtype=torch.float64)
    exact = integrate(Turning(basis), h0, Fixed("rk4", 1024)).h1
    assert order(Turning(basis), h0, exact, name, 128) == pytest.approx(MULTISTEPS[name].order, abs=0.2)


class Quadrature:
    """f(t, h) = ((2 t - 1)_+)^degree, the last of the B-splines with one break."""

    def __init__(self, degree):
        self.spline = clamped(degree, degree + 2)

    def at(self, times):
        return [lambda h, t=t: torch.full_like(h, self.spline.row(*t)[-1]) for t in times.points()]


@pytest.mark.parametrize(("name", "degree"), BROKEN)
def test_with_new_starts_piecewise_polynomials_are_integrated_exactly(name, degree):
    """The integral of ((2 t - 1)_+)^degree is 1 / (2 degree + 2)."""
    field = Quadrature(degree)
    field.basis = field.spline
    exact = 1 + 1 / (2 * degree + 2)
    assert integrate(field, ONE, Fixed(name, 32)).h1.item() == pytest.approx(exact, abs=1e-13)


# leapfrog at degree 0 and ab4 at degree 2 are not here: of this very integral their first error cancels
@pytest.mark.parametrize(("name", "degree"), [("ab2", 0), ("ab3", 0), ("ab4", 0), ("ab3", 1), ("ab4", 1)])
def test_without_new_starts_the_order_is_that_of_the_jump(name, degree):
    exact = ONE * (1 + 1 / (2 * degree + 2))
    assert order(Quadrature(degree), ONE, exact, name, 32) == pytest.approx(degree + 1, abs=0.05)


@pytest.mark.parametrize("name", MULTISTEPS)
@pytest.mark.parametrize("degree", [1, 2, 3])
def test_the_order_holds_without_a_start_where_the_field_is_smooth_enough(name, degree):
    method = MULTISTEPS[name]
    if degree + 1 >= method.order:
        basis, h0 = clamped(degree, degree + 4), torch.eye(3, dtype=torch.float64)
        assert len(phases(Fixed(name, 128), basis)) == 2
        exact = integrate(Turning(basis), h0, Fixed("rk4", 1024)).h1
        assert order(Turning(basis), h0, exact, name, 128) == pytest.approx(method.order, abs=0.25)


def test_phases_cover_all_steps_and_start_where_they_must():
    """A run of starts that follow each other is one; a break within a step has none."""
    assert phases(Fixed("ab3", 16), clamped(0, 4)) == [
        (method, 4 * piece + first, 4 * piece + last)
        for piece in range(4)
        for method, first, last in (("kutta3", 0, 2), ("ab3", 2, 4))
    ]
    assert phases(Fixed("ab4", 9), clamped(0, 3)) == [("rk4", 0, 9)]
    assert phases(Fixed("ab2", 16), clamped(0, 3)) == [("midpoint", 0, 1), ("ab2", 1, 16)]
    for name in MULTISTEPS:
        for n in range(1, 40):
            whole = phases(Fixed(name, n), clamped(0, 5))
            assert [whole[0][1], *(last for _, _, last in whole)] == [0, *(first for _, first, _ in whole[1:]), n]


@pytest.mark.parametrize("name", [*MULTISTEPS, "rk4", "heun"])
@pytest.mark.parametrize("n", [1, 2, 3, 8, 12])
def test_num_evals_counts_calls(name, n):
    for basis in (clamped(0, 4), clamped(1, 4), clamped(2, 6), None):
        field = Turning(basis or clamped(0, 1), smooth_for_solver=basis is None)
        calls, at = [], field.at

        def counted(times, at=at, calls=calls):
            return [lambda h, f=f: calls.append(1) or f(h) for f in at(times)]

        field.at = counted
        solution = integrate(field, torch.eye(3, dtype=torch.float64), Fixed(name, n))
        assert solution.num_evals == len(calls) == num_evals(Fixed(name, n), basis)
    assert Fixed(name, n).num_evals == len(calls)


@pytest.mark.parametrize("name", MULTISTEPS)
def test_gradient_equals_finite_differences(name):
    field = small_field(clamped(0, 2))
    names, values = zip(*field.named_parameters())

    def loss(h, *parameters):
        def rhs(t, h):
            return torch.func.functional_call(field, dict(zip(names, parameters)), (t, h))

        return integrate(rhs, h, Fixed(name, 6)).h1.square().sum()

    h = state()[:1].requires_grad_()
    assert torch.autograd.gradcheck(loss, (h, *values), eps=1e-6, atol=1e-6, fast_mode=True)


@pytest.mark.parametrize("name", MULTISTEPS)
@pytest.mark.parametrize("n", [1, 2, 7, 16])
def test_checkpoint_gives_the_same_state_and_gradient(name, n):
    """Bit for bit where the weights are; those of a field are summed in another order."""
    matrix = torch.randn(5, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    field = small_field(clamped(0, 4))
    exactly, nearly = [], []
    for gradient in ("direct", "checkpoint"):
        h = state().requires_grad_()
        h1 = integrate(lambda t, h: torch.tanh(h @ matrix) * math.cos(t), h, Fixed(name, n), gradient=gradient).h1
        exactly.append([h1, *torch.autograd.grad(h1.square().sum(), [h, matrix])])
        h1 = integrate(field, h, Fixed(name, n), gradient=gradient).h1
        exactly[-1].append(h1)
        nearly.append(torch.autograd.grad(h1.square().sum(), [h, *field.parameters()]))
    assert all(map(torch.equal, *exactly))
    for direct, recomputed in zip(*nearly):
        torch.testing.assert_close(direct, recomputed, rtol=1e-13, atol=1e-14)


@pytest.mark.parametrize("name", ["ab3", "leapfrog"])
def test_depths_do_not_change_the_solve(name):
    field = small_field(clamped(1, 4))
    asked = integrate(field, state(), Fixed(name, 12), depths=("1/12", "1/4", "1/2", 1))
    alone = integrate(field, state(), Fixed(name, 12))
    torch.testing.assert_close(asked.h1, alone.h1, rtol=1e-14, atol=1e-14)
    assert torch.equal(asked.states[-1], asked.h1)
    with pytest.raises(ValueError, match="no step that ends at 1/5"):
        integrate(field, state(), Fixed(name, 12), depths=("1/5",))


@pytest.mark.slow
@pytest.mark.parametrize(("name", "gradient"), [("ab3", "direct"), ("ab2", "checkpoint"), ("leapfrog", "checkpoint")])
def test_a_solve_is_one_compiled_graph(name, gradient):
    field, solver = small_field(clamped(0, 2)), parse_solver(f"{name}@8")
    prepare(field, solver, gradient)

    def loss(h):
        return integrate(field, h, solver, gradient=gradient).h1.square().sum()

    parameters = list(field.parameters())
    eager = torch.autograd.grad(loss(state()), parameters)
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    for wanted, found in zip(eager, torch.autograd.grad(compiled(state()), parameters)):
        torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", MULTISTEPS)
def test_a_solve_reads_nothing_from_the_device(name):
    """On the meta device any read of a value raises."""
    field = bottleneck(2, 4, 1, clamped(0, 2)).to("meta")
    prepare(field, Fixed(name, 8))
    assert integrate(field, torch.empty(3, 2, 5, device="meta"), Fixed(name, 8)).h1.shape == (3, 2, 5)


def test_every_start_is_a_tableau_of_its_order():
    assert all(TABLEAUS[method.start].order >= method.order for method in MULTISTEPS.values())
