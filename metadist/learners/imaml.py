"""iMAML: Rajeswaran, Finn, Kakade, Levine, "Meta-Learning with Implicit Gradients", NeurIPS 2019.

Adapts by gradient steps on the support loss with a pull towards the start, G(φ) = L_support(φ) + λ/2 ‖φ − θ‖²
(equation 3). Where these steps have come to its minimum φ*, the meta-gradient does not depend on how they got there:

    dL_query(φ*(θ))/dθ = (I + H/λ)⁻¹ ∇L_query(φ*),    H the Hessian of L_support at φ*    (lemma 1, equation 6)

so that nothing of the steps is kept. The product with the inverse is found by a fixed number of conjugate gradient
steps, each of one product of H with a vector (algorithm 2). A minimum is approached at a rate of inner_lr · λ at the
least, and (I + H/λ) has an inverse that conjugate gradients find where λ exceeds H's most negative curvature; a net
with batch normalisation has directions of more, and `damping` is added to λ in that equation (the authors' code: 10).
A direction of still more ends the search, with what it has found (Nocedal, Wright, Numerical Optimization, algorithm
7.1): at a minimum there is none, and a step along one, as long as it is flat, is what makes such runs diverge.

Deviations: the authors' code takes the steps on L_support alone and pulls once after the last; here the pull is part of
every step, in training and at evaluation. It also has 2I in the place of I, which halves the meta-gradient.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Generator, Tensor

from metadist.errors import UserError
from metadist.learners.base import Learner, Meta, Network, TaskGradient, plain_meta
from metadist.learners.gradient import Parameters, hessian_product, inner_gradient
from metadist.learners.maml import AdaptedWeights
from metadist.tasks import Examples, Task


@dataclass(frozen=True, kw_only=True)
class ImamlConfig:
    """iMAML: MAML with a pull towards the start and an implicit meta-gradient, whatever the number of steps."""

    kind: Literal["imaml"] = "imaml"
    #: strength λ of the pull towards the start
    strength: float = 2.0
    #: step size of the adaptation
    inner_lr: float = 0.1
    #: adaptation steps in training
    inner_steps: int = 16
    #: adaptation steps at evaluation
    eval_steps: int = 16
    #: added to the strength in the meta-gradient's equation, for losses that are bent more than the strength can hold
    damping: float = 0.0
    #: conjugate gradient steps; 0 takes the query set's gradient as it is
    cg_steps: int = 5

    def __post_init__(self) -> None:
        for name in ("strength", "inner_lr"):
            if not getattr(self, name) > 0:
                raise UserError(name, getattr(self, name), "a number above 0")
        if not self.damping >= 0:
            raise UserError("damping", self.damping, "a number of at least 0")
        for name, least in (("inner_steps", 1), ("eval_steps", 0), ("cg_steps", 0)):
            if getattr(self, name) < least:
                raise UserError(name, getattr(self, name), f"a whole number of at least {least}")


class Imaml(Learner):
    """Classification and regression, any base model."""

    config_type = ImamlConfig
    own_gradient = True

    def __init__(self, config: ImamlConfig, network: Network) -> None:
        super().__init__(network, config.eval_steps, config.inner_steps)
        self.config = config

    def init(self, generator: Generator) -> Meta:
        return plain_meta(self.network.fresh(generator))

    def adaptation(self, meta: Meta, support: Examples, steps: int) -> Iterator[AdaptedWeights]:
        start = {name: value.detach() for name, value in meta.parameters.items()}
        loss, size, strength = self._support_loss(support), self.config.inner_lr, self.config.strength
        weights = start
        yield AdaptedWeights(weights, support)
        for _ in range(steps):
            gradient = inner_gradient(loss, weights)
            weights = {n: w - size * (gradient[n] + strength * (w - start[n])) for n, w in weights.items()}
            yield AdaptedWeights(weights, support)

    def predict(self, adapted: Any, x: Tensor) -> Tensor:
        return self.network.query(adapted.parameters, adapted.support, x)

    def task_gradient(self, meta: Meta, task: Task) -> TaskGradient:
        adapted = self.adapt(meta, task.support, self.train_steps)
        outputs = self.predict(adapted, task.query.x)

        def query_loss(weights: Parameters) -> Tensor:
            return self.network.cost(self.network.query(weights, task.support, task.query.x), task.query.y)

        gradient = inner_gradient(query_loss, adapted.parameters)
        curvature = hessian_product(self._support_loss(task.support), adapted.parameters)

        strength = self.config.strength + self.config.damping

        def matrix(vector: Parameters) -> Parameters:
            bent = curvature(vector)
            return {name: value + bent[name] / strength for name, value in vector.items()}

        if self.config.cg_steps:
            gradient = conjugate_gradient(matrix, gradient, self.config.cg_steps)
        return TaskGradient(gradient, self.network.cost(outputs, task.query.y), outputs, {})

    def _support_loss(self, support: Examples) -> Callable[[Parameters], Tensor]:
        return lambda weights: self.network.cost(self.network.support(weights, support), support.y)


#: a direction along which the matrix is less than this ends the search for a solution
LEAST_CURVATURE = 0.1


def conjugate_gradient(matrix: Callable[[Parameters], Parameters], target: Parameters, steps: int) -> Parameters:
    """x with `matrix`(x) ≈ `target` after `steps` steps from 0 (Hestenes, Stiefel, 1952); exact solutions stay.

    Ends at a direction along which the matrix is less than `LEAST_CURVATURE`: `target` itself if it is the first.
    """
    x = {name: torch.zeros_like(value) for name, value in target.items()}
    residual = direction = target
    square = _dot(residual, residual)
    convex: Tensor | bool = True
    for step in range(steps):
        image = matrix(direction)
        curvature = _dot(direction, image)
        convex = (curvature > LEAST_CURVATURE * _dot(direction, direction)) & convex
        length = torch.where(convex, _ratio(square, curvature), 0.0 if step else 1.0)
        x = {name: value + length * direction[name] for name, value in x.items()}
        residual = {name: value - length * image[name] for name, value in residual.items()}
        before, square = square, _dot(residual, residual)
        turn = _ratio(square, before)
        direction = {name: value + turn * direction[name] for name, value in residual.items()}
    return x


def _dot(a: Parameters, b: Parameters) -> Tensor:
    # In the order of the names: that of the parameters is another one in a run that was resumed.
    return torch.stack([(a[name] * b[name]).sum() for name in sorted(a)]).sum()


def _ratio(a: Tensor, b: Tensor) -> Tensor:
    """a / b, and 0 where b is 0: there is nothing left to solve."""
    return torch.where(b == 0, 0.0, a / torch.where(b == 0, 1.0, b))
