"""The product's own pool, with fake workers in it."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from metadist.bench.fake_worker import Chores, FakeWorker
from metadist.bench.line import DEADLINE, NotWell
from metadist.bench.ready import RUN, Shapes, ready_experiment
from metadist.distributed.blueprint import Blueprint
from metadist.distributed.pool import RayPool
from metadist.training.dispatch import Dispatcher

#: fake workers that are started at a time
GROUP = 8


class FakePool(RayPool):
    """Begins with no worker; `grow` starts some.

    Args:
        shapes: of the parameters that they are sent and return sums of.
    """

    actor_class = FakeWorker

    def __init__(self, shapes: Shapes) -> None:
        self._chores = Chores(shapes)
        super().__init__(Blueprint(ready_experiment, threads=1, run=RUN), 0, cpus=0)

    def _make(self, number: int) -> Any:
        return self._actor.remote(self._chores, number)

    def grow(self, dispatcher: Dispatcher, workers: int) -> None:
        """Start workers, some at a time, until there are so many.

        Raises:
            TimeoutError: they were not there within `DEADLINE` seconds.
            NotWell: one has imported torch, and is no light one.
        """
        self._workers, until = workers, time.monotonic() + DEADLINE
        while len(dispatcher.alive) < workers:
            if time.monotonic() > until:
                raise TimeoutError(f"{len(dispatcher.alive)} of {workers} workers came within {DEADLINE:g} s")
            for _ in range(min(GROUP, workers - len(self._members))):
                self._start()
            while len(dispatcher.alive) < len(self._members):
                dispatcher.poll()
        if dispatcher.fingerprint["torch"] != "none":
            raise NotWell("a fake worker has imported torch")

    def sleep(self, seconds: float, of: int | None = None) -> None:
        """How long chunks take from now on: those of the first so many workers, or all."""
        self._tell("sleep", seconds, of)

    def compute(self, seconds: float) -> None:
        """How much time of its core each chunk takes from now on."""
        self._tell("compute", seconds)

    def _tell(self, call: str, seconds: float, of: int | None = None) -> None:
        import ray

        members = list(self._members.values())[:of]
        ray.get([getattr(member.actor, call).remote(seconds) for member in members], timeout=DEADLINE)

    def private_megabytes(self) -> float:
        """Memory of its own that a worker has, in 10⁶ bytes; the mean of all."""
        sizes = [_private(member.pid) for member in self._members.values() if member.pid is not None]
        return sum(sizes) / len(sizes) / 1e6


def _private(process: int) -> int:
    """Bytes that no other process shares, as Linux counts them."""
    total = 0
    for line in Path(f"/proc/{process}/smaps_rollup").read_text().splitlines():
        if line.startswith("Private_"):
            total += 1024 * int(line.split()[1])
    return total
