"""Regression of quadratics, with the ranges of Vuorio et al., NeurIPS 2019 (see `line`)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np

from metadist.tasks.functions import FunctionTasks, FunctionTasksConfig


@dataclass(frozen=True, kw_only=True)
class QuadraticTasksConfig(FunctionTasksConfig):
    """Each task is y = a (x − c)² + b, its own |a| in 0.02…0.15, c and b in −3…3; x in −5…5."""

    kind: Literal["quadratic"] = "quadratic"


class QuadraticTasks(FunctionTasks):
    """The family."""

    name = "quadratic"

    def draw(self, rng: np.random.Generator) -> Callable[[np.ndarray], np.ndarray]:
        curvature = rng.uniform(0.02, 0.15) * rng.choice([-1.0, 1.0])
        centre, height = rng.uniform(-3.0, 3.0, 2)
        return lambda x: curvature * (x - centre) ** 2 + height
