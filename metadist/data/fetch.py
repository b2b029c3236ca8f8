"""Fetching a store from a URI into the cache."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa

from metadist.data.atomic import partial_folder, place_folder, remove_partials, sync_folder
from metadist.data.locks import file_lock
from metadist.data.manifest import MANIFEST_NAME, PIXELS_NAME, parse_manifest
from metadist.data.store import ClassStore, is_store
from metadist.errors import UserError

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
    filesystem, path = _connect(uri)
    manifest_path = f"{path.rstrip('/')}/{MANIFEST_NAME}"
    try:
        with filesystem.open_input_stream(manifest_path) as stream:
            text: bytes = stream.read()
    except (OSError, pa.ArrowException) as error:
        raise _unreadable(uri, error) from error
    manifest = parse_manifest(text, f"{uri.rstrip('/')}/{MANIFEST_NAME}")
    target = cache / f"fetched-{manifest['sha256']}"
    if is_store(target):
        return ClassStore.open(target)
    with file_lock(cache / f".{target.name}.lock", "data.cache"):
        if is_store(target):
            return ClassStore.open(target)
        remove_partials(target)
        with partial_folder(target) as folder:
            (folder / MANIFEST_NAME).write_bytes(text)
            _copy(uri, filesystem, f"{path.rstrip('/')}/{PIXELS_NAME}", folder / PIXELS_NAME)
            _check(uri, folder)
            sync_folder(folder)
            place_folder(folder, target)
    return ClassStore.open(target)


def _connect(uri: str) -> tuple[Any, str]:
    # Imported here: most jobs have no URI, and this loads the clients of all clouds.
    from pyarrow import fs

    try:
        filesystem, path = fs.FileSystem.from_uri(uri)
    except (OSError, pa.ArrowException, ValueError) as error:
        reason = str(error).splitlines()[0]
        hint = "Use file://, s3://, gs:// or another scheme that pyarrow knows, or a path."
        raise UserError("data.source", uri, f"the URI of a store ({reason})", hint) from error
    return filesystem, path


def _copy(uri: str, filesystem: Any, path: str, target: Path) -> None:
    """Copy a remote file. Errors of reading name the URI; those of writing are left to `partial_folder`."""
    try:
        stream = filesystem.open_input_stream(path)
    except (OSError, pa.ArrowException) as error:
        raise _unreadable(uri, error) from error
    with stream, open(target, "wb") as file:
        while True:
            try:
                chunk = stream.read(_CHUNK)
            except (OSError, pa.ArrowException) as error:
                raise _unreadable(uri, error) from error
            if not chunk:
                return
            file.write(chunk)


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
