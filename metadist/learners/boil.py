"""BOIL: Oh, Yoo, Kim, Yun, "BOIL: Towards Representation Change for Few-shot Learning", ICLR 2021.

MAML whose inner loop adapts the body alone: the head's inner step size is 0, so that the features must move
towards a head that stays where it is. The outer loop trains body and head.

`first_order` is MAML's and not the paper's method: the body's step is a constant to the outer derivative.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from metadist.learners.adapt import NOT
from metadist.learners.base import HEAD, Network
from metadist.learners.maml import InnerLoopConfig, Maml


@dataclass(frozen=True, kw_only=True)
class BoilConfig(InnerLoopConfig):
    """BOIL: MAML whose inner loop adapts everything but the head."""

    kind: Literal["boil"] = "boil"
    #: patterns of the parameters that the adaptation changes, and after a ! of those that it leaves as they are; the
    #: outer loop trains all of them
    adapt: list[str] = field(default_factory=lambda: ["*", f"{NOT}{HEAD}*"])


class Boil(Maml):
    """Classification and regression, any base model with a head."""

    config_type = BoilConfig

    def __init__(self, config: InnerLoopConfig, network: Network) -> None:
        network.require_head("boil")
        super().__init__(config, network)
