"""MAML: Finn, Abbeel, Levine, "Model-Agnostic Meta-Learning for Fast Adaptation of Deep Networks", ICML 2017.

Learns initial weights θ from which a few gradient steps on the support set reach good weights for a task.
Each task takes θ' = θ − α ∇θ L_support(θ) (equation 1, repeated), and the outer loss is L_query(θ'), whose
derivative goes through the inner steps. `first_order` drops the second derivatives (section 5.2, FOMAML).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NamedTuple

from torch import Generator, Tensor

from metadist.errors import UserError
from metadist.learners.base import Learner, Meta, Network, plain_meta
from metadist.learners.gradient import Parameters, inner_gradient
from metadist.tasks import Examples, Task


@dataclass(frozen=True, kw_only=True)
class InnerLoopConfig:
    """Gradient steps of one size on the support set."""

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


@dataclass(frozen=True, kw_only=True)
class MamlConfig(InnerLoopConfig):
    """MAML and FOMAML: learns initial weights from which a few gradient steps are enough."""

    kind: Literal["maml"] = "maml"


class AdaptedWeights(NamedTuple):
    """Weights for one task, and the support set that they come from."""

    parameters: Parameters
    support: Examples


class Maml(Learner):
    """Classification and regression, any base model."""

    config_type: ClassVar[type[InnerLoopConfig]] = MamlConfig

    def __init__(self, config: InnerLoopConfig, network: Network) -> None:
        super().__init__(network, config.eval_steps)
        self.config = config

    def init(self, generator: Generator) -> Meta:
        return plain_meta(self.network.fresh(generator))

    def adapts(self, name: str) -> bool:
        """Whether the inner loop changes a parameter: all of them, but for ANIL and BOIL."""
        return True

    def support_loss(self, start: Parameters, support: Examples) -> Callable[[Parameters], Tensor]:
        """L_support as a function of the parameters that adapt; the others are as in `start`."""
        return lambda weights: self.network.cost(self.network.support(start | weights, support), support.y)

    def adaptation(self, meta: Meta, support: Examples, steps: int) -> Iterator[AdaptedWeights]:
        start, first_order = meta.parameters, self.config.first_order
        loss = self.support_loss(_detached(start) if first_order else start, support)
        weights = {name: w for name, w in start.items() if self.adapts(name)}
        yield AdaptedWeights(start, support)
        for _ in range(steps):
            # At detached weights no graph of the inner gradient is kept: θ' = θ − α · constant.
            gradient = inner_gradient(loss, _detached(weights) if first_order else weights)
            weights = {name: w - self.config.inner_lr * gradient[name] for name, w in weights.items()}
            yield AdaptedWeights(start | weights, support)

    def predict(self, adapted: Any, x: Tensor) -> Tensor:
        return self.network.query(adapted.parameters, adapted.support, x)

    def task_loss(self, meta: Meta, task: Task) -> tuple[Tensor, Tensor]:
        adapted = self.adapt(meta, task.support, self.config.inner_steps)
        outputs = self.predict(adapted, task.query.x)
        return self.network.cost(outputs, task.query.y), outputs


def _detached(parameters: Parameters) -> Parameters:
    return {name: value.detach() for name, value in parameters.items()}
