"""Laws of integrate: order of convergence, exact step counts, equal gradients, statuses, no question beyond [0, 1]."""

import math
from itertools import pairwise

import pytest
import torch
from torch import nn

from gode_core.bases import StageTimes, clamped, unclamped
from gode_core.fields import bottleneck
from gode_core.integrate import SolveFailed, integrate
from gode_core.solvers import ADAPTIVE_METHODS, TABLEAUS, Adaptive, Fixed, parse_solver
from gode_core.stepping import run_ends

ONE = torch.ones(1, 1, dtype=torch.float64)


def y_cos_t(t, h):
    """dy/dt = y cos t, y(0) = 1, has y(1) = exp(sin 1)."""
    return h * math.cos(t)


def error(solver):
    return abs(integrate(y_cos_t, ONE, solver).h1.item() - math.exp(math.sin(1)))


def small_field(basis, seed=0, **options):
    """A field on (B, 2, 5) states with weights of moderate size, in float64."""
    field = bottleneck(2, 4, 1, basis, **options).double()
    generator = torch.Generator().manual_seed(seed)
    for parameter in field.parameters():
        parameter.data.normal_(0, 0.4, generator=generator)
    return field


def state(seed=1):
    return torch.randn(3, 2, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("name", TABLEAUS)
def test_error_falls_at_the_stated_order(name):
    slope = math.log2(error(Fixed(name, 40)) / error(Fixed(name, 80)))
    assert abs(slope - TABLEAUS[name].order) < 0.15


@pytest.mark.parametrize("name", ADAPTIVE_METHODS)
def test_adaptive_error_follows_the_tolerance(name):
    errors = [error(Adaptive(name, tol, tol)) for tol in (1e-3, 1e-5, 1e-7)]
    assert errors[0] > errors[2]
    # fehlberg2 estimates with the coefficients (-1, 0, 1) / 512, some hundred times too small
    assert errors[2] < (1e-7 if name != "fehlberg2" else 1e-5) * 10


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_takes_exactly_n_steps_at_exact_times(dtype):
    """Peers take one step more for n = 49, 98, 103 ... (times by adding or by arange) and a last time that is not 1."""
    h = torch.zeros(1, dtype=dtype)
    for n in range(1, 257):
        times = []

        def field(t, h, times=times):
            times.append(t)
            return h

        solution = integrate(field, h, Fixed("heun", n))
        assert solution.num_evals == len(times) == 2 * n
        assert times[0::2] == [i / n for i in range(n)]
        assert times[1::2] == [(i + 1) / n for i in range(n)]
        assert solution.h1.dtype == dtype


def test_every_piece_of_every_depth_is_used_once_and_gets_gradient():
    """Float look-up of the piece leaves layers untrained for 230 of the depths 1 .. 256."""
    for n in [*range(1, 32), 49, 98, 103, 107, 196, 255, 256]:
        field = bottleneck(1, 1, 1, clamped(0, n))
        for parameter in field.parameters():
            nn.init.constant_(parameter, 0.1)
        integrate(field, torch.ones(1, 1, 1), Fixed("euler", n)).h1.sum().backward()
        for parameter in field.parameters():
            assert (parameter.grad.flatten(1).abs().sum(1) > 0).all(), n


@pytest.mark.parametrize("method", ["rk4", "midpoint", "heun"])
def test_piecewise_constant_weights_equal_one_solve_per_piece(method):
    """No stage of a step sees the next piece: four pieces in one solve are four solves of one piece each."""
    field = small_field(clamped(0, 4))
    h = state()
    whole = integrate(field, h, Fixed(method, 8)).h1
    for piece in range(4):
        alone = small_field(clamped(0, 1), scale=0.25)
        for parameter, pieces in zip(alone.parameters(), field.parameters()):
            parameter.data.copy_(pieces.data[piece : piece + 1])
        h = integrate(alone, h, Fixed(method, 2)).h1
    torch.testing.assert_close(whole, h, rtol=1e-13, atol=1e-13)


KNOTS = {"jumps": clamped(0, 5), "kinks": clamped(1, 6), "smooth": clamped(3, 5), "unclamped": unclamped(1, 4)}


@pytest.mark.parametrize("name", KNOTS)
def test_adaptive_reaches_the_fine_fixed_solution_across_knots(name):
    field = small_field(KNOTS[name])
    with torch.no_grad():
        fine = integrate(field, state(), Fixed("rk4", 180)).h1
        for solver, bound in (("dopri5@1e-6", 1e-3), ("bosh3@1e-5", 3e-3), ("adaptive_heun@1e-4", 1e-2)):
            solution = integrate(field, state(), parse_solver(solver))
            assert solution.status == "ok"
            assert (solution.h1 - fine).abs().max() < bound


@pytest.mark.parametrize("name", ADAPTIVE_METHODS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_adaptive_solves_ask_only_within_their_piece(name, dtype):
    asked = []

    def field(t, h):
        asked.append(t)
        return -h

    integrate(field, torch.ones(2, 1, dtype=dtype), Adaptive(name, 1e-2, 1e-2))
    assert min(asked) >= 0
    assert max(asked) <= 1


def test_checkpoint_gives_the_same_gradient():
    for n in (1, 2, 7, 16):
        gradients = []
        for gradient in ("direct", "checkpoint"):
            field = small_field(clamped(1, 4))
            h = state().requires_grad_()
            integrate(field, h, Fixed("rk4", n), gradient=gradient).h1.square().sum().backward()
            gradients.append([h.grad, *(p.grad for p in field.parameters())])
        for direct, recomputed in zip(*gradients):
            torch.testing.assert_close(direct, recomputed, rtol=1e-13, atol=1e-14)


def saved_bytes(n, gradient):
    """Bytes that autograd keeps between the forward and the backward pass."""
    seen = {}

    def pack(tensor):
        seen[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        h1 = integrate(small_field(clamped(0, 1)), state().requires_grad_(), Fixed("euler", n), gradient=gradient).h1
    h1.sum().backward()
    return sum(seen.values())


def test_checkpoint_memory_grows_with_the_square_root():
    """What is kept until the backward pass (measured), and what a run's recomputation adds (by its length)."""
    for n in range(1, 257):
        ends = run_ends(n, recompute=True)
        longest = max(last - first for first, last in pairwise(ends))
        assert longest <= math.sqrt(n)
        assert len(ends) - 1 <= math.sqrt(n) + 2
    assert 3.5 < saved_bytes(256, "direct") / saved_bytes(64, "direct") < 4.5
    assert saved_bytes(256, "checkpoint") / saved_bytes(64, "checkpoint") < 2.5
    assert saved_bytes(256, "checkpoint") < saved_bytes(256, "direct") / 8


@pytest.mark.parametrize("method", ["euler", "rk4"])
def test_gradient_equals_finite_differences(method):
    field = small_field(clamped(1, 3))
    names, values = zip(*field.named_parameters())

    def loss(h, *parameters):
        def rhs(t, h):
            return torch.func.functional_call(field, dict(zip(names, parameters)), (t, h))

        return integrate(rhs, h, Fixed(method, 3)).h1.square().sum()

    assert torch.autograd.gradcheck(loss, (state().requires_grad_(), *values), eps=1e-6, atol=1e-6, fast_mode=True)


class Smooth(nn.Module):
    """f(t, h) = tanh(A h) cos t: no kinks, so that tolerances mean something."""

    def __init__(self):
        super().__init__()
        matrix = torch.randn(5, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
        self.matrix = nn.Parameter(matrix)

    def forward(self, t, h):
        return torch.tanh(h @ self.matrix) * math.cos(t)


def test_direct_and_adjoint_gradients_meet_as_the_tolerance_falls():
    def gradients(gradient, tolerance):
        field, h = Smooth(), state().requires_grad_()
        solver = Adaptive("dopri5", tolerance, tolerance)
        integrate(field, h, solver, gradient=gradient).h1.square().sum().backward()
        return torch.cat([h.grad.flatten(), field.matrix.grad.flatten()])

    exact = gradients("adjoint", 1e-11)
    for gradient in ("adjoint", "direct"):  # the latter fails where the gradient follows the choice of the first step
        gaps = [(gradients(gradient, tol) - exact).norm() / exact.norm() for tol in (1e-3, 1e-6, 1e-9)]
        assert gaps[2] < 1e-7
        assert gaps[2] < gaps[1] < gaps[0]


def test_states_at_depths():
    for solver in (Fixed("rk4", 12), Adaptive("dopri5", 1e-9, 1e-9)):
        solution = integrate(y_cos_t, ONE, solver, depths=(0, "1/3", 0.5, 1))
        expected = [math.exp(math.sin(t)) for t in (0, 1 / 3, 0.5, 1)]
        assert [s.item() for s in solution.states] == pytest.approx(expected, abs=1e-5)
    with pytest.raises(ValueError, match="no step that ends at 1/3"):
        integrate(y_cos_t, ONE, Fixed("rk4", 8), depths=("1/3",))
    with pytest.raises(ValueError, match="increase within"):
        integrate(y_cos_t, ONE, Fixed("rk4", 8), depths=(0.5, 0.5))


def test_a_step_budget_ends_the_solve_with_its_last_state():
    solution = integrate(lambda t, h: 1000 * torch.sin(1000 * h) - h, ONE, Adaptive("dopri5", 1e-9, 1e-9), max_steps=7)
    assert solution.status == "budget"
    assert solution.num_accepted + solution.num_rejected == 7
    assert 0 < solution.t < 1
    assert torch.isfinite(solution.h1).all()


@pytest.mark.parametrize("solver", ["rk4@4", "dopri5@1e-5", "fehlberg2@1e-3"])
def test_non_finite_is_a_status(solver):
    start = integrate(lambda t, h: h * math.nan, ONE, parse_solver(solver))
    later = integrate(lambda t, h: h if t < 0.5 else h * math.nan, ONE, parse_solver(solver), max_steps=500)
    for huge in (math.inf, 1e300):
        assert integrate(lambda t, h, huge=huge: h * huge, ONE, parse_solver(solver)).status != "ok"
    blow_up = integrate(lambda t, h: 10 * h * h, ONE.float(), parse_solver(solver), max_steps=500)
    assert start.status == later.status == "nonfinite"
    assert blow_up.status in ("nonfinite", "budget", "underflow") or solver == "rk4@4"


@torch.no_grad()
@pytest.mark.parametrize("bad", ["at once", "on the way"])
@pytest.mark.parametrize("solver", ["dopri5@1e-8", "bosh3@1e-7"])
def test_a_sample_that_leaves_the_numbers_takes_no_other_with_it(solver, bad):
    """h' = h, up to h = 5: there the slope is infinite. States on the way are kept too."""
    h0 = torch.tensor([[0.5], [3.5], [-1.0], [4.0]], dtype=torch.float64)
    if bad == "at once":
        h0[[1, 3]] = math.inf

    def field(t, h):
        return torch.where(h < 5, h, math.inf)

    solution = integrate(field, h0, parse_solver(solver), depths=[0.125, 0.5])
    assert (solution.status, solution.stopped, solution.t) == ("nonfinite", None, 1.0)
    for found, t in zip((*solution.states, solution.h1), (0.125, 0.5, 1.0)):
        torch.testing.assert_close(found[[0, 2]], h0[[0, 2]] * math.exp(t), rtol=1e-5, atol=0)
        ended = t > 0.125 or bad == "at once"
        assert found[[1, 3]].isnan().all() == ended


@torch.no_grad()
def test_when_all_samples_left_the_numbers_the_solve_ends():
    h0 = torch.tensor([[3.0], [4.0]], dtype=torch.float64)
    solution = integrate(lambda t, h: torch.where(h < 5, h, math.inf), h0, parse_solver("dopri5@1e-5"))
    assert solution.stopped == "nonfinite"
    assert solution.t < math.log(5 / 3)
    assert solution.h1.isfinite().tolist() == [[True], [False]]  # the one that was lost first


def test_with_a_gradient_a_lost_sample_ends_the_solve():
    """Its gradient would be nan anyway."""
    h0 = torch.tensor([[0.5], [3.0]], dtype=torch.float64, requires_grad=True)
    solution = integrate(lambda t, h: torch.where(h < 5, h, math.inf), h0, parse_solver("dopri5@1e-5"))
    assert solution.stopped == "nonfinite"


def test_the_adjoint_has_a_budget_too():
    class Stiff(nn.Module):
        def __init__(self):
            super().__init__()
            self.rate = nn.Parameter(torch.tensor(60.0, dtype=torch.float64))

        def forward(self, t, h):
            return -self.rate * h

    solver = Adaptive("bosh3", 1e-3, 1e-3)
    solution = integrate(Stiff(), ONE, solver, gradient="adjoint", max_steps=40)
    assert solution.status == "ok"
    with pytest.raises(SolveFailed):
        solution.h1.sum().backward()


def test_a_gradient_that_is_not_finite_ends_the_adjoint():
    solution = integrate(Smooth(), state().requires_grad_(), parse_solver("dopri5@1e-3"), gradient="adjoint")
    with pytest.raises(SolveFailed, match="nonfinite"):
        (solution.h1.sum() * math.nan).backward()


def test_refusals():
    for gradient, solver in (("adjoint", "euler@4"), ("checkpoint", "dopri5@1e-3")):
        with pytest.raises(ValueError, match=gradient):
            integrate(y_cos_t, ONE, parse_solver(solver), gradient=gradient)
    with pytest.raises(ValueError, match=r"nn\.Module"):
        integrate(y_cos_t, ONE, parse_solver("dopri5@1e-3"), gradient="adjoint")
    with pytest.raises(ValueError, match="bfloat16"):
        integrate(y_cos_t, ONE.bfloat16(), parse_solver("dopri5@1e-3"))


def test_num_evals_counts_calls():
    for solver in (Fixed("rk4_38", 5), Adaptive("dopri5", 1e-4, 1e-4), Adaptive("bosh3", 1e-4, 1e-4)):
        calls = []

        def field(t, h, calls=calls):
            calls.append(t)
            return -h

        assert integrate(field, ONE, solver).num_evals == len(calls)


@pytest.mark.slow
@pytest.mark.parametrize("gradient", ["direct", "checkpoint"])
@pytest.mark.parametrize("basis", [clamped(0, 4), clamped(2, 4)], ids=["degree 0", "degree 2"])
def test_a_fixed_step_solve_is_one_compiled_graph(gradient, basis):
    field, solver = small_field(basis), Fixed("midpoint", 4)
    for first, last in ((0, 4), (0, 2), (2, 4)):
        field.prepare(StageTimes("midpoint", 4, first, last))

    def loss(h):
        return integrate(field, h, solver, gradient=gradient).h1.square().sum()

    h = state()
    eager = torch.autograd.grad(loss(h), list(field.parameters()))
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    for wanted, found in zip(eager, torch.autograd.grad(compiled(h), list(field.parameters()))):
        torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-12)


def test_compiling_unprepared_says_what_to_do():
    field = small_field(clamped(1, 4))
    with pytest.raises(Exception, match="prepare"):
        torch.compile(lambda h: integrate(field, h, Fixed("euler", 2)).h1, fullgraph=True, backend="eager")(state())


def test_a_fixed_step_solve_reads_nothing_from_the_device():
    """On the meta device any read of a value raises."""
    field = bottleneck(2, 4, 1, clamped(2, 4)).to("meta")
    field.prepare(StageTimes("rk4", 3, 0, 3))
    assert integrate(field, torch.empty(3, 2, 5, device="meta"), Fixed("rk4", 3)).h1.shape == (3, 2, 5)


def test_depths_are_exact_fractions():
    solution = integrate(y_cos_t, ONE, Fixed("euler", 10), depths=(0.3,))
    direct = ONE
    for n in range(3):
        direct = direct + 0.1 * y_cos_t(n / 10, direct)
    torch.testing.assert_close(solution.states[0], direct)
