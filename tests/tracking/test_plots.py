"""Plots are PNGs of a sensible size for all that a run may come up with."""

from __future__ import annotations

import math
import struct
from pathlib import Path

import numpy as np
import pytest

from metadist.tracking import plots


def _size(path: Path) -> tuple[int, int]:
    head = path.read_bytes()
    assert head[:8] == b"\x89PNG\r\n\x1a\n"
    assert len(head) > 3000
    return struct.unpack(">II", head[16:24])


def _history(accuracy: bool, steps: int = 300) -> list[tuple[int, dict[str, float]]]:
    history = []
    for step in range(steps):
        values = {"train/loss": 3.0 * math.exp(-step / 50) + 0.001 * (1 + step % 3)}
        if accuracy:
            values["train/accuracy"] = 1 - math.exp(-step / 50)
        if step % 50 == 0:
            values |= {"valid/loss": 3.0 * math.exp(-step / 60), "valid/ci95": 0.01}
            if accuracy:
                values["valid/accuracy"] = 0.9 - math.exp(-step / 60)
        history.append((step, values))
    return history


@pytest.mark.parametrize(("accuracy", "size"), [(True, (1050, 870)), (False, (1050, 465))])
def test_training_curves(tmp_path: Path, accuracy: bool, size: tuple[int, int]) -> None:
    plots.training_curves(_history(accuracy), tmp_path / "new" / "curves.png")
    assert _size(tmp_path / "new" / "curves.png") == size


@pytest.mark.parametrize(
    "history",
    [
        [],
        [(0, {"train/loss": 1.0})],
        [(0, {"train/loss": math.nan}), (1, {"train/loss": math.inf})],
        [(5, {"valid/accuracy": 0.5, "valid/ci95": math.nan})],
    ],
)
def test_training_curves_of_nearly_nothing(tmp_path: Path, history) -> None:
    plots.training_curves(history, tmp_path / "a.png")
    _size(tmp_path / "a.png")


def test_smoothing_keeps_the_length_and_a_constant() -> None:
    assert plots._smooth(np.ones(10), 4) == pytest.approx(np.ones(10))
    assert len(plots._smooth(np.ones(10), 3)) == 10


def test_accuracy_by_step(tmp_path: Path) -> None:
    curves = {"meta-learned": [(0, 20.0, 1.0), (10, 90.0, 0.5)], "random start": [(0, 20.0, 1.0), (10, 30.0, math.nan)]}
    plots.accuracy_by_step(curves, tmp_path / "a.png", "query accuracy (%)")
    assert _size(tmp_path / "a.png") == (780, 540)


@pytest.mark.parametrize(("shots", "channels", "tasks"), [(1, 1, 6), (5, 3, 1)])
def test_task_sheet(tmp_path: Path, shots: int, channels: int, tasks: int) -> None:
    noise = np.random.default_rng(0)
    support = noise.random((tasks, 5, shots, channels, 28, 28))
    query = noise.random((tasks, 5, 15, channels, 28, 28))
    plots.task_sheet(support, query, tmp_path / "a.png")
    width, height = _size(tmp_path / "a.png")
    assert width == 1050
    assert height < 1500


@pytest.mark.parametrize("count", [0, 1, 3, 7])
def test_regression_sheet(tmp_path: Path, count: int) -> None:
    x = np.linspace(-5, 5, 50)
    task = plots.RegressionTask(
        x_support=x[::10],
        y_support=np.sin(x[::10]),
        x=x,
        y_true=np.sin(x),
        y_pred_by_step={0: 0 * x, 1: 0.5 * np.sin(x), 5: 0.9 * np.sin(x)},
    )
    plots.regression_sheet([task] * count, tmp_path / "a.png")
    if count:
        assert _size(tmp_path / "a.png")[0] == (810 if count == 1 else 1080)
