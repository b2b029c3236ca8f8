"""The store's files: what opening checks, and that it reads no pixels."""

from __future__ import annotations

import json
import pickle
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from metadist.data import ClassStore, describe, is_store
from metadist.data.manifest import build_manifest
from metadist.errors import UserError


def edit(store: ClassStore, **changes: Any) -> str:
    """Change fields of a store's manifest; returns the store's folder."""
    file = store.path / "manifest.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))
    return str(store.path)


def write_arrow(store: ClassStore, array: pa.Array, batches: int = 1) -> str:
    batch = pa.record_batch([array], names=["pixels"])
    with pa.ipc.new_file(str(store.path / "pixels.arrow"), batch.schema) as writer:
        for _ in range(batches):
            writer.write_batch(batch)
    return str(store.path)


def test_fields(store: ClassStore) -> None:
    assert store.classes == ("a/x9", "a/x10", "b")
    assert store.offsets.tolist() == [0, 1, 3, 6]
    assert store.offsets.dtype == np.int64
    assert store.counts().tolist() == [1, 2, 3]
    assert store.shape == (1, 6, 6)
    assert store.pixels.shape == (6, 1, 6, 6)
    assert store.pixels.dtype == np.uint8
    assert store.manifest["skipped"] == 0
    assert store.manifest["options"] == {"size": None, "channels": None, "invert": False}
    assert "images=6" in repr(store)
    store.verify()


def test_pixels_are_a_read_only_view(store: ClassStore) -> None:
    pixels = store.pixels
    assert not pixels.flags.writeable
    assert not pixels.flags.owndata
    base: Any = pixels
    while isinstance(base, np.ndarray):
        assert not base.flags.writeable
        base = base.base
    assert memoryview(base).readonly
    with pytest.raises(ValueError, match="WRITEABLE"):
        pixels.flags.writeable = True
    with pytest.raises(ValueError, match="read-only"):
        store.offsets[0] = 1


def test_pickle_is_the_path(store: ClassStore) -> None:
    data = pickle.dumps(store)
    assert len(data) < 300
    again = pickle.loads(data)
    assert again.sha256 == store.sha256
    assert np.array_equal(again.pixels, store.pixels)


def test_describe(store: ClassStore) -> None:
    info = describe(store)
    assert json.loads(json.dumps(info)) == info
    assert info["classes"] == 3
    assert info["examples"] == {"total": 6, "min": 1, "median": 2.0, "max": 3}
    assert info["shape"] == [1, 6, 6]
    assert info["sha256"] == store.sha256
    assert info["bytes"] == sum(file.stat().st_size for file in store.path.iterdir())


def test_open_reads_no_pixels(tmp_path: Path) -> None:
    """200 MB open in less time than it takes to read them."""
    rows, width = 2000, 100_000
    holes = np.memmap(tmp_path / "raw", dtype=np.uint8, mode="w+", shape=(rows * width,))
    column = pa.Array.from_buffers(pa.binary(width), rows, [None, pa.py_buffer(holes)])
    folder = tmp_path / "large"
    folder.mkdir()
    batch = pa.record_batch([column], names=["pixels"])
    with pa.ipc.new_file(str(folder / "pixels.arrow"), batch.schema) as writer:
        writer.write_batch(batch)
    (tmp_path / "raw").unlink()
    manifest = build_manifest(
        classes=["a", "b"],
        offsets=[0, 1000, rows],
        shape=(1, 100, 1000),
        pixels_sha256="",
        source="",
        options={},
        skipped=0,
    )
    (folder / "manifest.json").write_text(json.dumps(manifest))
    before = pa.total_allocated_bytes()
    took = []
    for _ in range(3):
        start = time.perf_counter()
        store = ClassStore.open(folder)
        took.append(time.perf_counter() - start)
    assert min(took) < 0.05
    assert store.pixels.nbytes == 200_000_000
    assert pa.total_allocated_bytes() - before < 1_000_000


def test_verify_finds_a_changed_pixel(store: ClassStore) -> None:
    file = store.path / "pixels.arrow"
    data = bytearray(file.read_bytes())
    place = data.find(store.pixels[3].tobytes())
    data[place] ^= 1
    file.write_bytes(data)
    with pytest.raises(UserError, match="damaged or changed"):
        ClassStore.open(store.path).verify()


def test_verify_finds_a_changed_name(store: ClassStore) -> None:
    with pytest.raises(UserError, match="SHA-256"):
        ClassStore.open(edit(store, classes=["a/x9", "a/x10", "c"])).verify()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format": "other"}, "'other', expected the format 'metadist-class-store'"),
        ({"version": 2}, "A newer metadist made it"),
        ({"version": "1"}, "a version of the format"),
        ({"dtype": "float32"}, "got 'float32', expected the dtype 'uint8'"),
        ({"shape": [6, 6]}, "a shape"),
        ({"shape": [1, 0, 6]}, "a shape"),
        ({"classes": []}, "at least one"),
        ({"classes": ["a", "a", "b"]}, "different names"),
        ({"offsets": [0, 1, 6]}, "'3 offsets', expected 4 offsets for 3 classes"),
        ({"offsets": [0, 3, 1, 6]}, "increase"),
        ({"offsets": [1, 2, 3, 6]}, "start at 0"),
        ({"offsets": [0, 1, 3, 5]}, "pixels.arrow: got '216 bytes', expected 5 rows of 36 bytes"),
        ({"offsets": [0, 1, 3, 6.0]}, "whole numbers"),
        ({"shape": [1, 6, 7]}, r"pixels.arrow: got 'fixed_size_binary\[36\]'"),
        ({"sha256": "../../etc"}, "64 hexadecimal digits"),
        ({"options": None}, "options"),
    ],
)
def test_manifests_that_are_refused(store: ClassStore, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message) as raised:
        ClassStore.open(edit(store, **changes))
    assert str(store.path) in raised.value.field


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '"x"', "\x00\xff"])
def test_broken_manifest(store: ClassStore, text: str) -> None:
    (store.path / "manifest.json").write_text(text)
    with pytest.raises(UserError, match=r"manifest\.json: got .*, expected (JSON|the format)"):
        ClassStore.open(store.path)


def test_missing_files(store: ClassStore, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="No such file"):
        ClassStore.open(tmp_path / "nowhere")
    (store.path / "pixels.arrow").rename(tmp_path / "pixels")
    with pytest.raises(UserError, match=r"pixels\.arrow: got 'no such file'"):
        ClassStore.open(store.path)
    (tmp_path / "pixels").rename(store.path / "pixels.arrow")
    (store.path / "manifest.json").unlink()
    with pytest.raises(UserError, match=r"manifest\.json: got 'No such file"):
        ClassStore.open(store.path)


@pytest.mark.parametrize("keep", [0, 7, 100, -1])
def test_truncated_pixels(store: ClassStore, keep: int) -> None:
    file = store.path / "pixels.arrow"
    file.write_bytes(file.read_bytes()[:keep])
    with pytest.raises(UserError, match=r"pixels\.arrow: .*cut short"):
        ClassStore.open(store.path)


def test_foreign_arrow_files(store: ClassStore) -> None:
    with pytest.raises(UserError, match="got 'int64', expected one column of fixed_size_binary"):
        ClassStore.open(write_arrow(store, pa.array(range(6))))
    column = pa.array([bytes(36)] * 3, pa.binary(36))
    with pytest.raises(UserError, match="'2 record batches', expected one"):
        ClassStore.open(write_arrow(store, column, batches=2))
    with pytest.raises(UserError, match=r"expected 6 rows of 36 bytes, .* and nothing else"):
        ClassStore.open(write_arrow(store, pa.array([None] + [bytes(36)] * 5, pa.binary(36))))


def test_is_store(store: ClassStore, tmp_path: Path, make_folder: Callable[..., Path]) -> None:
    assert is_store(store.path)
    assert not is_store(tmp_path)
    assert not is_store(tmp_path / "nowhere")
    assert not is_store(store.path / "manifest.json")
    assert not is_store(make_folder({"manifest.json": b'{"name": "an app"}'}, "app"))
    (store.path / "pixels.arrow").unlink()
    assert is_store(store.path), "a damaged store is one still: opening it says what is wrong"
