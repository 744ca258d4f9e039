"""Discrete nets as the papers trained them: parameter counts, equality with plain torch, the solver they take."""

from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from gode_core.bases import clamped
from gode_core.discrete import RULES, Discrete
from gode_core.fields import preactivation, preactivation_bottleneck
from gode_core.initialisation import initialise
from gode_core.layers import DepthConv
from gode_core.networks import imagenet_network, raw_network, stage_network, stem_network
from gode_core.rules import Multistep
from gode_core.solvers import Adaptive, Fixed, Layers
from gode_core.transitions import Bottleneck

BASIC = partial(preactivation, num_groups=32, norm="batch")
NARROW = partial(preactivation_bottleneck, num_groups=32, norm="batch")


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def cifar(n, classes=10, rule="multistep", **options):
    """n blocks for each stage, the first of which is the transition."""
    make_rule = partial(RULES[rule], **options)
    return stage_network(3, classes, 16, 32, BASIC, norm="batch", discrete=Discrete(Layers((n - 1,)), make_rule))


def cifar_164(classes):
    discrete, narrow = Discrete(Layers((17,)), Multistep), Bottleneck(16)
    return stage_network(3, classes, 16, 32, NARROW, norm="batch", bottleneck=narrow, discrete=discrete)


def resnext(cardinality, classes, rule="residual"):
    discrete, wide = Discrete(Layers((2,)), RULES[rule]), Bottleneck(64 * cardinality, cardinality)
    return stage_network(3, classes, 64, 32, NARROW, norm="batch", bottleneck=wide, discrete=discrete)


def imagenet(*counts, rule="residual"):
    discrete = Discrete(Layers(counts), RULES[rule])
    return imagenet_network(3, 1000, 64, 32, NARROW, bottleneck=Bottleneck(64), discrete=discrete)


def basic_count(n, classes):
    """Stem; per block two 3x3 and two norms; two projections with a norm each; last norm and head."""
    stages = sum(n * (18 * c * c + 4 * c) for c in (16, 32, 64))
    halving = sum(c * 2 * c + 2 * c - 9 * c * 2 * c - 2 * c for c in (16, 32))  # and the first block has fewer inputs
    return 27 * 16 + stages + halving + 2 * 64 + 64 * classes + classes


def bottleneck_count(stem, inner, cardinality, counts, classes, width):
    """Per block a norm and 1x1 to the inner channels, a norm and grouped 3x3, a norm and 1x1 to 4 times the width."""
    total, c = stem * width, width
    for stage, n in enumerate(counts):
        p, out = inner * 2**stage, 4 * width * 2**stage
        for i in range(n):
            total += 2 * c + c * p + 2 * p + 9 * p * p // cardinality + 2 * p + p * out
            total += 2 * c + c * out if i == 0 else 0
            c = out
    return total + 2 * c + c * classes + classes


COUNTS = {
    "LM-ResNet-20": (lambda: cifar(3), 272_378 + 6),
    "LM-ResNet-20, per channel": (lambda: cifar(3, per_channel=True), 272_378 + 2 * (16 + 32 + 64)),
    "LM-ResNet-56": (lambda: cifar(9), 855_674 + 24),
    "LM-ResNet-110": (lambda: cifar(18), basic_count(18, 10) + 3 * 18 - 3),
    "LM-ResNet-110, CIFAR-100": (lambda: cifar(18, 100), basic_count(18, 100) + 3 * 18 - 3),
    "LM-ResNet-164, CIFAR-100": (lambda: cifar_164(100), bottleneck_count(27, 16, 1, [18] * 3, 100, 16) + 51),
    "ResNeXt-29, 8x64d": (lambda: resnext(8, 10), bottleneck_count(27, 512, 8, [3] * 3, 10, 64)),
    "LM-ResNeXt-29, 16x64d": (
        lambda: resnext(16, 100, "multistep"),
        bottleneck_count(27, 1024, 16, [3] * 3, 100, 64) + 6,
    ),
    "ResNet-50": (lambda: imagenet(2, 3, 5, 2), bottleneck_count(147, 64, 1, [3, 4, 6, 3], 1000, 64)),
    "LM-ResNet-101": (
        lambda: imagenet(2, 3, 22, 2, rule="multistep"),
        bottleneck_count(147, 64, 1, [3, 4, 23, 3], 1000, 64) + 29,
    ),
}


@pytest.mark.parametrize("name", COUNTS)
def test_parameter_counts_to_the_unit(name):
    make, count = COUNTS[name]
    with torch.device("meta"):
        assert sum(p.numel() for p in make().parameters()) == count


def test_the_formulas_meet_the_published_counts():
    """272,378 and 855,674 are of the released net; the others were published for nets of the same shape with norms
    behind the convolutions, which differ by norms only (a stem's and fewer or wider ones)."""
    assert [basic_count(n, 10) for n in (3, 9)] == [272_378, 855_674]
    torchvision = {(3, 4, 6, 3): 25_557_032, (3, 4, 23, 3): 44_549_160}
    for counts, behind in torchvision.items():
        assert behind - bottleneck_count(147, 64, 1, counts, 1000, 64) == 2 * (64 + 4 * 960) - 2 * (64 + 64 + 896 + 896)
    for cardinality, published in ((8, 34.4e6), (16, 68.1e6)):
        assert bottleneck_count(27, 64 * cardinality, cardinality, [3] * 3, 10, 64) == pytest.approx(
            published, rel=2e-3
        )


class PlainBlock(nn.Module):
    """Pre-activation basic block in plain torch (He et al. 2016)."""

    def __init__(self, c_in, c, stride):
        super().__init__()
        self.bn1, self.bn2 = nn.BatchNorm2d(c_in), nn.BatchNorm2d(c)
        self.conv1 = nn.Conv2d(c_in, c, 3, stride, 1, bias=False)
        self.conv2 = nn.Conv2d(c, c, 3, 1, 1, bias=False)
        self.project = (
            nn.Sequential(nn.BatchNorm2d(c_in), nn.ReLU(), nn.Conv2d(c_in, c, 1, stride, bias=False))
            if c_in != c
            else nn.Identity()
        )

    def forward(self, x):
        return self.project(x), self.conv2(F.relu(self.bn2(self.conv1(F.relu(self.bn1(x))))))


class PlainNet(nn.Module):
    """ResNet-(6 n + 2); with the ks of each stage LM-ResNet: all but its first block combine two states."""

    def __init__(self, n, classes):
        super().__init__()
        self.stem, self.n, self.ks = nn.Conv2d(3, 16, 3, 1, 1, bias=False), n, []
        widths = [16, 16, 32, 64]
        self.blocks = nn.ModuleList(
            PlainBlock(widths[s] if i == 0 else widths[s + 1], widths[s + 1], 2 if i == 0 < s else 1)
            for s in range(3)
            for i in range(n)
        )
        self.bn, self.head = nn.BatchNorm2d(64), nn.Linear(64, classes)

    def forward(self, x):
        x, before = self.stem(x), None
        for i, block in enumerate(self.blocks):
            shortcut, branch = block(x)
            mixed = shortcut
            if self.ks and i % self.n > 0:
                k = self.ks[i // self.n][i % self.n - 1]
                mixed = (1 - k) * x + k * before
            x, before = mixed + branch, shortcut
        return self.head(F.relu(self.bn(x)).mean((2, 3)))


def copy_weights(ours, plain):
    """Ours into the plain net, norms' scales made uneven first."""
    for i, parameter in enumerate(ours.parameters()):
        parameter.data += 0.1 * torch.randn(parameter.shape, dtype=parameter.dtype, generator=seeded(i))
    blocks = iter(plain.blocks)
    plain.stem.weight.data.copy_(ours.parts[0].weight.data)
    for transition, block in zip(ours.parts[1:7:2], ours.parts[2:7:2]):
        first = next(blocks)
        names = {"norm1": "bn1", "conv1": "conv1", "norm2": "bn2", "conv2": "conv2", "shortcut": "project"}
        for mine, theirs in names.items():
            getattr(first, theirs).load_state_dict(getattr(transition, mine).state_dict())
        for n in range(block.num_layers):
            plain_block = next(blocks)
            for mine, theirs in zip((0, 2, 3, 5), ("bn1", "conv1", "bn2", "conv2")):
                for name, parameter in block.field.layers[mine].named_parameters():
                    getattr(getattr(plain_block, theirs), name).data.copy_(parameter.data[n])
    plain.bn.load_state_dict(ours.parts[7].state_dict())
    plain.head.load_state_dict(ours.parts[-1].state_dict())
    plain.ks = [k.detach().clone().requires_grad_() for k in ours.multistep_coefficients]


@pytest.mark.parametrize("rule", ["residual", "multistep"])
def test_resnet_20_under_batch_norm_is_the_plain_one(rule):
    """Two steps in train mode, forward and gradient, then eval mode with the statistics that they left."""
    ours = cifar(3, rule=rule)
    initialise(ours, "kaiming_normal_out", seeded())
    ours.double()
    plain = PlainNet(3, 10).double()
    copy_weights(ours, plain)
    for seed in range(2):
        images = torch.rand(4, 3, 16, 16, dtype=torch.float64, generator=seeded(seed)).requires_grad_()
        found, wanted = ours(images, Layers((2,))), plain(images)
        torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-9)
    watched = [(images, images), (ours.parts[0].weight, plain.stem.weight), (ours.parts[-1].weight, plain.head.weight)]
    watched += [(k, plain_k) for k, plain_k in zip(ours.multistep_coefficients, plain.ks)]
    grads, plain_grads = (
        torch.autograd.grad(logits.square().sum(), [pair[i] for pair in watched])
        for i, logits in enumerate((found, wanted))
    )
    torch.testing.assert_close(grads, plain_grads, rtol=1e-7, atol=1e-7)
    torch.testing.assert_close(ours.eval()(images, Layers((2,))), plain.eval()(images), rtol=1e-9, atol=1e-9)


SHAPES = {
    "raw": ((2, 1, 8, 8), lambda discrete: raw_network((1, 8, 8), 10, 6, None, pad_channels=4, discrete=discrete)),
    "stem": ((2, 1, 28, 28), lambda discrete: stem_network(1, 10, 8, 4, small, discrete=discrete)),
    "stages": ((3, 3, 8, 8), lambda discrete: stage_network(3, 10, 4, 2, small, norm="batch", discrete=discrete)),
    "bottlenecks": (
        (3, 3, 8, 8),
        lambda discrete: stage_network(3, 10, 4, 2, narrow, bottleneck=Bottleneck(8, 2, 2), discrete=discrete),
    ),
    "imagenet": (
        (3, 3, 64, 64),
        lambda discrete: imagenet_network(3, 10, 4, 2, narrow, bottleneck=Bottleneck(8, 2), discrete=discrete),
    ),
}
small, narrow = partial(preactivation, num_groups=2), partial(preactivation_bottleneck, num_groups=2, norm="batch")


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("rule", RULES)
def test_every_rule_in_every_network_trains_all_weights(name, rule):
    shape, make = SHAPES[name]
    network = make(Discrete(Layers((2,)), RULES[rule]))
    initialise(network, "kaiming_normal", seeded())
    images = torch.rand(shape, generator=seeded(1))
    prediction = network.predict(images, Layers((2,)), generator=seeded(2))
    assert prediction.logits.shape == (shape[0], 10)
    assert all(solution.status == "ok" and solution.num_accepted == 2 for solution in prediction.solutions)
    prediction.logits.square().sum().backward()
    for key, parameter in network.named_parameters():
        assert parameter.grad is not None, key
        assert parameter.grad.abs().sum() > 0, key


@pytest.mark.parametrize("vary_all", [True, False])
def test_continuous_blocks_keep_working_in_the_new_networks(vary_all):
    make = partial(preactivation_bottleneck, num_groups=2, basis=clamped(1, 3), vary_all=vary_all, time_channel=True)
    network = imagenet_network(3, 10, 4, 2, make, norm="layer", bottleneck=Bottleneck(8, 2))
    initialise(network, "kaiming_normal", seeded())
    logits = network(torch.rand(2, 3, 64, 64, generator=seeded(1)), Fixed("rk4", 2))
    logits.square().sum().backward()
    assert all(p.grad.abs().sum() > 0 for p in network.parameters())


def test_a_discrete_net_takes_its_own_layers_only():
    images = torch.rand(2, 1, 8, 8)
    net = raw_network((1, 8, 8), 10, 6, None, discrete=Discrete(Layers((3,)), Multistep))
    for other in (Fixed("euler", 3), Adaptive("dopri5", 1e-3, 1e-3)):
        with pytest.raises(ValueError, match=r"no solver of ODEs can judge it: take `layers@3`"):
            net(images, other)
    for other in (Layers((4,)), Layers((3, 3))):
        with pytest.raises(ValueError, match="its own number of layers: take `layers@3`"):
            net(images, other)
    with pytest.raises(ValueError, match="gradient `direct`"):
        net(images, Layers((3,)), "checkpoint")
    ode = raw_network((1, 8, 8), 10, 6, clamped(0, 3))
    with pytest.raises(ValueError, match="layers@3 is no solver of an ODE"):
        ode(images, Layers((3,)))


def test_layers_are_named_as_they_are_written():
    with torch.device("meta"):
        uneven, even = imagenet(2, 3, 5, 2), cifar(3)
    assert str(uneven.layers) == "layers@2-3-5-2"
    assert str(even.layers) == "layers@2"
    even._check(Layers((2, 2, 2)), "direct")
    assert [tuple(k.shape) for k in even.multistep_coefficients] == [(2, 1)] * 3
    assert uneven.multistep_coefficients == []


@pytest.mark.parametrize("per_channel", [False, True])
def test_k_begins_in_its_range_and_follows_the_seed(per_channel):
    def drawn(seed, **options):
        network = cifar(9, per_channel=per_channel, **options)
        initialise(network, "kaiming_normal_out", seeded(seed))
        return torch.cat([k.flatten() for k in network.multistep_coefficients]).detach()

    k = drawn(0)
    assert -0.1 <= k.min() < -0.08
    assert -0.02 < k.max() <= 0
    assert torch.equal(k, drawn(0))
    assert not torch.equal(k, drawn(1))
    assert drawn(0, k_range=(0.2, 0.3)).min() >= 0.2


@pytest.mark.parametrize("scheme", ["kaiming_normal", "kaiming_normal_out"])
def test_grouped_convolutions_have_the_fans_of_torch(scheme):
    field = preactivation_bottleneck(64, 128, 8, 4, clamped(0, 2))
    network = nn.ModuleList([field])
    initialise(network, scheme, seeded())
    grouped = next(layer for layer in field.layers if isinstance(layer, DepthConv) and layer.cardinality > 1)
    assert grouped.weight.shape == (2, 128, 16, 3, 3)
    fans = nn.init._calculate_fan_in_and_fan_out(grouped.weight[0])
    fan = fans[scheme.endswith("out")]
    assert grouped.weight.std().item() == pytest.approx((2 / fan) ** 0.5, rel=0.02)


def test_cardinality_must_divide():
    with pytest.raises(ValueError, match="cardinality 3 does not divide 8 and 8 channels"):
        preactivation_bottleneck(4, 8, 3, 2, clamped(0, 2))
    with pytest.raises(ValueError, match="cardinality 3 does not divide 8 channels"):
        stage_network(3, 10, 4, 2, narrow, bottleneck=Bottleneck(8, 3), discrete=Discrete(Layers((2,))))
