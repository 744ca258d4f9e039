"""Bridges: the same function where it can be, the nearest weights where not, and the optimiser's motion with them."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import nn

from gode_core.bases import Basis, Chebyshev, Fourier, Legendre, clamped, constant, hat, unclamped
from gode_core.classifier import Block, Network
from gode_core.conversion import carry, carry_optimiser, resnet_of
from gode_core.depth_norms import DepthBatchNorm, Norm
from gode_core.discrete import RULES, Discrete
from gode_core.evolution import evolve
from gode_core.fields import Field, preactivation
from gode_core.free_knots import FreeKnots
from gode_core.refinement import change_of_basis, elevate, refined
from gode_core.solvers import Layers, parse_solver
from gode_core.transitions import plain_norm

C, SIZE = 4, 3


def net(
    basis: Basis,
    /,
    law: str | None = None,
    *,
    seed=0,
    norm: Norm = "group",
    statistics=5,
    vary_all=True,
    scale=1.5,
    **more,
):
    """In float64 and eval mode, everything in it drawn."""
    field = preactivation(C, 2, basis, vary_all, scale, norm=norm, statistics=statistics)
    if law:
        evolve(field, law, method="rk4", num_steps=2, vary_all=vary_all, **more)
    return drawn(Block(field), norm, seed)


def discrete(rule: str, layers: int, *, seed=0, norm: Norm = "group", has_previous=False, **options) -> Network:
    make = Discrete(Layers((layers,)), partial(RULES[rule], **options))
    return drawn(make.block(partial(preactivation, num_groups=2, norm=norm), 0, C, has_previous), norm, seed)


def drawn(block: nn.Module, norm: Norm, seed: int) -> Network:
    network = Network(nn.Conv2d(1, C, 3), plain_norm(norm, C, 2), block, nn.Flatten(), nn.Linear(C * SIZE**2, 3))
    generator = torch.Generator().manual_seed(seed)
    network.double().eval()
    for parameter in network.parameters():
        parameter.data.normal_(0, 0.3, generator=generator)
    for layer in network.modules():
        if isinstance(layer, DepthBatchNorm):
            layer.mean.normal_(0, 0.3, generator=generator)
            layer.variance.uniform_(0.2, 2, generator=generator)
    return network


def images() -> torch.Tensor:
    generator = torch.Generator().manual_seed(7)
    return torch.randn(2, 1, SIZE + 2, SIZE + 2, dtype=torch.float64, generator=generator)


def judged(network: Network, solver: str) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Logits, and the gradient of their sum of squares in the images and in each parameter."""
    x = images().requires_grad_()
    logits = network(x, parse_solver(solver))
    network.zero_grad()
    logits.square().sum().backward()
    gradients = {name: p.grad for name, p in network.named_parameters() if p.grad is not None}
    return logits.detach(), {"images": x.grad} | gradients  # type: ignore[dict-item]


def check_same(one: Network, other: Network, solver: str, theirs: str | None = None, atol=1e-12) -> None:
    """One function: logits, gradients in the images and in what does not depend on depth."""
    logits, gradients = judged(one, solver)
    again, more = judged(other, theirs or solver)
    assert logits.abs().max() > 1e-3
    torch.testing.assert_close(again, logits, rtol=0, atol=atol)
    plain = [name for name in gradients if name in more and ".field." not in name and ".rule." not in name]
    assert len(plain) >= 5
    for name in plain:
        torch.testing.assert_close(more[name], gradients[name], rtol=0, atol=10 * atol)


def field_of(network: Network) -> Field:
    return network.fields[0]


CARRIERS = {
    "constant": partial(net, constant()),
    "pieces": partial(net, clamped(0, 4)),
    "hats": partial(net, hat([0, "1/3", 1])),
    "cubic": partial(net, clamped(3, 6)),
    "unclamped": partial(net, unclamped(2, 4)),
    "fourier": partial(net, Fourier(3)),
    "legendre": partial(net, Legendre(4)),
    "chebyshev": partial(net, Chebyshev(C)),  # as many as channels
    "free knots": lambda **options: net(FreeKnots(2, 5), **options),
    "kernels alone": partial(net, clamped(1, 3), vary_all=False),
    "linear": partial(net, constant(), "linear", rank=2),
    "network": partial(net, constant(), "network", width=3),
    "path": partial(net, constant(), "path", basis=clamped(1, 3)),
    "reaction_diffusion": partial(net, constant(), "reaction_diffusion", sigma="tanh"),
    "linear, kernels alone": partial(net, constant(), "linear", rank=2, vary_all=False),
}


@pytest.mark.parametrize("n", [1, 3])
@pytest.mark.parametrize("norm", ["group", "batch"])
@pytest.mark.parametrize("carrier", CARRIERS)
def test_under_euler_an_ode_is_a_resnet(carrier, norm, n):
    ode = CARRIERS[carrier](norm=norm)
    resnet = net(clamped(0, n), seed=1, norm=norm)
    resnet_of(ode, resnet)
    check_same(ode, resnet, f"euler@{n}")


@pytest.mark.parametrize("norm", ["group", "batch"])
@pytest.mark.parametrize("rule", ["residual", "multistep"])
def test_with_a_time_scale_of_n_it_is_a_discrete_net_and_back(rule, norm):
    ode = net(clamped(2, 5), scale=4.0, norm=norm)
    layers = discrete(rule, 4, seed=1, norm=norm)
    resnet_of(ode, layers)
    check_same(ode, layers, "euler@4", "layers@4")
    resnet = net(clamped(0, 4), seed=2, scale=4.0, norm=norm)
    assert carry(layers, resnet).exact
    check_same(layers, resnet, "layers@4", "euler@4")
    again = discrete(rule, 4, seed=3, norm=norm)
    assert carry(resnet, again).exact
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in layers.state_dict().items())
    finer = net(clamped(0, 8), seed=4, scale=4.0, norm=norm)
    carry(layers, finer)
    check_same(resnet, finer, "midpoint@8")


@pytest.mark.parametrize(
    ("norm", "between"),
    [
        ("group", clamped(0, 3)),
        ("group", clamped(0, 6)),
        ("group", elevate(clamped(0, 3), 2)),
        ("batch", clamped(0, 3)),
        ("batch", clamped(0, 6)),  # on hats, for a curve, statistics could not jump
    ],
)
def test_a_resnet_comes_back_from_an_ode(norm, between):
    resnet, ode, again = (
        net(basis, seed=i, norm=norm) for i, basis in enumerate((clamped(0, 3), between, clamped(0, 3)))
    )
    assert carry(resnet, ode).exact
    resnet_of(ode, again)
    for name, value in resnet.state_dict().items():
        torch.testing.assert_close(again.state_dict()[name], value, rtol=0, atol=1e-15)


UNIFORM = clamped(2, 5)
EXACT = {
    "constant to pieces": (constant(), clamped(0, 4)),
    "constant to hats": (constant(), clamped(1, C)),
    "constant to cubic": (constant(), clamped(3, 5)),
    "constant to fourier": (constant(), Fourier(3)),
    "constant to legendre": (constant(), Legendre(3)),
    "knots": (UNIFORM, refined(UNIFORM)),
    "degree": (UNIFORM, elevate(UNIFORM)),
    "pieces halved": (clamped(0, 2), clamped(0, 4)),
    "unclamped": (unclamped(1, 3), refined(unclamped(1, 3))),
    "fourier": (Fourier(3), Fourier(5)),
    "chebyshev to splines": (Chebyshev(3), clamped(2, 5)),
    "equal number, other kind": (clamped(3, C), Legendre(C)),
    "equal number, other degree": (hat([0, "1/2", 1]), clamped(1, 3)),
}


@pytest.mark.parametrize("vary_all", [True, False])
@pytest.mark.parametrize("pair", EXACT)
def test_where_the_new_basis_holds_the_old_one_nothing_changes(pair, vary_all):
    """Under one-step methods, on the knots too. By the chain rule each old gradient is M^T times the new one."""
    before, after = EXACT[pair]
    old, new = net(before, vary_all=vary_all), net(after, seed=1, vary_all=vary_all)
    carried = carry(old, new)
    assert (carried.exact, carried.error) == (True, 0)
    for solver in ("euler@3", "rk4@4", "midpoint@5"):
        check_same(old, new, solver)
    _, gradients = judged(old, "rk4@4")
    _, finer = judged(new, "rk4@4")
    for name, gradient in gradients.items():
        matrix, there = carried.matrices.get(name), finer[name]
        wanted = there if matrix is None else torch.tensordot(matrix.T, there, 1)
        torch.testing.assert_close(gradient, wanted, rtol=0, atol=1e-11)
    assert any("weight" in name for name in carried.matrices) or before == after


@pytest.mark.parametrize("solver", ["ab2@8", "dopri5@1e-3"])
def test_methods_that_stop_at_breaks_see_only_those_that_were_there(solver):
    """A raised degree has no new breaks: the steps are the same. New knots would begin a multistep method again."""
    old, new = net(UNIFORM), net(elevate(UNIFORM), seed=1)
    carry(old, new)
    check_same(old, new, solver, atol=1e-10)


@pytest.mark.parametrize(
    ("before", "after", "nodes"),
    [
        (clamped(0, 2), clamped(0, 4), (5, 5)),
        (constant(), clamped(1, 5), (5, 5)),  # as many coefficients as nodes
        (clamped(1, 5), clamped(1, 9), (5, 9)),
        (clamped(1, 3), elevate(clamped(1, 3)), (3, 5)),
    ],
)
def test_the_statistics_of_batch_norms_are_functions_of_depth_too(before, after, nodes):
    old = net(before, norm="batch", statistics=nodes[0])
    new = net(after, seed=1, norm="batch", statistics=nodes[1])
    carried = carry(old, new)
    assert (carried.exact, carried.error) == (True, 0)
    check_same(old, new, "rk4@3")
    check_same(old.train(), new.train(), "rk4@3")


def test_statistics_on_another_basis_stay_positive_and_are_no_exact_change():
    """A Neural ODE's are hats, those of pieces are pieces: theta(t) is kept, the statistics are projected."""
    old, new = net(constant(), norm="batch"), net(clamped(0, 3), seed=1, norm="batch")
    carried = carry(old, new)
    assert (carried.exact, carried.error) == (False, 0)

    old, new = net(clamped(0, 4), norm="batch"), net(clamped(1, 4), seed=1, norm="batch", statistics=C)
    for layer in field_of(old).batch_norms:
        layer.variance[:] = torch.tensor([1.0, 1e-3, 1e-3, 1e-3])[:, None]
    matrix = change_of_basis(clamped(0, 4), clamped(1, 4)).matrix
    assert (matrix @ field_of(old).batch_norms[0].variance).min() < 0  # what a mere projection gives
    assert not carry(old, new).exact
    for before, after in zip(field_of(old).batch_norms, field_of(new).batch_norms):
        assert (after.variance >= before.variance.min()).all()
        assert (after.variance <= before.variance.max()).all()
        torch.testing.assert_close(after.mean, matrix @ before.mean)


FEWER = {
    "pieces": (clamped(0, 6), clamped(0, 4)),
    "knots": (clamped(2, 8), clamped(2, 5)),
    "to a constant": (clamped(1, 4), constant()),
    "as many, other knots": (hat([0, "1/3", 1]), hat([0, "1/2", 1])),
    "as many, other degree": (clamped(1, C), clamped(2, C)),
    "pieces to a curve": (clamped(0, 6), clamped(2, 4)),
}


@pytest.mark.parametrize("pair", FEWER)
def test_the_error_of_a_projection_is_its_distance(pair):
    """The largest of all parameters', by the midpoint rule in 840 cells, which no break cuts."""
    before, after = FEWER[pair]
    old, new = net(before), net(after, seed=1)
    carried = carry(old, new)
    assert not carried.exact
    middles = [(2 * i + 1) / 1680 for i in range(840)]
    rows, others = (torch.tensor([b.row(t) for t in middles], dtype=torch.float64) for b in (before, after))
    errors = []
    for one, other in zip(field_of(old).parameters(), field_of(new).parameters()):
        wanted = torch.tensordot(rows, one.detach(), 1)
        missing = torch.tensordot(others, other.detach(), 1) - wanted
        errors.append(float(missing.norm() / wanted.norm()))
    assert carried.error == pytest.approx(max(errors), rel=1e-3)
    assert min(errors) < max(errors)


@pytest.mark.parametrize("pair", FEWER)
def test_what_fewer_coefficients_can_write_is_kept(pair):
    before, after = FEWER[pair]
    plain, old, new = net(constant()), net(before, seed=1), net(after, seed=2)
    carry(plain, old)
    carried = carry(old, new)
    assert not carried.exact
    assert carried.error < 1e-12
    check_same(plain, new, "rk4@3")


OPTIMISERS = {
    "sgd": partial(torch.optim.SGD, lr=0.1, momentum=0.9, weight_decay=0.1),
    "adam": partial(torch.optim.Adam, lr=0.1),
    "amsgrad": partial(torch.optim.AdamW, lr=0.1, weight_decay=0.1, amsgrad=True),
}


def optimised(network: nn.Module, kind: str, steps: int = 3, groups: int = 1):
    """An optimiser that has seen some gradients, its parameters in so many groups."""
    parameters = list(network.parameters())
    optimiser = OPTIMISERS[kind]([{"params": parameters[i::groups]} for i in range(groups)])
    generator = torch.Generator().manual_seed(3)
    for _ in range(steps):
        for parameter in parameters:
            parameter.grad = torch.randn(parameter.shape, dtype=parameter.dtype, generator=generator)
        optimiser.step()
    return optimiser


def step_without_gradient(network: nn.Module, optimiser) -> None:
    for parameter in network.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimiser.step()


def check_carried(carried, old: nn.Module, new: nn.Module) -> None:
    """theta' = M theta."""
    there = dict(new.named_parameters())
    for name, parameter in old.named_parameters():
        matrix = carried.matrices.get(name)
        wanted = parameter if matrix is None else torch.tensordot(matrix, parameter, 1)
        torch.testing.assert_close(there[name], wanted, rtol=0, atol=1e-12)


@pytest.mark.parametrize("kind", OPTIMISERS)
@pytest.mark.parametrize("pair", [*EXACT, *FEWER])
def test_momentum_goes_on_moving_theta(pair, kind):
    """One step more without a gradient, in two groups: theta(t) goes where it would have gone. Adam's too, where the
    mean squares are equal over depth."""
    before, after = (EXACT | FEWER)[pair]
    old, new = net(before), net(after, seed=1)
    optimiser, other = optimised(old, kind, groups=2), optimised(new, kind, steps=0, groups=2)
    for values in optimiser.state.values():
        for key in values.keys() & {"exp_avg_sq", "max_exp_avg_sq"}:
            values[key][:] = values[key].mean(0)
    carried = carry(old, new)
    carry_optimiser(carried, old, new, optimiser, other)
    step_without_gradient(old, optimiser)
    step_without_gradient(new, other)
    check_carried(carried, old, new)


@pytest.mark.parametrize("pair", [*EXACT, *FEWER])
def test_adam_never_leaps(pair):
    """Its mean squares stay in the range of what they were: no coefficient moves further than |M| times the furthest.
    Those that are new begin with the mean of the others."""
    before, after = (EXACT | FEWER)[pair]
    old, new = net(before), net(after, seed=1)
    optimiser, other = optimised(old, "adam"), optimised(new, "adam", steps=0)
    for values in optimiser.state.values():
        values["exp_avg_sq"] = torch.stack([10.0**-i * row for i, row in enumerate(values["exp_avg_sq"])])
    carried = carry(old, new)
    carry_optimiser(carried, old, new, optimiser, other)
    there = dict(new.named_parameters())
    for name, parameter in old.named_parameters():
        values, more = optimiser.state[parameter], other.state[there[name]]
        matrix = carried.matrices.get(name, torch.eye(len(parameter), dtype=torch.float64))
        torch.testing.assert_close(more["exp_avg"], torch.tensordot(matrix, values["exp_avg"], 1))
        assert more["step"] == values["step"] == 3
        assert more["step"] is not values["step"]
        slack = 1e-12 * values["exp_avg_sq"].amax(0)
        assert (more["exp_avg_sq"] >= values["exp_avg_sq"].amin(0) - slack).all()
        assert (more["exp_avg_sq"] <= values["exp_avg_sq"].amax(0) + slack).all()
        speed = (values["exp_avg"].square() / values["exp_avg_sq"]).max().sqrt()
        bound = speed * matrix.abs().sum(1).max() * (1 + 1e-9)
        assert (more["exp_avg"].abs() <= bound * more["exp_avg_sq"].sqrt()).all()


def test_an_lm_resnet_becomes_an_ode_with_its_optimiser():
    """k is in a group of its own, and gone afterwards; into an LM-ResNet it comes back without a state."""
    old, new = discrete("multistep", 4), net(clamped(0, 8), seed=1, scale=4.0)
    (k,) = old.multistep_coefficients
    optimiser = optimised(old, "sgd", groups=2)
    k.data.zero_()
    other = optimised(new, "sgd", steps=0)
    carry_optimiser(carry(old, new), old, new, optimiser, other)
    assert len(other.state) == len(optimiser.state) - 1 == len(list(new.parameters()))

    ode, again = net(clamped(0, 4), scale=4.0), discrete("multistep", 4, seed=2)
    optimiser, other = optimised(ode, "sgd"), optimised(again, "sgd", steps=0, groups=2)
    carry_optimiser(carry(ode, again), ode, again, optimiser, other)
    (k,) = again.multistep_coefficients
    assert not k.any()
    assert k not in other.state
    step_without_gradient(again, other)


def test_a_net_like_the_old_one_becomes_its_copy():
    """A trained k, learned knots, evolving weights and the statistics of all norms."""
    for make in (
        partial(discrete, "multistep", 3, norm="batch", per_channel=True),
        partial(discrete, "polynet", 3),
        partial(CARRIERS["free knots"], norm="batch"),
        CARRIERS["network"],
    ):
        old, new = make(), make(seed=1)
        carried = carry(old, new)
        assert (carried.matrices, carried.exact, carried.error) == ({}, True, 0)
        assert all(torch.equal(value, new.state_dict()[name]) for name, value in old.state_dict().items())


def test_the_velocity_of_evolving_weights_gets_more_coefficients():
    make = partial(net, constant(), "path")
    old, new = make(basis=clamped(1, 3)), make(basis=clamped(1, 5), seed=1)
    carried = carry(old, new)
    assert carried.exact
    assert list(carried.matrices) == ["parts.2.field.evolution.g.layers.0.velocity"]
    check_same(old, new, "rk4@4")


def test_a_field_alone_is_carried_too():
    old, new = (field_of(net(basis, seed=i)) for i, basis in enumerate((clamped(1, 2), clamped(1, 3))))
    assert set(carry(old, new).matrices) == dict(new.named_parameters()).keys()
    h = torch.randn(2, C, SIZE, SIZE, dtype=torch.float64, generator=torch.Generator().manual_seed(5))
    torch.testing.assert_close(new(0.3, h), old(0.3, h), rtol=0, atol=1e-13)
    pieces = field_of(net(clamped(0, 2), seed=3))
    resnet_of(old, pieces)
    torch.testing.assert_close(pieces(0.7, h), old(0.5, h), rtol=0, atol=1e-13)


def wider(network: Network, classes: int) -> Network:
    network.parts[4] = nn.Linear(C * SIZE**2, classes).double()
    return network


def broadcasting(network: Network) -> Network:
    """Its head's bias would fill any other's by broadcasting."""
    network.parts[4].bias = nn.Parameter(torch.zeros(1).double())
    return network


def biased(network: Network) -> Network:
    field_of(network).layers[2].bias = nn.Parameter(torch.zeros(3, C).double())
    return network


PLAIN = partial(net, clamped(1, 3))
PIECES = partial(net, clamped(0, 3))
UNIT = partial(net, clamped(0, 3), scale=3.0)
RESNET = partial(discrete, "residual", 3)
LM = partial(discrete, "multistep", 3)
REFUSED = {
    "another head": (carry, PLAIN, lambda: wider(PLAIN(), 5), r"parts.4.weight is \[3, 36\] here and \[5, 36\] there"),
    "another head behind another basis": (carry, PLAIN, lambda: wider(net(clamped(1, 5)), 5), "parts.4.weight is"),
    "one that fits by broadcasting": (carry, lambda: broadcasting(PLAIN()), PLAIN, r"parts.4.bias is \[1\] here"),
    "another norm": (
        carry,
        PLAIN,
        partial(PLAIN, norm="batch"),
        "in parts.1.num_batches_tracked, parts.1.running_mean",
    ),
    "another time scale": (carry, PLAIN, partial(PLAIN, scale=2.0), "field, time_scale 1.5 here and time_scale 2.0"),
    "learned knots": (carry, PLAIN, lambda: net(FreeKnots(1, 3)), "in parts.2.field.basis.log_gaps"),
    "more learned knots": (
        carry,
        CARRIERS["free knots"],
        lambda: net(FreeKnots(2, 6)),
        "learnable knots cannot be carried to another degree or number",
    ),
    "learned knots of another degree": (
        carry,
        CARRIERS["free knots"],
        lambda: net(FreeKnots(1, 5)),
        "learnable knots cannot be carried to another degree or number",
    ),
    "an evolution": (carry, partial(net, constant()), CARRIERS["linear"], "parts.2.field.evolution.g"),
    "discrete, unit branches": (carry, RESNET, PIECES, "time_scale 3.0 here and time_scale 1.5"),
    "another depth": (carry, RESNET, partial(discrete, "residual", 6), "time_scale 3.0 here and time_scale 6.0"),
    "k": (carry, LM, UNIT, "rule.k is not 0: an LM-ResNet is Euler's method"),
    "another k": (carry, LM, partial(LM, per_channel=True), r"rule.k is \[2, 1\] here and \[2, 4\] there"),
    "another rule": (carry, partial(discrete, "polynet", 3), UNIT, "3 layers PolyNet-2 here and time_scale 3.0 there"),
    "another order": (
        carry,
        partial(discrete, "polynet", 3),
        partial(discrete, "polynet", 3, order=3),
        "3 layers PolyNet-2 here and 3 layers PolyNet-3 there",
    ),
    "a curve as a ResNet": (resnet_of, PLAIN, PLAIN, "a ResNet's weights are a spline of degree 0"),
    "an evolution as a ResNet": (resnet_of, PLAIN, CARRIERS["linear"], "a ResNet's weights are a spline of degree 0"),
    "a ResNet of k": (resnet_of, LM, RESNET, "rule.k is not 0"),
    "a ResNet of another scale": (resnet_of, PLAIN, UNIT, "time_scale 1.5 here"),
    "a ResNet with constant norms": (
        resnet_of,
        PLAIN,
        partial(PIECES, vary_all=False),
        "layers.0.weight depends on depth",
    ),
    "a ResNet with another head": (resnet_of, PLAIN, lambda: wider(PIECES(), 5), r"parts.4.weight is \[3, 36\] here"),
    "a ResNet with another norm": (resnet_of, PLAIN, partial(PIECES, norm="batch"), "parts.2.field.layers.0.mean"),
    "a ResNet with biases": (resnet_of, PLAIN, lambda: biased(PIECES()), "differ in parts.2.field.layers.2.bias"),
    "a ResNet of something else": (resnet_of, PLAIN, lambda: field_of(PIECES()), "the field itself, none here"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_nets_that_differ_in_more_are_refused_and_left_alone(case):
    bridge, make_old, make_new, message = REFUSED[case]
    old, new = make_old(), make_new(seed=1) if isinstance(make_new, partial) else make_new()
    before = {name: value.clone() for name, value in new.state_dict().items()}
    with pytest.raises(ValueError, match=message):
        bridge(old, new)
    assert all(torch.equal(value, new.state_dict()[name]) for name, value in before.items())
