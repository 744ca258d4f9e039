"""Named random streams, and choices that are drawn from them."""

from __future__ import annotations

import hashlib
import json

import torch
from torch import Tensor


def stream(seed: int, *names: str | int) -> torch.Generator:
    """A named random stream: other names, other numbers, whatever else was drawn. On the CPU, so that no draw depends
    on the device. Torch's generator keeps 32 bits of its seed: of 10,000 streams two are alike with probability 1 %."""
    digest = hashlib.sha256(json.dumps([seed, *names]).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:4], "big"))


def stratified(labels: Tensor, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """(chosen, rest): increasing indices. `count` are chosen at random, of each class its share n_c count / N, rounded
    down or up: up for the classes with the largest remainders, among equals for those of the lowest number."""
    sizes = torch.bincount(labels)
    shares, remainders = sizes * count // len(labels), sizes * count % len(labels)
    up = remainders.argsort(descending=True, stable=True)[: count - int(shares.sum())]
    shares[up] += 1
    shuffled = torch.randperm(len(labels), generator=generator)
    shuffled = shuffled[labels[shuffled].argsort(stable=True)]  # class by class, shuffled within each
    ranks = torch.arange(len(labels)) - (sizes.cumsum(0) - sizes).repeat_interleave(sizes)  # within its class
    is_chosen = torch.zeros(len(labels), dtype=torch.bool)
    is_chosen[shuffled] = ranks < shares.repeat_interleave(sizes)
    return is_chosen.nonzero()[:, 0], (~is_chosen).nonzero()[:, 0]
