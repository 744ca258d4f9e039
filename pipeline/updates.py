"""Optimiser steps of several trainings at once, each with its own learning rate and weight decay.

torch.optim has one of each for a whole tensor, and a tensor holds the weights of all trainings. So its rules for sgd,
adam and adamw stand here once more, with a number for each training, in its own order of operations: the bits are those
of a torch.optim for each, and what is given back to it is its own state.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

State = dict[str, Tensor]  # as torch.optim has it: `step`, and tensors of the parameter's shape


class Updates:
    """Of parameters (S, ...), by S optimisers of one kind that stand at the same step and differ in `lr` and
    `weight_decay` alone. Those are read before each step, from their first group of parameters."""

    def __init__(self, parameters: Sequence[Tensor], optimisers: Sequence[torch.optim.Optimizer]):
        self.optimisers = optimisers
        self.rule = {torch.optim.SGD: _sgd, torch.optim.Adam: _adam, torch.optim.AdamW: _adam}[type(optimisers[0])]
        self.parameters = list(parameters)
        self.own = [[p for group in o.param_groups for p in group["params"]] for o in optimisers]
        self.states = [_together([o.state.get(p, {}) for o, p in zip(optimisers, own)]) for own in zip(*self.own)]

    @torch.no_grad()
    def step(self) -> None:
        each = _Each([optimiser.param_groups[0] for optimiser in self.optimisers])
        for parameter, state in zip(self.parameters, self.states, strict=True):
            assert parameter.grad is not None
            self.rule(parameter, parameter.grad, state, each)

    def give_back(self) -> None:
        """Each optimiser its own state."""
        for i, (optimiser, own) in enumerate(zip(self.optimisers, self.own)):
            for parameter, state in zip(own, self.states, strict=True):
                if not state:  # as torch.optim leaves it
                    continue
                each = {key: (value[i] if value.dim() else value).clone() for key, value in state.items()}
                optimiser.state[parameter] = each


def _together(states: Sequence[State]) -> State:
    return {
        key: torch.stack([s[key] for s in states]) if value.dim() else value.clone() for key, value in states[0].items()
    }


class _Each:
    """The numbers of a step, one for each training, on the parameters' device once a step."""

    def __init__(self, groups: list[dict]):
        self.groups = groups
        self.made: dict[str, Tensor] = {}

    def __call__(self, name: str, number: Callable[[dict], float], like: Tensor) -> Tensor:
        """(S, 1, ...): that number of each training's settings. One name, one number."""
        if name not in self.made:
            numbers = [number(group) for group in self.groups]
            self.made[name] = torch.tensor(numbers, dtype=like.dtype).to(like.device)
        return self.made[name].view(-1, *[1] * (like.dim() - 1))

    @property
    def shared(self) -> dict:
        """The settings in which they do not differ."""
        return self.groups[0]

    @property
    def decays(self) -> bool:
        return any(group["weight_decay"] for group in self.groups)


def _decayed(gradient: Tensor, parameter: Tensor, each: _Each) -> Tensor:
    if not each.decays:
        return gradient
    return torch.addcmul(gradient, parameter, each("decay", lambda group: group["weight_decay"], parameter))


def _sgd(parameter: Tensor, gradient: Tensor, state: State, each: _Each) -> None:
    gradient, momentum = _decayed(gradient, parameter, each), each.shared["momentum"]
    if momentum:
        if "momentum_buffer" in state:
            state["momentum_buffer"].mul_(momentum).add_(gradient)
        else:
            state["momentum_buffer"] = gradient.clone()
        gradient = state["momentum_buffer"]
    parameter.addcmul_(gradient, each("rate", lambda group: -group["lr"], parameter))


def _adam(parameter: Tensor, gradient: Tensor, state: State, each: _Each) -> None:
    """Kingma and Ba 2015; where weight decay is decoupled, Loshchilov and Hutter 2019."""
    (beta1, beta2), eps = each.shared["betas"], each.shared["eps"]
    if not state:
        state |= {"step": torch.tensor(0.0), "exp_avg": torch.zeros_like(parameter)}
        state["exp_avg_sq"] = torch.zeros_like(parameter)
    state["step"] += 1
    step = state["step"].item()  # on the CPU, as torch.optim keeps it
    if not each.shared["decoupled_weight_decay"]:
        gradient = _decayed(gradient, parameter, each)
    elif each.decays:
        parameter.mul_(each("left", lambda group: 1 - group["lr"] * group["weight_decay"], parameter))
    state["exp_avg"].lerp_(gradient, 1 - beta1)
    state["exp_avg_sq"].mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
    sizes = (state["exp_avg_sq"].sqrt() / (1 - beta2**step) ** 0.5).add_(eps)
    rates = each("rate", lambda group: -(group["lr"] / (1 - beta1**step)), parameter)
    parameter.add_(state["exp_avg"] * rates / sizes)
