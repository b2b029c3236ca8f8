"""The four-layer convolutional net of few-shot learning, with strides (Omniglot) or with pooling."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor, nn

from metadist.errors import UserError
from metadist.models.base import ACTIVATIONS, BaseModel, ModelConfig
from metadist.models.convolution import Convolution
from metadist.models.norm import Norm, NormKind


@dataclass(frozen=True, kw_only=True)
class Conv4Config(ModelConfig):
    """Blocks of 3×3 convolution, normalisation and nonlinearity.

    `pool: false` is MAML's Omniglot net (Finn et al., 2017, appendix A.1): stride 2 and a mean over
    positions. `pool: true` is the usual Conv4 (Vinyals et al., 2016; Snell et al., 2017): 2×2 max-pooling
    and flattened positions.
    """

    kind: Literal["conv4"] = "conv4"
    #: filters per layer
    width: int = 64
    #: number of blocks
    layers: int = 4
    #: 2×2 max-pooling instead of strides
    pool: bool = True
    #: how many of the last blocks do not pool (Relation Networks: 2); their feature maps keep their size
    unpooled: int = 0
    norm: NormKind = "batch"

    def __post_init__(self) -> None:
        for name in ("width", "layers"):
            if getattr(self, name) < 1:
                raise UserError(name, getattr(self, name), "a whole number of at least 1")
        if not 0 <= self.unpooled <= (self.layers if self.pool else 0):
            expected = f"0 to layers = {self.layers}" if self.pool else "0, for pool is false"
            raise UserError("unpooled", self.unpooled, expected)


class Conv4(BaseModel):
    """Inputs [n, channels, height, width].

    Raises:
        UserError: the inputs are not images, or are too small to be halved once per pooled block.
    """

    def __init__(self, config: Conv4Config, input_shape: tuple[int, ...], outputs: int | None) -> None:
        if len(input_shape) != 3:
            raise UserError("model.kind", config.kind, f"a model for inputs of shape {list(input_shape)}", "Use mlp.")
        channels, height, width = input_shape
        sides = (height, width)
        poolings = config.layers - config.unpooled
        for _ in range(poolings):
            sides = tuple(side // 2 if config.pool else (side + 1) // 2 for side in sides)  # type: ignore[assignment]
        if 0 in sides:
            raise UserError(
                "model.pool",
                True,
                f"images of at least {2**poolings} pixels a side for {poolings} poolings, these are {height}×{width}",
                "Set model.pool: false, fewer model.layers, or a larger data.size.",
            )
        features = config.width * (sides[0] * sides[1] if config.pool else 1)
        super().__init__(config.norm, features, outputs)
        if config.pool:
            self.feature_shape = (config.width, *sides)
        self.pool, self.poolings = config.pool, poolings
        stride = 1 if config.pool else 2
        self.activations = config.width * -(-height // stride) * -(-width // stride)
        inputs = [channels] + [config.width] * (config.layers - 1)
        # A bias before batch statistics has no effect and a gradient of rounding noise, which an inner
        # Adam would blow up to full steps.
        bias = config.norm in ("layer", "none")
        self.convs = nn.ModuleList(Convolution(c, config.width, 3, stride, padding=1, bias=bias) for c in inputs)
        self.norms = nn.ModuleList(Norm(config.norm, config.width, 2, config.film) for _ in inputs)
        self.activation = ACTIVATIONS[config.activation]

    def features(self, x: Tensor, reference: int | None) -> Tensor:
        for block, (conv, norm) in enumerate(zip(self.convs, self.norms, strict=True)):
            x = norm(conv(x), reference)
            if self.pool and block < self.poolings:
                x = nn.functional.max_pool2d(x, 2)  # before the activation, which is monotone: a quarter of the work
            x = self.activation(x)
        return x.flatten(1) if self.pool else x.mean((2, 3))
