"""A model whose steps can be taken by hand."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from metadist.models import BaseModel


class Slope(BaseModel):
    """y = w x."""

    def __init__(self) -> None:
        super().__init__("none", 1, None)
        self.w = nn.Parameter(torch.zeros(1, 1))

    def features(self, x: Tensor, reference: int | None) -> Tensor:
        return x * self.w
