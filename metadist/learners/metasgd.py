"""Meta-SGD: Li, Zhou, Chen, Li, "Meta-SGD: Learning to Learn Quickly for Few-Shot Learning", 2017.

Learns with the initial weights θ a step size α of its own for each of them, so that the update has a learned
direction as well as a learned length: θ' = θ − α ∘ ∇L_support(θ) (equation 1). The outer loss L_query(θ') trains
both, through the second derivatives. A step size may become negative; nothing holds it above 0.

The step sizes are parameters named `step_sizes.…`, each of its weights' shape, so that `optimizer.groups` can give
them a rate of their own (`match: step_sizes.*`), or take weight decay from them.

Deviation: the paper takes one step; with more `inner_steps`, all use the same step sizes.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Generator, Tensor

from metadist.errors import UserError
from metadist.learners.adapt import adapting
from metadist.learners.base import Learner, Meta, Network, plain_meta
from metadist.learners.gradient import Parameters, inner_gradient
from metadist.learners.maml import AdaptedWeights
from metadist.tasks import Examples

#: how the names of the step sizes begin; the name of their weights follows
STEP_SIZES = "step_sizes."


@dataclass(frozen=True, kw_only=True)
class MetaSgdConfig:
    """Meta-SGD: learns initial weights, and a step size for each of them."""

    kind: Literal["metasgd"] = "metasgd"
    #: step sizes before training: one for all weights, or [low, high] to draw each one uniformly
    inner_lr: float | list[float] = field(default_factory=lambda: [0.005, 0.1])
    #: patterns of the parameters that the adaptation changes (`head.*`), and after a ! of those that it leaves as they
    #: are; the outer loop trains all of them
    adapt: list[str] = field(default_factory=lambda: ["*"])
    #: adaptation steps in training
    inner_steps: int = 1
    #: adaptation steps at evaluation
    eval_steps: int = 1

    def __post_init__(self) -> None:
        bounds = self.inner_lr if isinstance(self.inner_lr, list) else [self.inner_lr] * 2
        if len(bounds) != 2 or not 0 < bounds[0] <= bounds[1]:
            raise UserError("inner_lr", self.inner_lr, "a number above 0, or [low, high] with 0 < low ≤ high")
        for name, least in (("inner_steps", 1), ("eval_steps", 0)):
            if getattr(self, name) < least:
                raise UserError(name, getattr(self, name), f"a whole number of at least {least}")


class MetaSgd(Learner):
    """Classification and regression, any base model."""

    config_type = MetaSgdConfig

    def __init__(self, config: MetaSgdConfig, network: Network) -> None:
        super().__init__(network, config.eval_steps, config.inner_steps)
        self.config = config

    def init(self, generator: Generator) -> Meta:
        weights = self.network.fresh(generator)
        adapted = adapting(weights, self.config.adapt)
        step_sizes = {STEP_SIZES + name: self._step_sizes(weight, generator) for name, weight in adapted.items()}
        return plain_meta(weights | step_sizes)

    def _step_sizes(self, weight: Tensor, generator: Generator) -> Tensor:
        if not isinstance(self.config.inner_lr, list):
            return torch.full_like(weight, self.config.inner_lr)
        low, high = self.config.inner_lr
        return torch.empty_like(weight).uniform_(low, high, generator=generator)

    def adaptation(self, meta: Meta, support: Examples, steps: int) -> Iterator[AdaptedWeights]:
        start = {name: value for name, value in meta.parameters.items() if not name.startswith(STEP_SIZES)}

        def loss(parameters: Parameters) -> Tensor:
            return self.network.cost(self.network.support(start | parameters, support), support.y)

        weights = adapting(start, self.config.adapt)
        yield AdaptedWeights(start, support)
        for _ in range(steps):
            gradient = inner_gradient(loss, weights)
            weights = {name: w - meta.parameters[STEP_SIZES + name] * gradient[name] for name, w in weights.items()}
            yield AdaptedWeights(start | weights, support)

    def predict(self, adapted: Any, x: Tensor) -> Tensor:
        return self.network.query(adapted.parameters, adapted.support, x)
