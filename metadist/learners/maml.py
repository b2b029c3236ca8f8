"""MAML: Finn, Abbeel, Levine, "Model-Agnostic Meta-Learning for Fast Adaptation of Deep Networks", ICML 2017.

Learns initial weights θ from which a few gradient steps on the support set reach good weights for a task.
Each task takes θ' = θ − α ∇θ L_support(θ) (equation 1, repeated), and the outer loss is L_query(θ'), whose
derivative goes through the inner steps. `first_order` drops the second derivatives (section 5.2, FOMAML).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, NamedTuple

from torch import Generator, Tensor

from metadist.errors import UserError
from metadist.learners.adapt import adapting
from metadist.learners.base import HEAD, Learner, Meta, Network, plain_meta
from metadist.learners.gradient import Parameters, inner_gradient
from metadist.learners.remat import rematerialized
from metadist.tasks import Examples


@dataclass(frozen=True, kw_only=True)
class InnerLoopConfig:
    """Gradient steps of one size on the support set."""

    #: step size α of the adaptation
    inner_lr: float = 0.4
    #: adaptation steps in training; 0 trains on all tasks without meta-learning
    inner_steps: int = 1
    #: adaptation steps at evaluation
    eval_steps: int = 3
    #: patterns of the parameters that the adaptation changes (`head.*`), and after a ! of those that it leaves as they
    #: are; the outer loop trains all of them
    adapt: list[str] = field(default_factory=lambda: ["*"])
    #: drop the second derivatives
    first_order: bool = False
    #: take the inner steps again in the backward pass instead of keeping their graphs: memory that hardly grows with
    #: inner_steps, for more time a step; the last bits may differ. Without effect on first_order, which keeps none
    remat: bool = False

    def __post_init__(self) -> None:
        if not self.inner_lr > 0:
            raise UserError("inner_lr", self.inner_lr, "a number above 0")
        for name in ("inner_steps", "eval_steps"):
            if getattr(self, name) < 0:
                raise UserError(name, getattr(self, name), "a whole number of at least 0")


@dataclass(frozen=True, kw_only=True)
class MamlConfig(InnerLoopConfig):
    """MAML, and FOMAML with first_order: true: initial weights from which a few gradient steps are enough."""

    kind: Literal["maml"] = "maml"


class AdaptedWeights(NamedTuple):
    """Weights for one task, and the support set that they come from."""

    parameters: Parameters
    support: Examples


class Maml(Learner):
    """Classification and regression, any base model."""

    config_type: ClassVar[type[InnerLoopConfig]] = MamlConfig

    def __init__(self, config: InnerLoopConfig, network: Network) -> None:
        super().__init__(network, config.eval_steps, config.inner_steps)
        self.config = config
        self.remat = config.remat and not config.first_order

    def init(self, generator: Generator) -> Meta:
        return plain_meta(self.network.fresh(generator))

    def support_loss(self, start: Parameters, support: Examples) -> Callable[[Parameters], Tensor]:
        """L_support as a function of the parameters that adapt; the others are as in `start`."""
        if all(name.startswith(HEAD) for name in adapting(start, self.config.adapt)):
            features = self.network.support_features(start, support)  # [rows, features], the same in all steps
            return lambda head: self.network.cost(self.network.head(start | head, features), support.y)
        return lambda weights: self.network.cost(self.network.support(start | weights, support), support.y)

    def adaptation(self, meta: Meta, support: Examples, steps: int) -> Iterator[AdaptedWeights]:
        start = meta.parameters
        # What is frozen may be a part of a task's start, and does not adapt.
        weights = {n: w for n, w in adapting(start, self.config.adapt).items() if n not in self.network.fixed}
        step = self._remat_step(start, support) if self.remat else self._step(start, support)
        yield AdaptedWeights(start, support)
        for _ in range(steps):
            weights = step(weights)
            yield AdaptedWeights(start | weights, support)

    def _step(self, start: Parameters, support: Examples) -> Callable[[Parameters], Parameters]:
        first_order = self.config.first_order
        loss = self.support_loss(detached(start) if first_order else start, support)

        def step(weights: Parameters) -> Parameters:
            # At detached weights no graph of the inner gradient is kept: θ' = θ − α · constant.
            gradient = inner_gradient(loss, detached(weights) if first_order else weights)
            return {name: w - self.config.inner_lr * gradient[name] for name, w in weights.items()}

        return step

    def _remat_step(self, start: Parameters, support: Examples) -> Callable[[Parameters], Parameters]:
        step = rematerialized(lambda weights, start, support: self._step(start, support)(weights))
        return lambda weights: step(weights, start, support)

    def predict(self, adapted: Any, x: Tensor) -> Tensor:
        return self.network.query(adapted.parameters, adapted.support, x)


def detached(parameters: Parameters) -> Parameters:
    """The same values, of which no derivative is taken."""
    return {name: value.detach() for name, value in parameters.items()}
