"""A folder of class folders, at any depth."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from metadist.data.decode import MAX_FILE_BYTES, BadImage, open_image
from metadist.data.sources.base import Example, Source, is_ignored, is_image_name, leaf_folders
from metadist.errors import UserError

if TYPE_CHECKING:
    from PIL.Image import Image


class FolderSource(Source):
    """Class folders under `root`; a class is named by its path from there, with "/".

    A class is a folder that directly holds images and has no class under it. Hidden files, `__MACOSX` and
    files that are not images are passed over; links to folders are followed.

    Args:
        root: the folder.
        parts: names directly under `root` to which to keep; none for all.
    """

    kind = "folder"

    def __init__(self, root: Path, parts: Sequence[str] = ()) -> None:
        self.root = Path(os.path.abspath(root))
        self.text = str(self.root)
        self.label = self.root.name or "root"
        self._parts = tuple(parts)
        self._classes: dict[str, list[str]] | None = None

    def fingerprint(self) -> str:
        digest = hashlib.sha256()
        for name, files in self._list().items():
            for file in files:
                status = self._stat(name, file)
                digest.update(
                    f"{name}/{file}\0{status.st_size}\0{status.st_mtime_ns}\n".encode(errors="surrogateescape")
                )
        return f"{self.root}\0{digest.hexdigest()}"

    def class_names(self) -> tuple[str, ...]:
        return tuple(self._list())

    def count(self, name: str) -> int:
        return len(self._list()[name])

    def examples(self, name: str) -> Iterator[Example]:
        for file in self._list()[name]:
            path = self.root / name / file
            yield Example(str(path), partial(_load, path))

    def _stat(self, name: str, file: str) -> os.stat_result:
        path = self.root / name / file
        try:
            return path.stat()
        except OSError as error:
            raise UserError(str(path), error.strerror, "an image that can be read", "") from error

    def _list(self) -> dict[str, list[str]]:
        if self._classes is None:
            folders: dict[str, list[str]] = {}
            for part in self._parts or ("",):
                _walk(self.root / part, part, folders, ())
            self._classes = leaf_folders(folders)
        return self._classes


def _load(path: Path) -> Image:
    if path.stat().st_size > MAX_FILE_BYTES:
        raise BadImage(f"more than {MAX_FILE_BYTES} bytes")
    return open_image(path.read_bytes(), str(path))


def _walk(folder: Path, name: str, found: dict[str, list[str]], above: tuple[tuple[int, int], ...]) -> None:
    """Add the images of `folder` and the folders under it to `found`; `above` are those on the way here."""
    try:
        status = folder.stat()
        identity = (status.st_dev, status.st_ino)
        if identity in above:  # a link to a folder that holds it
            return
        with os.scandir(folder) as entries:
            kept = [entry for entry in entries if not is_ignored(entry.name)]
        files = [entry.name for entry in kept if is_image_name(entry.name) and entry.is_file()]
        folders = [entry for entry in kept if entry.is_dir()]
    except OSError as error:
        raise UserError(str(folder), error.strerror, "a folder that can be read", "") from error
    if files:
        found[name] = files
    for entry in folders:
        inner = f"{name}/{entry.name}" if name else entry.name
        _walk(Path(entry.path), inner, found, (*above, identity))
