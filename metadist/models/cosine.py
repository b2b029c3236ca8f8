"""The head of Baseline++: Chen, Liu, Kira, Wang, Huang, "A Closer Look at Few-shot Classification", ICLR 2019."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from metadist.models.base import BaseModel


class CosineHead(nn.Module):
    """Outputs are cosines between the features and one direction a class, times a constant (section 3.2).

    Only the directions count, so that a class's features are drawn together whatever their lengths.

    Args:
        features: width of the input.
        outputs: number of classes.
        scale: factor on the cosines before the softmax.
    """

    def __init__(self, features: int, outputs: int, scale: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(outputs, features))
        self.scale = scale

    def forward(self, x: Tensor) -> Tensor:
        """Outputs [n, outputs] of features [n, features]."""
        return self.scale * nn.functional.linear(_direction(x), _direction(self.weight))


def cosine_headed(model: BaseModel, scale: float) -> BaseModel:
    """A copy of a model, with a cosine head of the same size in the place of its linear one."""
    assert isinstance(model.head, nn.Linear)
    copied = copy.deepcopy(model)
    copied.add_module("head", CosineHead(model.head.in_features, model.head.out_features, scale))
    return copied


def _direction(rows: Tensor) -> Tensor:
    """Rows of length 1; one of zeros has no direction, and keeps a gradient of moderate size."""
    return nn.functional.normalize(rows, dim=-1, eps=1e-3)
