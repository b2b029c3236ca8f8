"""Puts a worker pool and a server under a job: Ray's, or this process's own."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from torch import Tensor

from metadist.config import Job, build_experiment
from metadist.distributed import logs
from metadist.distributed.blueprint import Blueprint, FaultHook
from metadist.errors import UserError
from metadist.outer import Experiment, to_arrays
from metadist.training.inprocess import InProcessPool, InProcessServer
from metadist.training.machine import make_deterministic, pick_device
from metadist.training.seams import ParameterServer, WorkerPool


@contextmanager
def open_runtime(
    job: Job, run: str, experiment: Experiment, address: str | None, fault: FaultHook | None = None
) -> Iterator[tuple[WorkerPool, ParameterServer]]:
    """The two seams for a job; ends what it started.

    Args:
        job: with its data at a place that the workers can open.
        run: id of the run.
        experiment: the job's, as built in this process.
        address: a Ray cluster's; `None` starts an embedded one.
        fault: called at named points of the actors' work.
    """
    pool: WorkerPool
    server: ParameterServer
    resources = job.resources
    if job.runtime == "inprocess":
        if address is not None:
            raise UserError("--address", address, "no address with runtime: inprocess", "Leave one of them out.")
        device = pick_device(resources.gpus_per_worker)
        if resources.gpus_per_worker and device.type == "cpu":
            wanted = resources.gpus_per_worker
            raise UserError("resources.gpus_per_worker", wanted, "0: torch sees no GPU on this machine")
        make_deterministic(device)
        pool, server = InProcessPool(experiment, device), InProcessServer(experiment)
        yield pool, server
        return
    # Ray is imported late: what runs in process does not need it.
    import ray

    from metadist.distributed.metrics import MeteredServer
    from metadist.distributed.places import check_places
    from metadist.distributed.pool import RayPool
    from metadist.distributed.session import ray_session
    from metadist.distributed.store_place import store_place

    cpus = (resources.most + resources.spares) * resources.cpus_per_worker
    with ray_session(address, cpus, (resources.needed + resources.spares) * resources.gpus_per_worker):
        check_places(job)
        blueprint = Blueprint(
            functools.partial(_build, job, run),
            resources.threads,
            resources.gpus_per_worker,
            fault,
            run,
            store_place(job),
            ray.put(to_arrays(dict(experiment.start))) if experiment.start else None,
        )
        server = MeteredServer(blueprint, resources.timeout)
        pool = RayPool(blueprint, resources.most, resources.cpus_per_worker, resources.spares)
        try:
            yield pool, server
        finally:
            pool.close()
            server.close()
            logs.settle()


def _build(job: Job, run: str, store: Path | None = None, start: Mapping[str, Tensor] | None = None) -> Experiment:
    """In an actor: the job's experiment, with its data where this node has it."""
    if store is not None:
        job = replace(job, data=replace(job.data, source=str(store)))
    return build_experiment(job, run, start)
