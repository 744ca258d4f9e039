"""Stochastic depth, noise, generators: what is random in a training forward, and only there."""

from functools import partial

import pytest
import torch

from gode_core.discrete import RULES, Discrete
from gode_core.fields import preactivation
from gode_core.initialisation import initialise
from gode_core.networks import stage_network
from gode_core.rules import Multistep, Residual
from gode_core.solvers import Layers
from gode_core.stochastic import NOTHING, Chance, Stochastic

RANDOM = {
    "survival": Stochastic(survival=0.4),
    "noise": Stochastic(noise=0.1),
    "released noise": Stochastic(noise=0.1, noise_kind="released"),
}


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def network_of(rule, stochastic=NOTHING):
    make_field = partial(preactivation, num_groups=2)
    network = stage_network(1, 3, 4, 2, make_field, discrete=Discrete(Layers((2,)), RULES[rule], stochastic))
    initialise(network, "torch_default", seeded())
    return network.double()


def images():
    return torch.rand(2, 1, 8, 8, dtype=torch.float64, generator=seeded(1))


def logits(network, seed):
    return network.predict(images(), Layers((2,)), generator=seeded(seed)).logits


def test_death_rates_rise_from_0_to_1_minus_p():
    rates = [Stochastic(survival=0.5).death_rate(i, 5) for i in range(5)]
    assert rates == [0, 0.125, 0.25, 0.375, 0.5]
    assert Stochastic(survival=0.5).death_rate(0, 1) == 0


def test_a_kept_branch_is_scaled_so_that_the_mean_is_the_branch():
    """E[factor] = 1; a block is kept as often as the rule says."""
    generator, n, num_draws = seeded(), 4, 4000
    draws = torch.tensor(
        [Chance(Stochastic(survival=0.4), n, True, generator).factors(n) for _ in range(num_draws)], dtype=torch.float64
    )
    survival = torch.tensor([1, 0.8, 0.6, 0.4], dtype=torch.float64)
    torch.testing.assert_close((draws > 0).double().mean(0), survival, rtol=0, atol=0.03)  # four standard errors
    torch.testing.assert_close(draws.mean(0), torch.ones(n, dtype=torch.float64), rtol=0, atol=0.08)
    torch.testing.assert_close(draws.max(0).values, 1 / survival)


def test_the_blocks_are_those_of_the_whole_network():
    """Three transitions and three times two layers; the death rate of the last is 1 - p."""
    network = network_of("residual", Stochastic(survival=1e-9))
    assert network.num_residual == 9
    network.train()
    chances = [Chance(network.stochastic, 9, True, seeded(seed)).factors(9) for seed in range(3)]
    assert all(factors[0] == 1 and factors[-1] == 0 for factors in chances)
    for seed, factors in enumerate(chances):
        solutions = network.predict(images(), Layers((2,)), generator=seeded(seed)).solutions
        kept = [sum(f > 0 for f in factors[1 + 3 * stage : 3 + 3 * stage]) for stage in range(3)]
        assert [solution.num_evals for solution in solutions] == kept


@pytest.mark.parametrize(
    ("rule", "kind"),
    [(r, k) for r in RULES for k in RANDOM if not (r == "reversible" and "noise" in k)],  # refused
)
def test_randomness_is_the_generators_and_only_in_train_mode(rule, kind):
    network, plain = network_of(rule, RANDOM[kind]), network_of(rule)
    state = torch.get_rng_state()
    assert torch.equal(logits(network, 0), logits(network, 0))
    assert len({logits(network, seed).sum().item() for seed in range(8)}) > 1
    assert torch.equal(state, torch.get_rng_state())
    network.eval(), plain.eval()
    assert torch.equal(logits(network, 0), logits(network, 1))
    assert torch.equal(logits(network, 0), logits(plain, 0))


@pytest.mark.parametrize("rule", [name for name in RULES if name != "shake_shake"])
def test_survival_1_is_no_stochastic_depth(rule):
    network, generator = network_of(rule, Stochastic(survival=1.0)), seeded()
    state = generator.get_state()
    train = network.predict(images(), Layers((2,)), generator=generator).logits
    assert torch.equal(state, generator.get_state())
    assert torch.equal(train, logits(network.eval(), 0))


def refuse(h):
    raise AssertionError("the branch of a dropped block was computed")


class Functions:
    def __init__(self, functions):
        self.functions = functions

    def at(self, times):
        return self.functions


def test_a_dropped_block_still_combines_two_states():
    """Blocks 1 and 2 dropped, block 0 kept: u_2 = (1 - k) u_1 + k u_0, and the same once more."""
    rule = Multistep(3, 1).double()
    rule.k.data.fill_(-0.5)
    chance = Chance(Stochastic(survival=1e-9), 3, True, seeded(3))
    assert chance._factors[1:] == [0, 0]
    h = torch.tensor([[1.0], [2.0]], dtype=torch.float64)
    h1, num_evals = rule(Functions([torch.cos, refuse, refuse]), h, None, chance)
    states = [h, h + h.cos()]
    for _ in range(2):
        states.append(1.5 * states[-1] - 0.5 * states[-2])
    torch.testing.assert_close(h1, states[-1])
    assert num_evals == 1


@pytest.mark.parametrize("kind", ["gaussian", "released"])
def test_noise_is_of_its_kind_behind_each_block(kind):
    chance = Chance(Stochastic(noise=0.1, noise_kind=kind), 3, True, seeded())
    zero = torch.zeros(20_000, 1, dtype=torch.float64)
    for block in range(3):
        noise = chance.disturbed(zero)
        normal = kind == "gaussian" or block == 0
        assert noise.mean().item() == pytest.approx(0 if normal else 0.05, abs=0.003)
        assert noise.std().item() == pytest.approx(0.1 if normal else 0.1 / 12**0.5, rel=0.03)
        assert (noise.min() < 0) == normal
    assert torch.equal(zero, torch.zeros_like(zero))


def test_noise_edits_no_stored_state():
    """The state before, which the two-step scheme uses again, is the one that was."""
    rule, noisy = Multistep(3, 1).double(), Stochastic(noise=0.1)
    rule.k.data.fill_(0.5)
    h = torch.ones(2, 1, dtype=torch.float64)
    h1, _ = rule(Functions([torch.zeros_like] * 3), h, None, Chance(noisy, 3, True, seeded()))
    chance, states = Chance(noisy, 3, True, seeded()), [torch.ones(2, 1, dtype=torch.float64)]
    for n in range(3):
        mixed = states[-1] if n == 0 else (states[-1] + states[-2]) / 2
        states.append(chance.disturbed(mixed))
    assert torch.equal(h, states[0])
    torch.testing.assert_close(h1, states[-1])


def test_refusals():
    with pytest.raises(ValueError, match=r"survival must lie in \(0, 1\], got 0"):
        Stochastic(survival=0)
    with pytest.raises(ValueError, match="noise must be at least 0"):
        Stochastic(noise=-1)
    with pytest.raises(ValueError, match="unknown noise `pink`"):
        Stochastic(noise_kind="pink")
    with pytest.raises(ValueError, match="reversible net goes without noise"):
        network_of("reversible", Stochastic(noise=0.1))
    assert Residual(1, 4).k is None
