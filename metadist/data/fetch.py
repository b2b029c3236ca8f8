"""Stores that come from elsewhere: from a URI, or from another node in pieces. The cache has each of them once."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from metadist.data.atomic import partial_folder, place_folder, remove_partials, sync_folder
from metadist.data.locks import file_lock
from metadist.data.manifest import MANIFEST_NAME, PIXELS_NAME, parse_manifest
from metadist.data.store import ClassStore, is_store
from metadist.errors import UserError
from metadist.reading import MOST_JSON, check_size

_CHUNK = 8 << 20


def fetch_store(uri: str, cache: Path) -> ClassStore:
    """The store at `uri`, copied into `cache` unless a store of the same content hash is there.

    The manifest is read each time, which tells whether the store at the URI has changed; the pixels are
    copied once, then read back and compared with the manifest's hash.

    Args:
        uri: a folder, in any scheme that pyarrow knows: file://, s3://, gs://, hdfs://, ….
        cache: folder of fetched stores.

    Raises:
        UserError: the URI cannot be read, is no store, or arrived damaged; or the cache cannot be written.
    """
    filesystem, path, manifest = _read_manifest(uri)
    return keep_store(manifest, _read(uri, filesystem, f"{path.rstrip('/')}/{PIXELS_NAME}"), cache, uri)


def fetched_store(sha256: str, cache: Path) -> Path | None:
    """The folder of the store with this content in `cache`, if it came there from elsewhere."""
    target = _target(sha256, cache)
    return target if is_store(target) else None


def read_store(folder: Path, size: int) -> tuple[bytes, Iterator[bytes]]:
    """A store's files, to be sent: its manifest, and its pixels in pieces of at most `size` bytes."""

    def pieces() -> Iterator[bytes]:
        with open(folder / PIXELS_NAME, "rb") as file:
            while piece := file.read(size):
                yield piece

    return (folder / MANIFEST_NAME).read_bytes(), pieces()


def keep_store(manifest: bytes, pixels: Iterable[bytes], cache: Path, origin: str) -> ClassStore:
    """A store that was sent, put into `cache` unless it is there; `pixels` is then not read.

    Args:
        manifest, pixels: as `read_store` gave them.
        origin: where it came from, for messages.

    Raises:
        UserError: it arrived damaged, or the cache cannot be written.
    """
    target = _target(_sha256(manifest, origin), cache)
    if is_store(target):
        return ClassStore.open(target)
    with file_lock(cache / f".{target.name}.lock", "data.cache"):
        if is_store(target):
            return ClassStore.open(target)
        remove_partials(target)
        with partial_folder(target) as folder:
            (folder / MANIFEST_NAME).write_bytes(manifest)
            with open(folder / PIXELS_NAME, "wb") as file:
                file.writelines(pixels)
            _check(origin, folder)
            sync_folder(folder)
            place_folder(folder, target)
    return ClassStore.open(target)


def find_fetched(uri: str, cache: Path) -> ClassStore | None:
    """The store at `uri` if a copy of it is in `cache`; only the manifest is read from the URI.

    Raises:
        UserError: the URI cannot be read or is no store.
    """
    target = fetched_store(_sha256(_read_manifest(uri)[2], uri), cache)
    return None if target is None else ClassStore.open(target)


def _target(sha256: str, cache: Path) -> Path:
    return cache / f"fetched-{sha256}"


def _sha256(manifest: bytes, origin: str) -> str:
    return str(parse_manifest(manifest, f"{origin.rstrip('/')}/{MANIFEST_NAME}")["sha256"])


def _read_manifest(uri: str) -> tuple[Any, str, bytes]:
    """The URI's file system, its path there, and the manifest's bytes."""
    import pyarrow as pa

    filesystem, path = _connect(uri)
    try:
        with filesystem.open_input_stream(f"{path.rstrip('/')}/{MANIFEST_NAME}") as stream:
            manifest = stream.read(MOST_JSON + 1)
    except (OSError, pa.ArrowException) as error:
        raise _unreadable(uri, error) from error
    check_size(manifest, MOST_JSON, f"{uri.rstrip('/')}/{MANIFEST_NAME}")
    return filesystem, path, manifest


def _connect(uri: str) -> tuple[Any, str]:
    # Imported here: most jobs have no URI, and this loads the clients of all clouds.
    import pyarrow as pa
    from pyarrow import fs

    try:
        filesystem, path = fs.FileSystem.from_uri(uri)
    except (OSError, pa.ArrowException, ValueError) as error:
        reason = str(error).splitlines()[0]
        hint = "Use file://, s3://, gs:// or another scheme that pyarrow knows, or a path."
        raise UserError("data.source", uri, f"the URI of a store ({reason})", hint) from error
    return filesystem, path


def _read(uri: str, filesystem: Any, path: str) -> Iterator[bytes]:
    """A remote file in pieces. Errors of reading name the URI; those of writing are left to `partial_folder`."""
    import pyarrow as pa

    try:
        with filesystem.open_input_stream(path) as stream:
            while piece := stream.read(_CHUNK):
                yield piece
    except (OSError, pa.ArrowException) as error:
        raise _unreadable(uri, error) from error


def _check(uri: str, folder: Path) -> None:
    try:
        ClassStore.open(folder).verify()
    except UserError as error:
        # Its own message would name a file that is gone by the time it is read.
        reason = f"a whole store; of its copy: {error.value!r}, expected {error.expected}"
        raise UserError("data.source", uri, reason, "Copy the store there again.") from error


def _unreadable(uri: str, error: BaseException) -> UserError:
    reason = (str(error).splitlines() or [type(error).__name__])[0]
    hint = "Check the URI, the credentials and the network; it must be the folder that holds manifest.json."
    return UserError("data.source", uri, f"the URI of a store that can be read ({reason})", hint)
