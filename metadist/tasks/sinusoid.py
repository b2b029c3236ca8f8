"""Sinusoid regression (Finn, Abbeel, Levine, ICML 2017, section 5.1)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch

from metadist.tasks.address import generator
from metadist.tasks.base import Episode, Examples, Split, Task, TaskDistribution, TasksConfig


@dataclass(frozen=True, kw_only=True)
class SinusoidTasksConfig(TasksConfig):
    """Each task is y = a sin(x − p) with its own amplitude a in 0.1…5 and phase p in 0…π; x in −5…5."""

    kind: Literal["sinusoid"] = "sinusoid"
    #: always 1: a curve has no classes
    ways: Literal[1] = 1
    #: always null
    train_ways: None = None
    shots: int = 10
    query: int = 10
    batch: int = 25
    chunk: int = 25


class SinusoidTasks(TaskDistribution):
    """The family; splits differ by their addresses only. Inputs [n, 1], targets [n, 1]."""

    loss: Literal["mse"] = "mse"
    input_shape = (1,)

    def sample(self, split: Split, seed: int, index: int, episode: Episode) -> tuple[np.ndarray, np.ndarray, int]:
        rng = generator("sinusoid", split, seed, index)
        amplitude, phase = rng.uniform(0.1, 5.0), rng.uniform(0.0, np.pi)
        x = rng.uniform(-5.0, 5.0, size=(episode.shots + episode.query, 1))
        return x, amplitude * np.sin(x - phase), episode.shots

    def gather(self, drawn: Sequence[tuple[np.ndarray, np.ndarray, int]], device: torch.device) -> Task:
        shots = drawn[0][2]
        x, y = (torch.from_numpy(np.stack([task[part] for task in drawn])).to(device, torch.float32) for part in (0, 1))
        return Task(Examples(x[:, :shots], y[:, :shots], 0), Examples(x[:, shots:], y[:, shots:], 0))

    def outputs(self, episode: Episode) -> int:
        return 1
