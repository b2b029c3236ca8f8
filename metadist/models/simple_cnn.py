"""SimpleCNN: the net of PyTorch's CIFAR-10 tutorial ("Training a Classifier"), LeNet-5's shape (LeCun et al., 1998)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from metadist.models.base import ModelConfig
from metadist.models.cnn import Cnn, Layers


@dataclass(frozen=True, kw_only=True)
class SimpleCnnConfig(ModelConfig):
    """SimpleCNN: 6 and 16 filters of 5×5, each with 2×2 max-pooling, then 120 and 84 hidden units."""

    kind: Literal["simple_cnn"] = "simple_cnn"


class SimpleCnn(Cnn):
    """Inputs [n, channels, height, width], 32×32 in the tutorial."""

    def __init__(self, config: SimpleCnnConfig, input_shape: tuple[int, ...], outputs: int | None) -> None:
        layers = Layers([6, 16], 5, pools=[True, True], hidden=[120, 84])
        super().__init__(config.kind, config, layers, input_shape, outputs)
