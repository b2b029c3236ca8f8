"""Multi-layer perceptron."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass, field
from typing import Literal

from torch import Tensor, nn

from metadist.errors import UserError
from metadist.models.base import ACTIVATIONS, BaseModel, ModelConfig
from metadist.models.norm import Norm


@dataclass(frozen=True, kw_only=True)
class MlpConfig(ModelConfig):
    """Fully connected layers; MAML's sinusoid net is `hidden: [40, 40]` without normalisation."""

    kind: Literal["mlp"] = "mlp"
    #: widths of the hidden layers
    hidden: list[int] = field(default_factory=lambda: [40, 40])

    def __post_init__(self) -> None:
        if not self.hidden or min(self.hidden) < 1:
            raise UserError("hidden", self.hidden, "at least one width, each at least 1")


class Mlp(BaseModel):
    """Inputs of any shape [n, …] are flattened to [n, features]."""

    def __init__(self, config: MlpConfig, input_shape: tuple[int, ...], outputs: int | None) -> None:
        super().__init__(config.norm, config.hidden[-1], outputs)
        widths = [math.prod(input_shape), *config.hidden]
        bias = config.norm in ("layer", "none")  # see Conv4
        self.layers = nn.ModuleList(nn.Linear(a, b, bias) for a, b in itertools.pairwise(widths))
        self.norms = nn.ModuleList(Norm(config.norm, width, 0, config.film) for width in config.hidden)
        self.activation = ACTIVATIONS[config.activation]

    def features(self, x: Tensor, reference: int | None) -> Tensor:
        x = x.flatten(1)
        for layer, norm in zip(self.layers, self.norms, strict=True):
            x = self.activation(norm(layer(x), reference))
        return x
