"""Tiny image stores and task distributions."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from metadist.data import AugmentConfig, ClassStore, DataConfig, SplitConfig, prepare
from metadist.tasks import (
    ImageTasks,
    LinearTasks,
    LineTasks,
    MixtureTasks,
    QuadraticTasks,
    SinusoidTasks,
    TaskDistribution,
    WaveformTasks,
    WaveformTasksConfig,
)

torch.set_num_threads(1)
CLASSES, EXAMPLES, SIDE = 10, 6, 6


@pytest.fixture(scope="session")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten class folders of six images of noise; no two images are equal."""
    root = tmp_path_factory.mktemp("source")
    random = np.random.default_rng(0)
    for number in range(CLASSES):
        folder = root / f"class{number}"
        folder.mkdir()
        for example in range(EXAMPLES):
            pixels = random.integers(0, 256, (SIDE, SIDE), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / f"{example}.png")
    return root


@pytest.fixture(scope="session")
def store(source: Path, tmp_path_factory: pytest.TempPathFactory) -> ClassStore:
    return prepare(str(source), tmp_path_factory.mktemp("stores") / "store")


@pytest.fixture
def images(store: ClassStore) -> Callable[..., ImageTasks]:
    """Image tasks with 6 training, 2 validation and 2 test classes."""

    def make(split: SplitConfig | None = None, augment: AugmentConfig | None = None, **settings: object) -> ImageTasks:
        split = split or SplitConfig(train=6, valid=2, test=2)
        return ImageTasks(store, DataConfig(split=split, augment=augment or AugmentConfig(), **settings))

    return make


@pytest.fixture(params=["sinusoid", "line", "quadratic", "linear", "waveform", "mixture", "images", "images-augmented"])
def family(request: pytest.FixtureRequest, images: Callable[..., ImageTasks]) -> TaskDistribution:
    functions = {"sinusoid": SinusoidTasks(), "line": LineTasks(), "quadratic": QuadraticTasks()}
    if request.param in functions:
        return functions[request.param]
    if request.param == "linear":
        return LinearTasks(3)
    if request.param == "waveform":
        return WaveformTasks(WaveformTasksConfig(length=9))
    if request.param == "mixture":
        return MixtureTasks(list(functions.values()), [1, 2, 3])
    if request.param == "images":
        return images(rotations="train")
    return images(augment=AugmentConfig(flip=True, crop=1, noise=0.1, sets="both"))
