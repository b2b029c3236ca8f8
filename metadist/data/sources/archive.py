"""A zip of class folders, read in place: nothing is extracted."""

from __future__ import annotations

import os
import re
import zipfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from metadist.data.decode import MAX_FILE_BYTES, open_image
from metadist.data.sources.base import Example, Source, is_ignored, is_image_name, leaf_folders
from metadist.errors import UserError

if TYPE_CHECKING:
    from PIL.Image import Image

_ENCRYPTED = 0x1


class ZipSource(Source):
    """Class folders in the zip `path`; classes are found and named as in a folder.

    An archive with an entry that points outside of it is refused as a whole, as is one with an image that
    would unpack to more than `MAX_FILE_BYTES` or is encrypted.
    """

    kind = "zip"

    def __init__(self, path: Path) -> None:
        self.path = Path(os.path.abspath(path))
        self.text = str(self.path)
        self.label = self.path.stem
        self._zip: zipfile.ZipFile | None = None
        self._classes: dict[str, list[str]] = {}
        # Cleaned path in the archive → its entry; an archive from Windows may have "\\" in its own names.
        self._entries: dict[str, zipfile.ZipInfo] = {}

    def fingerprint(self) -> str:
        try:
            status = self.path.stat()
        except OSError as error:
            raise UserError(str(self.path), error.strerror, "a zip that can be read", "") from error
        return f"{self.path}\0{status.st_size}\0{status.st_mtime_ns}"

    def class_names(self) -> tuple[str, ...]:
        self._open()
        return tuple(self._classes)

    def count(self, name: str) -> int:
        self._open()
        return len(self._classes[name])

    def examples(self, name: str) -> Iterator[Example]:
        archive = self._open()
        for file in self._classes[name]:
            label = f"{self.path}:{name}/{file}"
            yield Example(label, partial(_load, archive, self._entries[f"{name}/{file}"], label))

    def close(self) -> None:
        if self._zip is not None:
            self._zip.close()
            self._zip = None

    def _open(self) -> zipfile.ZipFile:
        if self._zip is None:
            try:
                archive = zipfile.ZipFile(self.path)
            except (zipfile.BadZipFile, NotImplementedError, ValueError) as error:
                raise UserError(
                    str(self.path), str(error), "a whole zip archive", "Copy or download it again."
                ) from error
            except OSError as error:
                raise UserError(str(self.path), error.strerror, "a zip that can be read", "") from error
            try:
                self._list(archive)
            except BaseException:
                archive.close()
                raise
            self._zip = archive
        return self._zip

    def _list(self, archive: zipfile.ZipFile) -> None:
        folders: dict[str, list[str]] = {}
        for info in archive.infolist():
            path = info.filename.replace("\\", "/")
            label = f"{self.path}:{info.filename}"
            if path.startswith("/") or re.match(r"[A-Za-z]:", path) or ".." in path.split("/"):
                raise UserError(
                    label,
                    info.filename,
                    "a path inside the archive, without a root, a drive or '..'",
                    "This archive may be hostile: do not extract it; get it from a source that you trust.",
                )
            parts = [part for part in path.split("/") if part not in ("", ".")]
            if info.is_dir() or not parts or any(map(is_ignored, parts)) or not is_image_name(parts[-1]):
                continue
            if info.file_size > MAX_FILE_BYTES:
                raise UserError(
                    label,
                    f"{info.file_size} bytes unpacked",
                    f"an image of at most {MAX_FILE_BYTES} bytes",
                    "Take that image out of the archive, or make it smaller.",
                )
            if info.flag_bits & _ENCRYPTED:
                raise UserError(label, "an encrypted entry", "an archive without a password", "Repack it without one.")
            entry = "/".join(parts)
            # A name may come twice, when an archive was appended to: the last one counts, as on extracting.
            if entry not in self._entries:
                folders.setdefault("/".join(parts[:-1]), []).append(parts[-1])
            self._entries[entry] = info
        self._classes = leaf_folders(folders)


def _load(archive: zipfile.ZipFile, info: zipfile.ZipInfo, label: str) -> Image:
    # zipfile never yields more than the declared size, which was bounded, and checks the CRC.
    return open_image(archive.read(info), label)
