"""Data sets of torchvision, downloaded when they are missing."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from metadist.data.locks import file_lock
from metadist.data.sources.base import Example, Source, natural_key
from metadist.data.sources.folder import FolderSource
from metadist.errors import UserError, nearest

if TYPE_CHECKING:
    from PIL.Image import Image

_INSTEAD = "or name a folder or a zip of class folders in data.source"
_OMNIGLOT_PARTS = ("images_background", "images_evaluation")
# Arguments that a data set needs beyond the common ones. The "balanced" EMNIST has 47 classes of 2,800
# images.
_EXTRA: dict[str, dict[str, str]] = {"EMNIST": {"split": "balanced"}}


class TorchvisionSource(Source):
    """`torchvision:NAME`: both parts, training and test, of a data set of torchvision taken together.

    NAME is Omniglot, MNIST, FashionMNIST, KMNIST, EMNIST (its "balanced" split), CIFAR10, CIFAR100 or any
    other whose constructor takes `root`, `train` and `download`. Classes have the data set's names; of names
    like "0 - zero" the part before the dash. Those of Omniglot are `images_background/Alphabet/character01`.

    Args:
        name: the data set.
        root: where torchvision keeps its files; downloaded to only when they are missing.
    """

    kind = "torchvision"

    def __init__(self, name: str, root: Path) -> None:
        self.name = name
        self.root = root
        self.text = f"torchvision:{name}"
        self.label = name
        self._folder: FolderSource | None = None
        self._parts: list[Any] = []
        # Class → (part, row) of its examples.
        self._classes: dict[str, list[tuple[int, int]]] = {}

    def fingerprint(self) -> str:
        return self.text

    def class_names(self) -> tuple[str, ...]:
        self._load()
        return self._folder.class_names() if self._folder else tuple(self._classes)

    def count(self, name: str) -> int:
        self._load()
        return self._folder.count(name) if self._folder else len(self._classes[name])

    def examples(self, name: str) -> Iterator[Example]:
        self._load()
        if self._folder:
            yield from self._folder.examples(name)
            return
        for part, row in self._classes[name]:
            label = f"{self.text} ({'training' if part == 0 else 'test'} image {row})"
            yield Example(label, partial(_image, self._parts[part], row))

    def _load(self) -> None:
        if self._folder or self._parts:
            return
        make = self._constructor()
        if self.name == "Omniglot":
            # torchvision unpacks Omniglot to class folders: they are read as such, which keeps the names.
            backgrounds = (True, False)
            folders = [Path(self._make(make, background=part).target_folder) for part in backgrounds]
            self._folder = FolderSource(folders[0].parent, _OMNIGLOT_PARTS)
            return
        parts = [self._make(make, train=part, **_EXTRA.get(self.name, {})) for part in (True, False)]
        classes: dict[str, list[tuple[int, int]]] = {}
        for number, part in enumerate(parts):
            names = getattr(part, "classes", None)
            for row, target in enumerate(_targets(part)):
                name = str(target) if names is None else str(names[target]).split(" - ")[0]
                classes.setdefault(name, []).append((number, row))
        self._classes = {name: classes[name] for name in sorted(classes, key=natural_key)}
        self._parts = parts

    def _constructor(self) -> Any:
        try:
            datasets = importlib.import_module("torchvision.datasets")
        except Exception as error:  # a torchvision built for another torch fails in many ways, not only ImportError
            raise UserError(
                "data.source",
                self.text,
                f"a torchvision that can be imported ({type(error).__name__}: {error})",
                f"Install the torchvision that belongs to your torch (pip install torchvision), {_INSTEAD}.",
            ) from error
        known = [name for name in getattr(datasets, "__all__", ()) if isinstance(getattr(datasets, name), type)]
        if self.name not in known:
            hint = nearest(self.name, known)
            raise UserError("data.source", self.text, "a data set of torchvision.datasets", hint)
        make = getattr(datasets, self.name)
        takes: set[str] = set()
        for base in inspect.getmro(make):  # EMNIST passes `train` and `download` on to MNIST as keywords
            if "__init__" in vars(base):
                takes |= set(inspect.signature(vars(base)["__init__"]).parameters)
        if not {"root", "background" if self.name == "Omniglot" else "train", "download"} <= takes:
            raise UserError(
                "data.source",
                self.text,
                "a data set whose constructor takes root, train and download, as MNIST's and CIFAR10's do",
                f"Use one of these, {_INSTEAD}.",
            )
        return make

    def _make(self, make: Any, **arguments: Any) -> Any:
        """The data set from files that are there; only if that fails, with a download."""
        try:
            return make(str(self.root), download=False, **arguments)
        except Exception as missing:  # torchvision says RuntimeError, or what reading a broken file raises
            first = missing
        try:
            # Two jobs of different options must not download to the same files at once.
            with file_lock(self.root / f".{self.name}.lock", "data.cache"):
                return make(str(self.root), download=True, **arguments)
        except UserError:
            raise
        except Exception as error:
            # What the network said is the cause; that the files are missing is what the user can mend.
            raise UserError(
                "data.source",
                self.text,
                f"its files at {self.root} ({_line(first)}), or a download that works ({_line(error)})",
                f"Put the files that torchvision downloads for {self.name} at {self.root}, {_INSTEAD}.",
            ) from error


def _targets(part: Any) -> Iterator[int]:
    targets = getattr(part, "targets", None)
    # QMNIST's targets are rows of eight facts; its items give the digit.
    if targets is not None and np.ndim(targets) == 1:
        return (int(target) for target in np.asarray(targets))
    return (int(part[row][1]) for row in range(len(part)))


def _image(part: Any, row: int) -> Image:
    image: Image = part[row][0]
    return image


def _line(error: BaseException) -> str:
    """An error on one line, cut short: torchvision's messages run over many."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:200]}{'…' if len(text) > 200 else ''}"
