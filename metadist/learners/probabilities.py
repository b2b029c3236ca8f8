"""What outputs say as probabilities, by the loss that they were trained with."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from metadist.tasks.base import Loss


def log_probabilities(outputs: Tensor, loss: Loss) -> Tensor:
    """Of each class [rows, classes]; where each class is judged by itself, of yes and no [rows, classes, 2]."""
    if loss == "binary_cross_entropy":
        return torch.stack([nn.functional.logsigmoid(outputs), nn.functional.logsigmoid(-outputs)], -1)
    return nn.functional.log_softmax(outputs, -1)


def from_log_probabilities(logs: Tensor, loss: Loss) -> Tensor:
    """Outputs [rows, classes] that say the same: the inverse of `log_probabilities`."""
    return logs[..., 0] - logs[..., 1] if loss == "binary_cross_entropy" else logs
