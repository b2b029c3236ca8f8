"""Normalisation that keeps its second derivative right when it is vectorised over tasks.

`torch.func.vmap` over a second derivative of `nn.BatchNorm2d` is silently wrong by 1e-3 to 3e-2; the same
formula in terms of `torch.var_mean` is exact, and keeps no running state.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

NormKind = Literal["batch", "support", "layer", "none"]


class Norm(nn.Module):
    """Batch normalisation (Ioffe, Szegedy, 2015) without running statistics, or layer normalisation.

    Args:
        kind: `batch` and `support` normalise each channel over the rows and positions (`support` marks
            a model whose learner passes `reference`), `layer` each row over channels and positions.
        channels: size of dimension 1.
        positions: number of dimensions after the channels.
    """

    eps = 1e-5

    def __init__(self, kind: NormKind, channels: int, positions: int) -> None:
        super().__init__()
        self.kind = kind
        if kind != "none":
            self.weight = nn.Parameter(torch.ones(channels))
            self.bias = nn.Parameter(torch.zeros(channels))
        self.positions = positions

    def forward(self, x: Tensor, reference: int | None = None) -> Tensor:
        """Normalise [n, channels, …] with the statistics of its first `reference` rows, or of all."""
        if self.kind == "none":
            return x
        spatial = list(range(2, 2 + self.positions))
        if self.kind == "layer":
            var, mean = torch.var_mean(x, [1, *spatial], correction=0, keepdim=True)
        else:
            rows = x if reference is None else x[:reference]
            var, mean = torch.var_mean(rows, [0, *spatial], correction=0, keepdim=True)
        shape = (-1,) + (1,) * self.positions
        scale = torch.rsqrt(var + self.eps) * self.weight.view(shape)
        return (x - mean) * scale + self.bias.view(shape)
