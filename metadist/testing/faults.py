"""Faults at named places."""

from __future__ import annotations

import os
import signal
from dataclasses import dataclass


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
        if (point, version) != (self.point, self.version):
            return
        try:
            os.close(os.open(self.marker, os.O_CREAT | os.O_EXCL))
        except FileExistsError:
            return
        os.kill(os.getpid(), signal.SIGKILL)
