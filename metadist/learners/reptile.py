"""Reptile: Nichol, Achiam, Schulman, "On First-Order Meta-Learning Algorithms", 2018.

Adapts with k steps of an ordinary optimiser on mini-batches of the support set and moves the initial weights
towards the result: the meta-gradient is θ − φ (algorithm 2; an outer SGD with lr ε is the paper's step).
No second derivative is taken and training needs no query set; it is judged on one all the same.

The paper's transductive setting is `model.norm: batch`: all queries of a task are normalised together. In the other
one the authors' code shows the net one query at a time, in a batch with the support set, which is `model.norm: single`.
Both have the same training, so that one run can be judged in both (`metadist evaluate RUN --norm single`).

Deviations: the inner Adam's moments begin afresh in each task, where the authors' code carries them from task
to task; mini-batches are consecutive rows of the shuffled support set, the same rows again after the last.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Generator, Tensor

from metadist.errors import UserError
from metadist.learners.adapt import adapting
from metadist.learners.base import Learner, Meta, Network, TaskGradient, plain_meta
from metadist.learners.gradient import Parameters, inner_gradient
from metadist.learners.maml import AdaptedWeights
from metadist.tasks import Examples, Task

#: Adam's two moments of each weight
Moments = dict[str, tuple[Tensor, Tensor]]


@dataclass(frozen=True, kw_only=True)
class ReptileConfig:
    """Reptile: moves towards adapted weights; with `optimizer: {kind: sgd, lr: 1.0, schedule: linear}`."""

    kind: Literal["reptile"] = "reptile"
    #: optimiser of the adaptation
    inner_optimizer: Literal["sgd", "adam"] = "adam"
    #: step size of the adaptation
    inner_lr: float = 0.001
    #: patterns of the parameters that the adaptation changes (`head.*`), and after a ! of those that it leaves as they
    #: are, which training leaves as they are too
    adapt: list[str] = field(default_factory=lambda: ["*"])
    #: adaptation steps in training
    inner_steps: int = 5
    #: adaptation steps at evaluation
    eval_steps: int = 50
    #: support rows per adaptation step; null takes all of them
    inner_batch: int | None = 10
    #: Adam's decay of the first moment (the paper's 0)
    beta1: float = 0.0
    #: Adam's decay of the second moment
    beta2: float = 0.999

    def __post_init__(self) -> None:
        if not self.inner_lr > 0:
            raise UserError("inner_lr", self.inner_lr, "a number above 0")
        for name, least in (("inner_steps", 1), ("eval_steps", 0), ("inner_batch", 1)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise UserError(name, value, f"a whole number of at least {least}")
        for name in ("beta1", "beta2"):
            if not 0 <= getattr(self, name) < 1:
                raise UserError(name, getattr(self, name), "a number from 0 to below 1")


class Reptile(Learner):
    """Classification and regression, any base model."""

    config_type = ReptileConfig
    own_gradient = True
    eps = 1e-8

    def __init__(self, config: ReptileConfig, network: Network) -> None:
        super().__init__(network, config.eval_steps, config.inner_steps)
        self.config = config

    def init(self, generator: Generator) -> Meta:
        return plain_meta(self.network.fresh(generator))

    def adaptation(self, meta: Meta, support: Examples, steps: int) -> Iterator[AdaptedWeights]:
        start = {name: value.detach() for name, value in meta.parameters.items()}
        weights = adapting(start, self.config.adapt)
        moments: Moments = {}
        yield AdaptedWeights(start, support)
        for step in range(steps):
            part = self._mini_batch(support, step)

            def loss(parameters: Parameters, part: Examples = part) -> Tensor:
                return self.network.cost(self.network.support(start | parameters, part), part.y)

            gradient = inner_gradient(loss, weights)
            if self.config.inner_optimizer == "adam":
                weights, moments = self._adam(weights, gradient, moments, step + 1)
            else:
                weights = {name: w - self.config.inner_lr * gradient[name] for name, w in weights.items()}
            yield AdaptedWeights(start | weights, support)

    def _mini_batch(self, support: Examples, step: int) -> Examples:
        rows = support.x.shape[0]
        size = min(self.config.inner_batch or rows, rows)
        order = [(step * size + row) % rows for row in range(size)]
        return support if size == rows else Examples(support.x[order], support.y[order], support.ways)

    def _adam(
        self, weights: Parameters, gradient: Parameters, moments: Moments, step: int
    ) -> tuple[Parameters, Moments]:
        """Step number `step` of Adam (Kingma, Ba, 2015, section 2, in the order that saves passes over the weights)."""
        beta1, beta2 = self.config.beta1, self.config.beta2
        root = math.sqrt(1 - beta2**step)
        size = self.config.inner_lr * root / (1 - beta1**step)
        after, stepped = {}, {}
        for name, g in gradient.items():
            first, second = moments[name] if moments else (torch.zeros_like(g), torch.zeros_like(g))
            first = beta1 * first + (1 - beta1) * g if beta1 else g
            second = torch.addcmul(beta2 * second, g, g, value=1 - beta2)
            after[name] = first, second
            stepped[name] = torch.addcdiv(weights[name], first, second.sqrt() + root * self.eps, value=-size)
        return stepped, after

    def predict(self, adapted: Any, x: Tensor) -> Tensor:
        return self.network.query(adapted.parameters, adapted.support, x)

    def task_gradient(self, meta: Meta, task: Task) -> TaskGradient:
        adapted = self.adapt(meta, task.support, self.config.inner_steps)
        outputs = self.predict(adapted, task.query.x)
        gradient = {name: value - adapted.parameters[name] for name, value in meta.parameters.items()}
        return TaskGradient(gradient, self.network.cost(outputs, task.query.y), outputs, {})
