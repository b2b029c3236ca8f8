"""Making a store: decode every image of a source once, write the pixels, all or nothing."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

import numpy as np
import numpy.typing as npt

from metadist.data.atomic import partial_folder, place_folder, sync_folder
from metadist.data.decode import BadImage, is_grey, load_image, to_pixels
from metadist.data.locations import cache_folder, download_folder
from metadist.data.manifest import MANIFEST_NAME, PIXELS_NAME, build_manifest
from metadist.data.sources import Source, open_source
from metadist.data.sources.base import Example
from metadist.data.store import ClassStore, is_store
from metadist.errors import UserError

#: Called with (images done, images in all); an image that is skipped is done.
Progress = Callable[[int, int], None]

_RAW_NAME = "pixels.raw"
_PROGRESS_EVERY = 64


def prepare(
    source: str,
    store: str | os.PathLike[str],
    *,
    size: int | None = None,
    channels: int | None = None,
    invert: bool = False,
    skip_bad: bool = False,
    overwrite: bool = False,
    download_root: str | os.PathLike[str] | None = None,
    progress: Progress | None = None,
) -> ClassStore:
    """Decode the images of `source` into a new store in folder `store`, and open it.

    The folder appears only when it is whole: everything is written beside it, synced to disk and renamed.
    Memory stays small; the disk holds the pixels twice for a moment.

    Args:
        source: folder of class folders, zip of one, `torchvision:NAME` or `sklearn:digits`.
        store: the folder to make.
        size: side in pixels to which images are resized; None keeps their size, which must then be the same.
        channels: 1 for grey, 3 for colour; None for 3 when any image has colour, else 1.
        invert: store 255 - p for each pixel p.
        skip_bad: leave out images that cannot be decoded; the manifest counts them.
        overwrite: replace a store that is already there. Anything else that is there is never touched.
        download_root: where torchvision keeps its files; None for `torchvision` in the cache
            (`cache_folder`).
        progress: called now and then, and at the end. It may start again from 0, when colour turns up late.

    Raises:
        UserError: whatever is wrong with the source, an image, the options or the place of the store.
    """
    target = Path(os.path.abspath(os.path.expanduser(store)))
    root = download_folder(cache_folder()) if download_root is None else Path(os.path.expanduser(download_root))
    with open_source(source, root) as images:
        return prepare_source(
            images,
            target,
            size=size,
            channels=channels,
            invert=invert,
            skip_bad=skip_bad,
            overwrite=overwrite,
            progress=progress,
        )


def prepare_source(
    source: Source,
    target: Path,
    *,
    size: int | None,
    channels: int | None,
    invert: bool,
    skip_bad: bool,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> ClassStore:
    """`prepare` for a source that is already opened, into the absolute path `target`."""
    check_options(size, channels)
    _check_target(target, overwrite)
    if sum(source.count(name) for name in source.class_names()) == 0:
        raise UserError(
            "data.source",
            source.text,
            "images in class folders",
            "Put the images of each class in a folder of their own (class/image.png), at any depth.",
        )
    writer = _Writer(source, size, channels, invert, skip_bad, progress)
    with partial_folder(target) as folder:
        writer.write(folder)
        place_folder(folder, target, overwrite)
    return ClassStore.open(target)


def check_options(size: object, channels: object) -> None:
    """Raise UserError unless `size` is None or at least 1, and `channels` None, 1 or 3."""
    if size is not None and (not isinstance(size, int) or isinstance(size, bool) or size < 1):
        raise UserError("data.size", size, "a whole number of pixels of at least 1, or null")
    if channels not in (None, 1, 3):
        raise UserError("data.channels", channels, "1 (grey), 3 (colour) or null (as in the source)")


class _ColourFound(Exception):
    """A coloured image after grey ones were written."""


class _Writer:
    def __init__(
        self,
        source: Source,
        size: int | None,
        channels: int | None,
        invert: bool,
        skip_bad: bool,
        progress: Progress | None,
    ) -> None:
        self._source, self._size, self._channels = source, size, channels
        self._invert, self._skip_bad, self._progress = invert, skip_bad, progress
        self._total = sum(source.count(name) for name in source.class_names())
        self._start()

    def _start(self) -> None:
        self._classes: list[str] = []
        self._offsets = [0]
        self._shape: tuple[int, ...] | None = None
        self._first = ""
        self._skipped = self._done = 0
        self._digest = hashlib.sha256()

    def write(self, folder: Path) -> None:
        """Write both files of the store into `folder`."""
        raw = folder / _RAW_NAME
        try:
            self._write_raw(raw, 3 if self._channels == 3 else 1)
        except _ColourFound:
            # Rare (grey images sorted before coloured ones), so starting over beats reading every header
            # first.
            self._start()
            self._write_raw(raw, 3)
        if self._shape is None:
            hint = f"All {self._skipped} images were skipped as bad."
            raise UserError("data.source", self._source.text, "at least one image that can be decoded", hint)
        _wrap(raw, folder / PIXELS_NAME, self._offsets[-1], self._shape)
        raw.unlink()
        manifest = build_manifest(
            classes=self._classes,
            offsets=self._offsets,
            shape=self._shape,
            pixels_sha256=self._digest.hexdigest(),
            source=self._source.text,
            options={"size": self._size, "channels": self._channels, "invert": self._invert},
            skipped=self._skipped,
        )
        with open(folder / MANIFEST_NAME, "x", encoding="ascii") as file:
            json.dump(manifest, file, indent=1)
            file.write("\n")
        sync_folder(folder)

    def _write_raw(self, path: Path, channels: int) -> None:
        # Plain appending writes, and not stores to a map of the file: on a full disk the latter end the
        # process by a signal instead of an error.
        with open(path, "wb", buffering=1 << 20) as file:
            for name in self._source.class_names():
                rows = sum(self._write_example(file, example, channels) for example in self._source.examples(name))
                if rows:
                    self._classes.append(name)
                    self._offsets.append(self._offsets[-1] + rows)
        if self._progress is not None:
            self._progress(self._done, self._total)

    def _write_example(self, file: BinaryIO, example: Example, channels: int) -> bool:
        if self._progress is not None and self._done % _PROGRESS_EVERY == 0:
            self._progress(self._done, self._total)
        self._done += 1
        pixels = self._pixels(example, channels)
        if pixels is None:
            self._skipped += 1
            return False
        self._digest.update(pixels.data)
        file.write(pixels.data)
        return True

    def _pixels(self, example: Example, channels: int) -> npt.NDArray[np.uint8] | None:
        """Pixels of an example, or None for a bad image that is skipped."""
        try:
            image = load_image(example)
        except BadImage as error:
            if self._skip_bad:
                return None
            raise UserError(
                example.name,
                str(error),
                "an image that can be decoded",
                "Mend or remove it, or leave such images out with --skip-bad (data.skip_bad: true).",
            ) from error
        if channels == 1 and self._channels is None and not is_grey(image):
            raise _ColourFound
        pixels = to_pixels(image, channels, self._size, self._invert)
        if self._shape is None:
            self._shape, self._first = tuple(int(side) for side in pixels.shape), example.name
        elif pixels.shape != self._shape:
            raise UserError(
                example.name,
                f"{pixels.shape[2]}×{pixels.shape[1]} pixels",
                f"{self._shape[2]}×{self._shape[1]} pixels, the size of {self._first}",
                "Set data.size (--size), to resize all images to one size.",
            )
        return pixels


def _wrap(raw: Path, path: Path, rows: int, shape: tuple[int, ...]) -> None:
    """Write the pixels in file `raw` as an Arrow file at `path`, from a map: memory never holds them all."""
    import pyarrow as pa

    width = int(np.prod(shape))
    buffer = pa.py_buffer(np.memmap(raw, dtype=np.uint8, mode="r", shape=(rows * width,)))
    column = pa.Array.from_buffers(pa.binary(width), rows, [None, buffer])
    batch = pa.record_batch([column], names=["pixels"])
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, batch.schema) as writer:
        writer.write_batch(batch)


def _check_target(target: Path, overwrite: bool) -> None:
    if not os.path.lexists(target):
        return
    if not is_store(target):
        hint = "Name another folder, or remove that one; nothing was changed."
        raise UserError(str(target), "something that is not a store", "a path where nothing is", hint)
    if not overwrite:
        hint = "Name another folder, or ask to overwrite it."
        raise UserError(str(target), "a store", "a path where nothing is", hint)
    others = sorted({path.name for path in target.iterdir()} - {MANIFEST_NAME, PIXELS_NAME})
    if others:
        hint = "Overwriting would delete them: move them, or name another folder."
        raise UserError(str(target), others[:5], f"a store of {MANIFEST_NAME} and {PIXELS_NAME} alone", hint)
