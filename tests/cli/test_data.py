"""`metadist data`: prepare and info."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """Three classes of three images of 6×6 pixels, with a space and an umlaut on the way."""
    root = tmp_path / "meine Bilder ö"
    for number in range(9):
        path = root / f"class {number // 3}" / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.random.default_rng(number).integers(0, 256, (6, 6), dtype=np.uint8)).save(path)
    return root


def test_prepare_and_info(metadist: Callable[..., Any], images: Path, tmp_path: Path) -> None:
    store = tmp_path / "the store"
    made = metadist("data", "prepare", str(images), str(store), "--size", "5", "--channels", "3", "--invert")
    assert made.code == 0, made.err
    assert made.err == ""
    ended = metadist("data", "info", str(store), "--json", "--verify")
    assert ended.code == 0, ended.err
    (line,) = ended.out.splitlines()
    facts = json.loads(line)
    assert facts["classes"] == 3
    assert facts["examples"] == {"total": 9, "min": 3, "median": 3.0, "max": 3}
    assert facts["shape"] == [3, 5, 5]
    assert facts["options"] == {"size": 5, "channels": 3, "invert": True}
    assert facts["skipped"] == 0
    assert len(facts["sha256"]) == 64
    plain = metadist("data", "info", str(store)).out
    assert plain == made.out
    assert facts["sha256"] in plain
    assert "examples  total 9, min 3" in plain


def test_overwrite(metadist: Callable[..., Any], images: Path, tmp_path: Path) -> None:
    store = str(tmp_path / "store")
    assert metadist("data", "prepare", str(images), store).code == 0
    assert metadist("data", "prepare", str(images), store, "--overwrite", "--size", "4").code == 0
    assert json.loads(metadist("data", "info", store, "--json").out)["shape"] == [1, 4, 4]


def test_relative_paths(
    metadist: Callable[..., Any], images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert metadist("data", "prepare", images.name, "new/store").code == 0
    assert json.loads(metadist("data", "info", "new/store/", "--json").out)["path"] == str(tmp_path / "new" / "store")


def test_skipped_images_are_counted(metadist: Callable[..., Any], images: Path, tmp_path: Path) -> None:
    (images / "class 0" / "0.png").write_bytes(b"broken")
    store = str(tmp_path / "store")
    assert metadist("data", "prepare", str(images), store, "--skip-bad").code == 0
    assert json.loads(metadist("data", "info", store, "--json").out)["skipped"] == 1
