"""What metric-based learners share: an embedding in which queries are compared with the support set."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator
from typing import Any, NamedTuple

from torch import Generator, Tensor, nn

from metadist.learners.base import Learner, Meta, Network, plain_meta
from metadist.learners.gradient import Parameters
from metadist.tasks import Examples


class Memory(NamedTuple):
    """An embedded support set [rows, features], with the meta-parameters that embed it and the set itself."""

    embedded: Tensor
    parameters: Parameters
    support: Examples

    @property
    def member(self) -> Tensor:
        """1 where a row is of a class, 0 elsewhere [rows, ways]."""
        return nn.functional.one_hot(self.support.y, self.support.ways).to(self.embedded.dtype)


class Metric(Learner):
    """A learner that classifies by comparing embeddings; the base model is one, without a head.

    There is nothing to adapt step by step, and training may use other numbers of classes per task than evaluation.
    """

    embeds = True

    def __init__(self, config: Any, network: Network) -> None:
        super().__init__(network, eval_steps=0)
        self.config = config

    @abstractmethod
    def compare(self, memory: Memory, embedded: Tensor) -> Tensor:
        """Outputs [rows, ways] for embedded queries [rows, features]."""

    def init(self, generator: Generator) -> Meta:
        return plain_meta(self.network.fresh(generator))

    def adaptation(self, meta: Meta, support: Examples, steps: int) -> Iterator[Memory]:
        yield Memory(self.network.support(meta.parameters, support), meta.parameters, support)

    def predict(self, adapted: Any, x: Tensor) -> Tensor:
        return self.compare(adapted, self.network.query(adapted.parameters, adapted.support, x))


def direction(embedded: Tensor) -> Tensor:
    """Rows of length 1; an embedding of zeros has no direction, and keeps a gradient of moderate size."""
    return nn.functional.normalize(embedded, dim=-1, eps=1e-3)
