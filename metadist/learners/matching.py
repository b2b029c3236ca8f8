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

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from metadist.errors import UserError
from metadist.learners.metric import Memory, Metric, direction


@dataclass(frozen=True, kw_only=True)
class MatchingConfig:
    """Matching Networks: attention over the support set by cosines; `tasks.train_ways` may differ."""

    kind: Literal["matching"] = "matching"
    #: factor on the cosines before the softmax; 1 is the paper's
    scale: float = 1.0

    def __post_init__(self) -> None:
        if not self.scale > 0:
            raise UserError("scale", self.scale, "a number above 0")


class MatchingNet(Metric):
    """Classification; the base model is an embedding, without a head."""

    config_type = MatchingConfig
    config: MatchingConfig

    def compare(self, memory: Memory, embedded: Tensor) -> Tensor:
        """Logarithms of the mixture's class weights [rows, ways], up to a constant a row.

        The softmax of the loss is over classes; that of the paper, over support rows, comes to the same:
        log Σ_{i of class k} exp(cᵢ) − log Σᵢ exp(cᵢ).
        """
        cosines = direction(embedded) @ direction(memory.embedded).T  # [rows, support rows]
        outputs: Tensor = (self.config.scale * cosines[:, :, None] + memory.member.log()).logsumexp(1)
        return outputs
