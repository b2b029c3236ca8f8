"""What an actor needs to build its part of a run, by value."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import ray

from metadist.distributed.store_place import StorePlace
from metadist.outer import Experiment, to_tensors

#: seconds within which start values must arrive
START_SECONDS = 300.0
#: called by an actor at named points of its work with (point, version); tests injure actors here
FaultHook = Callable[[str, int], None]


@dataclass(frozen=True)
class Blueprint:
    """A recipe for an actor.

    Attributes:
        build: makes the experiment, in the actor's own process; sent by reference to its module.
        threads: CPU threads of every process that touches numbers.
        gpus: GPUs per worker.
        fault: called at named points of the actor's work; `None` outside of tests.
        run: id of the run, under which the actors' logs are kept.
        store: where the actor's node finds the job's data, which `build` is then given as `store`.
        start: ref of the values that another run left, as arrays, which `build` is then given as `start`.
    """

    build: Callable[..., Experiment]
    threads: int
    gpus: float = 0
    fault: FaultHook | None = None
    run: str = "run"
    store: StorePlace | None = None
    start: Any = None

    def experiment(self) -> Experiment:
        """Build the actor's part."""
        given: dict[str, Any] = {}
        if self.store is not None:
            given["store"] = self.store.here()
        if self.start is not None:
            given["start"] = to_tensors(ray.get(self.start, timeout=START_SECONDS))
        return self.build(**given)

    def reach(self, point: str, version: int) -> None:
        """The actor's work has come to a named point."""
        if self.fault is not None:
            self.fault(point, version)
