"""Small files that stand for large ones are refused, with a message that names the file, before memory is taken."""

from __future__ import annotations

import io
import json
import os
import resource
import struct
import time
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from metadist import reading_yaml
from metadist.data import ClassStore, decode, prepare
from metadist.errors import UserError
from metadist.training.run_folder import RunFolder
from metadist.training.run_list import folder_rows

MIB = 1 << 20


@pytest.fixture(autouse=True)
def _little_memory_and_time() -> Iterator[None]:
    began, before = time.process_time(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    yield
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 400 * 1024  # its unit: KiB
    assert time.process_time() - began < 30


#: nine levels of nine aliases each: 9⁹ values
LEVELS = [f"x{level}: &x{level} [{', '.join([f'*x{level - 1}'] * 9)}]\n" for level in range(1, 10)]
ALIASES = "x0: &x0 lol\n" + "".join(LEVELS)
#: the same by merging
MERGED = [f"x{level}: &x{level} {{<<: [{', '.join([f'*x{level - 1}'] * 9)}]}}\n" for level in range(1, 10)]
MERGES = "x0: &x0 {a: 1}\n" + "".join(MERGED)
REPEATED = f"x: &x {'y' * 100_000}\nall: [{', '.join(['*x'] * 1000)}]\n"
TEXTS = {
    "aliases": (ALIASES, "an alias counts"),
    "merges": (MERGES, "an alias counts"),
    "long text again and again": (REPEATED, "an alias counts"),
    "a large file": ("name: " + "x" * reading_yaml.MOST_YAML, "more than 1048576 bytes"),
    "a large number": ("steps: 0x" + "f" * 5000, "of 20000 bits in line 1"),
    "deep": ("[" * 100_000, "too many brackets"),
}


@pytest.mark.parametrize(("text", "expected"), TEXTS.values(), ids=TEXTS)
def test_yaml(metadist: Callable[..., Any], tmp_path: Path, text: str, expected: str) -> None:
    path = tmp_path / "job.yaml"
    path.write_text(text)
    ended = metadist("train", str(path))
    assert ended.code == 2
    assert ended.err.startswith(f"metadist: {path}: got ")
    assert expected.lower() in ended.err.lower()
    assert len(ended.err) < 1000


def test_a_device_is_no_job(metadist: Callable[..., Any]) -> None:
    ended = metadist("train", "/dev/zero")
    assert ended.code == 2
    assert ended.err.startswith("metadist: /dev/zero: got ")


def test_yaml_of_a_run_in_a_list(victim: Path) -> None:
    for text in (ALIASES, MERGES, "[" * 100_000, "x: 2020-13-45"):
        (victim / "job.yaml").write_text(text)
        (row,) = folder_rows(str(victim.parent))
        assert row.tracking_uri is None


JSONS = {"deep": b"[" * 200_000, "deep sections": b'{"a":' * 100_000, "a large number": b"1" * 10_000}


@pytest.mark.parametrize("content", JSONS.values(), ids=JSONS)
@pytest.mark.parametrize("name", ["run.json", "summary.json", "lease.json", "test-scores.json", "metrics.jsonl"])
def test_json_of_a_run(
    metadist: Callable[..., Any], victim: Path, readings: list[list[str]], name: str, content: bytes
) -> None:
    (victim / name).write_bytes(content + b"\n")
    for line in readings[:3]:
        ended = metadist(*line)
        assert ended.code in (0, 2), ended.err
        assert ended.code == 0 or name in ended.err
        assert "Traceback" not in ended.err


def test_large_json(tmp_path: Path) -> None:
    with open(tmp_path / "run.json", "wb") as file:
        file.truncate(1 << 40)  # takes no room
    with pytest.raises(UserError, match=r"run\.json: got 'more than 33554432 bytes'"):
        RunFolder(str(tmp_path)).read_json("run.json")
    (tmp_path / "run.json").rename(tmp_path / "manifest.json")
    with pytest.raises(UserError, match=r"manifest\.json: got 'more than"):
        ClassStore.open(tmp_path)


def test_a_pipe_is_no_file(tmp_path: Path) -> None:
    """Nobody writes to it: who reads waits for ever."""
    os.mkfifo(tmp_path / "run.json")
    with pytest.raises(UserError, match=r"run\.json: got 'no file'"):
        RunFolder(str(tmp_path)).read_json("run.json")


def png(width: int, height: int) -> bytes:
    """A grey image of black pixels, with the compressed data of its first rows only."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(MIB)))


@pytest.mark.parametrize("side", [9_000, 50_000, 2**31 - 1])
def test_images_of_huge_dimensions(tmp_path: Path, side: int) -> None:
    path = tmp_path / "images" / "a" / "bomb.png"
    path.parent.mkdir(parents=True)
    path.write_bytes(png(side, side))
    with pytest.raises(UserError, match=r"bomb\.png: got .* pixels"):
        prepare(str(tmp_path / "images"), tmp_path / "store")
    assert not (tmp_path / "store").exists()


def test_image_files_of_huge_size(tmp_path: Path) -> None:
    path = tmp_path / "images" / "a" / "large.png"
    path.parent.mkdir(parents=True)
    image = io.BytesIO()
    Image.new("L", (4, 4)).save(image, "PNG")
    path.write_bytes(image.getvalue())
    os.truncate(path, 1 << 40)
    with pytest.raises(UserError, match=rf"large\.png: got 'more than {decode.MAX_FILE_BYTES} bytes'"):
        prepare(str(tmp_path / "images"), tmp_path / "store")


def test_a_compressed_store(tmp_path: Path) -> None:
    """Arrow would unpack it, to whatever size it says; the store's pixels are used as they lie there, or not at all."""
    rows, width = 1000, 64 * 64
    for row in range(2):
        path = tmp_path / "images" / "a" / f"{row}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (64, 64)).save(path)
    store = prepare(str(tmp_path / "images"), tmp_path / "store").path
    manifest = json.loads((store / "manifest.json").read_text())
    (store / "manifest.json").write_text(json.dumps(manifest | {"offsets": [0, rows]}))
    pixels = pa.py_buffer(np.zeros(rows * width, np.uint8))
    batch = pa.record_batch([pa.Array.from_buffers(pa.binary(width), rows, [None, pixels])], names=["pixels"])
    options = pa.ipc.IpcWriteOptions(compression="zstd")
    with pa.OSFile(str(store / "new"), "wb") as sink, pa.ipc.new_file(sink, batch.schema, options=options) as writer:
        writer.write_batch(batch)
    (store / "new").rename(store / "pixels.arrow")
    before = pa.total_allocated_bytes()
    with pytest.raises(UserError, match=r"pixels\.arrow: got '\d+ bytes', expected 1000 rows of 4096 bytes"):
        ClassStore.open(store)
    assert pa.total_allocated_bytes() - before < MIB
