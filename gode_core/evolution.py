"""Weights that obey an ODE of their own.

    dh/dt = f(h, theta(t))        dtheta/dt = g(theta, t; w)        theta(0) = theta_0

(He, Xie, Lin, PRCV 2019; Zhang et al., ANODEV2, NeurIPS 2019. Of both only the abstracts could be had: the forms of g
and the way theta is stepped are choices made here.) theta_0, learnt, is what the field's layers hold; w, learnt too,
belongs to g. theta is one vector of P numbers without a batch axis: it is integrated once per forward pass, with a
method and a step of its own. Adaptive solves take h and theta together: `Coupled`.

The forms of g are in `laws`. Each begins with g = 0: at first the model is the Neural ODE with weights theta_0.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from fractions import Fraction
from functools import partial
from itertools import pairwise

import torch
from torch import Tensor, nn

from gode_core.bases import Basis, Depth, Moment, Times, constant, exact
from gode_core.fields import Field
from gode_core.laws import EVOLUTIONS, Shapes, check_positive, total
from gode_core.layers import Function
from gode_core.methods import TABLEAUS
from gode_core.stepping import runge_kutta

ROUNDING = Fraction(1, 10**9)  # a depth given as a float lies so near to the multiple of the step that was meant


Runs = tuple[Times, ...]


@dataclass(frozen=True)
class PathTimes:
    """The stage times of theta's own steps, on the way through the times at which the runs of a solve want it.

    Between two neighbours of those, ceil(gap * num_steps) equal steps: none is longer than 1 / num_steps, and each
    wanted time ends one. Small and hashable, as StageTimes.
    """

    runs: Runs
    method: str
    num_steps: int

    def wanted(self) -> list[Fraction]:
        """The sorted distinct times, exact: the same however the solve is cut into runs."""
        return sorted({exact(t) for run in self.runs for t, _ in run.points()})

    def gaps(self) -> list[tuple[Fraction, Fraction, int]]:
        """(start, end, number of steps) on the way to each wanted time."""
        return [
            (start, end, math.ceil((end - start) * self.num_steps - ROUNDING))
            for start, end in pairwise([Fraction(0), *self.wanted()])
        ]

    def points(self) -> list[tuple[Depth, bool]]:
        return [
            (start + (end - start) * (n + c) / num, c == 1)
            for start, end, num in self.gaps()
            for n in range(num)
            for c in TABLEAUS[self.method].c
        ]


@dataclass(frozen=True)
class Grid:
    """gaps: (number of steps, their length) on the way to each wanted time. index: for each run, which of the wanted
    times each of its own is."""

    gaps: list[tuple[int, float]]
    index: dict[Times, list[int]]

    @staticmethod
    def of(times: PathTimes) -> Grid:
        position = {t: i for i, t in enumerate(times.wanted())}
        gaps = [(num, float((end - start) / max(num, 1))) for start, end, num in times.gaps()]
        return Grid(gaps, {run: [position[exact(t)] for t, _ in run.points()] for run in times.runs})


@dataclass(frozen=True)
class Path:
    """theta (M, P) at the sorted distinct times of the runs of a solve, or (1, P) at a Moment."""

    runs: Runs
    theta: Tensor


class Evolution(nn.Module):
    """dtheta/dt = g(theta, t), for the weights of a field that `names` lists as (layer, parameter). Made by `evolve`.

    g: a Field whose state is theta (P,). method, num_steps: of the explicit Runge-Kutta method that solves it beside a
    fixed-step solve of h; 1 / num_steps is its longest step. Under `euler@N`, with method euler and num_steps <= N,
    theta_{j+1} = theta_j + g(theta_j, t_j) / N: a ResNet. Where g jumps within a step the method loses its order,
    as every fixed-step solve does.
    """

    def __init__(self, g: Field, names: Sequence[tuple[int, str]], shapes: Shapes, method: str, num_steps: int):
        super().__init__()
        if method not in TABLEAUS:
            raise ValueError(f"unknown method `{method}` for the weights' ODE; known: {', '.join(TABLEAUS)}")
        check_positive("the number of steps of the weights' ODE", num_steps)
        self.g, self.names, self.shapes = g, list(names), list(shapes)
        self.method, self.num_steps = method, num_steps
        self._grids: dict[PathTimes, Grid] = {}

    @property
    def breaks(self) -> tuple[Fraction, ...]:
        """Where g, and a derivative of theta, is not smooth in t."""
        return self.g.basis.breaks

    def continuity(self, k: Fraction) -> int:
        """Of theta at the break k, as a basis says it of its own: theta is once smoother than g."""
        return self.g.basis.continuity(k) + 1

    def draw(self, generator: torch.Generator | None = None) -> None:
        """Draw anew what is random in g (its other parameters stay), from torch's own generator if none is given."""
        for layer in self.g.layers:
            layer.draw(generator)  # type: ignore[operator]

    def start(self, layers: nn.ModuleList) -> Tensor:
        """theta_0 (P,), from the layers of the field."""
        return torch.cat([layers[i].get_parameter(name)[0].flatten() for i, name in self.names])

    def path(self, theta0: Tensor, runs: Runs) -> Path:
        """theta through all the times of a solve, or at one Moment; integrated once, from theta(0) = theta0."""
        times, tableau = PathTimes(runs, self.method, self.num_steps), TABLEAUS[self.method]
        theta, reached = theta0, []
        with _without_autocast(theta0):
            functions = iter(self._slopes(times))
            for num, step in self._grid(times).gaps:
                for _ in range(num):
                    theta, _ = runge_kutta(tableau, functions, theta, step)
                reached.append(theta)
            return Path(runs, torch.stack(reached))

    def weights(self, path: Path, run: Times) -> list[list[Tensor]]:
        """For each of `names` its value at each time of one of the path's runs."""
        if isinstance(run, Moment):
            index = [0]
        else:
            index = self._grid(PathTimes(path.runs, self.method, self.num_steps)).index[run]
        parts = path.theta.split([total([shape]) for shape in self.shapes], dim=1)
        values = [part.view(-1, *shape) for part, shape in zip(parts, self.shapes)]
        if torch.compiler.is_compiling():  # as in layers.weights_at: it cannot recompute an unbinding (torch 2.15)
            return [[rows[i] for i in index] for rows in values]
        distinct = [rows.unbind(0) for rows in values]
        return [[rows[i] for i in index] for rows in distinct]

    def slope(self, moment: Moment, theta: Tensor) -> Tensor:
        """g there."""
        with _without_autocast(theta):
            return self.g.at(moment)[0](theta)

    def prepare(self, runs: Runs) -> None:
        """Make the tables for a fixed-step solve; torch.compile needs this before it traces one."""
        times = PathTimes(runs, self.method, self.num_steps)
        self._grid(times)
        self.g.prepare(times)  # type: ignore[arg-type]

    def _slopes(self, times: PathTimes) -> list[Function]:
        if any(isinstance(run, Moment) for run in times.runs):  # no tables are kept for those
            return [self.g.at(Moment(t, from_left))[0] for t, from_left in times.points()]  # type: ignore[arg-type]
        return self.g.at(times)  # type: ignore[arg-type]

    def _grid(self, times: PathTimes) -> Grid:
        if any(isinstance(run, Moment) for run in times.runs):
            return Grid.of(times)
        if times not in self._grids:
            if torch.compiler.is_compiling():
                raise RuntimeError(
                    "call `prepare(solver)` before torch.compile traces a solve: tables are made in Python"
                )
            self._grids[times] = Grid.of(times)
        return self._grids[times]


def evolve(
    field: Field,
    kind: str,
    *,
    method: str,
    num_steps: int,
    basis: Basis | None = None,
    vary_all: bool = True,
    **options: int | str,
) -> Field:
    """Give the field's weights an ODE of their own; returns the field.

    kind: one of EVOLUTIONS, `options` its own (linear: rank; network: width; reaction_diffusion: sigma).
    basis: of g's parameters in t; None: constant.
    vary_all: all weights evolve, or the kernels alone. The rest stay as they are.
    Raises ValueError for an unknown kind or method, or weights that depend on depth by a basis already.
    """
    if kind not in EVOLUTIONS:
        raise ValueError(f"unknown evolution `{kind}`; known: {', '.join(EVOLUTIONS)}")
    chosen = [
        (i, name, parameter)
        for i, layer in enumerate(field.layers)
        for name, parameter in layer.named_parameters()
        if vary_all or parameter.dim() > 2
    ]
    for i, name, parameter in chosen:
        if len(parameter) > 1:
            number = len(parameter)
            raise ValueError(f"layers.{i}.{name} has {number} coefficients in depth; to evolve it must have one")
    names, shapes = [(i, name) for i, name, _ in chosen], [parameter.shape[1:] for _, _, parameter in chosen]
    basis = constant() if basis is None else basis
    g = Field([EVOLUTIONS[kind](shapes, basis.num_coefficients, **options)], basis)  # type: ignore[arg-type]
    field.evolution = Evolution(g, names, shapes, method, num_steps).to(chosen[0][2])
    field.evolution.draw()
    return field


class Coupled(nn.Module):
    """h and theta as one state z = (h flattened, theta), for adaptive solvers: dz/dt = (f(h, theta), g(theta, t)).

    Its continuous adjoint is a' = -a df/dh, b' = -a df/dtheta - b dg/dtheta, with dL/dtheta_0 = b(0).
    """

    def __init__(self, field: Field, shape: torch.Size):
        super().__init__()
        assert field.evolution is not None
        self.field, self.evolution, self.shape = field, field.evolution, shape

    @property
    def breaks(self) -> tuple[Fraction, ...]:
        return self.field.breaks

    def pack(self, h: Tensor) -> Tensor:
        """z (B ... + P,) at t = 0."""
        return torch.cat([h.flatten(), self.evolution.start(self.field.layers).to(h.dtype)])

    def unpack(self, z: Tensor) -> Tensor:
        """h of z."""
        return self._split(z)[0].view(self.shape)

    def finite(self, z: Tensor) -> Tensor:
        """(B,) bool: samples of which h is finite; none if theta is not."""
        h, theta = self._split(z)
        return torch.isfinite(h.view(self.shape[0], -1)).all(1) & torch.isfinite(theta).all()

    def only(self, chosen: Tensor, z: Tensor) -> Tensor:
        """z with some of its samples (B,) alone, which the solve is about from now on."""
        h, theta = self.unpack(z)[chosen], self._split(z)[1]
        self.shape = h.shape
        return torch.cat([h.flatten(), theta])

    def norm(self, z: Tensor) -> Tensor:
        """The larger root mean square of the two parts: in a mean over both, the larger part hides the other."""
        return torch.stack([part.square().mean().sqrt() for part in self._split(z)]).max()

    def at(self, moment: Moment) -> list[Function]:
        return [partial(self._slope, moment)]

    def _slope(self, moment: Moment, z: Tensor) -> Tensor:
        h, theta = self._split(z)
        slope = self.field.at(moment, Path((moment,), theta[None]))[0](h.view(self.shape))
        return torch.cat([slope.flatten(), self.evolution.slope(moment, theta)])

    def _split(self, z: Tensor) -> tuple[Tensor, Tensor]:
        size = self.shape.numel()
        return z[:size], z[size:]


def _without_autocast(like: Tensor) -> AbstractContextManager:
    """Autocast would round theta to 16 bits."""
    device = like.device.type
    if torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device):
        return torch.autocast(device, enabled=False)
    return nullcontext()
