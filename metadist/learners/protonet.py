"""Prototypical Networks: Snell, Swersky, Zemel, "Prototypical Networks for Few-shot Learning", NeurIPS 2017.

Learns an embedding in which a class is the mean of its support examples (equation 1), its prototype. A query
is classified by the softmax over negative squared Euclidean distances to the prototypes (equation 2). There is
nothing to adapt step by step, so training may use more classes per task than evaluation.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from torch import Generator, Tensor, nn

from metadist.learners.base import Learner, Meta, Network, plain_meta
from metadist.learners.gradient import Parameters
from metadist.tasks import Examples


@dataclass(frozen=True, kw_only=True)
class ProtoNetConfig:
    """Prototypical Networks: the nearest class mean in a learned embedding; `tasks.train_ways` may differ."""

    kind: Literal["protonet"] = "protonet"


class Prototypes(NamedTuple):
    """One point per class [ways, features], with the embedding and support set that they come from."""

    points: Tensor
    parameters: Parameters
    support: Examples


class ProtoNet(Learner):
    """Classification; the base model is an embedding, without a head."""

    config_type = ProtoNetConfig
    embeds = True

    def __init__(self, config: ProtoNetConfig, network: Network) -> None:
        super().__init__(network, eval_steps=0)

    def init(self, generator: Generator) -> Meta:
        return plain_meta(self.network.fresh(generator))

    def adaptation(self, meta: Meta, support: Examples, steps: int) -> Iterator[Prototypes]:
        embedded = self.network.support(meta.parameters, support)
        member = nn.functional.one_hot(support.y, support.ways).to(embedded.dtype)  # [rows, ways]
        points = member.T @ embedded / member.sum(0)[:, None]
        yield Prototypes(points, meta.parameters, support)

    def predict(self, adapted: Any, x: Tensor) -> Tensor:
        embedded = self.network.query(adapted.parameters, adapted.support, x)
        distance: Tensor = ((embedded[:, None] - adapted.points[None]) ** 2).sum(-1)
        return -distance
