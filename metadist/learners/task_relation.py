"""Task-relation model (model-dependent meta-learning): a task encoder generates the task's weights for a base model.

A generator with parameters φ reads the support set S and adds to the base model's θ, so that a task's weights are
wᵢ = θ + g_φ(Sᵢ) and both get gradients. An outer step has two phases: first φ, then, with the task weights of the new
φ, θ through one or more inner steps:

    φ ← φ − α ∇φ Σ Lᵢ(θ, φ)
    θ'ᵢ = θ − a ∇θ Lᵢ(θ, φ)
    θ ← θ − β ∇θ Σ Lᵢ(θ'ᵢ, φ)

The sums are of query losses, and taken as means over the tasks of a step; the inner step's is the support loss. α and β
are the rates of `optimizer.groups` (`match: generator.*`) and of `optimizer` itself. A task is judged after
`eval_steps` inner steps; with 0, by what the generator gives alone.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Literal

from metadist.learners.base import Learner, Network
from metadist.learners.generator import GENERATOR
from metadist.learners.hybrid import ConditionedConfig, Hybrid


@dataclass(frozen=True, kw_only=True)
class TaskRelationConfig(ConditionedConfig):
    """Task-relation model: a generator makes the task's weights of the support set; it and the weights step in turn."""

    kind: Literal["task_relation"] = "task_relation"
    #: adaptation steps at evaluation
    eval_steps: int = 1


class TaskRelation(Hybrid):
    """Classification and regression, any base model with a linear head."""

    config_type = TaskRelationConfig
    phases = ((f"{GENERATOR}*",), ("*", f"!{GENERATOR}*"))

    def __init__(self, config: ConditionedConfig, network: Network) -> None:
        super().__init__(config, network)
        self._unadapted: Learner = copy.copy(self)
        self._unadapted.train_steps = 0

    def in_phase(self, phase: int) -> Learner:
        return self if phase else self._unadapted
