"""Initial weights by name, from a generator that is an argument."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Generator, Tensor, nn

InitName = Literal["normal", "xavier", "kaiming"]


def initial_parameters(module: nn.Module, init: InitName, generator: Generator) -> dict[str, Tensor]:
    """Fresh parameters for `module`, by name, in the order of `module.named_parameters()`.

    Weights (two dimensions or more) are drawn: `normal` with standard deviation 0.01, `xavier` uniform
    (Glorot, Bengio, 2010), `kaiming` normal for ReLU (He et al., 2015). Biases are 0; one-dimensional
    weights, which scale normalised activations, are 1.
    """
    fresh: dict[str, Tensor] = {}
    for name, parameter in module.named_parameters():
        value = torch.empty(parameter.shape)
        if value.dim() < 2:
            value.fill_(0.0 if name.endswith("bias") else 1.0)
        else:
            receptive = math.prod(value.shape[2:])
            fan_in, fan_out = value.shape[1] * receptive, value.shape[0] * receptive
            if init == "normal":
                value.normal_(0.0, 0.01, generator=generator)
            elif init == "xavier":
                bound = math.sqrt(6.0 / (fan_in + fan_out))
                value.uniform_(-bound, bound, generator=generator)
            else:
                value.normal_(0.0, math.sqrt(2.0 / fan_in), generator=generator)
        fresh[name] = value
    return fresh
