"""Regression of lines, with the ranges of Vuorio, Sun, Hu, Lim, "Multimodal Model-Agnostic Meta-Learning via
Task-Aware Modulation", NeurIPS 2019, whose tasks are sinusoids, lines and quadratics (here without noise)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np

from metadist.tasks.functions import FunctionTasks, FunctionTasksConfig


@dataclass(frozen=True, kw_only=True)
class LineTasksConfig(FunctionTasksConfig):
    """Each task is y = a x + b with its own slope a and intercept b in −3…3; x in −5…5."""

    kind: Literal["line"] = "line"


class LineTasks(FunctionTasks):
    """The family."""

    name = "line"

    def draw(self, rng: np.random.Generator) -> Callable[[np.ndarray], np.ndarray]:
        slope, intercept = rng.uniform(-3.0, 3.0, 2)
        return lambda x: slope * x + intercept
