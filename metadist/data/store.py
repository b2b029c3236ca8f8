"""The class store: images of one size, sorted by class, in one file that is mapped and never read whole.

A store is a folder with two files:

- `pixels.arrow`: an uncompressed Arrow IPC file with one record batch of one fixed-size-binary column; a
  row is one image, its bytes in the order [channels, height, width], rows sorted by class.
- `manifest.json`: names of the classes, offsets of their rows, shape, source, options and the content's hash.

All processes of a machine that open a store share the same pages of memory.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from metadist.data.manifest import FORMAT, MANIFEST_NAME, PIXELS_NAME, content_sha256, parse_manifest
from metadist.errors import UserError
from metadist.reading import MOST_JSON, read_bounded

# Bytes hashed at a time by `verify`: large enough to cost nothing, small enough that Ctrl-C is quick.
_HASH_BLOCK = 1 << 26
# Where the messages begin in an Arrow IPC file, after its magic word.
_MAGIC_BYTES = 8


class ClassStore:
    """An opened store; make one with `ClassStore.open(path)`. Pickles as its path and opens there again.

    Attributes:
        path: folder of the store, absolute.
        classes: names of the classes, in the order of the rows.
        offsets: int64 [C + 1]; rows `offsets[c]` to `offsets[c + 1]` are those of class `c`.
        shape: (channels, height, width), in pixels.
        pixels: uint8 [N, channels, height, width], 0..255; a read-only view of the mapped file, not a copy.
        sha256: hex SHA-256 of the content, as the manifest states it (`verify` computes it).
        manifest: the manifest as read.
    """

    def __init__(self, path: Path, manifest: dict[str, Any], pixels: npt.NDArray[np.uint8]) -> None:
        self.path = path
        self.manifest = manifest
        self.classes: tuple[str, ...] = tuple(manifest["classes"])
        self.offsets: npt.NDArray[np.int64] = np.asarray(manifest["offsets"], dtype=np.int64)
        self.offsets.flags.writeable = False
        self.shape: tuple[int, int, int] = tuple(manifest["shape"])
        self.pixels = pixels
        self.sha256: str = manifest["sha256"]
        self._seen = self._stamp()

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> ClassStore:
        """Map the store in folder `path`. Takes milliseconds at any size: no pixel is read.

        Raises:
            UserError: the folder or a file is missing, or a file is broken, foreign, newer than this program,
                or does not match the other. The content is not hashed; see `verify`.
        """
        folder = Path(os.path.abspath(os.path.expanduser(path)))
        file = folder / MANIFEST_NAME
        try:
            text = read_bounded(file, MOST_JSON)
        except OSError as error:
            raise UserError(
                str(file),
                error.strerror,
                f"the manifest of a store ({FORMAT})",
                "Name a folder that `metadist data prepare` made.",
            ) from error
        manifest = parse_manifest(text, str(file))
        return cls(folder, manifest, _map_pixels(folder / PIXELS_NAME, manifest))

    def counts(self) -> npt.NDArray[np.int64]:
        """Number of examples of each class: int64 [C]."""
        return np.diff(self.offsets)

    def _stamp(self) -> tuple[int, ...] | None:
        """What a change of the pixel file changes; `None` where it is gone: who has mapped it has it all the same."""
        try:
            found = os.stat(self.path / PIXELS_NAME)
        except OSError:
            return None
        return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns

    def check_unchanged(self) -> None:
        """Ask the file system whether the pixel file is the one that was opened; no pixel is read.

        Raises:
            UserError: it was written to, or another one is in its place.
        """
        if self._stamp() not in (None, self._seen):
            hint = "Prepare or fetch it again, and go on with --resume: no checkpoint was written since."
            raise UserError(str(self.path / PIXELS_NAME), "a file that has changed", "the one that was opened", hint)

    def verify(self) -> None:
        """Read everything and compare with the manifest's hash.

        Raises:
            UserError: the content is not what was written.
        """
        digest = hashlib.sha256()
        flat = self.pixels.reshape(-1)
        for start in range(0, flat.size, _HASH_BLOCK):
            digest.update(flat[start : start + _HASH_BLOCK].data)
        found = content_sha256(self.classes, self.manifest["offsets"], self.shape, digest.hexdigest())
        if found != self.sha256:
            raise UserError(
                str(self.path),
                found,
                f"content of SHA-256 {self.sha256}, as its manifest says",
                "The files were damaged or changed: delete that store and prepare or fetch it again.",
            )

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return ClassStore.open, (str(self.path),)

    def __repr__(self) -> str:
        size = f"classes={len(self.classes)}, images={len(self.pixels)}, shape={self.shape}"
        return f"ClassStore({str(self.path)!r}, {size})"


def is_store(path: str | os.PathLike[str]) -> bool:
    """Whether `path` is a folder that means to be a store, be it a damaged one; `ClassStore.open` tells."""
    folder = Path(os.path.expanduser(path))
    try:
        if (folder / PIXELS_NAME).is_file():
            return True
        # A folder of images may hold some other manifest.json: only ours counts.
        with open(folder / MANIFEST_NAME, "rb") as file:
            return FORMAT.encode() in file.read(4096)
    except (OSError, ValueError):
        return False


def _map_pixels(file: Path, manifest: dict[str, Any]) -> npt.NDArray[np.uint8]:
    import pyarrow as pa  # here, so that tasks without a store need no pyarrow

    hint = "Delete that store and prepare or fetch it again."
    shape: list[int] = manifest["shape"]
    rows: int = manifest["offsets"][-1]
    width = shape[0] * shape[1] * shape[2]
    size = rows * width
    if width >= 2**31:
        raise UserError(str(file), f"images of {width} bytes", "images of less than 2 GiB", hint)
    try:
        source = pa.memory_map(str(file), "r")
        reader = pa.ipc.open_file(source)
        batches = reader.num_record_batches
        types = [field.type for field in reader.schema]
        # The batch's bytes as they lie there: Arrow would unpack what is compressed, however large it is then.
        source.seek(_MAGIC_BYTES)
        messages = pa.ipc.MessageReader.open_stream(source)
        messages.read_next_message()  # the schema, once more
        data = messages.read_next_message().body if batches == 1 else None
    except FileNotFoundError as error:
        raise UserError(str(file), "no such file", "the pixels of the store", hint) from error
    except (pa.ArrowException, OSError, ValueError, EOFError, StopIteration) as error:
        # pyarrow raises OSError for a broken message and ArrowInvalid for a missing footer.
        reason = (str(error).splitlines() or ["too few messages"])[0]
        raise UserError(str(file), reason, "a whole Arrow IPC file (it may be cut short)", hint) from error
    if data is None:
        raise UserError(str(file), f"{batches} record batches", "one record batch", hint)
    if types != [pa.binary(width)]:
        found = ", ".join(str(kind) for kind in types) or "no columns"
        raise UserError(str(file), found, f"one column of {pa.binary(width)}, for images of shape {shape}", hint)
    if data.size != size + -size % 8:  # Arrow fills up with zeros
        expected = f"{rows} rows of {width} bytes, as the manifest's offsets say, and nothing else"
        raise UserError(str(file), f"{data.size} bytes", expected, hint)
    # The buffer of a read-only map is immutable, so the array is read-only as well.
    return np.frombuffer(data, dtype=np.uint8, count=size).reshape(rows, *shape)
