"""Several networks on images as one computation: the laws of `test_stacked`."""

import pytest
import torch
from test_stacked import BASES, SIZE, SOLVERS, TOLERANCES, check_each, drawn, network

from gode_core.layers import DepthConv, beside

IMAGES = {"one channel": ((1, 4, 5), {}), "padded": ((2, 4, 3), {"pad_channels": 3, "vary_all": False})}


@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
@pytest.mark.parametrize(("solver", "gradient"), [(SOLVERS[0], "direct"), (SOLVERS[1], "checkpoint")], ids=str)
@pytest.mark.parametrize("shape", IMAGES)
@pytest.mark.parametrize("name", BASES)
def test_so_it_is_on_images(name, shape, solver, gradient, dtype):
    size, options = IMAGES[shape]
    networks = [network(seed, BASES[name], dtype, size, scale=0.7, **options) for seed in range(SIZE)]
    check_each(networks, size, solver, gradient, dtype)


@pytest.mark.parametrize(("kernel", "c_in", "c_out"), [(1, 4, 16), (3, 16, 16), (1, 16, 4)])
def test_a_convolution_of_images_has_the_bits_that_it_has_alone(kernel, c_in, c_out):
    """Forwards and back, of a width that is a multiple of 16: what one model gets is nothing to the others' number."""
    h, upstream = (drawn(5, 16, c, 5, 7, seed=c, dtype=torch.float32) for c in (c_in, c_out))
    weight, bias = (drawn(5, *shape, dtype=torch.float32) for shape in ((c_out, c_in, kernel, kernel), (c_out,)))

    def found(some):
        own = [x[some].clone().requires_grad_() for x in (h, weight, bias)]
        out = DepthConv(c_in, c_out, kernel, 2, 1, 1).at(0.0, *own[1:])(beside(own[0]))
        return [out, *torch.autograd.grad(out, own, beside(upstream[some]))]

    for some in ([0], [3], [4, 1], [0, 1, 2, 3]):
        for one, other in zip(found(some), found([0, 1, 2, 3, 4]), strict=True):
            assert torch.equal(one, other[some])
