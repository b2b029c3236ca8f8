"""What learners share whose network reads the support set, labels and all, and has nothing to adapt step by step."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar

from torch import Generator, Tensor, nn

from metadist.learners.base import Learner, Meta, Network, plain_meta
from metadist.learners.gradient import Parameters
from metadist.learners.metric import Memory
from metadist.tasks import Examples

#: name of the reader in the base model
READER = "reader"


def labels(part: Examples, like: Tensor) -> Tensor:
    """What a part of a task tells of its rows [rows, outputs]: one-hot classes, or values."""
    return nn.functional.one_hot(part.y, part.ways).to(like.dtype) if part.ways else part.y


class Reading(Learner):
    """A learner with a reader between the features of its base model and the head.

    The reader is called with the support set's features [rows, features], its labels [rows, outputs], one-hot for
    classes, and the queries' features [queries, features], and returns what the head sees of all
    [rows + queries, features].

    Raises:
        UserError: the model's head is no linear layer.
    """

    #: makes the reader of the settings and the numbers of features and outputs
    reader: ClassVar[type[nn.Module]]

    def __init__(self, config: Any, network: Network) -> None:
        super().__init__(network, eval_steps=0)
        self.config, head = config, network.linear_head()
        # A part of the base model, so that its parameters are meta-parameters as all others are.
        network.module.add_module(READER, self.reader(config, head.in_features, head.out_features))

    def init(self, generator: Generator) -> Meta:
        return plain_meta(self.network.fresh(generator))

    def adaptation(self, meta: Meta, support: Examples, steps: int) -> Iterator[Memory]:
        yield Memory(self.network.support_features(meta.parameters, support), meta.parameters, support)

    def predict(self, adapted: Any, x: Tensor) -> Tensor:
        embedded, parameters, support = adapted
        queries = self.network.query(parameters, support, x, head=False)
        return self.read(parameters, embedded, labels(support, embedded), queries)[-len(x) :]

    def read(self, parameters: Parameters, embedded: Tensor, y: Tensor, queries: Tensor) -> Tensor:
        """Outputs [rows + queries, outputs] of embedded rows with labels, and of queries."""
        return self.network.head(parameters, self.network.through(READER, parameters, embedded, y, queries))
