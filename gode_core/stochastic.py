"""What is random in a training forward of a discrete net. In eval mode nothing is.

Stochastic depth (Huang et al. 2016, with the rule of Lu et al. 2018): block i of the N blocks of the whole network is
dropped, for all images of the batch, with probability d_i = i / (N - 1) (1 - p_L). A dropped branch is not computed;
one that is kept is divided by 1 - d_i, and the test scales nothing. What the update adds beside the branch (the
shortcut, the combination of two states) stays.

Noise injection: independent noise on each entry of the state behind each block, out of place. `gaussian` is N(0, sigma)
everywhere; `released` is what the released LM-ResNet does: N(0, sigma) behind block 0, U(0, sigma) behind the others.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor


@dataclass(frozen=True)
class Stochastic:
    """survival: p_L, the probability that the last block is kept. noise: sigma, 0 for none. Raises ValueError."""

    survival: float = 1.0
    noise: float = 0.0
    noise_kind: Literal["gaussian", "released"] = "gaussian"

    def __post_init__(self):
        if not 0 < self.survival <= 1:
            raise ValueError(f"survival must lie in (0, 1], got {self.survival:g}")
        if self.noise < 0:
            raise ValueError(f"noise must be at least 0, got {self.noise:g}")
        if self.noise_kind not in ("gaussian", "released"):
            raise ValueError(f"unknown noise `{self.noise_kind}`; known: gaussian, released")

    def death_rate(self, block: int, num_blocks: int) -> float:
        """The probability that block number `block`, from 0, is dropped; the first never is."""
        return block / max(num_blocks - 1, 1) * (1 - self.survival)


NOTHING = Stochastic()


class Chance:
    """The draws of one forward pass. Blocks ask in turn, first to last.

    All decisions of stochastic depth are drawn at the start and read at once: one host read for each forward, not for
    each block. generator: None for torch's default one.
    """

    def __init__(
        self,
        stochastic: Stochastic,
        num_blocks: int,
        training: bool = False,
        generator: torch.Generator | None = None,
    ):
        self.training, self.generator = training, generator
        self._noise = stochastic.noise if training else 0.0
        self._noise_kind = stochastic.noise_kind
        self._factors = [1.0] * num_blocks
        if training and stochastic.survival < 1:
            device = generator.device if generator else "cpu"
            rates = [stochastic.death_rate(i, num_blocks) for i in range(num_blocks)]
            draws = torch.rand(num_blocks, generator=generator, device=device).tolist()
            self._factors = [0.0 if draw < rate else 1 / (1 - rate) for draw, rate in zip(draws, rates)]
        self._asked = self._disturbed = 0

    def factors(self, num_blocks: int) -> list[float]:
        """By what to multiply the branches of the next so many blocks: 0 for a dropped one."""
        first, self._asked = self._asked, self._asked + num_blocks
        assert self._asked <= len(self._factors), "more blocks asked than the network was said to have"
        return self._factors[first : self._asked]

    def disturbed(self, h: Tensor) -> Tensor:
        """The state behind the next block, with its noise."""
        if self._noise == 0:
            return h
        first, self._disturbed = self._disturbed == 0, self._disturbed + 1
        draw = torch.randn if first or self._noise_kind == "gaussian" else torch.rand
        return torch.add(h, self._draw(draw, h.shape, h), alpha=self._noise)

    def mix(self, h: Tensor) -> tuple[Tensor, Tensor]:
        """Two numbers in U(0, 1) for each image, (B, 1, ...): of the forward and of the backward pass."""
        shape = (h.shape[0],) + (1,) * (h.dim() - 1)
        return self._draw(torch.rand, shape, h), self._draw(torch.rand, shape, h)

    def _draw(self, draw: Callable[..., Tensor], shape: tuple[int, ...], like: Tensor) -> Tensor:
        device = self.generator.device if self.generator else like.device
        return draw(shape, generator=self.generator, device=device, dtype=like.dtype).to(like.device)


def add_branch(carried: Tensor, branch: Callable[[Tensor], Tensor], h: Tensor, factor: float) -> Tensor:
    """carried + factor branch(h); the branch of a dropped block (factor 0) is not computed."""
    return torch.add(carried, branch(h), alpha=factor) if factor else carried
