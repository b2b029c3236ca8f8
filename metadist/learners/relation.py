"""Relation Networks: Sung, Yang, Zhang, Xiang, Torr, Hospedales, "Learning to Compare: Relation Network for Few-Shot
Learning", CVPR 2018.

Learns how to compare together with what is compared: a relation module g sees the feature maps of a class beside
those of a query, and scores how well they go together, r = g([f(xᵢ), f(xⱼ)]) (equation 1). A class of several shots
is the sum of its examples' maps (section 3.2). The scores are regressed to 1 for the query's class and 0 for the
others (equation 2). There is nothing to adapt step by step, and training may use other numbers of classes per task
than evaluation.

The module is two blocks of 3×3 convolution, normalisation, nonlinearity and 2×2 max-pooling, then two fully connected
layers (section 3.4). Its parameters are named `relation.…`; it is normalised as the base model is, over the pairs of a
task (`norm: support`: over the pairs of the support set; `single`: each pair together with these).

Deviations: where the maps are too small to be halved twice, the later blocks do not pool; a base model whose features
are no maps has a module of two fully connected hidden layers; the loss is the mean over the pairs, as in the authors'
code, where equation 2 has the sum; outputs are the scores before the sigmoid, whose order is the same.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor, nn

from metadist.errors import UserError
from metadist.learners.base import Meta, Network, Outcome
from metadist.learners.metric import Memory, Metric
from metadist.models import BaseModel, Conv4, Conv4Config, Mlp, MlpConfig, NormKind
from metadist.models.base import ACTIVATIONS, Activation
from metadist.tasks import Examples, Task

#: how the names of the relation module's parameters begin
RELATION = "relation."


@dataclass(frozen=True, kw_only=True)
class RelationConfig:
    """Relation Networks: a learned comparison of feature maps; `tasks.train_ways` may differ."""

    kind: Literal["relation"] = "relation"
    #: filters of the relation module's two blocks
    width: int = 64
    #: width of its hidden fully connected layer
    hidden: int = 8
    #: its nonlinearity
    activation: Activation = "relu"
    #: `mse` of the scores' sigmoid against 0 and 1 is the paper's; `cross_entropy`: softmax over the classes' scores
    loss: Literal["mse", "cross_entropy"] = "mse"

    def __post_init__(self) -> None:
        for name in ("width", "hidden"):
            if getattr(self, name) < 1:
                raise UserError(name, getattr(self, name), "a whole number of at least 1")


class RelationModule(BaseModel):
    """Scores [n, 1] of pairs [n, 2 · channels, height, width], or [n, 2 · features] where there are no maps."""

    def __init__(self, config: RelationConfig, pair: tuple[int, ...], norm: NormKind) -> None:
        super().__init__(norm, config.hidden, 1)
        self.activation = ACTIVATIONS[config.activation]
        # The head of the blocks is the first of the two fully connected layers.
        halvings = min(2, min(pair[1:], default=1).bit_length() - 1)
        self.blocks: BaseModel
        if halvings:
            blocks = Conv4Config(
                width=config.width, layers=2, unpooled=2 - halvings, norm=norm, activation=config.activation
            )
            self.blocks = Conv4(blocks, pair, config.hidden)
        else:
            layers = MlpConfig(hidden=[config.width] * 2, norm=norm, activation=config.activation)
            self.blocks = Mlp(layers, pair, config.hidden)

    def features(self, x: Tensor, reference: int | None) -> Tensor:
        return self.activation(self.blocks(x, reference))


class RelationNet(Metric):
    """Classification; the base model is an embedding, without a head."""

    config_type = RelationConfig
    config: RelationConfig

    def __init__(self, config: RelationConfig, network: Network) -> None:
        super().__init__(config, network)
        module = network.module
        channels, *sides = self.maps = module.feature_shape
        # A part of the base model, so that its parameters are meta-parameters as all others are.
        module.relation = RelationModule(config, (2 * channels, *sides), module.norm_kind)
        self.relation = replace(network, module=module.relation)

    def compare(self, memory: Memory, embedded: Tensor) -> Tensor:
        """Relation scores before the sigmoid [rows, ways]."""
        own = self.network.part(memory.parameters, RELATION)
        classes = memory.member.T @ memory.embedded  # [ways, features]
        among = Examples(self._pairs(classes, memory.embedded), memory.support.y, memory.support.ways)
        scores = self.relation.query(own, among, self._pairs(classes, embedded))
        return scores.reshape(len(embedded), -1)

    def _pairs(self, classes: Tensor, embedded: Tensor) -> Tensor:
        """Every row beside every class [rows · ways, 2 · channels, …], the class first."""
        shape = (len(embedded), *classes.shape)
        pairs = (classes[None].expand(shape), embedded[:, None].expand(shape))
        return torch.cat([part.reshape(*shape[:2], *self.maps) for part in pairs], 2).flatten(0, 1)

    def task_loss(self, meta: Meta, task: Task) -> Outcome:
        scores = self.predict(self.adapt(meta, task.support), task.query.x)
        return Outcome(self.cost(scores, task.query.y), scores)

    def cost(self, scores: Tensor, y: Tensor) -> Tensor:
        """Mean over the pairs, or over the rows, a scalar."""
        if self.config.loss == "cross_entropy":
            return self.network.cost(scores, y)
        return nn.functional.mse_loss(scores.sigmoid(), nn.functional.one_hot(y, scores.shape[1]).to(scores.dtype))
