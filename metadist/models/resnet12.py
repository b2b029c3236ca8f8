"""ResNet-12: Lee, Maji, Ravichandran, Soatto, "Meta-Learning with Differentiable Convex Optimization", CVPR 2019.

Four residual blocks of three 3×3 convolutions (section 4.1; the shape is TADAM's: Oreshkin, Rodríguez López, Lacoste,
NeurIPS 2018), each with a 1×1 convolution around it and 2×2 max-pooling after it. Deviations: the features are the mean
over positions, as in TADAM and in most work since, where Lee et al. flatten; there is no dropout, so that a task's
loss is a function of the task.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field
from typing import Literal

from torch import Tensor, nn

from metadist.errors import UserError
from metadist.models.base import ACTIVATIONS, Activation, BaseModel, ModelConfig
from metadist.models.convolution import Convolution
from metadist.models.images import image_shape, too_small
from metadist.models.norm import Norm, NormKind


@dataclass(frozen=True, kw_only=True)
class ResNet12Config(ModelConfig):
    """ResNet-12: residual blocks of three 3×3 convolutions, 2×2 max-pooling, mean over positions."""

    kind: Literal["resnet12"] = "resnet12"
    #: filters of each block; [64, 128, 256, 512] is the other usual choice
    widths: list[int] = field(default_factory=lambda: [64, 160, 320, 640])
    norm: NormKind = "batch"
    activation: Activation = "leaky_relu"

    def __post_init__(self) -> None:
        if not self.widths or min(self.widths) < 1:
            raise UserError("widths", self.widths, "at least one width, each at least 1")


class Block(nn.Module):
    """Inputs [n, inputs, height, width] to [n, width, height // 2, width // 2]."""

    def __init__(self, config: ResNet12Config, inputs: int, width: int) -> None:
        super().__init__()
        bias = config.norm in ("layer", "none")  # see Conv4
        channels = [inputs, width, width, width]
        self.convs = nn.ModuleList(Convolution(a, b, 3, padding=1, bias=bias) for a, b in itertools.pairwise(channels))
        self.norms = nn.ModuleList(Norm(config.norm, width, 2, config.film) for _ in self.convs)
        self.shortcut = Convolution(inputs, width, 1, bias=bias)
        self.shortcut_norm = Norm(config.norm, width, 2, config.film)
        self.activation = ACTIVATIONS[config.activation]

    def forward(self, x: Tensor, reference: int | None) -> Tensor:
        around = self.shortcut_norm(self.shortcut(x), reference)
        for index, (conv, norm) in enumerate(zip(self.convs, self.norms, strict=True)):
            x = norm(conv(x if index == 0 else self.activation(x)), reference)
        return self.activation(nn.functional.max_pool2d(x + around, 2))  # monotone: see Conv4


class ResNet12(BaseModel):
    """Inputs [n, channels, height, width].

    Raises:
        UserError: the inputs are not images, or are too small to be halved once per block.
    """

    def __init__(self, config: ResNet12Config, input_shape: tuple[int, ...], outputs: int | None) -> None:
        channels, height, width = image_shape(config.kind, input_shape)
        if min(height, width) < 2 ** len(config.widths):
            raise too_small(config.kind, input_shape, 2 ** len(config.widths))
        super().__init__(config.norm, config.widths[-1], outputs)
        self.activations = config.widths[0] * height * width
        self.blocks = nn.ModuleList(Block(config, a, b) for a, b in itertools.pairwise([channels, *config.widths]))

    def features(self, x: Tensor, reference: int | None) -> Tensor:
        for block in self.blocks:
            x = block(x, reference)
        return x.mean((2, 3))
