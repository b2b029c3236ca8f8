"""Public data sets as zips of class folders, where they are at hand."""

from __future__ import annotations

import io
import os
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from metadist.data import SplitConfig, describe, pixel_statistics, prepare, split_classes


def data_file(name: str) -> Path:
    folder = os.environ.get("METADIST_TEST_DATA")
    root = Path(folder) if folder else Path(__file__).parents[2].parent / "shared" / "data"
    if not (root / name).is_file():
        pytest.skip(f"{name} is not at {root}; METADIST_TEST_DATA names the folder that has it")
    return root / name


def test_omniglot(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = data_file("omniglot.zip")
    start = time.perf_counter()
    store = prepare(str(path), tmp_path / "store", size=28, channels=1, invert=True)
    with capsys.disabled():
        print(f"\nomniglot.zip prepared in {time.perf_counter() - start:.1f} s")  # noqa: T201 - a measurement
    assert len(store.classes) == 1623
    assert (store.counts() == 20).all()
    assert store.shape == (1, 28, 28)
    name = "images_evaluation/Greek/character01"
    if name not in store.classes:
        name = store.classes[-1]
    row = store.offsets[store.classes.index(name)]
    with zipfile.ZipFile(path) as archive:
        entry = min(each for each in archive.namelist() if each.startswith(name + "/"))
        image = Image.open(io.BytesIO(archive.read(entry))).convert("L")
    expected = 255 - np.asarray(image.resize((28, 28), Image.Resampling.LANCZOS))
    assert np.array_equal(store.pixels[row, 0], expected)
    splits = split_classes(store.classes, SplitConfig(train=["images_background/*"], valid=None, test=0.5))
    assert (len(splits["train"]), len(splits["test"])) == (964, 330)
    means, deviations = pixel_statistics(store, splits["train"])
    chosen = store.pixels[: store.offsets[964]].astype(np.float64) / 255
    assert means[0] == pytest.approx(chosen.mean())
    assert deviations[0] == pytest.approx(chosen.std())
    assert 0.05 < means[0] < 0.15, "ink is bright"


def test_mnist(tmp_path: Path) -> None:
    store = prepare(str(data_file("mnist10k.zip")), tmp_path / "store")
    info = describe(store)
    assert info["classes"] == 10
    assert info["shape"] == [1, 28, 28]
    assert info["examples"] == {"total": 10_000, "min": 892, "median": 995.5, "max": 1135}
