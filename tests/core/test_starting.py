"""The first step's length against the rule done by hand, its limits, and its scaling laws."""

import math

import pytest
import torch
from torch import nn

from gode_core import starting
from gode_core.bases import constant
from gode_core.fields import bottleneck


def starting_step(f, h0, order):
    """Of a field that does not depend on depth."""
    return starting.starting_step(lambda _, h: f(h), h0, order)


class Counted:
    """A field that counts its calls."""

    def __init__(self, f):
        self.f, self.calls = f, 0

    def __call__(self, h):
        self.calls += 1
        return self.f(h)


def points(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@pytest.mark.parametrize("order", [1, 2, 4])
@pytest.mark.parametrize("rate", [0.3, -4.0, 50.0])
def test_a_linear_field_by_hand(order, rate):
    """f = r h has d1 = |r| d0, a = 0.01 / |r| and d2 = r^2 d0: with d0 = 5, all in closed form."""
    f = Counted(lambda h: rate * h)
    h0 = torch.tensor([[3.0, 4.0], [0.0, -5.0], [-4.0, 3.0]], dtype=torch.float64)
    steepest = 5 * max(abs(rate), rate**2)
    expected = min(1 / abs(rate), (0.01 / steepest) ** (1 / (order + 1)))
    assert starting_step(f, h0, order) == pytest.approx(expected, rel=1e-9)
    assert f.calls == 2


def test_a_coupled_linear_field_by_hand():
    """h' = M h with two points: every norm written out."""
    matrix = torch.tensor([[1.0, 2.0], [0.0, -3.0]], dtype=torch.float64)
    d0 = (1 + 2) / 2  # of (1, 0) and (0, 2)
    d1 = (1 + math.hypot(4, -6)) / 2  # M (1, 0) = (1, 0), M (0, 2) = (4, -6)
    d2 = (1 + math.hypot(4 - 12, 18)) / 2  # M M h: what the probe finds, whatever its length
    expected = min(100 * 0.01 * d0 / d1, (0.01 / max(d1, d2)) ** (1 / 2))
    found = starting_step(lambda h: h @ matrix.T, torch.tensor([[1.0, 0.0], [0.0, 2.0]], dtype=torch.float64), 1)
    assert found == pytest.approx(expected, rel=1e-9)


def test_the_probe_bounds_the_step_where_the_state_is_small():
    """d0 = 10^-3 and f = 1: 100 a = d0 / d1 = 10^-3, below (0.01 / 1)^(1/2)."""
    h0 = torch.full((4, 1), 1e-3, dtype=torch.float64)
    assert starting_step(torch.ones_like, h0, 1) == pytest.approx(1e-3, rel=1e-9)


@pytest.mark.parametrize("d0", [0.0, 0.9e-5])
def test_a_state_near_zero_is_probed_with_a_millionth(d0):
    h0 = torch.full((4, 1), d0, dtype=torch.float64)
    assert starting_step(torch.ones_like, h0, 1) == pytest.approx(1e-4, rel=1e-9)  # 100 a


def test_depth_goes_ahead_with_the_probe_and_the_norm_may_be_another():
    """f = t, in the norm 7 |x|: d0 = 7 and d1 = 0, so a = 10^-6, and d2 = 7 a / a."""
    asked = []

    def f(ahead, h):
        asked.append(ahead)
        return torch.full_like(h, ahead)

    one = torch.ones(3, 1, dtype=torch.float64)
    assert starting.starting_step(f, one, 1, lambda x: 7 * x.abs().mean().item()) == pytest.approx(1e-4)
    assert asked == [0.0, 1e-6]
    f = {0: 1.0, 0.01: 201.0}  # a = 0.01 d0 / d1; d2 = 200 / 0.01 times the norm's factor
    norm = starting.starting_step(lambda t, h: f[t] * h, one, 1, lambda x: 0.5 * x.abs().mean().item())
    assert norm == pytest.approx(math.sqrt(0.01 / (0.5 * (201 * 1.01 - 1) / 0.01)))


def test_no_slope_at_all():
    """d1 = d2 = 0: a = 10^-6, b = max(10^-6, 10^-9)."""
    assert starting_step(torch.zeros_like, points(5, 3), 4) == 1e-6


@pytest.mark.parametrize("order", [1, 4])
def test_a_huge_field_makes_the_step_fall_to_zero_without_overflow(order):
    """f = r h: 1/r for the probe, (0.01 / (r^2 d0))^(1/(p+1)) for the curvature."""
    h0 = points(7, 3)
    d0 = h0.norm(dim=-1).mean().item()
    for rate in (1e3, 1e6, 1e9):
        expected = min(1 / rate, (0.01 / (rate**2 * d0)) ** (1 / (order + 1)))
        assert starting_step(lambda h, r=rate: r * h, h0, order) == pytest.approx(expected, rel=1e-6)
    assert 0 <= starting_step(lambda h: 1e200 * h, h0, order) < 1e-60


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_what_is_not_finite_has_no_step(value):
    h0 = points(5, 3)
    assert starting_step(lambda h: torch.full_like(h, value), h0, 2) == 0
    assert starting_step(torch.ones_like, h0 * value, 2) == 0
    seen = iter([torch.ones_like(h0), torch.full_like(h0, value)])
    assert starting_step(lambda h: next(seen), h0, 2) == 0  # of the probe alone


def test_the_norm_is_that_of_the_last_axis():
    """Rows of an image: a transposed image has another norm, a larger batch of the same images has not."""
    h0 = torch.zeros(2, 1, 2, 8, dtype=torch.float64)
    h0[:, :, 0] = 1.0  # rows of length sqrt(8) and 0: mean sqrt(2); columns of length 1: mean 1
    f = torch.ones_like  # d1 = sqrt(8); of the transposed sqrt(2): the probe is d0 / d1 / 100
    assert starting_step(f, h0, 1) == pytest.approx(min(1 / 2, math.sqrt(0.01 / math.sqrt(8))))
    assert starting_step(f, 0.1 * h0, 1) == pytest.approx(0.05)
    assert starting_step(f, 0.1 * h0.mT, 1) == pytest.approx(0.1 * 1 / math.sqrt(2))
    assert starting_step(f, h0.repeat(3, 1, 1, 1), 1) == pytest.approx(starting_step(f, h0, 1))


def test_a_network_field_has_a_step_and_keeps_no_graph():
    field = bottleneck(1, 8, 1, constant())
    for parameter in field.parameters():
        nn.init.normal_(parameter, 0, 0.3, generator=torch.Generator().manual_seed(1))
    seen = []
    step = starting_step(lambda h: seen.append(field(0.0, h)) or seen[-1], points(16, 1, 2).float(), 1)
    assert 0 < step < 1
    assert len(seen) == 2
    assert not any(x.requires_grad for x in seen)


def test_an_order_below_one_is_refused():
    with pytest.raises(ValueError, match="order must be at least 1, got 0"):
        starting_step(torch.ones_like, points(2, 2), 0)
