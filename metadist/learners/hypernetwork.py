"""Hypernetwork: Ha, Dai, Le, "HyperNetworks", ICLR 2017, as a meta-learner.

A generator reads the support set and emits all weights of the base model (`metadist.learners.generator`); the base
model has none of its own. The meta-gradient trains encoder and generator by the query loss of what they emit. There is
no inner loop: a task costs one pass of its support set and one of its query set, whatever `eval_steps` other learners
have. With `depth` 2 the generator is emitted by a generator one level up, and so on.

Deviations: the paper's generator sees embeddings of layers alone, and one net is trained with it; here it sees the code
of a task as well. Scales of normalisations and of FiLM are emitted as 1 and a departure from it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

from torch import Generator, Tensor

from metadist.errors import UserError
from metadist.learners.base import Learner, Meta, Network, plain_meta
from metadist.learners.generator import GENERATOR, GeneratorConfig, WeightGenerator
from metadist.learners.maml import AdaptedWeights
from metadist.models import Film, Norm
from metadist.tasks import Examples


@dataclass(frozen=True, kw_only=True)
class HypernetworkConfig(GeneratorConfig):
    """Hypernetwork: a generator reads the support set and emits all weights of a small base model."""

    kind: Literal["hypernetwork"] = "hypernetwork"
    #: levels of generators; each but the topmost is emitted by the one above
    depth: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.depth < 1:
            raise UserError("depth", self.depth, "a whole number of at least 1")


class Hypernetwork(Learner):
    """Classification and regression, any base model with a linear head."""

    config_type = HypernetworkConfig

    def __init__(self, config: HypernetworkConfig, network: Network) -> None:
        super().__init__(network, eval_steps=0)
        parts = network.module.named_modules()
        self.scales = {f"{name}.weight" for name, part in parts if isinstance(part, Norm | Film)}
        self.generator = WeightGenerator(config, network, ["*"], config.depth)

    def init(self, generator: Generator) -> Meta:
        every = self.network.fresh(generator)
        return plain_meta({name: value for name, value in every.items() if name.startswith(GENERATOR)})

    def adaptation(self, meta: Meta, support: Examples, steps: int) -> Iterator[AdaptedWeights]:
        emitted = self.generator(self.network, meta.parameters, support)
        weights = {name: 1 + value if name in self.scales else value for name, value in emitted.items()}
        yield AdaptedWeights(weights, support)

    def predict(self, adapted: Any, x: Tensor) -> Tensor:
        return self.network.query(adapted.parameters, adapted.support, x)
