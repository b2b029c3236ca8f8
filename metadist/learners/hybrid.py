"""Hybrid: a start that depends on the task, and gradient steps from it.

A generator φ reads the support set S and gives the task its own start, wᵢ = θ + g_φ(Sᵢ); MAML's inner steps adapt from
there (Finn et al., 2017), and the query loss after them trains θ and φ together, in one step. Where tasks are of
several families, g finds the family and the steps find the task: as in multimodal meta-learning (Vuorio, Sun, Hu, Lim,
"Multimodal Model-Agnostic Meta-Learning via Task-Aware Modulation", NeurIPS 2019), which modulates θ instead of adding.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import ClassVar, Literal

from metadist.learners.base import Meta, Network
from metadist.learners.generator import GeneratorConfig, WeightGenerator, own_weights
from metadist.learners.gradient import Parameters
from metadist.learners.maml import AdaptedWeights, InnerLoopConfig, Maml
from metadist.tasks import Examples

#: what is emitted at the start, in relation to θ
SHARE = 0.1


@dataclass(frozen=True, kw_only=True)
class ConditionedConfig(GeneratorConfig, InnerLoopConfig):
    """An inner loop that begins where a generator says."""

    #: patterns of the base model's parameters that the generator adds to, and after a ! of those that it does not
    generate: list[str] = field(default_factory=lambda: ["*"])

    def __post_init__(self) -> None:
        GeneratorConfig.__post_init__(self)
        InnerLoopConfig.__post_init__(self)


@dataclass(frozen=True, kw_only=True)
class HybridConfig(ConditionedConfig):
    """Hybrid: MAML from a start that a generator makes of the support set."""

    kind: Literal["hybrid"] = "hybrid"


class Hybrid(Maml):
    """Classification and regression, any base model with a linear head."""

    config_type: ClassVar[type[ConditionedConfig]] = HybridConfig
    config: ConditionedConfig

    def __init__(self, config: ConditionedConfig, network: Network) -> None:
        super().__init__(config, network)
        self.generator = WeightGenerator(config, network, config.generate)

    def adaptation(self, meta: Meta, support: Examples, steps: int) -> Iterator[AdaptedWeights]:
        return super().adaptation(meta._replace(parameters=self.start(meta, support)), support, steps)

    def start(self, meta: Meta, support: Examples) -> Parameters:
        """wᵢ = θ + g_φ(Sᵢ), by name, beside the parameters that nothing is added to."""
        weights = self.network.fixed | meta.parameters  # θ or φ may not change
        added = self.added(meta, support)
        return own_weights(meta.parameters) | {name: weights[name] + value for name, value in added.items()}

    def added(self, meta: Meta, support: Examples) -> Parameters:
        """g_φ(Sᵢ), by name."""
        emitted = self.generator(self.network, meta.parameters, support)
        return {name: SHARE * value for name, value in emitted.items()}
