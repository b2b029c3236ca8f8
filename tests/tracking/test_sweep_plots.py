"""A sweep's pictures: every trial is in them, the diverged ones marked, whatever is missing."""

from __future__ import annotations

from pathlib import Path
from unittest import mock

import pytest
from matplotlib.image import imread

from metadist.tracking import sweep_plots
from metadist.tracking.sweep_plots import SweepAxis, SweepPoint, sweep_curves, sweep_map

AXES = (SweepAxis("inner rate", True), SweepAxis("outer rate", True))
POINTS = [
    SweepPoint(0.4, 1e-3, 0.951, given=True),
    SweepPoint(0.1, 5e-3, 0.982, best=True),
    SweepPoint(5.0, 5e-2, None, broken=True),
    SweepPoint(0.02, 2e-5, 0.31),
    SweepPoint(1.0, 1e-4, None),
]


def texts(points: list[SweepPoint], path: Path, **options: float) -> list[str]:
    """What is written in the map."""
    kept = []

    def keep(figure: object, where: object) -> None:
        kept.append(figure)
        plain(figure, where)  # type: ignore[arg-type]

    plain = sweep_plots._save
    with mock.patch.object(sweep_plots, "_save", keep):
        sweep_map(points, AXES, "accuracy (%)", path, **options)  # type: ignore[arg-type]
    (figure,) = kept
    axis = figure.axes[0]  # type: ignore[attr-defined]
    assert axis.get_xscale() == axis.get_yscale() == "log"
    legend = axis.get_legend()
    return [t.get_text() for t in axis.texts] + [t.get_text() for t in (legend.get_texts() if legend else ())]


def test_values_can_be_read_and_diverged_trials_are_marked(tmp_path: Path) -> None:
    found = texts(POINTS, tmp_path / "map.png", scale=100.0)
    assert found[:4] == ["95.1", "98.2", "diverged", "31.0"]
    assert {"best", "given to compare with", "diverged or failed"} <= set(found)
    picture = imread(tmp_path / "map.png")
    assert picture.shape[0] > 500
    assert picture.std() > 0.05


@pytest.mark.parametrize("points", [[], POINTS[2:3], POINTS[:1], [POINTS[0], POINTS[0]]])
def test_whatever_there_is(tmp_path: Path, points: list[SweepPoint]) -> None:
    sweep_map(points, AXES, "loss", tmp_path / "map.png", better="min")
    sweep_map(points, (SweepAxis("steps", False), AXES[1]), "loss", tmp_path / "map.png")
    assert (tmp_path / "map.png").stat().st_size > 1000


def test_curves(tmp_path: Path) -> None:
    sweep_curves({"trial-000": [(1, 0.5), (2, 0.7)], "trial-001": [(1, 0.2)]}, "trial-000", "x", tmp_path / "c.png")
    sweep_curves({}, None, "x", tmp_path / "c.png")
    assert imread(tmp_path / "c.png").std() > 0.01
