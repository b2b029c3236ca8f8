"""Matching Networks: Vinyals, Blundell, Lillicrap, Kavukcuoglu, Wierstra, "Matching Networks for One Shot
Learning", NeurIPS 2016.

A query's class is a mixture of the support set's labels, ŷ = Σ a(x̂, xᵢ) yᵢ (equation 1), where the attention a is
the softmax over the whole support set of the cosines between embeddings (section 2.1.1). There is nothing to adapt
step by step, and training may use other numbers of classes per task than evaluation.

Deviations: the full context embeddings (section 2.1.2: LSTMs that read the support set before anything is
embedded) are left out, which is the paper's model without FCE; queries and support set share one embedding, as in the
paper's experiments; cosines may be multiplied by `scale` before the softmax, where the paper has 1.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from torch import Generator, Tensor, nn

from metadist.errors import UserError
from metadist.learners.base import Learner, Meta, Network, plain_meta
from metadist.learners.gradient import Parameters
from metadist.tasks import Examples


@dataclass(frozen=True, kw_only=True)
class MatchingConfig:
    """Matching Networks: attention over the support set by cosines; `tasks.train_ways` may differ."""

    kind: Literal["matching"] = "matching"
    #: factor on the cosines before the softmax; 1 is the paper's
    scale: float = 1.0

    def __post_init__(self) -> None:
        if not self.scale > 0:
            raise UserError("scale", self.scale, "a number above 0")


class Memory(NamedTuple):
    """A support set's directions [rows, features], with its embedding and the set itself."""

    directions: Tensor
    parameters: Parameters
    support: Examples


class MatchingNet(Learner):
    """Classification; the base model is an embedding, without a head."""

    config_type = MatchingConfig
    embeds = True

    def __init__(self, config: MatchingConfig, network: Network) -> None:
        super().__init__(network, eval_steps=0)
        self.config = config

    def init(self, generator: Generator) -> Meta:
        return plain_meta(self.network.fresh(generator))

    def adaptation(self, meta: Meta, support: Examples, steps: int) -> Iterator[Memory]:
        embedded = self.network.support(meta.parameters, support)
        yield Memory(_direction(embedded), meta.parameters, support)

    def predict(self, adapted: Any, x: Tensor) -> Tensor:
        """Logarithms of the mixture's class weights [rows, ways], up to a constant a row.

        The softmax of the loss is over classes; that of the paper, over support rows, comes to the same:
        log Σ_{i of class k} exp(cᵢ) − log Σᵢ exp(cᵢ).
        """
        support = adapted.support
        embedded = self.network.query(adapted.parameters, support, x)
        cosines = _direction(embedded) @ adapted.directions.T  # [rows, support rows]
        member = nn.functional.one_hot(support.y, support.ways).to(cosines.dtype)  # [support rows, ways]
        outputs: Tensor = (self.config.scale * cosines[:, :, None] + member.log()).logsumexp(1)
        return outputs


def _direction(embedded: Tensor) -> Tensor:
    """Rows of length 1; an embedding of zeros has no direction, and keeps a gradient of moderate size."""
    return nn.functional.normalize(embedded, dim=-1, eps=1e-3)
