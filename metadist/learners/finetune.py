"""Fine-tuning: Chen, Liu, Kira, Wang, Huang, "A Closer Look at Few-shot Classification", ICLR 2019.

The baseline of the field: a network is pre-trained on all training classes at once (`metadist pretrain`), and each
task trains a new head on its support set, with the trunk as it is (`layers: head`) or together with it (`all`). A
linear head is the paper's Baseline, a cosine head its Baseline++. Nothing is meta-trained: the job has `steps: 0`.

Deviations: the new head begins at the same initial weights in each task, a function of the job's seed, where the
paper draws them anew; SGD has no dampening (the authors' code: 0.9); `inner_batch` takes consecutive rows of the
shuffled support set, the same rows again after the last, where the authors shuffle in every epoch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal

import torch
from torch import Generator, Tensor

from metadist.errors import UserError
from metadist.learners.base import HEAD, Learner, Meta, Network, TaskGradient, plain_meta
from metadist.learners.gradient import Parameters, inner_gradient
from metadist.learners.maml import AdaptedWeights
from metadist.models import cosine_headed
from metadist.tasks import Examples, Task

#: adaptation steps with which execution strategies are compared
CHECK_STEPS = 3


@dataclass(frozen=True, kw_only=True)
class FinetuneConfig:
    """Fine-tuning of a pre-trained network (`init_from`) on each task, Baseline and Baseline++: nothing to train."""

    kind: Literal["finetune"] = "finetune"
    #: what a task changes: its new `head` alone, or `all` layers
    layers: Literal["head", "all"] = "head"
    #: the new head: `linear` (Baseline) or `cosine` (Baseline++)
    head: Literal["linear", "cosine"] = "linear"
    #: factor on the cosines of a cosine head
    scale: float = 10.0
    #: optimiser of the adaptation
    inner_optimizer: Literal["sgd", "adam"] = "sgd"
    #: its learning rate
    inner_lr: float = 0.01
    #: momentum of sgd
    momentum: float = 0.9
    #: weight decay
    weight_decay: float = 0.001
    #: adaptation steps
    eval_steps: int = 100
    #: support rows per step; null takes all of them
    inner_batch: int | None = None

    def __post_init__(self) -> None:
        for name in ("inner_lr", "scale"):
            if not getattr(self, name) > 0:
                raise UserError(name, getattr(self, name), "a number above 0")
        if not 0 <= self.momentum < 1:
            raise UserError("momentum", self.momentum, "a number from 0 to below 1")
        for name, least in (("weight_decay", 0), ("eval_steps", 0), ("inner_batch", 1)):
            value = getattr(self, name)
            if value is not None and not value >= least:
                raise UserError(name, value, f"a number of at least {least}")


class Finetune(Learner):
    """Classification and regression (a linear head), any base model with a head."""

    config_type = FinetuneConfig
    own_gradient = True
    meta_trains = False
    betas, eps = (0.9, 0.999), 1e-8

    def __init__(self, config: FinetuneConfig, network: Network) -> None:
        if config.head == "cosine":
            if network.loss != "cross_entropy":
                raise UserError("learner.head", "cosine", "linear: these tasks are no classification")
            network = replace(network, module=cosine_headed(network.module, config.scale))
        super().__init__(network, config.eval_steps, min(config.eval_steps, CHECK_STEPS))
        self.config = config

    def init(self, generator: Generator) -> Meta:
        return plain_meta(self.network.fresh(generator))

    def adaptation(self, meta: Meta, support: Examples, steps: int) -> Iterator[AdaptedWeights]:
        start = {name: value.detach() for name, value in meta.parameters.items()}
        everything = self.config.layers == "all"
        weights = {name: value for name, value in start.items() if everything or name.startswith(HEAD)}
        loss = self._loss(start, support)
        first = second = {name: torch.zeros_like(value) for name, value in weights.items()}
        yield AdaptedWeights(start, support)
        for step in range(steps):
            gradient = inner_gradient(partial(loss, self._rows(support, step)), weights)
            gradient = {name: g + self.config.weight_decay * weights[name] for name, g in gradient.items()}
            if self.config.inner_optimizer == "sgd":
                first = {name: self.config.momentum * first[name] + g for name, g in gradient.items()}
                gradient = first
            else:
                first = _average(first, gradient, self.betas[0])
                second = _average(second, {name: g * g for name, g in gradient.items()}, self.betas[1])
                gradient = {name: self._direction(first[name], second[name], step + 1) for name in gradient}
            weights = {name: w - self.config.inner_lr * gradient[name] for name, w in weights.items()}
            yield AdaptedWeights(start | weights, support)

    def _loss(self, start: Parameters, support: Examples) -> Callable[[Tensor, Parameters], Tensor]:
        """Loss on some rows of the support set, as a function of the weights that are tuned."""
        if self.config.layers == "all":
            return lambda rows, weights: self.network.cost(
                self.network.support(start | weights, support._replace(x=support.x[rows])), support.y[rows]
            )
        # The trunk stays as it is: what the head sees of the support set is computed once.
        features = self.network.support_features(start, support)  # [rows, features]
        return lambda rows, head: self.network.cost(self.network.head(head, features[rows]), support.y[rows])

    def _rows(self, support: Examples, step: int) -> Tensor:
        rows = support.x.shape[0]
        size = min(self.config.inner_batch or rows, rows)
        return (torch.arange(size, device=support.x.device) + step * size) % rows

    def _direction(self, first: Tensor, second: Tensor, step: int) -> Tensor:
        """Adam's direction with bias correction (Kingma, Ba, 2015, algorithm 1)."""
        mean = first / (1 - self.betas[0] ** step)
        return mean / ((second / (1 - self.betas[1] ** step)).sqrt() + self.eps)

    def predict(self, adapted: Any, x: Tensor) -> Tensor:
        return self.network.query(adapted.parameters, adapted.support, x)

    def task_gradient(self, meta: Meta, task: Task) -> TaskGradient:
        """What a few steps change. No run trains with it; every run compares its execution strategies by it."""
        adapted = self.adapt(meta, task.support, self.train_steps)
        outputs = self.predict(adapted, task.query.x)
        gradient = {name: value - adapted.parameters[name] for name, value in meta.parameters.items()}
        return TaskGradient(gradient, self.network.cost(outputs, task.query.y), outputs, {})


def _average(moment: Parameters, value: Parameters, decay: float) -> Parameters:
    return {name: decay * moment[name] + (1 - decay) * value[name] for name in moment}
