"""The worker actor: `training.Worker` in a process of its own."""

from __future__ import annotations

import os

from metadist.distributed.blueprint import Blueprint
from metadist.distributed.logs import name_this_process
from metadist.distributed.store_place import Parcel
from metadist.outer import Payload, Published
from metadist.training.machine import (
    fingerprint,
    keep_freed_memory,
    leave_compiler_out,
    make_deterministic,
    pick_device,
    set_threads,
)
from metadist.training.work import GradientWork, Report, Work, Worker


class WorkerActor:
    """Samples its own tasks, adapts on its own device, and returns a chunk's sums by reference."""

    def __init__(self, blueprint: Blueprint, number: int) -> None:
        name_this_process(blueprint.run, f"worker-{number}")
        set_threads(blueprint.threads)
        keep_freed_memory()
        leave_compiler_out()
        self._blueprint = blueprint
        self._device = pick_device(blueprint.gpus)
        make_deterministic(self._device)

    def lacks_store(self) -> bool:
        """Whether the job's data must be sent to this worker's node first."""
        return self._blueprint.store is not None and not self._blueprint.store.is_here()

    def ready(self, parcel: Parcel | None) -> tuple[dict[str, str], int]:
        """Get ready to work; returns what could change bits on this worker, and its process id.

        Args:
            parcel: the job's data, if the worker lacks it.
        """
        if parcel is not None and self._blueprint.store is not None:
            self._blueprint.store.unpack(parcel)
        self._worker = Worker(self._blueprint.experiment(), self._device)
        return fingerprint(self._device), os.getpid()

    def run(self, work: Work, published: Published) -> tuple[Payload | None, Report]:
        """Do one piece of work; two return values, so that the driver reads the report alone."""
        self._blueprint.reach("work", published.version)
        payload, report = self._worker.run(work, published)
        if isinstance(work, GradientWork):
            self._blueprint.reach("computed", published.version)
        return payload, report
