"""A lock between the processes (and threads) of one machine."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from metadist.errors import UserError


@contextmanager
def file_lock(path: Path, field: str) -> Iterator[None]:
    """Hold the lock file `path`, which is made with its folder; wait while another holds it.

    The system frees the lock when its holder ends, however it ends. The file stays: to delete it would let
    two processes hold different files of the same name.

    Args:
        path: the lock file.
        field: what a message names when the file cannot be made.

    Raises:
        UserError: the file cannot be made or locked.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    except OSError as error:
        hint = "Set data.cache or METADIST_CACHE to such a folder."
        raise UserError(field, str(path.parent), f"a folder that can be written ({error.strerror})", hint) from error
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX)
        except OSError as error:
            hint = "Set data.cache or METADIST_CACHE to a folder on a local disk."
            raise UserError(field, str(path.parent), f"a file system with locks ({error.strerror})", hint) from error
        yield
    finally:
        os.close(handle)
