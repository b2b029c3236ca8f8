"""Prototypical Networks: Snell, Swersky, Zemel, "Prototypical Networks for Few-shot Learning", NeurIPS 2017.

Learns an embedding in which a class is the mean of its support examples (equation 1), its prototype. A query
is classified by the softmax over negative squared Euclidean distances to the prototypes (equation 2). There is
nothing to adapt step by step, so training may use more classes per task than evaluation.

`distance: cosine` is the paper's other distance (section 2.7); cosines lie so close together that their softmax
wants a larger `scale` than the paper's 1.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from metadist.errors import UserError
from metadist.learners.metric import Memory, Metric, direction


@dataclass(frozen=True, kw_only=True)
class ProtoNetConfig:
    """Prototypical Networks: the nearest class mean in a learned embedding; `tasks.train_ways` may differ."""

    kind: Literal["protonet"] = "protonet"
    #: of a query to a prototype: squared `euclidean`, or 1 − `cosine`
    distance: Literal["euclidean", "cosine"] = "euclidean"
    #: factor on the distances before the softmax; 1 is the paper's
    scale: float = 1.0

    def __post_init__(self) -> None:
        if not self.scale > 0:
            raise UserError("scale", self.scale, "a number above 0")


class ProtoNet(Metric):
    """Classification; the base model is an embedding, without a head."""

    config_type = ProtoNetConfig
    config: ProtoNetConfig

    def compare(self, memory: Memory, embedded: Tensor) -> Tensor:
        member = memory.member
        prototypes = member.T @ memory.embedded / member.sum(0)[:, None]  # [ways, features]
        if self.config.distance == "cosine":
            return self.config.scale * (direction(embedded) @ direction(prototypes).T - 1)
        distance: Tensor = ((embedded[:, None] - prototypes[None]) ** 2).sum(-1)
        return -self.config.scale * distance
