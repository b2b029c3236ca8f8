"""Malformed stores and sources: one message, exit code 2, nothing half-written."""

from __future__ import annotations

import json
import shutil
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from metadist.config import load_job
from metadist.distributed.run import RunOptions, train_job
from metadist.errors import UserError
from metadist.testing.observers import Notes
from metadist.training.run_folder import RunFolder
from metadist.training.stepper import StepRecord


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """Three classes of three images of 6×6 pixels."""
    root = tmp_path / "images"
    for number in range(9):
        path = root / "abc"[number // 3] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.random.default_rng(number).integers(0, 256, (6, 6), dtype=np.uint8)).save(path)
    return root


@pytest.fixture
def store(metadist: Callable[..., Any], images: Path, tmp_path: Path) -> Path:
    ended = metadist("data", "prepare", str(images), str(tmp_path / "store"))
    assert ended.code == 0, ended.err
    return tmp_path / "store"


def assert_mistake(ended: Any, field: str, *parts: str) -> None:
    assert ended.code == 2, ended.err
    assert "Traceback" not in ended.err
    (line,) = ended.err.splitlines()
    assert line.startswith(f"metadist: {field}: got ")
    for part in parts:
        assert part in line


def test_missing_manifest(metadist: Callable[..., Any], store: Path) -> None:
    (store / "manifest.json").unlink()
    assert_mistake(metadist("data", "info", str(store)), f"{store}/manifest.json", "No such file", "the manifest")


def test_missing_pixels(metadist: Callable[..., Any], store: Path) -> None:
    (store / "pixels.arrow").unlink()
    assert_mistake(metadist("data", "info", str(store)), f"{store}/pixels.arrow", "no such file", "the pixels")


@pytest.mark.parametrize("keep", [0, 7, 300, -5])
def test_truncated_pixels(metadist: Callable[..., Any], store: Path, keep: int) -> None:
    data = (store / "pixels.arrow").read_bytes()
    (store / "pixels.arrow").write_bytes(data[:keep])
    assert_mistake(metadist("data", "info", str(store)), f"{store}/pixels.arrow", "prepare or fetch it again")


@pytest.mark.parametrize(
    ("text", "part"),
    [("{", "JSON"), ("[]", "the format"), ('{"format": "other"}', "'other'"), ("\x00", "JSON"), ("", "JSON")],
)
def test_foreign_manifest(metadist: Callable[..., Any], store: Path, text: str, part: str) -> None:
    (store / "manifest.json").write_text(text)
    assert_mistake(metadist("data", "info", str(store)), f"{store}/manifest.json", part)


@pytest.mark.parametrize(
    ("key", "value", "part"),
    [
        ("version", 99, "upgrade"),
        ("shape", [1, 6], "a shape"),
        ("offsets", [0, 3, 6], "4 offsets for 3 classes"),
        ("offsets", [0, 3, 6, 900], "900 rows"),
        ("classes", ["a", "a", "c"], "different names"),
        ("sha256", "../../etc", "64 hexadecimal digits"),
        ("dtype", "float32", "uint8"),
    ],
)
def test_contradicting_manifest(metadist: Callable[..., Any], store: Path, key: str, value: object, part: str) -> None:
    manifest = json.loads((store / "manifest.json").read_text())
    (store / "manifest.json").write_text(json.dumps(manifest | {key: value}))
    ended = metadist("data", "info", str(store))
    assert ended.code == 2
    assert part in ended.err
    assert "Traceback" not in ended.err


def test_changed_content(metadist: Callable[..., Any], store: Path) -> None:
    path = store / "manifest.json"
    path.write_text(path.read_text().replace('"a"', '"z"'))
    assert metadist("data", "info", str(store)).code == 0
    assert_mistake(metadist("data", "info", str(store), "--verify"), str(store), "content of SHA-256")


def test_flipped_pixel(metadist: Callable[..., Any], store: Path) -> None:
    path = store / "pixels.arrow"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    ended = metadist("data", "info", str(store), "--verify")
    assert ended.code == 2
    assert "Traceback" not in ended.err


def test_prepare_onto_something_else(metadist: Callable[..., Any], images: Path, tmp_path: Path) -> None:
    place = tmp_path / "precious"
    place.mkdir()
    (place / "thesis.txt").write_text("all of it")
    for more in ([], ["--overwrite"]):
        ended = metadist("data", "prepare", str(images), str(place), *more)
        assert_mistake(ended, str(place), "something that is not a store", "nothing was changed")
    assert [path.name for path in place.iterdir()] == ["thesis.txt"]


def test_prepare_onto_a_store(metadist: Callable[..., Any], images: Path, store: Path) -> None:
    assert_mistake(metadist("data", "prepare", str(images), str(store)), str(store), "overwrite")
    (store / "notes.txt").write_text("mine")
    ended = metadist("data", "prepare", str(images), str(store), "--overwrite")
    assert_mistake(ended, str(store), "notes.txt")
    assert (store / "notes.txt").exists()


@pytest.mark.parametrize("content", [b"", b"not an image", b"\x89PNG\r\n\x1a\n\x00\x00"])
def test_corrupt_image(metadist: Callable[..., Any], images: Path, tmp_path: Path, content: bytes) -> None:
    (images / "a" / "0.png").write_bytes(content)
    place = tmp_path / "new"
    ended = metadist("data", "prepare", str(images), str(place))
    assert_mistake(ended, str(images / "a" / "0.png"), "an image that can be decoded", "--skip-bad")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["images"]
    assert metadist("data", "prepare", str(images), str(place), "--skip-bad").code == 0


def test_other_size(metadist: Callable[..., Any], images: Path, tmp_path: Path) -> None:
    Image.new("L", (9, 9)).save(images / "c" / "9.png")
    ended = metadist("data", "prepare", str(images), str(tmp_path / "new"))
    assert_mistake(ended, str(images / "c" / "9.png"), "9×9 pixels", "6×6 pixels", "--size")
    assert not (tmp_path / "new").exists()


def test_zip_slip(metadist: Callable[..., Any], images: Path, tmp_path: Path) -> None:
    """Nothing is ever extracted: an entry that points outside is refused, or is a class like another."""
    image = (images / "a" / "0.png").read_bytes()
    archive = tmp_path / "evil.zip"
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("a/0.png", image)
        file.writestr("../../evil/1.png", image)
    before = sorted(tmp_path.parent.rglob("*"))
    ended = metadist("data", "prepare", str(archive), str(tmp_path / "new"))
    assert ended.code == 2, ended.err
    assert "Traceback" not in ended.err
    assert ".." in ended.err
    assert sorted(tmp_path.parent.rglob("*")) == before


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 cut off", b"text"])
def test_not_a_zip(metadist: Callable[..., Any], tmp_path: Path, content: bytes) -> None:
    archive = tmp_path / "images.zip"
    archive.write_bytes(content)
    ended = metadist("data", "prepare", str(archive), str(tmp_path / "new"))
    assert_mistake(ended, str(archive), "a whole zip archive")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["images.zip"]


def test_full_disk(metadist: Callable[..., Any], images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(sys.modules["metadist.data.prepare"], "_wrap", full)
    ended = metadist("data", "prepare", str(images), str(tmp_path / "new"))
    assert_mistake(ended, str(tmp_path / "new"), "No space left", "enough free space")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["images"]


class Meddler(Notes):
    """Does something to a store when a step was committed."""

    def __init__(self, version: int, meddle: Callable[[], object]) -> None:
        super().__init__()
        self.version, self.meddle = version, meddle

    def stepped(self, record: StepRecord, workers: int, losses: int) -> None:
        super().stepped(record, workers, losses)
        if record.version == self.version:
            self.meddle()


@pytest.fixture
def of_a_store(metadist: Callable[..., Any], job: str, tmp_path: Path) -> Callable[[Notes], dict[str, Any]]:
    """Runs the tiny job from a prepared store, at `tmp_path / "digits"`."""
    store = tmp_path / "digits"
    assert metadist("data", "prepare", "sklearn:digits", str(store)).code == 0
    sets = [f"data.source={store}", f"storage={tmp_path / 'runs'}", "data.size=null", "data.channels=null"]
    return lambda notes: train_job(load_job(job, sets), notes, RunOptions())


def test_a_store_that_vanishes_under_a_run(of_a_store: Callable[..., Any], tmp_path: Path) -> None:
    """Who has mapped it has it: the run ends with the same bits."""
    whole = of_a_store(Meddler(0, tmp_path.stat))
    gone = of_a_store(Meddler(1, lambda: shutil.rmtree(tmp_path / "digits")))
    assert not (tmp_path / "digits").exists()
    assert gone["params_sha256"] == whole["params_sha256"]


@pytest.mark.parametrize("how", ["written to", "replaced"])
def test_a_store_that_changes_under_a_run(of_a_store: Callable[..., Any], tmp_path: Path, how: str) -> None:
    """No checkpoint is made of what was computed since."""
    pixels = tmp_path / "digits" / "pixels.arrow"

    def spoil() -> None:
        data = bytearray(pixels.read_bytes())
        data[len(data) // 2] ^= 255
        if how == "replaced":
            pixels.unlink()
        pixels.write_bytes(data)

    with pytest.raises(UserError, match=r"pixels\.arrow: got 'a file that has changed', .* --resume"):
        of_a_store(Meddler(2, spoil))
    (run,) = (tmp_path / "runs").iterdir()
    assert RunFolder(str(run)).checkpoints()[-1].endswith("step-00000001.safetensors")
