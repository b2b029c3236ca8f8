"""Lines and quadratics: what tasks say of themselves, by least squares."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from metadist.errors import UserError
from metadist.tasks import Episode, LineTasks, QuadraticTasks, TaskDistribution

CPU = torch.device("cpu")
TASKS = 400


def coefficients(family: TaskDistribution, degree: int) -> np.ndarray:
    """Of the polynomial through each task's support points [tasks, degree + 1], the highest power first."""
    batch = family.batch("train", 0, range(TASKS), Episode(1, 20, 5), CPU)
    found = []
    for task in range(TASKS):
        x, y = (part[task, :, 0].double().numpy() for part in (batch.support.x, batch.support.y))
        found.append(np.polyfit(x, y, degree))
        query = batch.query.x[task, :, 0].double().numpy()
        assert np.abs(np.polyval(found[-1], query) - batch.query.y[task, :, 0].double().numpy()).max() < 1e-4
    return np.array(found)


def fills(values: np.ndarray, low: float, high: float) -> bool:
    """Whether values are spread evenly over a range."""
    share = np.sort((values - low) / (high - low))
    even = np.linspace(0, 1, len(share))
    return bool(np.abs(share - even).max() < 0.09 and share[0] > -0.001 and share[-1] < 1.001)


def test_lines_fill_their_ranges() -> None:
    slope, intercept = coefficients(LineTasks(), 1).T
    assert fills(slope, -3, 3)
    assert fills(intercept, -3, 3)
    assert abs(np.corrcoef(slope, intercept)[0, 1]) < 0.15


def test_quadratics_fill_their_ranges() -> None:
    a, b, c = coefficients(QuadraticTasks(), 2).T
    assert fills(np.abs(a), 0.02, 0.15)
    assert abs((a > 0).mean() - 0.5) < 0.08
    assert fills(-b / (2 * a), -3, 3)
    assert fills(c - b**2 / (4 * a), -3, 3)


def test_a_curve_has_no_classes() -> None:
    LineTasks().check("train", Episode(1, 3, 3))
    with pytest.raises(UserError, match=r"^tasks\.ways: got 5, expected 1"):
        LineTasks().check("train", Episode(5, 3, 3))
