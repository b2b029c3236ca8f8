"""A task, a batch of tasks, and what every family of tasks promises."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from metadist.errors import UserError

Split = Literal["train", "valid", "test"]
ClassLoss = Literal["cross_entropy", "binary_cross_entropy"]
Loss = ClassLoss | Literal["mse"]


class Examples(NamedTuple):
    """Inputs `x` [n, …] with targets `y`: class numbers [n] (int64), or values [n, outputs].

    Attributes:
        ways: the number of classes; 0 for values.
    """

    x: Tensor
    y: Tensor
    ways: int


class Task(NamedTuple):
    """A support set to adapt on and a query set to be judged on.

    A batch of tasks is the same tuple with a leading task dimension on every tensor. Rows of a
    classification task go shot by shot (all classes once, then all classes again), so that any
    run of rows is as balanced as it can be.
    """

    support: Examples
    query: Examples


#: which of a batch's leaves have the task dimension, for `torch.func.vmap`
TASK_AXES = Task(Examples(0, 0, None), Examples(0, 0, None))  # type: ignore[arg-type]


def take(batch: Task, index: int) -> Task:
    """The task at `index` of a batch."""
    return Task(*(Examples(part.x[index], part.y[index], part.ways) for part in batch))


def run_of(batch: Task, tasks: slice) -> Task:
    """A run of a batch's tasks, as a batch."""
    return Task(*(Examples(part.x[tasks], part.y[tasks], part.ways) for part in batch))


def join(tasks: Sequence[Task]) -> Task:
    """Tasks of equal shapes as one batch."""
    return Task(
        *(
            Examples(
                torch.stack([part.x for part in parts]),
                torch.stack([part.y for part in parts]),
                parts[0].ways,
            )
            for parts in zip(*tasks, strict=True)
        )
    )


@dataclass(frozen=True)
class Episode:
    """The size of a task: `ways` classes (1 for regression), examples per class to adapt on and to judge on."""

    ways: int
    shots: int
    query: int


@dataclass(frozen=True, kw_only=True)
class TasksConfig:
    """What every family of tasks has in common."""

    #: classes per task
    ways: int = 5
    #: support examples per class; 0, of images and for learner mann: the query set comes as a sequence in random order,
    #: and each label is told after it was asked for
    shots: int = 1
    #: query examples per class in training; `evaluation.query` says how many judge an evaluation
    query: int = 1
    #: classes per task in training, where it differs from `ways`
    train_ways: int | None = None
    #: support examples per class in training, where it differs from `shots`
    train_shots: int | None = None
    #: tasks per outer step (the meta-batch)
    batch: int = 32
    #: tasks per chunk, the unit of work and of summation; never a function of the number of workers
    chunk: int = 8

    def __post_init__(self) -> None:
        for name in ("ways", "shots", "query", "train_ways", "train_shots", "batch", "chunk"):
            value, least = getattr(self, name), 0 if self.sequences and "shots" in name else 1
            if value is not None and value < least:
                raise UserError(name, value, f"a whole number of at least {least}")
        if self.chunk > self.batch:
            raise UserError("chunk", self.chunk, f"at most tasks.batch = {self.batch}", "Lower chunk or raise batch.")

    def training_episode(self) -> Episode:
        """The size of a training task."""
        shots = self.shots if self.train_shots is None else self.train_shots
        return Episode(self.train_ways or self.ways, shots, self.query)

    @property
    def loss(self) -> Loss:
        """What the query set is judged by."""
        return "cross_entropy"

    @property
    def sequences(self) -> bool:
        """Whether tasks may have no support set, and the query set in an order of its own."""
        return False

    @property
    def needs_data(self) -> bool:
        """Whether tasks are made of the job's `data`."""
        return False


@dataclass(frozen=True, kw_only=True)
class ClassTasksConfig(TasksConfig):
    """What every family of classification tasks has in common."""

    #: cross_entropy over the classes, or binary_cross_entropy: one output a class, each judged by itself as "is it
    #: this class", the largest one is the class that is told
    loss: ClassLoss = "cross_entropy"


class TaskDistribution(ABC):
    """A family of tasks, addressable: the same (split, seed, index) is the same task everywhere."""

    #: what the query set is judged by
    loss: Loss
    #: shape of one input, without any batch dimension
    input_shape: tuple[int, ...]

    @property
    def classifies(self) -> bool:
        """Whether targets are classes."""
        return self.loss != "mse"

    @abstractmethod
    def sample(self, split: Split, seed: int, index: int, episode: Episode) -> Any:
        """Draw the task at an address, as the few numbers that define it (no pixels).

        A pure function. The support set does not depend on `episode.query`.
        """

    @abstractmethod
    def gather(self, drawn: Sequence[Any], device: torch.device) -> Task:
        """The drawn tasks as one batch of tensors on `device` (floats in float32)."""

    def batch(self, split: Split, seed: int, indices: Sequence[int], episode: Episode, device: torch.device) -> Task:
        """The tasks at the addresses (split, seed, i) for i in `indices`, as one batch."""
        return self.gather([self.sample(split, seed, index, episode) for index in indices], device)

    def outputs(self, episode: Episode) -> int:
        """The number of outputs that a model needs for tasks of this size."""
        return episode.ways

    def check(self, split: Split, episode: Episode) -> None:  # noqa: B027  most families have no limits
        """Raise `UserError` when `split` cannot give tasks of this size."""

    def has(self, split: Split) -> bool:
        """Whether tasks can be drawn from `split`."""
        return True

    def check_unchanged(self) -> None:  # noqa: B027  most families have no data
        """Raise `UserError` when the data that tasks are drawn from has been changed since it was opened."""
