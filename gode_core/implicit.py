"""Implicit steps: y_{n+1} = y_n + h ((1 - theta) f(t_n, y_n) + theta f(t_{n+1}, y_{n+1})).

The equation for z = y_{n+1} is solved for each sample by Newton's method with GMRES (`krylov`), from the better of two
guesses: y_n, and one explicit step from it, z = y_n - residual(y_n). Nothing is differenced: products with df/dh are
forward-mode derivatives.

Its gradient is that of the equation, by the implicit function theorem: with z = base + h theta f(z; w), of which `base`
and w are what went in, dL/d(base) = u and dL/dw = h theta (df/dw)^T u, where

    (1 - h theta df/dz)^T u = dL/dz

is solved in the backward pass by the same method. Only f at the solution is kept for it, whatever the iterations.
"""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from typing import Any

import torch
from torch import Tensor

from gode_core.bases import StageTimes
from gode_core.krylov import Product, Residual, choose, newton_krylov, norm
from gode_core.layers import Function
from gode_core.solution import SolveFailed, Status
from gode_core.solvers import Implicit
from gode_core.stepping import functions_at


class ImplicitSolve:
    """One solve. num_evals: all calls of the field on the way forward, a product with its Jacobian being one.

    A step whose equation has no solution that is found ends the solve: `stopped` says how, and the states end with the
    last accepted one. Without a gradient it ends only if it is found for no sample: else those that are lost go on as
    nan, `lost_as` says why, and the others do not depend on them. Samples must not act upon one another: raises
    ValueError for batch norm in train mode.
    """

    def __init__(self, field: Any, solver: Implicit):
        if any(norm.training for norm in getattr(field, "batch_norms", ())):
            raise ValueError(
                f"{solver} solves for each sample apart, and batch norm in train mode ties them together; "
                "take the norm `group` or `layer`, or train with an explicit solver"
            )
        self.field, self.solver = field, solver
        self.num_evals, self.num_steps = 0, 0
        self.stopped: Status | None = None
        self.lost_as: Status = "nonfinite"

    def run(self, h0: Tensor, wanted: Sequence[int]) -> dict[int, Tensor]:
        """The states after the `wanted` numbers of steps and after the last, as far as they were reached."""
        n = self.solver.num_steps
        # heun's stages: the beginning of each step seen from the right, its end from the left
        functions = iter(functions_at(self.field, StageTimes("heun", n, 0, n)))
        h, states = h0, {0: h0}
        for begin, end in zip(functions, functions):
            solved = self._step(begin, end, h)
            if solved is None:
                break
            h, self.num_steps = solved, self.num_steps + 1
            if self.num_steps in wanted:
                states[self.num_steps] = h
        return states | {self.num_steps: h}

    def _step(self, begin: Function, end: Function, h: Tensor) -> Tensor | None:
        step, theta = 1.0 / self.solver.num_steps, self.solver.data.theta
        base = h
        if theta != 1:
            self.num_evals += 1
            base = torch.add(h, begin(h), alpha=step * float(1 - theta))
        equation = _Equation(self, end, base.detach(), step * float(theta))
        with torch.no_grad():
            z, status, lost = equation.solve(h.detach())
        if status != "ok" and (torch.is_grad_enabled() or bool(lost.all())):
            self.stopped = self.lost_as if bool(torch.isnan(h).any()) else status
            return None
        if not torch.is_grad_enabled():
            if status != "ok" and not bool(torch.isnan(h).any()):
                self.lost_as = status  # of the first to be lost: later ones come with its nan
            return choose(lost, torch.full_like(z, torch.nan), z)
        time = float(Fraction(self.num_steps + 1, self.solver.num_steps))
        return equation.with_gradient(base, z, time)


class _Equation:
    """z = base + factor f(z)."""

    def __init__(self, solve: ImplicitSolve, function: Function, base: Tensor, factor: float):
        self.counter, self.function, self.base, self.factor = solve, function, base, factor

    def solve(self, h: Tensor) -> tuple[Tensor, Status, Tensor]:
        here = self._residual(h)
        explicit = h - here.r
        there = self._residual(explicit)
        better = norm(there.r) < norm(here.r)
        guess = Residual(choose(better, there.r, here.r), torch.where(better, there.tolerance, here.tolerance))
        return newton_krylov(choose(better, explicit, h), guess, self._residual, self._jacobian)

    def with_gradient(self, base: Tensor, z: Tensor, time: float) -> Tensor:
        """z with the gradient of the equation's solution; `base` this time as the graph knows it."""
        image = torch.add(base, self._call(z), alpha=self.factor)
        if not image.requires_grad:
            return z
        image.register_hook(lambda g: self._transposed(z, g, time))
        return z + (image - image.detach())  # the image differs from z by a residual, which a stiff field enlarges

    def _transposed(self, z: Tensor, g: Tensor, time: float) -> Tensor:
        """u with (1 - factor df/dz)^T u = g."""
        if torch.is_grad_enabled():
            raise RuntimeError("an implicit step has no second derivatives: call backward without create_graph")
        pull = torch.func.vjp(self.function, z)[1]

        def product(v: Tensor) -> Tensor:
            return torch.sub(v, pull(v)[0], alpha=self.factor)

        def residual(u: Tensor) -> Residual:
            image = product(u)
            return Residual(image - g, _precision(u) * (norm(image) + norm(u) + norm(g)))

        u, status, _ = newton_krylov(g, residual(g), residual, lambda _: product)
        if status != "ok":
            raise SolveFailed(status, time)
        return u

    def _residual(self, z: Tensor) -> Residual:
        slope = self._call(z)
        r = torch.sub(z - self.base, slope, alpha=self.factor)
        tolerance = _precision(z) * (norm(z) + norm(self.base)) + _precision(slope) * self.factor * norm(slope)
        return Residual(r, tolerance)

    def _jacobian(self, z: Tensor) -> Product:
        def product(v: Tensor) -> Tensor:
            self.counter.num_evals += 1
            return torch.sub(v, torch.func.jvp(self.function, (z,), (v,))[1], alpha=self.factor)

        return product

    def _call(self, z: Tensor) -> Tensor:
        self.counter.num_evals += 1
        return self.function(z)


def _precision(x: Tensor) -> float:
    """What an equation may leave, relative to its terms: 2e-12 in float64, 6e-6 in float32 (three quarters of the
    digits; rounding within a network takes some of the others)."""
    return torch.finfo(x.dtype).eps ** 0.75
