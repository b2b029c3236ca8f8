"""Faults at named places."""

from __future__ import annotations

import os
import signal
from dataclasses import dataclass

from metadist.training.work import OutOfMemory


@dataclass(frozen=True)
class KillOnce:
    """Kills the first process that comes to a point of its work at a version, with SIGKILL.

    Attributes:
        point: name of the place: `work` (before a piece of work), `computed` (a chunk is computed, its result
            not yet sent), `apply` and `applied` (before and after an update on the server), `state` (the server is
            to return its state), `read` (it has read a checkpoint), `epoch` (after one of a pre-training).
        marker: path of a file that must not exist; made just before, so that the fault strikes once and a test
            can assert that it did.
    """

    point: str
    version: int
    marker: str

    def __call__(self, point: str, version: int) -> None:
        if (point, version) == (self.point, self.version) and _first(self.marker):
            os.kill(os.getpid(), signal.SIGKILL)


@dataclass(frozen=True)
class HangOnce:
    """Stops the first process that comes to a point of its work at a version, until it is let go.

    Attributes:
        point: see `KillOnce`.
        marker: see `KillOnce`.
        gate: path of a named pipe; the process goes on when somebody opens it for writing.
    """

    point: str
    version: int
    marker: str
    gate: str

    def __call__(self, point: str, version: int) -> None:
        if (point, version) == (self.point, self.version) and _first(self.marker):
            with open(self.gate):
                pass


@dataclass(frozen=True)
class ExhaustOnce:
    """Lets the first process that comes to a point of its work at a version run out of memory (see `KillOnce`)."""

    point: str
    version: int
    marker: str

    def __call__(self, point: str, version: int) -> None:
        if (point, version) == (self.point, self.version) and _first(self.marker):
            raise OutOfMemory(f"the work at version {version}")


def _first(marker: str) -> bool:
    """Whether no process was here before."""
    try:
        os.close(os.open(marker, os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        return False
    return True
