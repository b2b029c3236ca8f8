"""Regression: each task is a function of one number, told by some of its points."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
import torch

from metadist.errors import UserError
from metadist.tasks.address import generator
from metadist.tasks.base import Episode, Examples, Split, Task, TaskDistribution, TasksConfig


@dataclass(frozen=True, kw_only=True)
class FunctionTasksConfig(TasksConfig):
    """The size of a task: points to fit, and points to judge by."""

    #: always 1: a curve has no classes
    ways: Literal[1] = 1
    #: always null
    train_ways: None = None
    shots: int = 10
    query: int = 10
    batch: int = 25
    chunk: int = 25

    @property
    def loss(self) -> Literal["mse"]:
        return "mse"


class FunctionTasks(TaskDistribution):
    """A family of functions; splits differ by their addresses only. Inputs [n, 1] in −5…5, targets [n, 1]."""

    loss: Literal["mse"] = "mse"
    input_shape = (1,)
    #: the family's name in its tasks' addresses
    name: ClassVar[str]

    @abstractmethod
    def draw(self, rng: np.random.Generator) -> Callable[[np.ndarray], np.ndarray]:
        """One function of the family; works on arrays of any shape."""

    def sample(self, split: Split, seed: int, index: int, episode: Episode) -> tuple[np.ndarray, np.ndarray, int]:
        rng = generator(self.name, split, seed, index)
        function = self.draw(rng)
        x = rng.uniform(-5.0, 5.0, size=(episode.shots + episode.query, 1))
        return x, function(x), episode.shots

    def gather(self, drawn: Sequence[tuple[np.ndarray, np.ndarray, int]], device: torch.device) -> Task:
        shots = drawn[0][2]
        x, y = (torch.from_numpy(np.stack([task[part] for task in drawn])).to(device, torch.float32) for part in (0, 1))
        return Task(Examples(x[:, :shots], y[:, :shots], 0), Examples(x[:, shots:], y[:, shots:], 0))

    def outputs(self, episode: Episode) -> int:
        return 1

    def check(self, split: Split, episode: Episode) -> None:
        if episode.ways != 1:
            raise UserError("tasks.ways", episode.ways, "1, for a curve has no classes")
