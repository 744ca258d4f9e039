"""B-splines whose knots are learned along with the weights.

    gap_i = g + (1 - (m + 1) g) softmax(w)_i      i = 0..m        knot_i = gap_0 + ... + gap_{i-1}      i = 1..m

m interior knots between clamped ends, from m + 1 free numbers w: always increasing, never closer than g, a hundredth
of the uniform gap. Equal w are uniform knots, and there the model begins; weight decay on w pulls towards them.

theta(t) follows the knots at each t that a solver asks for, so their gradient is that of the discrete solve, like the
weights' own. On a knot itself degree 1 has a kink, and the gradient is that of the side from which the stage looks.
"""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from itertools import pairwise

import torch
from torch import Tensor, nn

from gode_core.bases import BSpline, Times, clamped
from gode_core.smooth_bases import Depth

SMALLEST_GAP = 0.01  # of the uniform one


class FreeKnots(nn.Module):
    """A basis (`gode_core.bases.Basis`) with learnable interior knots. Each field needs one of its own.

    The contract's properties speak of the knots as they stand, without gradient; `table` is what learns.

    interior: where the knots begin, to the rounding of the parameter; uniform unless given.
    Raises ValueError for degree 0, for a basis without interior knots, and for knots closer than the smallest gap.
    """

    def __init__(self, degree: int, num_coefficients: int, interior: Sequence[Fraction | float | str] | None = None):
        super().__init__()
        if degree == 0:
            raise ValueError(
                "free knots need degree 1 or more: with degree 0 the stages see which piece they are in, not how far "
                "its ends are, so that the knots' gradient is zero almost everywhere"
            )
        start = clamped(degree, num_coefficients, interior)
        if not start.breaks:
            raise ValueError(
                f"there are no knots to learn: {num_coefficients} coefficients of degree {degree} have no interior "
                f"knots; take {degree + 2} or more"
            )
        self.degree, self.num_coefficients = degree, num_coefficients
        gaps = [float(b - a) for a, b in pairwise([Fraction(0), *start.knots[degree + 1 : -degree - 1], Fraction(1)])]
        self.smallest_gap = SMALLEST_GAP / len(gaps)
        if min(gaps) <= self.smallest_gap:
            raise ValueError(f"free knots must begin more than {self.smallest_gap:g} apart, got {min(gaps):g}")
        logarithms = torch.tensor(gaps, dtype=torch.float64).sub(self.smallest_gap).log()
        self.log_gaps = nn.Parameter((logarithms - logarithms.mean()).to(torch.get_default_dtype()))

    def knots(self) -> Tensor:
        """The whole knot vector: (A + degree + 1,), float64, with gradient."""
        share = torch.softmax(self.log_gaps.double(), 0)
        gaps = self.smallest_gap + (1 - len(self.log_gaps) * self.smallest_gap) * share
        ends = gaps.new_zeros(self.degree + 1)
        return torch.cat([ends, gaps[:-1].cumsum(0), ends + 1])

    def table(self, points: Tensor) -> Tensor:
        """phi_a at the points (M, 2) of `distinct_points`: (M, A), float64, with the gradient to the knots. Reads
        nothing from the device."""
        knots, t, looks_left = self.knots(), points[:, :1], points[:, 1:] != 0
        left, right = knots[:-1], knots[1:]
        values = torch.where(looks_left, (left < t) & (t <= right), (left <= t) & (t < right)).to(knots.dtype)
        for d in range(1, self.degree + 1):  # Cox and de Boor
            width = knots[d:] - knots[:-d]
            rise = (t - knots[:-d]) / torch.where(width > 0, width, 1.0)  # at the ends it multiplies zero
            values = rise[:, :-1] * values[:, :-1] + (1 - rise[:, 1:]) * values[:, 1:]
        return values

    def spline(self) -> BSpline:
        """The basis as it stands, exactly: for refinement, export and `row`. Raises ValueError if it diverged."""
        knots = self.knots().tolist()
        if not all(0 <= k <= 1 for k in knots):
            raise ValueError("the learned knots are no longer finite: the training diverged")
        return BSpline(self.degree, tuple(map(Fraction, knots)))

    @property
    def breaks(self) -> tuple[Fraction, ...]:
        """The interior knots as they stand; none if they are not finite: the solve then ends as `nonfinite`."""
        return self.spline().breaks if bool(self.log_gaps.isfinite().all()) else ()

    @property
    def sums_to_one(self) -> bool:
        return True

    def constant_coefficients(self) -> tuple[float, ...]:
        return (1.0,) * self.num_coefficients

    def continuity(self, k: Fraction) -> int:
        return self.degree - 1

    def row(self, t: Depth, from_left: bool = False) -> tuple[float, ...]:
        return self.spline().row(t, from_left)


def distinct_points(times: Times, device: torch.device) -> tuple[Tensor, list[int]]:
    """The distinct points at which the times ask, (M, 2): t within [0, 1], and 1 where it is seen from the left. And
    for each time the index of its point."""
    position: dict[tuple[float, float], int] = {}
    index = []
    for exact_t, from_left in times.points():
        t = min(max(float(exact_t), 0.0), 1.0)
        index.append(position.setdefault((t, float(t == 1 or (from_left and t > 0))), len(position)))
    return torch.tensor(list(position), dtype=torch.float64, device=device), index
