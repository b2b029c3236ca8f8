"""A small outer state and payloads for it."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from metadist.learners import Meta
from metadist.outer import OuterState

torch.set_num_threads(1)

SHAPES = {"body.weight": (4, 3), "body.bias": (4,), "head.weight": (2, 4), "scale": ()}


@pytest.fixture
def tensors() -> Callable[[int], dict[str, torch.Tensor]]:
    """Named tensors of a normal distribution, by seed."""

    def make(seed: int) -> dict[str, torch.Tensor]:
        generator = torch.Generator().manual_seed(seed)
        return {name: torch.randn(shape, generator=generator) for name, shape in SHAPES.items()}

    return make


@pytest.fixture
def state(tensors: Callable) -> OuterState:
    """Version 3, with Adam's state, one statistic, and an average of versions."""
    optimizer = {
        name: {"step": torch.tensor(3.0), "exp_avg": value, "exp_avg_sq": value**2}
        for name, value in tensors(1).items()
    }
    return OuterState(3, Meta(tensors(0), {"mean": torch.tensor([1.0, -2.0])}, {}), optimizer, tensors(2))
