"""Nets on points of the plane that were never trained: whether one is an ODE follows from the size of its weights."""

from __future__ import annotations

import torch
from small import small_job
from torch import Tensor

from gode_core.networks import Network
from gode_core.solvers import parse_solver
from pipeline.build import build_network
from pipeline.config import JobConfig
from pipeline.data import load_split
from pipeline.evaluate import Tally, evaluate
from pipeline.experiment import Judging
from pipeline.records import ValidityRecord
from pipeline.verdicts import Geometry, Shares, verdict_of

SPHERES = {"name": "spheres", "dimension": 2, "num_validation": 0, "num_train": 512}
POINTS = {"pad_channels": None, "field": "perceptron", "width": 8}


def point_job(data=None, model=None, **train) -> JobConfig:
    return small_job(data=SPHERES | (data or {}), model=POINTS | (model or {}), **train)


@torch.no_grad()
def scaled(config: JobConfig, scale: float) -> Network:
    """The job's net with the weights of its field times `scale`, in float32."""
    torch.manual_seed(0)
    network = build_network(config).eval()
    for parameter in network.fields[0].parameters():
        parameter.mul_(scale)
    return network


@torch.no_grad()
def linear(config: JobConfig, matrix: list[list[float]]) -> Network:
    """The job's net with the field f(x) = A x near the origin: inside, the ReLUs see x + 9 and so do nothing."""
    network, shift, a = build_network(config).eval(), 9.0, torch.tensor(matrix)
    for parameter in network.fields[0].parameters():
        parameter.zero_()
    first, second, third = (network.fields[0].layers[i] for i in (0, 2, 4))
    d = len(a)
    for layer in (first, second):
        layer.weight[:, :d, :d] = torch.eye(d)
    first.bias[:, :d] = shift
    third.weight[:, :, :d] = a
    third.bias[:] = -shift * a.sum(1)
    return network


@torch.no_grad()
def own_labels(network: Network, images: Tensor, own: str) -> Tensor:
    """What the net says under its training solver, after its classes were made equally large: it is always right."""
    logits = network(images, parse_solver(own))
    network.parts[-1].bias.sub_((logits[:, 0] - logits[:, 1]).median() * torch.tensor([0.5, -0.5]))  # type: ignore[operator,union-attr]
    return network(images, parse_solver(own)).argmax(1)


def tallies_of(network: Network, own: str, judging: Judging, batches) -> dict[str, Tally]:
    solvers = [parse_solver(text) for text in judging.solvers]
    limit = parse_solver(judging.finest)
    found = evaluate(network, parse_solver(own), limit, solvers, batches, judging.max_steps)
    return {str(solver): tally for solver, tally in found.items()}


def verdict(own: str, solvers: tuple[str, ...], scale: float, **options) -> ValidityRecord:
    """Of a net that is always right under its training solver, on the 1000 points of the test split."""
    judging, config = Judging(solvers, **options), point_job()
    network, images = scaled(config, scale), load_split(config.data, "test", "data").images
    tallies = tallies_of(network, own, judging, [(images, own_labels(network, images, own))])
    return verdict_of(tallies, own, judging, Geometry(Shares(), []), "job")
