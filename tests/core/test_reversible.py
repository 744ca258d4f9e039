"""RevNets: invertible, and backpropagation from the output alone is backpropagation (float64)."""

from functools import partial

import pytest
import torch

from gode_core.bases import clamped
from gode_core.discrete import DiscreteBlock
from gode_core.fields import preactivation
from gode_core.reversible import Reversible
from gode_core.stochastic import Chance, Stochastic

B, C, SIZE = 3, 8, 6


def normal(*shape, seed=1):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def block_of(num_layers, recompute=True, **options):
    field = preactivation(C // 2, 2, clamped(0, 2 * num_layers), **options).double()
    for i, parameter in enumerate(field.parameters()):
        parameter.data.copy_(0.3 * normal(*parameter.shape, seed=i))
    return DiscreteBlock(field, Reversible(num_layers, C, recompute=recompute))


def forward_and_gradients(block, chance=None, h=None):
    h = (normal(B, C, SIZE, SIZE) if h is None else h).requires_grad_()
    h1 = block(h, None, chance).h1
    h1.square().sum().backward()
    return [h1, h.grad, *(p.grad for p in block.field.parameters())]


@pytest.mark.parametrize("recompute", [False, True])
def test_by_hand(recompute):
    block = block_of(2, recompute)
    found = forward_and_gradients(block)
    f0, g0, f1, g1 = block.field.at(block.rule.times)
    h = normal(B, C, SIZE, SIZE).requires_grad_()
    x, y = h[:, : C // 2], h[:, C // 2 :]
    x = x + f0(y)
    y = y + g0(x)
    x = x + f1(y)
    y = y + g1(x)
    h1 = torch.cat([x, y], 1)
    wanted = torch.autograd.grad(h1.square().sum(), [h, *block.field.parameters()])
    torch.testing.assert_close(found, [h1, *wanted], rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("norm", ["group", "batch"])
@pytest.mark.parametrize("vary_all", [True, False])
def test_recomputed_gradient_is_the_stored_ones(training, norm, vary_all):
    """Weights that all layers share (vary_all False) add up their gradients."""
    ours, theirs = (block_of(3, r, norm=norm, vary_all=vary_all).train(training) for r in (True, False))
    torch.testing.assert_close(forward_and_gradients(ours), forward_and_gradients(theirs), rtol=1e-9, atol=1e-9)
    for name, statistics in theirs.named_buffers():
        assert torch.equal(statistics, ours.get_buffer(name)), "recomputation must not update statistics"


def test_recomputed_gradient_under_stochastic_depth():
    found, wanted = (
        forward_and_gradients(
            block_of(4, recompute), Chance(Stochastic(survival=0.3), 4, True, torch.Generator().manual_seed(0))
        )
        for recompute in (True, False)
    )
    assert any((grad[2 * n] == 0).all() for grad in wanted[2:] for n in range(4)), "no block was dropped"
    torch.testing.assert_close(found, wanted, rtol=1e-10, atol=1e-10)


def test_recomputed_gradient_under_autocast():
    """Recomputation rounds as the forward pass did: the same gradient up to float32."""
    results = []
    for recompute in (True, False):
        block = block_of(2, recompute).float()
        h = normal(B, C, SIZE, SIZE).float().requires_grad_()
        with torch.autocast("cpu", torch.bfloat16):
            h1 = block(h).h1
        assert h1.dtype == torch.float32
        h1.square().sum().backward()
        results.append([h1, h.grad])
    torch.testing.assert_close(*results, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("num_layers", [1, 5])
def test_the_inverse_gives_the_input_back(num_layers):
    block, h = block_of(num_layers), normal(B, C, SIZE, SIZE)
    with torch.no_grad():
        back = block.rule.inverse(block.field, block(h).h1)
    torch.testing.assert_close(back, h, rtol=1e-11, atol=1e-11)


def saved_bytes(block):
    """Of all that autograd keeps for the backward pass, beside the weights."""
    weights = {p.untyped_storage().data_ptr() for p in block.parameters()}
    kept = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = (storage.nbytes(), tensor)  # the tensor, so that no address is used again
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        h1 = block(normal(B, C, SIZE, SIZE).requires_grad_()).h1
    assert h1.requires_grad
    return sum(size for size, _ in kept.values())


def test_memory_does_not_grow_with_the_number_of_layers():
    state = B * C * SIZE * SIZE * 8
    assert saved_bytes(block_of(2)) == saved_bytes(block_of(12)) == state
    assert saved_bytes(block_of(12, recompute=False)) > 5 * saved_bytes(block_of(2, recompute=False)) > 5 * state


def test_channels_must_be_even():
    with pytest.raises(ValueError, match="must be even, got 5"):
        Reversible(2, 5)


def test_points_have_one_channel_and_are_refused():
    from gode_core.discrete import Discrete
    from gode_core.networks import raw_network
    from gode_core.solvers import Layers

    with pytest.raises(ValueError, match="must be even, got 1"):
        raw_network((1, 2), 2, 4, None, discrete=Discrete(Layers((2,)), partial(Reversible, recompute=False)))
