"""integrate(field, h0, solver, gradient=...) -> Solution: dh/dt = f(t, h) over [0, 1].

The only module that knows torchdiffeq. Fixed-step solves are a plain loop of our own (`stepping`), implicit steps an
iteration of our own (`implicit`). Adaptive solves are torchdiffeq's, one call for each smooth piece of the field, so
that no step crosses a knot and nothing is asked beyond the piece's ends.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from fractions import Fraction
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from gode_core import stepping
from gode_core.bases import Moment, exact
from gode_core.depth_norms import refuse_batch_norm
from gode_core.evolution import Coupled
from gode_core.fields import Field
from gode_core.implicit import ImplicitSolve
from gode_core.solution import Gradient, Solution, SolveFailed
from gode_core.solvers import ADAPTIVE_METHODS, Adaptive, Fixed, Implicit, Layers, Solver, num_evals
from gode_core.starting import starting_step
from gode_core.stepping import breaks_of, fixed_solve


def integrate(
    field: Callable[[float, Tensor], Tensor],
    h0: Tensor,
    solver: Solver,
    *,
    gradient: Gradient = "direct",
    depths: Sequence[Fraction | float | str] = (),
    max_steps: int = 10_000,
) -> Solution:
    """Solve dh/dt = field(t, h), h(0) = h0, to t = 1.

    field: a `gode_core.fields.Field`, or any function of a float t and a state (B, ...) that returns the state's shape.
    gradient: `direct` backpropagates through the steps. `checkpoint` (fixed steps) does the same, recomputing runs of
        about sqrt(n) steps: the same gradient, memory that grows with sqrt(n). `adjoint` (adaptive) solves the
        continuous adjoint backwards; for fixed steps it is refused, since its gradient is that of another function
        (wrong by half for 2 Euler steps). Implicit steps have `direct` alone, by the implicit function theorem.
    depths: increasing times in [0, 1] at which the state is wanted too; a solver with fixed steps, explicit or
        implicit, must have steps that end there.
    max_steps: attempted steps after which an adaptive solve is given up with status `budget`.

    A tolerance bounds the estimated error of a step, not that of the end. Where the field has kinks (ReLU) dopri5@1e-7
    erred by up to 2e-5 of the largest state, in float64, for perceptrons of the plane with random weights; torchdiffeq
    alone by as much.

    Raises ValueError for a gradient or depth that the solver cannot give, an adaptive solve of a 16-bit state, or a
        plain BatchNorm in the field.
    """
    if isinstance(solver, Layers):
        raise ValueError(f"{solver} is no solver of an ODE: it names the layers of a discrete net")
    wanted = [exact(t) for t in depths]
    if any(not 0 <= t <= 1 for t in wanted) or any(a >= b for a, b in pairwise(wanted)):
        raise ValueError(f"depths must increase within [0, 1], got {list(map(str, depths))}")
    if isinstance(field, nn.Module) and not torch.compiler.is_compiling():
        refuse_batch_norm(field)
    begin_solve, end_solve = getattr(field, "begin_solve", None), getattr(field, "end_solve", None)
    if begin_solve is not None:
        begin_solve()
    if isinstance(solver, Fixed):
        solution = _fixed(field, h0, solver, gradient, wanted)
    elif isinstance(solver, Implicit):
        solution = _implicit(field, h0, solver, gradient, wanted)
    else:
        solution = _adaptive(field, h0, solver, gradient, max_steps, wanted)
    if end_solve is not None:
        end_solve()
    return solution


def _fixed(field, h0: Tensor, solver: Fixed, gradient: Gradient, wanted: list[Fraction]) -> Solution:
    if gradient == "adjoint":
        raise ValueError(f"gradient `adjoint` needs an adaptive solver, got {solver}; take `direct` or `checkpoint`")
    after = _steps_before(wanted, solver)
    states = fixed_solve(field, h0, solver, gradient == "checkpoint" and torch.is_grad_enabled(), after)
    n = solver.num_steps
    return Solution(states[n], [states[number] for number in after], num_evals(solver, breaks_of(field)), n)


def _implicit(field, h0: Tensor, solver: Implicit, gradient: Gradient, wanted: list[Fraction]) -> Solution:
    if gradient != "direct":
        raise ValueError(
            f"gradient `{gradient}` is not for {solver}: take `direct`, whose memory does not grow with the iterations"
        )
    if h0.dtype not in (torch.float32, torch.float64):
        raise ValueError(f"{solver} needs a float32 or float64 state, got {h0.dtype}")
    after = _steps_before(wanted, solver)
    solve = ImplicitSolve(field, solver)
    states = solve.run(h0, after)
    n = solve.num_steps
    reached = [states[number] for number in after if number <= n]
    t = n / solver.num_steps
    return Solution(states[n], reached, solve.num_evals, n, t=t, stopped=solve.stopped, lost_as=solve.lost_as)


def _steps_before(wanted: list[Fraction], solver: Fixed | Implicit) -> list[int]:
    """The number of steps that end at each of the depths."""
    n = solver.num_steps
    if off := [t for t in wanted if (t * n).denominator != 1]:
        raise ValueError(f"{solver} has no step that ends at {off[0]}; its steps end at multiples of 1/{n}")
    return [int(t * n) for t in wanted]


def prepare(field: Field, solver: Fixed, gradient: Gradient = "direct") -> None:
    """Make the field's tables for a solve: once before torch.compile traces it."""
    for recompute in {False, gradient == "checkpoint"}:
        stepping.prepare(field, solver, recompute)


def _adaptive(
    field, h0: Tensor, solver: Adaptive, gradient: Gradient, max_steps: int, wanted: list[Fraction]
) -> Solution:
    """Weights that evolve are solved together with the state."""
    if getattr(field, "evolution", None) is None:
        norm = getattr(field, "error_norm", None) or _rms
        return _Adaptive(field, solver, gradient, max_steps, norm).solve(h0, wanted)
    both = Coupled(field, h0.shape)
    return _Adaptive(both, solver, gradient, max_steps, both.norm).solve(h0, wanted)


class _Adaptive:
    """One adaptive solve: its counts, and the calls of torchdiffeq.

    A sample whose state or slope is no longer finite ends it. Without a gradient it goes on with the others, from the
    last accepted step: the lost one is nan from there on, as under fixed steps, and a batch fails only as a whole. A
    step that was tried and left the numbers counts: it is not tried again at a shorter length.
    """

    def __init__(self, field, solver: Adaptive, gradient: Gradient, max_steps: int, norm: Callable[[Tensor], Tensor]):
        if gradient == "checkpoint":
            raise ValueError(
                f"gradient `checkpoint` needs a fixed-step solver, got {solver}; take `direct` or `adjoint`"
            )
        if gradient == "adjoint" and not isinstance(field, nn.Module):
            raise ValueError("gradient `adjoint` needs a field that is an nn.Module: it must know the parameters")
        self.field: Any = field
        self.coupled = field if isinstance(field, Coupled) else None
        self.norm = norm
        self.solver, self.gradient, self.max_steps = solver, gradient, max_steps
        self.next_step: float | None = None
        self.num_evals = self.num_attempts = self.num_rejected = 0

    def solve(self, h0: Tensor, wanted: list[Fraction]) -> Solution:
        if h0.dtype not in (torch.float32, torch.float64):
            raise ValueError(f"{self.solver} needs a float32 or float64 state, got {h0.dtype}")
        ends = sorted({Fraction(0), Fraction(1), *getattr(self.field, "breaks", ()), *wanted})
        z = h0 if self.coupled is None else self.coupled.pack(h0)
        states, kept, stopped, t = {Fraction(0): h0}, None, None, 1.0
        pieces = [(float(start), end) for start, end in reversed([*pairwise(ends)])]
        while pieces and stopped is None:
            start, end = pieces.pop()
            piece = _Piece(self, start, float(end))
            try:
                z = self._solve_piece(piece, z)
            except SolveFailed as failure:
                z, t, finite = piece.state, piece.time, self._finite(piece)
                if failure.status == "nonfinite" and bool(finite.any()) and self._keeps_samples_apart():
                    z = z[finite] if self.coupled is None else self.coupled.only(finite, z)
                    kept = finite.nonzero()[:, 0] if kept is None else kept[finite]
                    pieces.append((t, end))
                    t = 1.0
                else:
                    stopped = failure.status
            else:
                states[end] = self._whole(z, kept, h0)
        reached = [states[x] for x in wanted if x in states]
        accepted = self.num_attempts - self.num_rejected
        return Solution(self._whole(z, kept, h0), reached, self.num_evals, accepted, self.num_rejected, t, stopped)

    def _keeps_samples_apart(self) -> bool:
        """Whether samples can be left out: no gradient is wanted of them, and the others do not depend on them."""
        field = self.field if self.coupled is None else self.coupled.field
        tied = any(norm.training for norm in getattr(field, "batch_norms", ()))
        return not (torch.is_grad_enabled() or tied or getattr(field, "error_norm", None))

    def _finite(self, piece: _Piece) -> Tensor:
        """(B,) bool: the samples whose state and last slope are finite."""
        parts = [piece.state, piece.slope]
        return torch.stack([_finite(z) if self.coupled is None else self.coupled.finite(z) for z in parts]).all(0)

    def _whole(self, z: Tensor, kept: Tensor | None, like: Tensor) -> Tensor:
        """The states of all samples; nan where they are not among the `kept`."""
        h = z if self.coupled is None else self.coupled.unpack(z)
        return h if kept is None else torch.full_like(like, torch.nan).index_copy(0, kept, h)

    def _solve_piece(self, piece: _Piece, h: Tensor) -> Tensor:
        import torchdiffeq  # here, since it imports much of scipy: a second that fixed-step jobs need not pay

        piece.state, piece.time = h, piece.start
        times = torch.tensor([piece.start, piece.end], dtype=torch.float64, device=h.device)
        settings = {"rtol": self.solver.rtol, "atol": self.solver.atol, "method": self.solver.method}
        first_step = self._first_step(piece, h) if self.next_step is None else self.next_step
        # step_t: a step lands on the end, instead of passing it and interpolating back. first_step: torchdiffeq would
        # choose it within the graph, where the direct gradient of a field that reads t as a number, as ours do, follows
        # it (wrong by 4e-4 at tolerance 1e-9; 2e-9 this way).
        settings["options"] = {"step_t": times[1:], "first_step": first_step, "norm": self.norm}
        if self.gradient == "direct" or not torch.is_grad_enabled():
            return torchdiffeq.odeint(piece, h, times, **settings)[-1]  # type: ignore[index]
        settings["adjoint_options"] = {"step_t": times[:1]}
        settings["adjoint_params"] = tuple(self.field.parameters())
        return torchdiffeq.odeint_adjoint(piece, h, times, **settings)[-1]  # type: ignore[index]

    @torch.no_grad()
    def _first_step(self, piece: _Piece, h: Tensor) -> float:
        """In a norm scaled by the tolerances. Later pieces begin with the step at which the one before ended."""
        order, scale = ADAPTIVE_METHODS[self.solver.method].order, self.solver.atol + self.solver.rtol * h.abs()

        def slope(ahead: float, state: Tensor) -> Tensor:
            return piece(torch.tensor(piece.start + ahead, dtype=torch.float64), state)

        return starting_step(slope, h, order - 1, lambda x: self.norm((x / scale).double()).item())


def _rms(x: Tensor) -> Tensor:
    return x.square().mean().sqrt()


def _finite(h: Tensor) -> Tensor:
    """(B,) bool."""
    return torch.isfinite(h.flatten(1)).all(1)


class _Piece(nn.Module):
    """The field on one smooth piece, as torchdiffeq calls it.

    Its solvers ask for times beyond the ends (when they choose the first step, and by rounding in float32): there the
    piece's end is meant, seen from inside the piece.
    """

    def __init__(self, solve: _Adaptive, start: float, end: float):
        super().__init__()
        self.solve, self.start, self.end = solve, start, end
        self.state = self.slope = torch.empty(0)
        self.time = start
        self.num_backward = 0

    def forward(self, t: Tensor, h: Tensor) -> Tensor:
        self.solve.num_evals += 1
        at, field = min(max(float(t.detach()), self.start), self.end), self.solve.field
        slope = field.at(Moment(at, from_left=at == self.end))[0](h) if hasattr(field, "at") else field(at, h)
        self.slope = slope.detach()
        return slope.to(h.dtype)  # under autocast the slope has 16 bits, the state keeps its own

    def callback_step(self, t: Tensor, h: Tensor, step: Tensor) -> None:
        self.state, self.time, length = h, float(t.detach()), float(step.detach())
        if not bool(torch.isfinite(h).all()):
            raise SolveFailed("nonfinite", self.time)
        if not self.time + length > self.time:
            raise SolveFailed("underflow" if bool(torch.isfinite(self.slope).all()) else "nonfinite", self.time)
        if self.solve.num_attempts == self.solve.max_steps:
            raise SolveFailed("budget", self.time)
        self.solve.num_attempts += 1
        self.solve.next_step = length

    def callback_reject_step(self, t: Tensor, h: Tensor, step: Tensor) -> None:
        self.solve.num_rejected += 1

    def callback_step_adjoint(self, t: Tensor, h: Sequence[Tensor], step: Tensor) -> None:
        """The backward solve, where time runs down; h: the state, its adjoint and the parameters' together."""
        time, length = float(t.detach()), float(step.detach())
        if not all(bool(torch.isfinite(part).all()) for part in h):
            raise SolveFailed("nonfinite", time)
        if not time - length < time:
            raise SolveFailed("underflow", time)
        self.num_backward += 1
        if self.num_backward > self.solve.max_steps:
            raise SolveFailed("budget", time)
