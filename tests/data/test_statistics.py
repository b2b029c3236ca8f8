"""Mean and standard deviation against numpy in double precision."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import metadist.data.statistics as statistics
from metadist.data import pixel_statistics, prepare

Maker = Callable[..., Path]


@pytest.mark.parametrize("block", [1, 500, 1 << 20])
def test_against_numpy(
    tmp_path: Path,
    make_folder: Maker,
    picture: Callable[..., Image.Image],
    monkeypatch: pytest.MonkeyPatch,
    block: int,
) -> None:
    monkeypatch.setattr(statistics, "_BLOCK", block)
    images = {f"{n % 4}/{n}.png": picture(n, 9, "RGB") for n in range(30)}
    store = prepare(str(make_folder(images)), tmp_path / "store")
    rows = np.concatenate([np.arange(store.offsets[c], store.offsets[c + 1]) for c in (1, 3)])
    chosen = store.pixels[rows].astype(np.float64) / 255
    means, deviations = pixel_statistics(store, [3, 1, 3])
    assert means == pytest.approx(chosen.mean(axis=(0, 2, 3)), rel=1e-12)
    assert deviations == pytest.approx(chosen.std(axis=(0, 2, 3)), rel=1e-12)
    assert len(means) == 3


def test_flat_images(tmp_path: Path, make_folder: Maker) -> None:
    store = prepare(str(make_folder({"a/1.png": Image.new("L", (5, 5), 51)})), tmp_path / "store")
    assert pixel_statistics(store, [0]) == ((0.2,), (1e-6,))
    with pytest.raises(ValueError, match="at least one class"):
        pixel_statistics(store, [])
