"""JobConfig -> network, optimiser, learning rate. Names meet classes here, once."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import torch

from gode_core.bases import Basis
from gode_core.discrete import RULES, Discrete
from gode_core.evolution import evolve
from gode_core.fields import Field, concat_time, preactivation, preactivation_bottleneck
from gode_core.free_knots import FreeKnots
from gode_core.initialisation import initialise
from gode_core.networks import Network, imagenet_network, raw_network, stage_network, stem_network
from gode_core.solvers import Layers
from gode_core.stochastic import Stochastic
from gode_core.transitions import Bottleneck
from pipeline.config import JobConfig
from pipeline.model_config import ModelConfig
from pipeline.streams import stream
from pipeline.train_config import Phase, TrainConfig

FIELDS = {
    "preactivation": preactivation,
    "concat_time": concat_time,
    "preactivation_bottleneck": preactivation_bottleneck,
}
NETWORKS = {"stages": stage_network, "imagenet": imagenet_network}
FAMILY_RULES = {  # of discrete families: a rule, and the options of it that a RuleConfig gives
    "resnet": ("residual", {}),
    "lm_resnet": ("multistep", {"k_per_channel": "per_channel", "k_range": "k_range"}),
    "polynet": ("polynet", {"order": "order"}),
    "fractalnet": ("fractal", {"order": "expansion"}),
    "revnet": ("reversible", {}),
    "shake_shake": ("shake_shake", {}),
}


def build_network(config: JobConfig, phase: Phase | None = None) -> Network:
    """The network with the weights that the job's seed gives it, on the CPU. phase: of its training; None: the last."""
    model, data = config.model, config.data
    phase = phase or config.phase(config.train.epochs)
    discrete = _discrete(model, phase)
    basis = None if discrete else _basis(config, phase)
    if model.network == "raw":
        network = raw_network(
            data.shape,
            data.classes,
            model.width,
            basis,
            pad_channels=model.pad_channels,
            dense=model.field == "perceptron",
            vary_all=model.vary == "all",
            scale=model.time_scale,
            time_channel=model.time_channel,
            discrete=discrete,
            fan=model.fan,
        )
    else:
        network = _image_network(config, _field_maker(model, basis), discrete)
    if model.evolution is not None:
        for field in network.fields:
            _evolve(field, model)
    initialise(network, model.init, stream(config.seed, "weights"))
    return network


def _image_network(config: JobConfig, make_field: Callable[..., Field], discrete: Discrete | None) -> Network:
    model, data = config.model, config.data
    sizes = (data.shape[0], data.classes, model.width, model.num_groups, make_field)
    if model.network == "stem":
        return stem_network(*sizes, pad_channels=model.pad_channels, norm=model.norm, discrete=discrete)
    bottleneck = None
    if model.field == "preactivation_bottleneck":
        bottleneck = Bottleneck(model.inner_width or model.width, model.cardinality)
    return NETWORKS[model.network](*sizes, norm=model.norm, bottleneck=bottleneck, discrete=discrete)


def _field_maker(model: ModelConfig, basis: Basis | None) -> Callable[..., Field]:
    """channels -> field; for discrete nets with `basis=`, in stages of bottlenecks with `inner=` and `cardinality=`."""
    options = {"num_groups": model.num_groups, "vary_all": model.vary == "all", "scale": model.time_scale}
    options |= {"norm": model.norm, "statistics": model.statistics}
    if model.field != "concat_time":  # which has it anyway
        options["time_channel"] = model.time_channel
    if model.field == "preactivation_bottleneck" and model.network == "stem":
        options |= {"inner": model.inner_width or model.width, "cardinality": model.cardinality}
    make = partial(FIELDS[model.field], **options)
    return make if basis is None else partial(make, basis=basis)


def _basis(config: JobConfig, phase: Phase) -> Basis:
    given = phase.basis or config.model.basis
    if given is not None and given.knots == "free":
        assert given.degree is not None
        return FreeKnots(given.degree, given.num_coefficients)
    return config.basis_of(phase)


def _discrete(model: ModelConfig, phase: Phase) -> Discrete | None:
    solver, given = phase.parsed_solver, model.rule
    if not isinstance(solver, Layers):
        return None
    name, options = FAMILY_RULES[model.family]
    make_rule = partial(RULES[name], **{theirs: getattr(given, ours) for ours, theirs in options.items()})
    return Discrete(solver, make_rule, Stochastic(given.survival, given.noise, given.noise_kind))


def _evolve(field: Field, model: ModelConfig) -> None:
    given = model.evolution
    assert given is not None
    names = {"linear": ["rank"], "network": ["width"], "reaction_diffusion": ["sigma"]}.get(given.kind, [])
    evolve(
        field,
        given.kind,
        method=given.method,
        num_steps=given.num_steps,
        basis=given.basis and given.basis.build(),
        vary_all=model.vary == "all",
        **{name: getattr(given, name) for name in names},
    )


def is_random(config: JobConfig) -> bool:
    """True if a forward pass in training draws numbers."""
    rule, train = config.model.rule, config.train
    drawn = rule.survival < 1 or rule.noise > 0 or config.model.family == "shake_shake"
    return drawn or train.jacobian > 0 or train.random_end > 0


def build_optimiser(network: Network, config: JobConfig) -> torch.optim.Optimizer:
    """All parameters, and apart from them, without weight decay, what decay would pull to another family: the k of
    linear multistep nets and free knots. The learning rate is set anew before each step."""
    train = config.train
    apart = [] if config.model.rule.k_decay else list(network.multistep_coefficients)
    apart += [p for module in network.modules() if isinstance(module, FreeKnots) for p in module.parameters()]
    others = [p for p in network.parameters() if not any(p is q for q in apart)]
    groups: list[dict] = [{"params": others, "weight_decay": train.weight_decay}]
    if apart:
        groups.append({"params": apart, "weight_decay": 0.0})
    if train.optimiser == "sgd":
        return torch.optim.SGD(groups, train.lr, momentum=train.momentum)
    return {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[train.optimiser](groups, train.lr)


def learning_rate(train: TrainConfig, step: int, steps_per_epoch: int) -> float:
    """Of optimiser step `step`, counted from 0: a function of the step alone, so that a resume needs no scheduler."""
    epoch = step / steps_per_epoch
    lr, _ = train.base_rates(step // steps_per_epoch)
    if epoch < train.warmup_epochs:
        return lr * (step + 1) / math.ceil(train.warmup_epochs * steps_per_epoch)
    if train.schedule == "multistep":
        return lr * train.decay ** sum(epoch >= milestone for milestone in train.milestones)
    if train.schedule == "cosine":
        done = (epoch - train.warmup_epochs) / (train.epochs - train.warmup_epochs)
        return lr * 0.5 * (1 + math.cos(math.pi * done))
    return lr
