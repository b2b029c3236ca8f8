"""ANIL: Raghu, Raghu, Bengio, Vinyals, "Rapid Learning or Feature Reuse? Towards Understanding the
Effectiveness of MAML", ICLR 2020.

MAML whose inner loop adapts the head alone ("almost no inner loop", section 4), in training and at evaluation;
the outer loop trains body and head. The body is the same in all inner steps, so the features of the support set
are computed once a task, and the derivative of the outer loss with respect to the body goes through these
features, those of the query set, and the adapted head.

`first_order` is MAML's and not in the paper: the head's step is a constant to the outer derivative.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from metadist.learners.base import HEAD, Network
from metadist.learners.maml import InnerLoopConfig, Maml


@dataclass(frozen=True, kw_only=True)
class AnilConfig(InnerLoopConfig):
    """ANIL: MAML whose inner loop adapts the head only."""

    kind: Literal["anil"] = "anil"
    #: patterns of the parameters that the adaptation changes; the outer loop trains all of them
    adapt: list[str] = field(default_factory=lambda: [f"{HEAD}*"])


class Anil(Maml):
    """Classification and regression, any base model with a head."""

    config_type = AnilConfig

    def __init__(self, config: InnerLoopConfig, network: Network) -> None:
        network.require_head("anil")
        super().__init__(config, network)
