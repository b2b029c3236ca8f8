"""torchvision's data sets, by a stand-in for the module, and once by the real one on files made here."""

from __future__ import annotations

import struct
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.error import URLError

import numpy as np
import pytest
from PIL import Image

from metadist.data import DataConfig, prepare, resolve_store
from metadist.errors import UserError

calls: list[tuple[str, bool, bool]] = []


class MNIST:
    """Two images of each of two classes; its files are there when `root/ready` is."""

    classes: Any = ("10 - ten", "9 - nine")
    online = True

    def __init__(self, root: str, train: bool = True, download: bool = False) -> None:
        calls.append((type(self).__name__, train, download))
        ready = Path(root) / "ready"
        if download:
            if not self.online:
                raise URLError("no route to host")
            ready.touch()
        if not ready.exists():
            raise RuntimeError("Dataset not found. You can use download=True to download it")
        self.targets = [1, 0]
        self.base = 100 if train else 200

    def __getitem__(self, row: int) -> tuple[Image.Image, int]:
        return Image.new("L", (4, 4), self.base + row), self.targets[row]


class EMNIST(MNIST):
    def __init__(self, root: str, split: str, **others: Any) -> None:
        assert split == "balanced"
        super().__init__(root, **others)


class USPS(MNIST):
    """Without names of classes, and labels only in its items."""

    classes = None

    def __init__(self, root: str, train: bool = True, download: bool = False) -> None:
        super().__init__(root, train, download)
        self.labels = self.targets
        del self.targets

    def __getitem__(self, row: int) -> tuple[Image.Image, int]:
        return Image.new("L", (4, 4), self.base + row), self.labels[row]

    def __len__(self) -> int:
        return 2


class SVHN:
    def __init__(self, root: str, split: str = "train", download: bool = False) -> None:
        raise AssertionError("is not made")


class Omniglot:
    def __init__(self, root: str, background: bool = True, download: bool = False) -> None:
        calls.append(("Omniglot", background, download))
        self.target_folder = Path(root) / "omniglot-py" / f"images_{'background' if background else 'evaluation'}"
        for number in (10, 9):
            folder = self.target_folder / "Greek" / f"character{number}"
            folder.mkdir(parents=True, exist_ok=True)
            Image.new("1", (5, 5), number % 2).save(folder / "1.png")
        other = Path(root) / "omniglot-py" / "images_background_small1" / "Greek" / "character1"
        other.mkdir(parents=True, exist_ok=True)
        Image.new("1", (5, 5)).save(other / "1.png")


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> types.ModuleType:
    calls.clear()
    monkeypatch.setenv("METADIST_CACHE", str(tmp_path / "cache"))
    module = types.ModuleType("torchvision.datasets")
    sets = (MNIST, EMNIST, USPS, SVHN, Omniglot)
    for each in sets:
        setattr(module, each.__name__, each)
    module.helper = lambda: None  # type: ignore[attr-defined]
    module.__all__ = [*(each.__name__ for each in sets), "helper"]  # type: ignore[attr-defined]
    parent = types.ModuleType("torchvision")
    parent.datasets = module  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "torchvision", parent)
    monkeypatch.setitem(sys.modules, "torchvision.datasets", module)
    return module


@pytest.mark.usefixtures("fake")
class TestStandIn:
    def test_both_parts_together(self, tmp_path: Path) -> None:
        (tmp_path / "ready").touch()
        store = prepare("torchvision:MNIST", tmp_path / "store", download_root=tmp_path)
        assert store.classes == ("9", "10")
        assert store.pixels[:, 0, 0, 0].tolist() == [100, 200, 101, 201]
        assert store.manifest["source"] == "torchvision:MNIST"
        assert calls == [("MNIST", True, False), ("MNIST", False, False)], "nothing is downloaded that is there"

    def test_download_of_what_is_missing(self, tmp_path: Path) -> None:
        config = DataConfig(source="torchvision:MNIST", cache=str(tmp_path))
        resolve_store(config)
        assert [download for _, _, download in calls] == [False, True, False]
        assert (tmp_path / "torchvision" / "ready").exists()
        calls.clear()
        resolve_store(config)
        assert calls == [], "a prepared store needs no torchvision"

    def test_failed_download(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(MNIST, "online", False)
        with pytest.raises(UserError) as raised:
            resolve_store(DataConfig(source="torchvision:MNIST", cache=str(tmp_path)))
        message = str(raised.value)
        assert raised.value.field == "data.source"
        for part in ("no route to host", "Dataset not found", f"{tmp_path}/torchvision", "a folder or a zip"):
            assert part in message
        assert sorted(file.name for file in tmp_path.iterdir() if not file.name.startswith(".")) == ["torchvision"]

    def test_emnist_is_balanced(self, tmp_path: Path) -> None:
        assert prepare("torchvision:EMNIST", tmp_path / "store").classes == ("9", "10")
        assert (tmp_path / "cache" / "torchvision" / "ready").exists(), "downloads go to the cache by default"

    def test_without_targets_and_names(self, tmp_path: Path) -> None:
        assert prepare("torchvision:USPS", tmp_path / "store").classes == ("0", "1")

    def test_omniglot(self, tmp_path: Path) -> None:
        store = prepare("torchvision:Omniglot", tmp_path / "store")
        assert store.classes == tuple(
            f"images_{part}/Greek/character{number}" for part in ("background", "evaluation") for number in (9, 10)
        )
        assert store.pixels[:, 0, 0, 0].tolist() == [255, 0, 255, 0]

    @pytest.mark.parametrize(
        ("name", "message"),
        [
            ("MNISST", "Did you mean 'MNIST'"),
            ("helper", "a data set of torchvision.datasets"),
            ("SVHN", "takes root, train and download"),
        ],
    )
    def test_sets_that_cannot_be_used(self, tmp_path: Path, name: str, message: str) -> None:
        with pytest.raises(UserError, match=message):
            prepare(f"torchvision:{name}", tmp_path / "store")


@pytest.mark.parametrize("error", [ImportError("libcudart.so"), RuntimeError("operator torchvision::nms")])
def test_torchvision_that_cannot_be_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    class Finder:
        @staticmethod
        def find_spec(name: str, *_: object) -> None:
            if name.startswith("torchvision"):
                raise error

    for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(sys, "meta_path", [Finder, *sys.meta_path])
    with pytest.raises(UserError, match=f"{type(error).__name__}: {error}.*pip install torchvision"):
        prepare("torchvision:MNIST", tmp_path / "store")


def test_real_mnist(tmp_path: Path, picture: Callable[..., Image.Image]) -> None:
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for part, labels in (("train", [7, 3, 7]), ("t10k", [3])):
        pixels = b"".join(picture(number, 28).tobytes() for number in range(len(labels)))
        head = struct.pack(">IIII", 2051, len(labels), 28, 28)
        (raw / f"{part}-images-idx3-ubyte").write_bytes(head + pixels)
        (raw / f"{part}-labels-idx1-ubyte").write_bytes(struct.pack(">II", 2049, len(labels)) + bytes(labels))
    store = prepare("torchvision:MNIST", tmp_path / "store", download_root=tmp_path)
    assert store.classes == ("3", "7")
    expected = [np.asarray(picture(number, 28)) for number in (1, 0, 0, 2)]
    assert np.array_equal(store.pixels[:, 0], expected)
