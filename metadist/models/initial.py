"""Initial weights by name, from a generator that is an argument."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

import torch
from torch import Generator, Tensor, nn

InitName = Literal["default", "normal", "xavier", "kaiming"]


def initial_parameters(module: nn.Module, init: InitName, generator: Generator) -> dict[str, Tensor]:
    """Fresh parameters for `module`, by name, in the order of `module.named_parameters()`.

    Weights (two dimensions or more) are drawn: `default` uniform within 1/√fan_in, as torch's own layers do,
    `normal` with standard deviation 0.01, `xavier` uniform (Glorot, Bengio, 2010), `kaiming` normal for ReLU
    (He et al., 2015). Biases are 0, but for `default`, which draws a layer's bias like its weights. What scales
    and shifts normalised activations starts at 1 and 0.
    """
    parameters = dict(module.named_parameters())
    fresh: dict[str, Tensor] = {}
    for name, parameter in parameters.items():
        value = torch.empty(parameter.shape)
        own = name.rpartition(".")[2]
        is_bias = "bias" in own
        # The weight of the same layer, from which a bias takes its scale.
        weight = parameters.get(name.removesuffix(own) + own.replace("bias", "weight"), parameter)
        if weight.dim() < 2:
            value.fill_(0.0 if is_bias else 1.0)
            fresh[name] = value
            continue
        receptive = math.prod(weight.shape[2:])
        fan_in, fan_out = weight.shape[1] * receptive, weight.shape[0] * receptive
        if init == "default":
            bound = 1.0 / math.sqrt(fan_in)
            value.uniform_(-bound, bound, generator=generator)
        elif is_bias:
            value.zero_()
        elif init == "normal":
            value.normal_(0.0, 0.01, generator=generator)
        elif init == "xavier":
            bound = math.sqrt(6.0 / (fan_in + fan_out))
            value.uniform_(-bound, bound, generator=generator)
        else:
            value.normal_(0.0, math.sqrt(2.0 / fan_in), generator=generator)
        fresh[name] = value
    return fresh


def seeded(build: Callable[[], nn.Module], seed: int) -> nn.Module:
    """The module that `build` makes, as its class draws it after `seed`; torch's own generator stays where it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return build()
