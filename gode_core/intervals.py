"""What counts of samples tell of shares: bounds on a difference of accuracies, on a share, on what a guess may have.

No torch here.
"""

from __future__ import annotations

import math
from statistics import NormalDist


def paired_interval(num_lost: int, num_gained: int, num_samples: int, confidence: float) -> tuple[float, float]:
    """The score interval of the gap (Tango 1998, Statistics in Medicine 17, 891-908), of asymptotic coverage
    `confidence`: all D with

        |lost - gained - n D| <= z sqrt(n (2 q + D (1 - D))),

    q being the most likely probability of `gained` if the gap is D. It lies in [-1, 1], contains the gap, and with no
    discordant sample at all it is +- z^2 / (n + z^2): 381 samples are the fewest that can show, at 95 %, that a gap is
    below 0.01.
    """
    if min(num_lost, num_gained) < 0 or num_lost + num_gained > num_samples or num_samples < 1:
        raise ValueError(f"{num_lost} samples lost and {num_gained} gained, of {num_samples}: not possible")
    check_share("confidence", confidence)
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    return -_upper(num_gained, num_lost, num_samples, z), _upper(num_lost, num_gained, num_samples, z)


def _upper(lost: int, gained: int, n: int, z: float) -> float:
    """The largest D of the interval, by bisection: the score falls with D."""
    inside, outside = (lost - gained) / n, 1.0
    for _ in range(54):  # as many as a float has digits
        d = (inside + outside) / 2
        b = (2 * n - lost + gained) * d - lost - gained  # q is the larger root of 2 n q^2 + b q = gained d (1 - d)
        q = (math.sqrt(max(0.0, b * b + 8 * n * gained * d * (1 - d))) - b) / (4 * n)
        if n * d - lost + gained <= z * math.sqrt(max(0.0, n * (2 * q + d * (1 - d)))):
            inside = d
        else:
            outside = d
    return inside


def check_share(name: str, value: float) -> None:
    if not 0 < value < 1:
        raise ValueError(f"{name} must lie in (0, 1), got {value:g}")


def best_guess(share: float, num_samples: int, confidence: float) -> float:
    """The accuracy that always guessing one class does not exceed, at this one-sided confidence (by the normal
    distribution): of `num_samples`, if a `share` of all is of the class. A net with no more has learned nothing.
    Columns of numbers will do."""
    return share + NormalDist().inv_cdf(confidence) * (share * (1 - share) / num_samples) ** 0.5


def share_bound(num_found: int, num_samples: int, confidence: float) -> float:
    """The one-sided upper bound on a share of which `num_found` of `num_samples` were seen (Clopper and Pearson 1934,
    Biometrika 26, 404-413): at it so few are seen with the probability 1 - confidence, at any larger share with less.
    Exact, so it holds for few samples too: 149 without one are the fewest that show, at 95 %, a share below 0.02."""
    if not 0 <= num_found <= num_samples or num_samples < 1:
        raise ValueError(f"{num_found} found of {num_samples} samples: not possible")
    check_share("confidence", confidence)
    if num_found == num_samples:
        return 1.0
    inside, outside = num_found / num_samples, 1.0
    for _ in range(54):  # as many as a float has digits
        share = (inside + outside) / 2
        if _at_most(num_found, num_samples, share) >= 1 - confidence:
            inside = share
        else:
            outside = share
    return outside


def _at_most(k: int, n: int, p: float) -> float:
    """The probability of at most k of n, each with 0 < p < 1."""
    logs = (math.lgamma(n + 1) - math.lgamma(i + 1) - math.lgamma(n - i + 1) for i in range(k + 1))
    return math.fsum(math.exp(log + i * math.log(p) + (n - i) * math.log1p(-p)) for i, log in enumerate(logs))
