"""Folders that appear whole or not at all: written beside their place, synced to disk, renamed."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from metadist.errors import UserError

_FULL = (errno.ENOSPC, errno.EDQUOT)
_TAKEN = (errno.EEXIST, errno.ENOTEMPTY, errno.ENOTDIR)


@contextmanager
def partial_folder(target: Path) -> Iterator[Path]:
    """A new folder beside `target` to write into, `.<name>.partial-<pid>`; gone on leaving, renamed or
    failed.

    Raises:
        UserError: in place of an error of the system on the way, a full disk say.
    """
    folder = target.parent / f".{target.name}.partial-{os.getpid()}"
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        # One of the same name is left from a process that was killed: its number has come round again.
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        yield folder
    except OSError as error:
        raise _write_error(target, error) from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def remove_partials(target: Path) -> None:
    """Delete what processes that were killed left of `target`.

    Only for the holder of the target's lock, who knows that no other process is at work on it.
    """
    for left in target.parent.glob(f".{target.name}.partial-*"):
        shutil.rmtree(left, ignore_errors=True)


def sync_folder(folder: Path) -> None:
    """Push the files of `folder`, and its list of names, to the disk."""
    for path in (*folder.iterdir(), folder):
        _sync(path)


def place_folder(folder: Path, target: Path, overwrite: bool = False) -> None:
    """Rename `folder` to `target`.

    With `overwrite`, what is there makes way first, comes back on failure, and is deleted otherwise; without,
    it stays and the rename fails, even if it came there a moment ago.
    """
    old = None
    if overwrite and target.exists():
        old = folder.with_name(f"{folder.name}-old")
        os.rename(target, old)
    try:
        os.rename(folder, target)
    except OSError:
        if old is not None:
            os.rename(old, target)
        raise
    if old is not None:
        shutil.rmtree(old, ignore_errors=True)
    _sync(target.parent)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _write_error(target: Path, error: OSError) -> UserError:
    reason = error.strerror or str(error)
    if error.errno in _FULL:
        return UserError(str(target), reason, "enough free space on that disk", "Free some, or choose another place.")
    if error.errno in _TAKEN:
        hint = "Something else is there, or came there meanwhile: name another folder."
        return UserError(str(target), reason, "a path where nothing is", hint)
    hint = "Choose another place, or mend its permissions."
    return UserError(str(target), reason, "a place that can be written", hint)
