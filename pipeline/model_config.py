"""The model section of a job: a network, and how its weights depend on depth. No torch here."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from gode_core.bases import KNOTS, Basis, Chebyshev, Fourier, Legendre, clamped, exact, hat
from gode_core.solvers import TABLEAUS
from pipeline.reading import added, need

GLOBAL = {"fourier": Fourier, "legendre": Legendre, "chebyshev": Chebyshev}  # bases without knots


@dataclass(frozen=True)
class BasisConfig:
    """Functions of depth that carry the weights: see gode_core.bases.

    `bspline` needs a degree; `knots` are `clamped`, `unclamped`, `free` (trained, from the clamped ones on) or the
    interior ones. `hat` is piecewise linear, `knots` its interior nodes. The others have neither.
    """

    degree: int | None = field(default=None, kw_only=True)  # first, where it stood when it was always needed
    num_coefficients: int
    kind: Literal["bspline", "hat", "fourier", "legendre", "chebyshev"] = "bspline"
    knots: Literal["clamped", "unclamped", "free"] | tuple[str, ...] = "clamped"  # or the interior knots, clamped

    def __post_init__(self):
        if not isinstance(self.knots, str):  # 0.5 and 1/2 are one knot, and one id
            object.__setattr__(self, "knots", tuple(str(exact(k)) for k in self.knots))
        need(self.num_coefficients >= 1, "num_coefficients must be at least 1, got {}", self.num_coefficients)
        if self.kind == "bspline":
            need(self.degree is not None, "a bspline needs a `degree`: {{degree: 1, num_coefficients: 4}}, say")
            free = self.knots == "free" and self.degree == 0
            need(not free, "free knots need a degree of at least 1: pieces of degree 0 have no gradient in their knots")
        else:
            need(self.degree is None, "degree belongs to the basis bspline, not to {}", self.kind)
            named = isinstance(self.knots, str) and self.knots != "clamped"
            need(not named, "knots {} belong to the basis bspline, not to {}", self.knots, self.kind)
            need(self.kind == "hat" or self.knots == "clamped", "the basis {} has no knots", self.kind)
        self.build()

    def build(self) -> Basis:
        """The basis; for free knots the one that they begin with."""
        given = None if isinstance(self.knots, str) else [exact(k) for k in self.knots]
        if self.kind in GLOBAL:
            return GLOBAL[self.kind](self.num_coefficients)
        if self.kind == "hat":
            need(self.num_coefficients >= 2, "hat functions need at least 2 nodes, got {}", self.num_coefficients)
            return clamped(1, self.num_coefficients, given) if given is None else hat([0, *given, 1])
        assert self.degree is not None
        if given is None:
            return KNOTS["clamped" if self.knots == "free" else self.knots](self.degree, self.num_coefficients)  # type: ignore[index]
        return clamped(self.degree, self.num_coefficients, given)

    @property
    def label(self) -> str:
        kind = self.knots if isinstance(self.knots, str) else "knots"
        family = self.kind if self.degree is None else f"degree{self.degree}"
        return f"{self.num_coefficients}c-{family}" + ("" if kind == "clamped" else f"-{kind}")


@dataclass(frozen=True)
class EvolutionConfig:
    """dtheta/dt = g(theta, t; w): see gode_core.evolution."""

    kind: Literal["linear", "network", "path", "reaction_diffusion"]
    rank: int = 4  # linear
    width: int = 16  # network: hidden units
    basis: BasisConfig | None = None  # path: of g(t)
    sigma: Literal["identity", "tanh"] = "identity"  # reaction_diffusion
    method: Literal["euler", "midpoint", "heun", "ralston", "ssprk3", "kutta3", "rk4", "rk4_38"] = "rk4"
    num_steps: int = 1  # the coarsest step of theta is one in so many; it is never coarser than that of h

    def __post_init__(self):
        need(self.rank >= 1, "rank must be at least 1, got {}", self.rank)
        need(self.width >= 1, "width must be at least 1, got {}", self.width)
        need(self.num_steps >= 1, "num_steps must be at least 1, got {}", self.num_steps)
        needs = self.kind == "path"
        need(not needs or self.basis is not None, "kind path needs a basis: {{degree: 1, num_coefficients: 4}}, say")
        need(needs or self.basis is None, "a basis belongs to the kind path, not to {}", self.kind)
        free = self.basis is not None and self.basis.knots == "free"
        need(not free, "the basis of an evolution has fixed knots")
        assert self.method in TABLEAUS


@dataclass(frozen=True)
class RuleConfig:
    """How the layers of a discrete net are put together, beyond its family: see gode_core.discrete."""

    k_per_channel: bool = False  # lm_resnet: one k for each channel instead of one for each layer
    k_range: tuple[float, ...] = (-0.1, 0.0)  # lm_resnet: k begins uniformly within
    k_decay: bool = False  # lm_resnet: weight decay takes k too (it pulls towards the ResNet)
    order: int = 2  # polynet: highest power of F; fractalnet: number of columns
    survival: float = 1.0  # stochastic depth: probability that the last layer of the network is kept in training
    noise: float = 0.0  # sigma of what is added to the state after each layer in training
    noise_kind: Literal["gaussian", "released"] = "gaussian"

    def __post_init__(self):
        need(len(self.k_range) == 2, "k_range has two ends, got {}", self.k_range)
        low, high = self.k_range
        need(-1 < low <= high <= 1, "k_range must lie in (-1, 1], where the net is zero-stable, got {}", self.k_range)
        need(self.order >= 1, "order must be at least 1, got {}", self.order)
        need(0 < self.survival <= 1, "survival must lie in (0, 1], got {}", self.survival)
        need(self.noise >= 0, "noise must be at least 0, got {}", self.noise)


Family = Literal[
    "resnet", "neural_ode", "gode", "evolving", "lm_resnet", "polynet", "fractalnet", "revnet", "shake_shake"
]
DISCRETE = ("resnet", "lm_resnet", "polynet", "fractalnet", "revnet", "shake_shake")  # trained with `layers@N`
NUM_BLOCKS = {"raw": 1, "stem": 1, "stages": 3, "imagenet": 4}


@dataclass(frozen=True)
class ModelConfig:
    """A network and the way its weights depend on depth.

    family: `neural_ode` has weights that are constant in depth, `gode` weights on a basis, `evolving` weights with an
    ODE of their own, `resnet` a set of weights for each step of the (Euler) solver that it is trained with. The others
    are discrete nets: a set of weights for each of N layers, put together by a rule of their own (`layers@N`).
    """

    network: Literal["raw", "stem", "stages", "imagenet"]
    family: Family
    width: int  # channels: inside the field (raw), of the block (stem), of the first stage (stages, imagenet)
    field: Literal[
        "bottleneck", "perceptron", "oscillator", "preactivation", "concat_time", "preactivation_bottleneck"
    ] = "bottleneck"
    basis: BasisConfig | None = None
    vary: Literal["all", "kernels"] = "all"  # what depends on depth: all of the field's weights, or its kernels alone
    pad_channels: int | None = None  # zero channels (of a perceptron: coordinates) are added up to this number
    num_groups: int = 32  # of group norm; at most the channels it norms
    time_scale: float = 1.0  # the block solves dh/dt = time_scale f; = number of steps: a ResNet's unit branches
    init: Literal["kaiming_normal", "kaiming_normal_out", "gode_release", "torch_default"] = "kaiming_normal"
    evolution: EvolutionConfig | None = added(None)
    rule: RuleConfig = added(RuleConfig())
    norm: Literal["group", "layer", "batch"] = added("group")
    statistics: int = added(9)  # batch norm in a field: nodes over depth of its statistics
    time_channel: bool = added(False)  # t as one more channel (of a perceptron: coordinate) of each layer
    cardinality: int = added(1)  # preactivation_bottleneck: groups of its 3x3 convolution (ResNeXt)
    inner_width: int | None = added(None)  # preactivation_bottleneck: channels of that convolution; None: `width`
    fan: tuple[float, ...] = added(
        ()
    )  # oscillator: alpha, beta, gamma, delta of [[alpha, 1], [-gamma |z|^delta, beta]] z

    def __post_init__(self):
        need(self.width >= 1, "width must be at least 1, got {}", self.width)
        need(self.num_groups >= 1, "num_groups must be at least 1, got {}", self.num_groups)
        need(self.time_scale > 0, "time_scale must be positive, got {}", self.time_scale)
        self._check_family()
        if self.network == "raw":
            fits = self.field in ("bottleneck", "perceptron", "oscillator")
            need(fits, "network raw has the field `bottleneck`, `perceptron` or `oscillator`, got {}", self.field)
            need(self.norm == "group", "network raw has no norm: `norm` belongs to the others, got {}", self.norm)
        else:
            fits = self.field in ("preactivation", "concat_time", "preactivation_bottleneck")
            names = "`preactivation`, `preactivation_bottleneck` or `concat_time`"
            need(fits, "network {} has the field {}, got {}", self.network, names, self.field)
            unpadded = self.pad_channels is None or self.network == "stem"
            need(unpadded, "pad_channels belongs to the networks raw and stem, not to {}", self.network)
        if self.network == "imagenet":
            need(self.field == "preactivation_bottleneck", "network imagenet has the field `preactivation_bottleneck`")
        need(self.statistics >= 2, "statistics must be at least 2, got {}", self.statistics)
        need(self.cardinality >= 1, "cardinality must be at least 1, got {}", self.cardinality)
        plain = self.cardinality == 1 and self.inner_width is None
        fits = self.field == "preactivation_bottleneck"
        need(plain or fits, "cardinality and inner_width belong to the field preactivation_bottleneck")
        fan = self.field == "oscillator"
        need(len(self.fan) == (4 if fan else 0), "the field oscillator, and no other, has four numbers as its `fan`")
        alone = self.family == "neural_ode" and self.pad_channels is None and not self.time_channel
        need(not fan or alone, "the field oscillator is not trained: it goes with the family neural_ode alone")
        divides = (self.inner_width or self.width) % self.cardinality == 0
        need(divides, "cardinality {} must divide the inner width", self.cardinality)

    def _check_family(self) -> None:
        family = self.family
        if family == "gode":
            need(self.basis is not None, "family gode needs a basis: {{degree: 1, num_coefficients: 4}}, say")
        else:
            need(self.basis is None, "family {} has no basis of its own; leave `basis` out (or take gode)", family)
        evolving = family == "evolving"
        need(not evolving or self.evolution is not None, "family evolving needs an evolution: {{kind: linear}}, say")
        need(evolving or self.evolution is None, "an evolution belongs to the family evolving, not to {}", family)
        discrete = family in DISCRETE
        if discrete:
            need(self.vary == "all", "in a {} all weights differ between layers: vary must be `all`", family)
        need(discrete or self.rule == RuleConfig(), "a rule belongs to the discrete families, not to {}", family)

    @property
    def evals_per_layer(self) -> int:
        """Calls of a branch in a layer of a discrete net."""
        order = self.rule.order
        own = {"polynet": order, "fractalnet": 2**order - 1, "revnet": 2, "shake_shake": 2}
        return own.get(self.family, 1)

    @property
    def label(self) -> str:
        """Names the model among those of one network: `gode-4c-degree1`."""
        more = self.basis.label if self.basis else self.evolution.kind.replace("_", "-") if self.evolution else ""
        return self.family.replace("_", "-") + (f"-{more}" if more else "")
