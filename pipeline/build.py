"""JobConfig -> network, optimiser, learning rate. Names meet classes here, once."""

from __future__ import annotations

import math
from functools import partial

import torch
from torch import nn

from gode_core.fields import concat_time, preactivation
from gode_core.initialisation import initialise
from gode_core.networks import Network, raw_network, stage_network, stem_network
from pipeline.config import JobConfig, TrainConfig
from pipeline.data import stream

FIELDS = {"preactivation": preactivation, "concat_time": concat_time}
NETWORKS = {"stem": stem_network, "stages": stage_network}


def build_network(config: JobConfig) -> Network:
    """The network with the weights that the job's seed gives it, on the CPU."""
    model, data = config.model, config.data
    vary_all = model.vary == "all"
    if model.network == "raw":
        pad, scale = model.pad_channels, model.time_scale
        dense = model.field == "perceptron"
        options = {"pad_channels": pad, "dense": dense, "vary_all": vary_all, "scale": scale}
        network = raw_network(data.shape, data.classes, model.width, config.basis, **options)
    else:
        make_field = partial(
            FIELDS[model.field],
            num_groups=model.num_groups,
            basis=config.basis,
            vary_all=vary_all,
            scale=model.time_scale,
        )
        make = NETWORKS[model.network]
        network = make(data.shape[0], data.classes, model.width, model.num_groups, make_field)
    initialise(network, model.init, stream(config.seed, "weights"))
    return network


def build_optimiser(network: nn.Module, train: TrainConfig) -> torch.optim.Optimizer:
    """One group of all parameters; the learning rate is set anew before each step."""
    parameters, decay = network.parameters(), train.weight_decay
    if train.optimiser == "sgd":
        return torch.optim.SGD(parameters, train.lr, momentum=train.momentum, weight_decay=decay)
    make = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[train.optimiser]
    return make(parameters, train.lr, weight_decay=decay)


def learning_rate(train: TrainConfig, step: int, steps_per_epoch: int) -> float:
    """Of optimiser step `step`, counted from 0: a function of the step alone, so that a resume needs no scheduler."""
    epoch = step / steps_per_epoch
    if epoch < train.warmup_epochs:
        return train.lr * (step + 1) / math.ceil(train.warmup_epochs * steps_per_epoch)
    if train.schedule == "multistep":
        return train.lr * train.decay ** sum(epoch >= milestone for milestone in train.milestones)
    if train.schedule == "cosine":
        done = (epoch - train.warmup_epochs) / (train.epochs - train.warmup_epochs)
        return train.lr * 0.5 * (1 + math.cos(math.pi * done))
    return train.lr
