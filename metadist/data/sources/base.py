"""What a source of images is: named classes, and examples that are decoded one at a time."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from PIL.Image import Image

#: Endings of the files that are taken for images, in lower case.
IMAGE_ENDINGS = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".pbm", ".pgm", ".ppm")


@dataclass(frozen=True, slots=True)
class Example:
    """One image of a source, not decoded yet.

    Attributes:
        name: the file or zip entry, as a message names it.
        load: opens the image; raises `BadImage` or whatever the decoder raises.
    """

    name: str
    load: Callable[[], Image]


class Source(ABC):
    """A source of images.

    Making one is cheap: nothing is listed, loaded or downloaded before it is asked for. `close` frees open
    files; a source is also a context manager.

    Attributes:
        kind: "folder", "zip", "torchvision" or "sklearn".
        text: the source as the manifest records it.
        label: a short name for files in the cache.
    """

    kind: str
    text: str
    label: str

    @abstractmethod
    def fingerprint(self) -> str:
        """Text that changes when the source's content may have changed; no image is read for it."""

    @abstractmethod
    def class_names(self) -> tuple[str, ...]:
        """Names of the classes in natural order (`natural_key`)."""

    @abstractmethod
    def count(self, name: str) -> int:
        """Number of examples of a class, bad ones included."""

    @abstractmethod
    def examples(self, name: str) -> Iterator[Example]:
        """The examples of a class in an order that only depends on the source's content."""

    def close(self) -> None:
        """Free open files."""
        return

    def __enter__(self) -> Source:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def natural_key(name: str) -> tuple[tuple[tuple[str, int, str], ...], str]:
    """Sort key under which runs of digits compare as numbers: `character2` before `character10`.

    Names equal but for leading zeros fall back to plain text order, so that the order is total.
    """
    parts = re.split(r"([0-9]+)", name)
    # Text at even places, digits at odd ones. Digits compare by length, then as text: the same as by value,
    # for numbers of any length.
    key = tuple(
        ("", len(part.lstrip("0")), part.lstrip("0")) if place % 2 else (part, 0, "")
        for place, part in enumerate(parts)
    )
    return key, name


def is_image_name(name: str) -> bool:
    """Whether a file of that name is taken for an image."""
    return name.lower().endswith(IMAGE_ENDINGS)


def is_ignored(name: str) -> bool:
    """Whether a file or folder of that name is passed over: hidden, or a Macintosh's resource forks."""
    return name.startswith(".") or name == "__MACOSX"


def leaf_folders(folders: dict[str, list[str]]) -> dict[str, list[str]]:
    """The classes among folders that hold images.

    Args:
        folders: path from the root with "/" (the root is "") → files in that folder that are images.

    Returns:
        Only the folders with images that have no folder with images under them, without the root, in natural
        order, files too. Images beside class folders (a contact sheet, say) belong to no class.
    """
    inner = {""}
    for folder in folders:
        while "/" in folder:
            folder = folder.rpartition("/")[0]
            inner.add(folder)
    names = sorted((name for name in folders if name not in inner), key=natural_key)
    return {name: sorted(folders[name], key=natural_key) for name in names}
