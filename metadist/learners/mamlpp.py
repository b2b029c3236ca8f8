"""MAML++: Antoniou, Edwards, Storkey, "How to Train Your MAML", ICLR 2019.

MAML with what makes it train steadily and reach further, each part to be switched on and off (section 4): a
weighted sum of the query losses after every inner step, whose weights move to the last step (multi-step loss); a
step size for every parameter tensor and inner step (LSLR); scales and shifts of the normalisation for every inner
step, which the adaptation leaves alone, and running statistics for every step; first-order gradients in the
beginning (derivative-order annealing). The cosine schedule of the outer rate is `optimizer.schedule: cosine`.

Step i of the adaptation (i = 0, 1, …) takes the support gradient with the scales of step i, and what it leads to is
judged with these scales as well, as in the authors' code; further steps than `inner_steps` take those of the last.

Deviations: the weights of the multi-step loss are constant within `multi_step_loss_stages` stages, as they are
within the authors' epochs. The authors' code collects running statistics and normalises by the batch all the same,
which is `step_statistics: batch`. With `running`, predictions of an adapted learner are normalised by the mean of
the query statistics that training has seen after as many steps, so that they do not depend on the other queries; a
support set is normalised by itself, in training and later.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Generator, Tensor

from metadist.errors import UserError
from metadist.learners.base import Learner, Meta, Network, Outcome
from metadist.learners.gradient import Parameters, inner_gradient
from metadist.learners.maml import AdaptedWeights, detached
from metadist.models import Norm, record_statistics
from metadist.tasks import Examples, Task

#: how the names of the step sizes begin; the name of their weights follows
STEP_SIZES = "step_sizes."
#: how the names of a normalisation's statistics end
MEAN, VARIANCE = ".running_mean", ".running_variance"
#: least weight of a step's loss, times the number of steps, while the multi-step loss lasts (the authors' code)
LEAST_WEIGHT = 0.03
#: stages of the loss weights of which each is worth being captured
MOST_STAGES = 20


@dataclass(frozen=True, kw_only=True)
class MamlPlusPlusConfig:
    """MAML++: MAML with step sizes and normalisation by step, and losses after every step; each switchable."""

    kind: Literal["mamlpp"] = "mamlpp"
    #: step size of the adaptation; where they are learned, what they begin with
    inner_lr: float = 0.1
    #: adaptation steps in training
    inner_steps: int = 5
    #: adaptation steps at evaluation
    eval_steps: int = 5
    #: learn a step size for every parameter tensor and step, parameters named `step_sizes.…` (LSLR)
    learn_step_sizes: bool = True
    #: scales and shifts of the normalisation for every step, learned, not adapted; otherwise one, adapted
    step_norms: bool = True
    #: what normalises the queries of evaluation: their `batch`, or the `running` statistics of training, by step
    step_statistics: Literal["batch", "running"] = "batch"
    #: outer steps in which the losses after all inner steps count; 0: only the loss after the last one ever does
    multi_step_loss_steps: int = 0
    #: stages of equal length in which the weights of these losses move to the last step
    multi_step_loss_stages: int = 10
    #: outer steps in the beginning without second derivatives
    first_order_until: int = 0

    def __post_init__(self) -> None:
        if not self.inner_lr > 0:
            raise UserError("inner_lr", self.inner_lr, "a number above 0")
        least = {"inner_steps": 1, "multi_step_loss_stages": 1}
        for name in ("eval_steps", "multi_step_loss_steps", "first_order_until", *least):
            bound = least.get(name, 0)
            if getattr(self, name) < bound:
                raise UserError(name, getattr(self, name), f"a whole number of at least {bound}")

    def loss_weights(self, step: int) -> tuple[float, ...]:
        """Weight of the query loss after each inner step, in the outer step that follows `step` ones; sum 1.

        `get_per_step_loss_importance_vector` of the authors' code, with stages for epochs.
        """
        count = self.inner_steps
        if step >= self.multi_step_loss_steps:
            return (0.0,) * (count - 1) + (1.0,)
        stage = step * self.multi_step_loss_stages // self.multi_step_loss_steps
        other = max(1 - stage / self.multi_step_loss_stages, LEAST_WEIGHT) / count
        return (other,) * (count - 1) + (1 - other * (count - 1),)


class MamlPlusPlus(Learner):
    """Classification and regression, any base model.

    Args:
        step: outer steps taken, of which loss weights and the order of the derivatives are a function.

    Raises:
        UserError: running statistics of a model that does not normalise by its batch.
    """

    config_type = MamlPlusPlusConfig

    def __init__(self, config: MamlPlusPlusConfig, network: Network, step: int = 0) -> None:
        super().__init__(network, config.eval_steps, config.inner_steps)
        self.config = config
        self.loss_weights, self.first_order = config.loss_weights(step), step < config.first_order_until
        self._stages: dict[Any, MamlPlusPlus] = {}
        self.few_stages = config.multi_step_loss_stages <= MOST_STAGES
        self.running = config.step_statistics == "running"
        norm = network.module.norm_kind
        if self.running and norm != "batch":
            hint = f"model.norm is {norm}; set model.norm: batch."
            raise UserError("learner.step_statistics", "running", "batch, but for models that normalise by batch", hint)

    def at(self, step: int) -> Learner:
        stage = self.config.loss_weights(step), step < self.config.first_order_until
        if stage == (self.loss_weights, self.first_order):
            return self
        key = (self.network, *stage)
        if key not in self._stages:
            self._stages[key] = MamlPlusPlus(self.config, self.network, step)
        return self._stages[key]

    def init(self, generator: Generator) -> Meta:
        steps, weights = self.config.inner_steps, self.network.fresh(generator)
        if self.config.step_norms:
            weights |= {name: weights[name].expand(steps, -1).clone() for name in self._norm_parameters()}
        if self.config.learn_step_sizes:
            sizes = torch.full((steps,), self.config.inner_lr)
            weights |= {STEP_SIZES + name: sizes.clone() for name in self._adapting(weights)}
        statistics = {}
        if self.running:
            for name, norm in self._norms().items():
                statistics[name + MEAN] = torch.zeros(steps, *norm.weight.shape)
                statistics[name + VARIANCE] = torch.ones(steps, *norm.weight.shape)
        return Meta(weights, statistics, {})

    def adaptation(self, meta: Meta, support: Examples, steps: int) -> Iterator[AdaptedWeights]:
        weights = self._adapting(meta.parameters)
        yield self._judged(meta, weights, support, 0)
        for step in range(steps):
            weights = self._step(meta.parameters, weights, support, step)
            yield self._judged(meta, weights, support, step)

    def predict(self, adapted: Any, x: Tensor) -> Tensor:
        return self.network.query(adapted.parameters, adapted.support, x)

    def task_loss(self, meta: Meta, task: Task) -> Outcome:
        """The weighted sum of the losses after each step, the last one's outputs, and statistics of the query set."""
        bare = meta._replace(statistics={})  # what is trained on is normalised by its batch
        losses, seen = [], []
        states = self.adaptation(bare, task.support, self.train_steps)
        next(states)
        for weight, adapted in zip(self.loss_weights, states, strict=True):
            if not weight and not self.running:
                continue
            # A step whose loss does not count may still have to show its statistics.
            with record_statistics() as moments, contextlib.nullcontext() if weight else torch.no_grad():
                outputs = self.predict(adapted, task.query.x)
            if weight:
                losses.append(weight * self.network.cost(outputs, task.query.y))
            seen.append({name: moments[norm] for name, norm in self._norms().items() if self.running})
        statistics: dict[str, Tensor] = {}
        for name in seen[0]:
            means, variances = zip(*(moments[name] for moments in seen), strict=True)
            statistics |= {name + MEAN: torch.stack(means), name + VARIANCE: torch.stack(variances)}
        return Outcome(torch.stack(losses).sum(), outputs, statistics)

    def _step(self, start: Parameters, weights: Parameters, support: Examples, step: int) -> Parameters:
        """One inner step: θ ← θ − αᵢ ∇L_support(θ), with an αᵢ for each tensor."""
        fixed = self._norms_of(start, step)
        if self.first_order:
            fixed = detached(fixed)

        def loss(parameters: Parameters) -> Tensor:
            return self.network.cost(self.network.support(parameters | fixed, support), support.y)

        gradient = inner_gradient(loss, detached(weights) if self.first_order else weights)
        return {name: w - self._step_size(start, name, step) * gradient[name] for name, w in weights.items()}

    def _step_size(self, start: Parameters, name: str, step: int) -> Tensor | float:
        if not self.config.learn_step_sizes:
            return self.config.inner_lr
        return start[STEP_SIZES + name][self._row(step)]

    def _judged(self, meta: Meta, weights: Parameters, support: Examples, step: int) -> AdaptedWeights:
        """Weights with the scales, shifts and, where there are any, statistics that judge what `step` led to."""
        statistics = {name: value[self._row(step)] for name, value in meta.statistics.items()}
        return AdaptedWeights(weights | self._norms_of(meta.parameters, step) | statistics, support)

    def _row(self, step: int) -> int:
        return min(step, self.config.inner_steps - 1)

    def _norms(self) -> dict[str, Norm]:
        """The normalisations that have something to learn, by name."""
        modules = self.network.module.named_modules()
        return {name: module for name, module in modules if isinstance(module, Norm) and module.kind != "none"}

    def _norm_parameters(self) -> list[str]:
        return [f"{name}.{own}" for name in self._norms() for own in ("weight", "bias")]

    def _norms_of(self, parameters: Parameters, step: int) -> Parameters:
        """Scales and shifts of a step; nothing where these adapt like all weights."""
        names = self._norm_parameters() if self.config.step_norms else ()
        return {name: parameters[name][self._row(step)] for name in names}

    def _adapting(self, parameters: Parameters) -> Parameters:
        """What the inner loop changes."""
        fixed = set(self._norm_parameters()) if self.config.step_norms else set()
        return {n: value for n, value in parameters.items() if n not in fixed and not n.startswith(STEP_SIZES)}
