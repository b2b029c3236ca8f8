"""Experiments whose steps take milliseconds. Functions of a module, so that an actor can build them by name."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

import torch
from torch import Generator, Tensor, nn

from metadist.learners import (
    Learner,
    Maml,
    MamlConfig,
    Meta,
    Network,
    Reptile,
    ReptileConfig,
    TaskGradient,
    TaskRelation,
    TaskRelationConfig,
)
from metadist.models import BaseModel, Mlp, MlpConfig
from metadist.outer import Experiment, OptimizerConfig, OuterRule
from metadist.tasks import Episode, Examples, LinearTasks, SinusoidTasks, Task

RUN = "toy"


def sinusoid_experiment(
    steps: int = 6,
    tasks: int = 5,
    chunk: int = 2,
    seed: int = 0,
    learner: Literal["maml", "reptile", "task_relation"] = "maml",
    lr: float = 0.01,
    inner_lr: float = 0.02,
) -> Experiment:
    """Regression of sinusoids by a net of one hidden layer; the last chunk of a step is shorter."""
    network = Network(Mlp(MlpConfig(hidden=[8], activation="tanh"), (1,), 1), "xavier", "mse")
    chosen: Learner = Maml(MamlConfig(inner_lr=inner_lr, inner_steps=1, eval_steps=2), network)
    if learner == "reptile":
        chosen = Reptile(ReptileConfig(inner_lr=inner_lr, inner_steps=2, eval_steps=2, inner_batch=2), network)
    if learner == "task_relation":
        related = TaskRelationConfig(inner_lr=inner_lr, eval_steps=2, code=4, hidden=4, embedding=4, block=8)
        chosen = TaskRelation(related, network)
    optimizer = OptimizerConfig(kind="adam", lr=lr, clip=10.0, schedule="linear", final=0.5)
    rule = OuterRule(RUN, optimizer, steps, tasks, chunk, phases=chosen.phases)
    return Experiment(SinusoidTasks(), chosen, rule, Episode(1, 4, 4), seed)


def linear_experiment(steps: int = 4, tasks: int = 4, chunk: int = 2, seed: int = 0) -> Experiment:
    """Binary classification of points in the plane."""
    network = Network(Mlp(MlpConfig(hidden=[8], activation="tanh"), (2,), 2), "xavier", "cross_entropy")
    learner = Maml(MamlConfig(inner_lr=0.5, inner_steps=1, eval_steps=2), network)
    rule = OuterRule(RUN, OptimizerConfig(lr=0.01), steps, tasks, chunk)
    return Experiment(LinearTasks(2), learner, rule, Episode(2, 3, 4), seed)


def averaging_experiment(steps: int = 4, tasks: int = 5, chunk: int = 2, seed: int = 0) -> Experiment:
    """The learner `Averaging` under plain SGD of rate 0.5, statistics of momentum 0.75.

    The second half of the versions is judged by the mean of their parameters.
    """
    optimizer = OptimizerConfig(kind="sgd", lr=0.5, average=0.5)
    rule = OuterRule(RUN, optimizer, steps, tasks, chunk, statistics_momentum=0.75)
    return Experiment(SinusoidTasks(), Averaging(), rule, Episode(1, 4, 4), seed)


class _Constant(BaseModel):
    def __init__(self) -> None:
        super().__init__("none", 1, None)
        self.centre = nn.Parameter(torch.zeros(1))

    def features(self, x: Tensor, reference: int | None) -> Tensor:
        return self.centre.expand(x.shape[0], 1)


class Averaging(Learner):
    """Predicts one number for everything; its steps can be taken by hand.

    The meta-gradient of a task is the number minus the mean of the support targets (Reptile with one full
    step); the one statistic is the mean of the support targets' squares.
    """

    own_gradient = True

    def __init__(self) -> None:
        super().__init__(Network(_Constant(), "xavier", "mse"), eval_steps=1, train_steps=1)

    def init(self, generator: Generator) -> Meta:
        return Meta({"centre": torch.zeros(1)}, {"square": torch.ones(1)}, {})

    def adaptation(self, meta: Meta, support: Examples, steps: int) -> Iterator[Tensor]:
        yield meta.parameters["centre"]
        for _ in range(steps):
            yield support.y.mean(0)

    def predict(self, adapted: Any, x: Tensor) -> Tensor:
        number: Tensor = adapted
        return number.expand(x.shape[0], 1)

    def task_gradient(self, meta: Meta, task: Task) -> TaskGradient:
        loss, outputs, _ = self.task_loss(meta, task)
        gradient = {"centre": meta.parameters["centre"] - task.support.y.mean(0)}
        return TaskGradient(gradient, loss, outputs, {"square": task.support.y.square().mean(0)})
