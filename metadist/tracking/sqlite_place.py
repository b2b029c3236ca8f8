"""A SQLite store's files: the database, the artifacts beside it, and the lock for making it."""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path

from metadist.tracking.config import uri_scheme


class StoreUnusable(Exception):
    """The store is gone or can never be used: trying again is pointless."""


def database_path(uri: str) -> Path | None:
    """The database file of a `sqlite:` address; None for other addresses and in-memory databases."""
    if uri_scheme(uri) != "sqlite":
        return None
    path = uri.partition(":///")[2].partition("?")[0]
    return None if path in ("", ":memory:") else Path(path)


def artifact_root(database: Path) -> Path:
    """The folder that holds the artifacts of all runs in `database`."""
    return database.absolute().parent / "mlartifacts"


def artifact_location(database: Path, experiment: str) -> str:
    """Where a new experiment's artifacts go: an absolute `file:` address beside the database.

    MLflow's own default depends on the working folder of whoever touches the database first.
    """
    folder = re.sub(r"[^\w.-]+", "_", experiment).strip("._") or "experiment"
    return (artifact_root(database) / folder).as_uri()


def prepare_folder(database: Path) -> None:
    """Make the database's folder. Finding it unusable here saves MLflow's minutes of retries."""
    try:
        database.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StoreUnusable(f"cannot make the folder {database.parent}: {error.strerror}") from error
    target = database if database.exists() else database.parent
    if database.is_dir() or not os.access(target, os.W_OK):
        raise StoreUnusable(f"cannot write {database}")


@contextlib.contextmanager
def creation_lock(database: Path) -> Iterator[None]:
    """Held while the database's tables are made: two runs that start at once must not both make them."""
    try:
        import fcntl
    except ImportError:  # No such locks on this system; starting one run at a time still works.
        yield
        return
    name = hashlib.sha256(str(database.absolute()).encode()).hexdigest()[:16]
    path = Path(tempfile.gettempdir()) / f"metadist-tracking-{os.getuid()}-{name}.lock"
    with path.open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


class DatabaseWatch:
    """Notices that an opened database file was removed or exchanged.

    An open connection would go on writing to the removed file, and a new one would make an empty
    database in its place: both look like success.
    """

    def __init__(self, database: Path | None) -> None:
        self._database = database
        self._inode = None if database is None else database.stat().st_ino

    def check(self) -> None:
        """Raise `StoreUnusable` when the file is no longer the one that was opened."""
        if self._database is None:
            return
        try:
            inode = self._database.stat().st_ino
        except OSError:
            raise StoreUnusable(f"the database {self._database} is gone") from None
        if inode != self._inode:
            raise StoreUnusable(f"the database {self._database} was replaced while the run went on")
