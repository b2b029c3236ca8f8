"""Sinusoid regression (Finn, Abbeel, Levine, ICML 2017, section 5.1)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np

from metadist.tasks.functions import FunctionTasks, FunctionTasksConfig


@dataclass(frozen=True, kw_only=True)
class SinusoidTasksConfig(FunctionTasksConfig):
    """Each task is y = a sin(x − p) with its own amplitude a in 0.1…5 and phase p in 0…π; x in −5…5."""

    kind: Literal["sinusoid"] = "sinusoid"


class SinusoidTasks(FunctionTasks):
    """The family."""

    name = "sinusoid"

    def draw(self, rng: np.random.Generator) -> Callable[[np.ndarray], np.ndarray]:
        amplitude, phase = rng.uniform(0.1, 5.0), rng.uniform(0.0, np.pi)
        return lambda x: amplitude * np.sin(x - phase)
