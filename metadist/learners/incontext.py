"""In-context learning: Müller, Hollmann, Pineda Arango, Grabocka, Hutter, "Transformers Can Do Bayesian Inference",
ICLR 2022. That a sequence model can be the learner: Mishra, Rohaninejad, Chen, Abbeel, "A Simple Neural Attentive
Meta-Learner", ICLR 2018, whose own model, with temporal convolutions, is not here.

A transformer reads the support set: each of its examples is a token, features plus label; a query is a token without a
label. All attend to the support set's tokens only, so that no query sees another, and nothing tells positions apart, so
that the support set's order does not matter. The model's head reads the query's token. There is nothing to adapt step
by step; the base model gives the features, and is trained with the transformer, whose parameters are named `reader.…`.

Deviations: attention is by cosine, and queries and keys are one projection, where the papers have two and dot products
(`attention: dot`). So tokens attend to those that are like them before any training, which dot products took a
thousand tasks and more to begin with. A query does not attend to itself. Targets are values, where Müller et al.
predict a distribution.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from metadist.learners.metric import direction
from metadist.learners.reader import Reading
from metadist.models import TransformerConfig
from metadist.models.base import Activation
from metadist.models.transformer import Layer, StepNorm


@dataclass(frozen=True, kw_only=True)
class InContextConfig:
    """In-context learning: a transformer that reads the support set, and has nothing to adapt."""

    kind: Literal["incontext"] = "incontext"
    #: values that represent an example
    width: int = 64
    #: attention and feed-forward layers
    layers: int = 2
    #: attention heads a layer; they share the width
    heads: int = 4
    #: width of the hidden layer of a feed-forward net
    hidden: int = 128
    #: its nonlinearity
    activation: Activation = "relu"
    #: what is attended to: what is like a token by `cosine`, or by the `dot` product of two projections
    attention: Literal["cosine", "dot"] = "cosine"

    def __post_init__(self) -> None:
        self.transformer()

    def transformer(self) -> TransformerConfig:
        """The settings of the layers."""
        return TransformerConfig(
            width=self.width, layers=self.layers, heads=self.heads, hidden=self.hidden, activation=self.activation
        )


class CosineLayer(Layer):
    """A layer whose queries and keys are one projection, of which cosines count; a head learns their factor."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__(config)
        del self.query_key_value
        self.key_value = nn.Linear(config.width, 2 * config.width)
        self.scale = nn.Parameter(torch.ones(config.heads))  # of 10, as Matching Networks' on Omniglot

    def attend(self, x: Tensor, seen: int | None) -> Tensor:
        key, value = map(self.split, self.key_value(x).chunk(2, -1))
        key = direction(key)
        return self.mix(10 * self.scale[:, None, None] * key @ key[:, :, :seen].mT, value[:, :, :seen])


class Reader(nn.Module):
    """See `Reading`."""

    def __init__(self, config: InContextConfig, features: int, outputs: int) -> None:
        super().__init__()
        settings = config.transformer()
        self.enter, self.label = nn.Linear(features, config.width), nn.Linear(outputs, config.width)
        layer = CosineLayer if config.attention == "cosine" else Layer
        self.layers = nn.ModuleList(layer(settings) for _ in range(config.layers))
        self.final_norm = StepNorm(settings)
        self.leave = nn.Linear(config.width, features)

    def forward(self, support: Tensor, y: Tensor, queries: Tensor) -> Tensor:
        rows = len(support)
        tokens = torch.cat([self.enter(support) + self.label(y), self.enter(queries)])[None]
        for layer in self.layers:
            tokens = layer(tokens, None, rows)
        out: Tensor = self.leave(self.final_norm(tokens, None))[0]
        return out


class InContext(Reading):
    """Classification and regression, any base model whose head is a linear layer."""

    config_type = InContextConfig
    reader = Reader
