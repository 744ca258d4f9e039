"""The bases without breaks: Fourier, Legendre and Chebyshev functions on [0, 1] (`bases` has the contract they keep).

No torch here: planning an experiment checks bases too.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction

Depth = Fraction | float


@dataclass(frozen=True)
class _Smooth:
    """phi_1 = 1 and others that are smooth on all of [0, 1]: theta(t) = theta_1 if the others' coefficients are zero.
    They do not sum to one."""

    num_coefficients: int

    def __post_init__(self):
        if self.num_coefficients < 1:
            raise ValueError(f"at least 1 coefficient is needed, got {self.num_coefficients}")

    @property
    def breaks(self) -> tuple[Fraction, ...]:
        return ()

    @property
    def sums_to_one(self) -> bool:
        return self.num_coefficients == 1

    def constant_coefficients(self) -> tuple[float, ...]:
        return (1.0,) + (0.0,) * (self.num_coefficients - 1)

    def continuity(self, k: Fraction) -> int:
        raise AssertionError(f"{k} is no break: there are none")


@dataclass(frozen=True)
class Fourier(_Smooth):
    """1, cos 2 pi t, sin 2 pi t, cos 4 pi t, sin 4 pi t, ...: of amplitude one, orthogonal over depth, sum_a phi_a^2 =
    (A + 1) / 2 at each t. Periodic: the two ends of the depth have the same weights. Raises ValueError if A is even."""

    def __post_init__(self):
        super().__post_init__()
        if self.num_coefficients % 2 == 0:
            raise ValueError(
                f"an odd number of coefficients is needed (1 and pairs of cosine and sine), got {self.num_coefficients}"
            )

    def row(self, t: Depth, from_left: bool = False) -> tuple[float, ...]:
        t = min(max(t, 0), 1)
        turns = [float(k * t % 1) for k in range(1, self.num_coefficients // 2 + 1)]  # whole turns fall out exactly
        return (1.0, *(f(math.tau * turn) for turn in turns for f in (math.cos, math.sin)))


@dataclass(frozen=True)
class Legendre(_Smooth):
    """P_0 .. P_{A-1} of 2 t - 1: orthogonal over depth, one at t = 1, so the integral of phi_a^2 is 1 / (2 a - 1)."""

    def row(self, t: Depth, from_left: bool = False) -> tuple[float, ...]:
        x = float(2 * min(max(t, 0), 1) - 1)
        values = [1.0, x]
        for n in range(1, self.num_coefficients - 1):
            values.append(((2 * n + 1) * x * values[n] - n * values[n - 1]) / (n + 1))
        return tuple(values[: self.num_coefficients])


@dataclass(frozen=True)
class Chebyshev(_Smooth):
    """T_0 .. T_{A-1} of 2 t - 1, with T_n(cos x) = cos(n x): of amplitude one, fine near both ends of the depth."""

    def row(self, t: Depth, from_left: bool = False) -> tuple[float, ...]:
        x = float(2 * min(max(t, 0), 1) - 1)
        values = [1.0, x]
        for n in range(1, self.num_coefficients - 1):
            values.append(2 * x * values[n] - values[n - 1])
        return tuple(values[: self.num_coefficients])
