"""A worker actor that sleeps instead of computing, in a process without torch: many of them fit on one machine.

The messages' classes live in modules that import torch. A fake worker's process has bare classes of the same names in
their place: they are pickled by name and fields, so that driver and server, which have the real ones, see no
difference. This module is imported there too, and must not import them.
"""

from __future__ import annotations

import collections
import os
import sys
import time
import types
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

#: the classes that come to a worker or leave it, by module
MESSAGES = {
    "metadist.outer.messages": ("Payload", "Published", "ChunkReport"),
    "metadist.training.work": ("GradientWork",),
}


@dataclass(frozen=True)
class Chores:
    """What a fake worker returns: one task's sums of these shapes, in float32."""

    shapes: dict[str, tuple[int, ...]]


class FakeWorker:
    """What `metadist.distributed.worker_actor.WorkerActor` is to a pool: the same calls and answers."""

    def __init__(self, chores: Chores, number: int) -> None:
        self._classes = _bare_classes()
        self._sums = {name: np.full(shape, 1e-3, np.float32) for name, shape in chores.shapes.items()}
        self._seconds = 0.0
        self._spend: Callable[[float], None] = time.sleep

    def lacks_store(self) -> bool:
        """A fake worker needs no data."""
        return False

    def ready(self, parcel: None) -> tuple[dict[str, str], int]:
        """What all fake workers have alike, and the process id."""
        return {"device": "fake", "torch": "loaded" if "torch" in sys.modules else "none"}, os.getpid()

    def sleep(self, seconds: float) -> None:
        """How long every chunk takes from now on."""
        self._seconds, self._spend = seconds, time.sleep

    def compute(self, seconds: float) -> None:
        """How much time of its core every chunk takes from now on."""
        self._seconds, self._spend = seconds, _compute

    def run(self, work: Any, published: Any) -> tuple[Any, Any]:
        """Copy the version, as a worker does, spend the time, and return the sums and the report of a chunk."""
        began = time.perf_counter()
        for array in published.parameters.values():
            array.copy()
        self._spend(self._seconds)
        payload = _filled(self._classes["Payload"], key=work.key, gradient=self._sums, statistics={}, tasks=1)
        seconds = time.perf_counter() - began
        scalars = {"tasks": 1, "loss": 0.0, "correct": 0, "rows": 1, "finite": True, "seconds": seconds}
        return payload, _filled(self._classes["ChunkReport"], key=work.key, **scalars)


def _compute(seconds: float) -> None:
    until = time.thread_time() + seconds
    while time.thread_time() < until:
        sum(range(10_000))


def _bare_classes() -> dict[str, type]:
    """The messages' classes with nothing but names, put where unpickling looks for them."""
    found: dict[str, type] = {}
    for module, names in MESSAGES.items():
        bare = sys.modules[module] = types.ModuleType(module)
        for name in names:
            found[name] = type(name, (), {"__module__": module, "__qualname__": name})
            setattr(bare, name, found[name])
    fields = ("run", "version", "phase", "chunk")
    messages: Any = sys.modules["metadist.outer.messages"]
    messages.ChunkKey = collections.namedtuple("ChunkKey", fields, module=messages.__name__)  # type: ignore[misc]
    return found


def _filled(kind: Any, **fields: Any) -> Any:
    made = kind()
    made.__dict__.update(fields)
    return made
