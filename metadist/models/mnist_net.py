"""The two-convolution net that MNIST is usually shown with: `mnist/main.py` of pytorch/examples.

Deviation: no dropout, so that a task's loss is a function of the task.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from metadist.errors import UserError
from metadist.models.base import ModelConfig
from metadist.models.cnn import Cnn, Layers


@dataclass(frozen=True, kw_only=True)
class MnistNetConfig(ModelConfig):
    """Two convolutions of 32 and 64 filters, one 2×2 max-pooling, 128 hidden units (PyTorch's MNIST example)."""

    kind: Literal["mnist_net"] = "mnist_net"
    #: filters of the two convolutions
    filters: list[int] = field(default_factory=lambda: [32, 64])
    #: pixels a side of a filter: 3, or 5 as in older examples
    kernel: int = 3
    #: width of the hidden layer
    hidden: int = 128

    def __post_init__(self) -> None:
        if len(self.filters) != 2 or min(self.filters) < 1:
            raise UserError("filters", self.filters, "two numbers of at least 1")
        for name in ("kernel", "hidden"):
            if getattr(self, name) < 1:
                raise UserError(name, getattr(self, name), "a whole number of at least 1")


class MnistNet(Cnn):
    """Inputs [n, channels, height, width], 28×28 in the example."""

    def __init__(self, config: MnistNetConfig, input_shape: tuple[int, ...], outputs: int | None) -> None:
        layers = Layers(config.filters, config.kernel, pools=[False, True], hidden=[config.hidden])
        super().__init__(config.kind, config, layers, input_shape, outputs)
