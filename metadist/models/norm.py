"""Normalisation that keeps its second derivative right when it is vectorised over tasks.

`torch.func.vmap` over a second derivative of `nn.BatchNorm2d` is silently wrong by 1e-3 to 3e-2; the same
formula in plain operations is exact, and keeps no running state.
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
        if self.kind == "layer":
            reference = None
        spatial = list(range(2, 2 + self.positions))
        over = [1 if self.kind == "layer" else 0, *spatial]
        centred = x - (x if reference is None else x[:reference]).mean(over, keepdim=True)
        rows = centred if reference is None else centred[:reference]
        # Two passes of plain sums: as exact as torch.var_mean, and several times faster on a CPU.
        variance = rows.square().mean(over, keepdim=True)
        shape = (-1,) + (1,) * self.positions
        scale = torch.rsqrt(variance + self.eps) * self.weight.view(shape)
        return torch.addcmul(self.bias.view(shape), centred, scale)
