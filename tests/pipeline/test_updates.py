"""Optimiser steps of several trainings at once are those of a torch.optim for each, to the bit."""

import pytest
import torch

from pipeline.updates import Updates

SHAPES = [(3, 16, 1), (7,), (1,), (2, 5)]  # with the rest of a vector, and less than one
KINDS = {
    "adam": lambda own, lr, decay: torch.optim.Adam(own, lr, weight_decay=decay),
    "adamw": lambda own, lr, decay: torch.optim.AdamW(own, lr, weight_decay=decay),
    "sgd": lambda own, lr, decay: torch.optim.SGD(own, lr, weight_decay=decay),
    "momentum": lambda own, lr, decay: torch.optim.SGD(own, lr, momentum=0.9, weight_decay=decay),
}
RATES = [1e-3, 0.3, 2e-2]
DECAYS = {"all": [0.1, 1e-4, 0.03], "some": [0.0, 0.2, 0.0], "none": [0.0] * 3}


def made(kind, decays, seed=0):
    """For each of three trainings its weights and its optimiser."""
    generator = torch.Generator().manual_seed(seed)
    own = [[torch.randn(shape, generator=generator).requires_grad_() for shape in SHAPES] for _ in RATES]
    return own, [KINDS[kind](each, lr, decay) for each, lr, decay in zip(own, RATES, decays)]


@pytest.mark.parametrize("decays", DECAYS)
@pytest.mark.parametrize("kind", KINDS)
def test_each_has_the_bits_that_torch_gives_it_alone(kind, decays):
    """With rates that change, and given back and taken again in the middle: weights and state."""
    own, optimisers = made(kind, DECAYS[decays])
    alone, expected = made(kind, DECAYS[decays])
    together = [torch.stack([p.detach() for p in each]).requires_grad_() for each in zip(*own)]
    generator, updates = torch.Generator().manual_seed(1), Updates(together, optimisers)
    for step in range(12):
        if step in (1, 7):
            updates.give_back()
            updates = Updates(together, optimisers)
        for both in zip(optimisers, expected):
            for optimiser in both:
                optimiser.param_groups[0]["lr"] *= 0.9
        for parameter, each in zip(together, zip(*alone)):
            parameter.grad = torch.randn(parameter.shape, generator=generator) * 10.0 ** -(step % 4)
            for p, gradient in zip(each, parameter.grad):
                p.grad = gradient.clone()
        updates.step()
        for optimiser in expected:
            optimiser.step()
    updates.give_back()
    for parameter, each in zip(together, zip(*alone)):
        assert torch.equal(parameter, torch.stack(each))
    for optimiser, other in zip(optimisers, expected):
        assert str(optimiser.state_dict()) == str(other.state_dict())
