"""Tiny sources of images for the tests of metadist.data."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from metadist.data import ClassStore, prepare


def draw(seed: int, side: int = 6, mode: str = "L") -> Image.Image:
    """A picture of noise; the same for the same arguments."""
    shape = (side, side, 3) if mode == "RGB" else (side, side)
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8))


def png(image: Image.Image) -> bytes:
    data = io.BytesIO()
    image.save(data, "PNG")
    return data.getvalue()


@pytest.fixture
def make_folder(tmp_path: Path) -> Callable[..., Path]:
    """Write {path: image or bytes} under a folder; returns the folder."""

    def make(files: Mapping[str, Image.Image | bytes], name: str = "images") -> Path:
        root = tmp_path / name
        for path, content in files.items():
            file = root / path
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(content if isinstance(content, bytes) else png(content))
        return root

    return make


@pytest.fixture
def make_zip(tmp_path: Path) -> Callable[..., Path]:
    """Write {entry: image or bytes} to a zip; returns its path."""

    def make(files: Mapping[str, Image.Image | bytes], name: str = "images.zip") -> Path:
        path = tmp_path / name
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            for entry, content in files.items():
                archive.writestr(entry, content if isinstance(content, bytes) else png(content))
        return path

    return make


@pytest.fixture
def picture() -> Callable[..., Image.Image]:
    return draw


@pytest.fixture
def files() -> dict[str, Image.Image]:
    """Three classes at two depths, of 2, 1 and 3 images of 6×6 grey pixels."""
    return {
        "a/x10/2.png": draw(0),
        "a/x10/10.png": draw(1),
        "a/x9/1.png": draw(2),
        "b/1.png": draw(3),
        "b/2.png": draw(4),
        "b/3.png": draw(5),
    }


@pytest.fixture
def store(tmp_path: Path, make_folder: Callable[..., Path], files: dict[str, Image.Image]) -> ClassStore:
    """The store of `files`: classes a/x9, a/x10 and b."""
    return prepare(str(make_folder(files)), tmp_path / "store")
