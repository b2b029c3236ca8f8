"""Steps without work: workers whose chunks are ready at once; what is left is the way to the server and back."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Generator, Tensor, nn

from metadist.learners import Learner, Meta, Network, TaskGradient
from metadist.models import BaseModel
from metadist.outer import Experiment, OptimizerConfig, OuterRule
from metadist.tasks import Episode, Examples, SinusoidTasks, Task

#: id of the runs of the benches
RUN = "bench"
#: far more steps than any bench takes
STEPS = 1_000_000
#: tensors of a net of the size that is asked for: as many as Conv4 has
TENSORS = 18

Shapes = dict[str, tuple[int, ...]]


def shapes_of(values: int) -> Shapes:
    """`TENSORS` parameters with so many values together."""
    each = math.ceil(values / TENSORS)
    sizes = [min(each, values - first) for first in range(0, values, each)]
    return {f"layer{number}": (size,) for number, size in enumerate(sizes)}


def count_values(shapes: Mapping[str, tuple[int, ...]]) -> int:
    """Values of all tensors together."""
    return sum(math.prod(shape) for shape in shapes.values())


def ready_experiment(shapes: Shapes, chunks: int) -> Experiment:
    """An experiment with parameters of these shapes, whose steps have so many chunks of one task; Adam."""
    rule = OuterRule(RUN, OptimizerConfig(), STEPS, tasks=chunks, chunk=1)
    return Experiment(SinusoidTasks(), Ready(shapes), rule, Episode(1, 1, 1), seed=0)


class _Nothing(BaseModel):
    def __init__(self) -> None:
        super().__init__("none", 1, None)
        self.none = nn.Parameter(torch.zeros(1))

    def features(self, x: Tensor, reference: int | None) -> Tensor:
        return x


class Ready(Learner):
    """Gives the same sums for every task, without computing anything."""

    own_gradient = True

    def __init__(self, shapes: Shapes) -> None:
        super().__init__(Network(_Nothing(), "xavier", "mse"), eval_steps=0)
        self._sums = {name: torch.full(shape, 1e-3) for name, shape in shapes.items()}

    def init(self, generator: Generator) -> Meta:
        return Meta({name: torch.zeros_like(value) for name, value in self._sums.items()}, {}, {})

    def adaptation(self, meta: Meta, support: Examples, steps: int) -> Iterator[None]:
        yield None

    def predict(self, adapted: Any, x: Tensor) -> Tensor:
        return x

    def task_gradient(self, meta: Meta, task: Task) -> TaskGradient:
        return TaskGradient(dict(self._sums), torch.zeros(()), task.query.y, {})
