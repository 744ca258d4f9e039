"""Intervals and bounds from counts: their scores, their exact coverage, and how many samples they need."""

from __future__ import annotations

import math
from itertools import product

import pytest
from scipy.optimize import minimize_scalar
from scipy.stats import beta, binom, multinomial, norm

from gode_core.intervals import best_guess, paired_interval, share_bound

COUNTS = [(0, 0, 50), (3, 0, 20), (0, 7, 40), (12, 5, 100), (30, 30, 60), (20, 0, 20), (4, 9, 1000), (130, 20, 1000)]


@pytest.mark.parametrize(("lost", "gained", "n"), COUNTS)
@pytest.mark.parametrize("confidence", [0.8, 0.95, 0.99])
def test_at_both_bounds_the_score_is_the_quantile(lost, gained, n, confidence):
    """The score of D: (lost - gained - n D) / its standard deviation at the most likely probabilities of the three
    outcomes whose difference is D, here found by a search."""
    low, high = paired_interval(lost, gained, n, confidence)
    z = norm.ppf((1 + confidence) / 2)
    for d, wanted in ((low, z), (high, -z)):
        if abs(d) == 1:  # nothing is random there
            continue

        def minus_log_likelihood(q, d=d):
            cells = ((lost, q + d), (gained, q), (n - lost - gained, 1 - 2 * q - d))
            return -sum(count * math.log(max(p, 1e-300)) for count, p in cells if count)

        span = (max(0.0, -d), (1 - d) / 2)
        q = minimize_scalar(minus_log_likelihood, bounds=span, method="bounded", options={"xatol": 1e-12}).x
        score = (lost - gained - n * d) / math.sqrt(n * (2 * q + d * (1 - d)))
        assert score == pytest.approx(wanted, rel=1e-3)


@pytest.mark.parametrize(
    ("n", "p_lost", "p_gained"),
    [(50, 0.3, 0.1), (100, 0.05, 0.05), (100, 0.5, 0.02), (360, 0.02, 0.01), (1000, 0.03, 0.02), (1000, 0.002, 0.002)],
)
@pytest.mark.parametrize("confidence", [0.9, 0.95])
def test_coverage(n, p_lost, p_gained, confidence):
    """The probability that the interval holds p_lost - p_gained, summed over all outcomes with a share in it: exact,
    no simulation. From below by 1.5 points; and where counts are not small from above too, so that it is not wide."""
    mean, spread = n * (p_lost + p_gained), 7 * math.sqrt(n * (p_lost + p_gained)) + 4
    total = covered = 0.0
    for lost, gained in product(range(math.ceil(min(n, mean + spread)) + 1), repeat=2):
        if lost + gained > n:
            continue
        weight = _trinomial(lost, gained, n, p_lost, p_gained)
        if weight > 1e-7:
            total += weight
            low, high = paired_interval(lost, gained, n, confidence)
            covered += weight * (low <= p_lost - p_gained <= high)
    assert total > 0.9995
    assert covered > confidence - 0.015
    assert covered < confidence + 0.02 or mean < 8


def _trinomial(lost, gained, n, p_lost, p_gained):
    rest = n - lost - gained
    logs = [math.lgamma(n + 1), *(-math.lgamma(k + 1) for k in (lost, gained, rest))]
    cells = ((lost, p_lost), (gained, p_gained), (rest, 1 - p_lost - p_gained))
    return math.exp(sum(logs) + sum(k * math.log(p) for k, p in cells))


def test_the_weights_of_the_coverage_are_those_of_the_multinomial():
    assert _trinomial(3, 5, 20, 0.1, 0.3) == pytest.approx(multinomial.pmf([3, 5, 12], 20, [0.1, 0.3, 0.6]))


@pytest.mark.parametrize(("lost", "gained", "n"), COUNTS)
def test_an_interval_holds_the_gap_turns_with_its_sign_and_narrows(lost, gained, n):
    low, high = paired_interval(lost, gained, n, 0.95)
    assert -1 <= low <= (lost - gained) / n <= high <= 1
    assert paired_interval(gained, lost, n, 0.95) == (-high, -low)
    more_low, more_high = paired_interval(4 * lost, 4 * gained, 4 * n, 0.95)
    assert (more_high - more_low) < 0.7 * (high - low)
    less_low, less_high = paired_interval(lost, gained, n, 0.9)
    assert low <= less_low
    assert less_high <= high
    assert (low, high) != (less_low, less_high)


@pytest.mark.parametrize("n", [1, 10, 360, 10_000])
def test_without_discordant_samples_the_width_has_a_closed_form(n):
    """n D^2 = z^2 |D| (1 - |D|)."""
    z = norm.ppf(0.975)
    assert paired_interval(0, 0, n, 0.95) == pytest.approx((-z * z / (n + z * z), z * z / (n + z * z)), rel=1e-9)


def test_as_many_samples_as_the_docstring_says_are_needed():
    assert paired_interval(0, 0, 380, 0.95)[1] > 0.01
    assert paired_interval(0, 0, 381, 0.95)[1] < 0.01


@pytest.mark.parametrize(("lost", "gained", "n"), [(-1, 0, 5), (0, -1, 5), (3, 3, 5), (0, 0, 0)])
def test_counts_that_cannot_be_are_refused(lost, gained, n):
    with pytest.raises(ValueError, match="not possible"):
        paired_interval(lost, gained, n, 0.95)


@pytest.mark.parametrize("confidence", [0, 1, 95, math.nan])
def test_confidence_is_no_percentage(confidence):
    with pytest.raises(ValueError, match=r"confidence must lie in \(0, 1\)"):
        paired_interval(1, 2, 30, confidence)


def test_a_guess_is_not_exceeded_as_often_as_stated():
    """Of 1000 draws, exactly: at most 5 % and not far below, for any share that is neither 0 nor 1."""
    for share in (0.1, 0.5, 0.9):
        bound = best_guess(share, 1000, 0.95)
        assert 0.035 < binom.sf(math.floor(1000 * bound), 1000, share) < 0.06
    assert (best_guess(1.0, 10, 0.95), best_guess(0.0, 10, 0.95)) == (1.0, 0.0)
    assert best_guess(0.5, 1000, 0.99) > best_guess(0.5, 1000, 0.95) > best_guess(0.5, 10_000, 0.95)


@pytest.mark.parametrize(("found", "n"), [(0, 1), (0, 144), (0, 149), (4, 512), (5, 512), (60, 128), (127, 128)])
@pytest.mark.parametrize("confidence", [0.8, 0.95, 0.999])
def test_at_the_bound_of_a_share_so_few_are_as_rare_as_stated(found, n, confidence):
    """And it is the quantile of the beta distribution."""
    bound = share_bound(found, n, confidence)
    assert binom.cdf(found, n, bound) == pytest.approx(1 - confidence)
    assert bound == pytest.approx(beta.ppf(confidence, found + 1, n - found))


def test_few_samples_bound_no_share():
    assert share_bound(0, 148, 0.95) > 0.02 > share_bound(0, 149, 0.95)
    assert share_bound(5, 512, 0.95) > 0.02 > share_bound(4, 512, 0.95)
    assert share_bound(7, 7, 0.95) == 1
    for found, n in ((-1, 5), (6, 5), (0, 0)):
        with pytest.raises(ValueError, match="not possible"):
            share_bound(found, n, 0.95)
