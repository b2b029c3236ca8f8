"""Class stores: the manifest and the pixels, apart and together."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import strategies as st
from mutations import cut_up, trees
from outcomes import settles
from PIL import Image

from metadist.data import ClassStore, DataConfig, prepare, resolve_store
from metadist.data.info import describe


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> tuple[bytes, bytes]:
    """Manifest and pixels of a store of three classes of three images of 6×6 pixels."""
    root = tmp_path_factory.mktemp("stores")
    for number in range(9):
        path = root / "images" / "abc"[number // 3] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.random.default_rng(number).integers(0, 256, (6, 6), dtype=np.uint8)).save(path)
    store = prepare(str(root / "images"), root / "store")
    return (store.path / "manifest.json").read_bytes(), (store.path / "pixels.arrow").read_bytes()


def test_stores(search: Callable[..., None], files: tuple[bytes, bytes], tmp_path: Path) -> None:
    manifest, pixels = files
    values = trees(json.loads(manifest)).map(lambda content: json.dumps(content).encode())
    cases = st.tuples(values | cut_up(manifest), st.just(pixels)) | st.tuples(st.just(manifest), cut_up(pixels))
    cases |= st.tuples(values, cut_up(pixels))

    def use() -> None:
        store = ClassStore.open(tmp_path)
        assert int(store.pixels.sum()) >= 0
        json.dumps(describe(store))
        store.verify()

    def holds(case: tuple[bytes, bytes]) -> None:
        (tmp_path / "manifest.json").write_bytes(case[0])
        (tmp_path / "pixels.arrow").unlink(missing_ok=True)  # not under a map of the one before
        (tmp_path / "pixels.arrow").write_bytes(case[1])
        settles(use)
        settles(lambda: resolve_store(DataConfig(source=str(tmp_path), size=6)))
        assert sorted(path.name for path in tmp_path.iterdir()) == ["manifest.json", "pixels.arrow"]

    search(cases, holds)
