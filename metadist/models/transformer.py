"""A small transformer encoder: Vaswani et al., "Attention Is All You Need", NeurIPS 2017.

Layers are normalised before attention and before the feed-forward net, not after (Xiong et al., "On Layer
Normalization in the Transformer Architecture", ICML 2020), and once more at the end. Attention is two matrix products
and a softmax: fused attention has no second derivative. Deviation: no dropout, so that a task's loss is a function of
the task.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from metadist.errors import UserError
from metadist.models.base import ACTIVATIONS, BaseModel, ModelConfig
from metadist.models.norm import Norm, NormKind
from metadist.models.sequences import as_sequence, sequence_shape


@dataclass(frozen=True, kw_only=True)
class TransformerConfig(ModelConfig):
    """A small transformer encoder over a sequence, or over the rows of an image."""

    kind: Literal["transformer"] = "transformer"
    #: values that represent a step
    width: int = 64
    #: attention and feed-forward layers
    layers: int = 2
    #: attention heads a layer; they share the width
    heads: int = 4
    #: width of the hidden layer of a feed-forward net
    hidden: int = 128
    #: what tells the steps apart: a vector for each that is `learned`, or sines and cosines of its number
    positions: Literal["learned", "sinusoidal"] = "learned"
    #: what the head sees: the `mean` over the steps, or what becomes of a step of its own, `cls`
    readout: Literal["mean", "cls"] = "mean"
    norm: NormKind = "layer"

    def __post_init__(self) -> None:
        for name in ("width", "layers", "heads", "hidden"):
            if getattr(self, name) < 1:
                raise UserError(name, getattr(self, name), "a whole number of at least 1")
        if self.width % self.heads:
            raise UserError("heads", self.heads, f"a divisor of width = {self.width}")


class StepNorm(nn.Module):
    """Normalises each step of sequences [n, steps, width] as a row of its own (`layer`), or all rows' together."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.norm = Norm(config.norm, config.width, 0, config.film)

    def forward(self, x: Tensor, reference: int | None) -> Tensor:
        rows = None if reference is None else reference * x.shape[1]
        out: Tensor = self.norm(x.flatten(0, 1), rows).unflatten(0, x.shape[:2])
        return out


class Layer(nn.Module):
    """Sequences [n, steps, width] to such."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.heads = config.heads
        self.attention_norm = StepNorm(config)
        self.query_key_value = nn.Linear(config.width, 3 * config.width)
        self.mixed = nn.Linear(config.width, config.width)
        self.net_norm = StepNorm(config)
        self.inner = nn.Linear(config.width, config.hidden)
        self.outer = nn.Linear(config.hidden, config.width)
        self.activation = ACTIVATIONS[config.activation]

    def forward(self, x: Tensor, reference: int | None, seen: int | None = None) -> Tensor:
        """The same shape; the first `seen` steps are those that are attended to, by all; `None`: every step is."""
        x = x + self.attend(self.attention_norm(x, reference), seen)
        out: Tensor = x + self.outer(self.activation(self.inner(self.net_norm(x, reference))))
        return out

    def attend(self, x: Tensor, seen: int | None) -> Tensor:
        """Attention of every step to the first `seen`, or to all."""
        query, key, value = map(self.split, self.query_key_value(x).chunk(3, -1))
        scores = query @ key[:, :, :seen].mT / math.sqrt(query.shape[-1])
        return self.mix(scores, value[:, :, :seen])

    def split(self, x: Tensor) -> Tensor:
        """[n, steps, width] by head [n, heads, steps, width / heads]."""
        return x.reshape(*x.shape[:2], self.heads, -1).transpose(1, 2)

    def mix(self, scores: Tensor, value: Tensor) -> Tensor:
        """What each step makes of the values of those that it attends to, by the softmax of their scores."""
        out: Tensor = self.mixed((scores.softmax(-1) @ value).transpose(1, 2).flatten(2))
        return out


class Transformer(BaseModel):
    """Inputs [n, steps, values], [n, steps], or images [n, channels, height, width], whose rows are the steps."""

    def __init__(self, config: TransformerConfig, input_shape: tuple[int, ...], outputs: int | None) -> None:
        steps, values = sequence_shape(config.kind, input_shape)
        super().__init__(config.norm, config.width, outputs)
        self.embedding = nn.Linear(values, config.width)
        if config.positions == "learned":
            self.positions = nn.Parameter(torch.zeros(steps, config.width))
        else:
            self.register_buffer("positions", sinusoids(steps, config.width), persistent=False)
        self.cls = nn.Parameter(torch.zeros(1, config.width)) if config.readout == "cls" else None
        self.layers = nn.ModuleList(Layer(config) for _ in range(config.layers))
        self.final_norm = StepNorm(config)

    def features(self, x: Tensor, reference: int | None) -> Tensor:
        x = self.embedding(as_sequence(x)) + self.positions
        if self.cls is not None:
            x = torch.cat([self.cls.expand(x.shape[0], 1, -1), x], 1)
        for layer in self.layers:
            x = layer(x, reference)
        x = self.final_norm(x, reference)
        return x.mean(1) if self.cls is None else x[:, 0]


def sinusoids(steps: int, width: int) -> Tensor:
    """Positions [steps, width]: sin(t / 10000^(2i / width)) in column 2i, the cosine in column 2i + 1."""
    columns = torch.arange(width)
    angle = torch.arange(steps)[:, None] / 10000.0 ** ((columns - columns % 2) / width)
    return torch.where(columns % 2 == 0, angle.sin(), angle.cos())
