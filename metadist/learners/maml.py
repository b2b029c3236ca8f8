"""MAML: Finn, Abbeel, Levine, "Model-Agnostic Meta-Learning for Fast Adaptation of Deep Networks", ICML 2017.

Learns initial weights θ from which a few gradient steps on the support set reach good weights for a task.
Each task takes θ' = θ − α ∇θ L_support(θ) (equation 1, repeated), and the outer loss is L_query(θ'), whose
derivative goes through the inner steps. `first_order` drops the second derivatives (section 5.2, FOMAML).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from torch import Generator, Tensor

from metadist.errors import UserError
from metadist.learners.base import Learner, Meta, Network, plain_meta
from metadist.learners.gradient import Parameters, inner_gradient
from metadist.tasks import Examples, Task


@dataclass(frozen=True, kw_only=True)
class MamlConfig:
    """MAML and FOMAML."""

    kind: Literal["maml"] = "maml"
    #: step size α of the adaptation
    inner_lr: float = 0.4
    #: adaptation steps in training; 0 trains on all tasks without meta-learning
    inner_steps: int = 1
    #: adaptation steps at evaluation
    eval_steps: int = 3
    #: drop the second derivatives
    first_order: bool = False

    def __post_init__(self) -> None:
        if not self.inner_lr > 0:
            raise UserError("inner_lr", self.inner_lr, "a number above 0")
        for name in ("inner_steps", "eval_steps"):
            if getattr(self, name) < 0:
                raise UserError(name, getattr(self, name), "a whole number of at least 0")


class AdaptedWeights(NamedTuple):
    """Weights for one task, and the support set that they come from."""

    parameters: Parameters
    support: Examples


class Maml(Learner):
    """Classification and regression, any base model."""

    def __init__(self, config: MamlConfig, network: Network) -> None:
        super().__init__(network, config.eval_steps)
        self.config = config

    def init(self, generator: Generator) -> Meta:
        return plain_meta(self.network.fresh(generator))

    def adaptation(self, meta: Meta, support: Examples, steps: int) -> Iterator[AdaptedWeights]:
        def loss(parameters: Parameters) -> Tensor:
            return self.network.cost(self.network.support(parameters, support), support.y)

        weights = meta.parameters
        yield AdaptedWeights(weights, support)
        for _ in range(steps):
            # At detached weights no graph of the inner gradient is kept: θ' = θ − α · constant.
            at = {n: w.detach() for n, w in weights.items()} if self.config.first_order else weights
            gradient = inner_gradient(loss, at)
            weights = {name: w - self.config.inner_lr * gradient[name] for name, w in weights.items()}
            yield AdaptedWeights(weights, support)

    def predict(self, adapted: Any, x: Tensor) -> Tensor:
        return self.network.query(adapted.parameters, adapted.support, x)

    def task_loss(self, meta: Meta, task: Task) -> tuple[Tensor, Tensor]:
        adapted = self.adapt(meta, task.support, self.config.inner_steps)
        outputs = self.predict(adapted, task.query.x)
        return self.network.cost(outputs, task.query.y), outputs
