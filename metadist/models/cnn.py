"""Plain convolutional nets: convolutions without padding, some of them pooled, then fully connected layers."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

from torch import Tensor, nn

from metadist.models.base import ACTIVATIONS, BaseModel, ModelConfig
from metadist.models.convolution import Convolution
from metadist.models.images import image_shape, too_small
from metadist.models.norm import Norm


@dataclass(frozen=True)
class Layers:
    """What a plain convolutional net is made of.

    Attributes:
        filters: of each convolution.
        kernel: pixels a side of every convolution.
        pools: which convolutions 2×2 max-pooling comes after.
        hidden: widths of the fully connected layers between convolutions and head.
    """

    filters: list[int]
    kernel: int
    pools: list[bool]
    hidden: list[int]

    def side(self, pixels: int) -> int:
        """Positions a side that `pixels` a side become; 0 where there are too few."""
        for pool in self.pools:
            pixels = (pixels - self.kernel + 1) // (2 if pool else 1)
        return max(pixels, 0)

    @property
    def least(self) -> int:
        """The fewest pixels a side that leave a position."""
        pixels = 1
        for pool in reversed(self.pools):
            pixels = pixels * (2 if pool else 1) + self.kernel - 1
        return pixels


class Cnn(BaseModel):
    """Inputs [n, channels, height, width].

    Raises:
        UserError: the inputs are not images, or are too small.
    """

    def __init__(
        self, kind: str, config: ModelConfig, layers: Layers, input_shape: tuple[int, ...], outputs: int | None
    ) -> None:
        channels, height, width = image_shape(kind, input_shape)
        positions = layers.side(height) * layers.side(width)
        if positions == 0:
            raise too_small(kind, input_shape, layers.least)
        super().__init__(config.norm, layers.hidden[-1], outputs)
        self.activations = layers.filters[0] * height * width
        self.pools = layers.pools
        bias = config.norm in ("layer", "none")  # see Conv4
        planes = itertools.pairwise([channels, *layers.filters])
        self.convs = nn.ModuleList(Convolution(a, b, layers.kernel, bias=bias) for a, b in planes)
        self.conv_norms = nn.ModuleList(Norm(config.norm, filters, 2, config.film) for filters in layers.filters)
        widths = itertools.pairwise([layers.filters[-1] * positions, *layers.hidden])
        self.layers = nn.ModuleList(nn.Linear(a, b, bias) for a, b in widths)
        self.norms = nn.ModuleList(Norm(config.norm, hidden, 0, config.film) for hidden in layers.hidden)
        self.activation = ACTIVATIONS[config.activation]

    def features(self, x: Tensor, reference: int | None) -> Tensor:
        for conv, norm, pool in zip(self.convs, self.conv_norms, self.pools, strict=True):
            x = self.activation(norm(conv(x), reference))
            if pool:
                x = nn.functional.max_pool2d(x, 2)
        x = x.flatten(1)
        for layer, norm in zip(self.layers, self.norms, strict=True):
            x = self.activation(norm(layer(x), reference))
        return x
