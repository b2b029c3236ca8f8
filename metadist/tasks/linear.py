"""Linear binary classification: each task is its own hyperplane."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch

from metadist.errors import UserError
from metadist.tasks.address import generator
from metadist.tasks.base import ClassLoss, ClassTasksConfig, Episode, Examples, Split, Task, TaskDistribution


@dataclass(frozen=True, kw_only=True)
class LinearTasksConfig(ClassTasksConfig):
    """Points of a standard normal, labelled by the side of a random hyperplane on which they lie."""

    kind: Literal["linear"] = "linear"
    #: always 2: the two sides
    ways: Literal[2] = 2
    #: always null
    train_ways: None = None
    shots: int = 5
    query: int = 10
    #: dimension of the points
    dimension: int = 2

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.dimension < 1:
            raise UserError("dimension", self.dimension, "a whole number of at least 1")


class LinearTasks(TaskDistribution):
    """The family; splits differ by their addresses only. Inputs [n, dimension], classes 0 and 1."""

    def __init__(self, dimension: int, loss: ClassLoss = "cross_entropy") -> None:
        self.input_shape, self.loss = (dimension,), loss

    def sample(self, split: Split, seed: int, index: int, episode: Episode) -> tuple[np.ndarray, np.ndarray, int]:
        rng = generator("linear", split, seed, index)
        normal = rng.standard_normal(self.input_shape[0])
        normal /= np.linalg.norm(normal)
        offset = rng.uniform(-0.5, 0.5)
        labels = np.tile([0, 1], episode.shots + episode.query)
        x = rng.standard_normal((len(labels), self.input_shape[0]))
        side = x @ normal + offset
        # A point on the wrong side is mirrored, so that both classes always have their number of examples.
        wrong = (side > 0) != (labels == 1)
        x[wrong] -= 2 * side[wrong, None] * normal
        return x, labels, 2 * episode.shots

    def gather(self, drawn: Sequence[tuple[np.ndarray, np.ndarray, int]], device: torch.device) -> Task:
        rows = drawn[0][2]
        x = torch.from_numpy(np.stack([task[0] for task in drawn])).to(device, torch.float32)
        y = torch.from_numpy(np.stack([task[1] for task in drawn])).to(device)
        return Task(Examples(x[:, :rows], y[:, :rows], 2), Examples(x[:, rows:], y[:, rows:], 2))

    def check(self, split: Split, episode: Episode) -> None:
        if episode.ways != 2:
            raise UserError("tasks.ways", episode.ways, "2, the sides of a hyperplane")
