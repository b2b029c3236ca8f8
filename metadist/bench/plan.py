"""`metadist plan`: a short measurement of a job, and what it says about more workers than there are."""

from __future__ import annotations

import dataclasses
import functools
import os
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch

from metadist import config
from metadist.bench.fakes import FakePool
from metadist.bench.line import DEADLINE, about_machine, new_dispatcher, start_line
from metadist.bench.model import Load, Prediction, Rim, predict, saturation
from metadist.bench.ready import RUN, Shapes, count_values, ready_experiment, shapes_of
from metadist.config import Job
from metadist.distributed.blueprint import Blueprint
from metadist.distributed.server import RayServer
from metadist.distributed.session import ray_session
from metadist.errors import UserError
from metadist.outer import ChunkKey, Experiment, OuterState, choose_strategy, publish
from metadist.training.machine import keep_freed_memory, make_deterministic, pick_device, set_threads
from metadist.training.seams import ParameterServer
from metadist.training.work import GradientWork, Worker

#: chunks, and fake workers, of the larger of the measured steps without work
MANY = 8
#: steps without work of each kind
RIM_STEPS = 40
#: parameters up to which steps without work are measured as they are; beyond, they are scaled
MOST_VALUES = 4_000_000
#: seconds for which chunks are computed, and how many at least
SECONDS, LEAST_CHUNKS = 3.0, 3


@dataclass(frozen=True)
class PlanRequest:
    """What is asked.

    Attributes:
        workers: the most workers of the table.
        gpus_per_worker: GPUs that each has; fractions share one.
        bandwidth: of the server's machine, bytes per second each way; `None` where all are on one machine.
        chunk_seconds: seconds per chunk that were measured elsewhere; `None` measures them here.
    """

    workers: int
    gpus_per_worker: float
    bandwidth: float | None
    chunk_seconds: float | None


def plan_job(job: Job, request: PlanRequest, say: Callable[[str], None]) -> dict[str, Any]:
    """Measure the job here and predict; plain data, ready for JSON.

    Raises:
        UserError: something asked for cannot be, or there is no GPU to measure on.
    """
    if request.workers < 1:
        raise UserError("--workers", request.workers, "a whole number of at least 1")
    if request.gpus_per_worker < 0:
        raise UserError("--gpus-per-worker", request.gpus_per_worker, "a number of at least 0")
    if request.chunk_seconds is not None and not 0 < request.chunk_seconds < float("inf"):
        raise UserError("--chunk-seconds", request.chunk_seconds, "a number above 0")
    set_threads(job.resources.threads)
    keep_freed_memory()
    store = config.open_data(job)
    experiment = config.build_experiment(config.with_store(job, store), RUN)
    meta = experiment.initial()
    shapes = {name: tuple(value.shape) for name, value in (meta.parameters | meta.statistics).items()}
    seconds = request.chunk_seconds
    if seconds is None:
        device = pick_device(request.gpus_per_worker)
        if request.gpus_per_worker and device.type == "cpu":
            hint = "Measure --chunk-seconds with this command where there is one, and give it here."
            raise UserError("--gpus-per-worker", request.gpus_per_worker, "0: torch sees no GPU to measure on", hint)
        say(f"measuring chunks of {experiment.rule.chunk} tasks on {device.type}")
        # Workers that share a GPU take turns.
        seconds = chunk_seconds(experiment, device) / min(1.0, request.gpus_per_worker or 1.0)
    say(f"measuring steps without work at {count_values(shapes):,} values")
    with ray_session(None, cpus=os.cpu_count() or 1):
        rim = measure_rim(shapes)
    rule = experiment.rule
    load = Load(rule.chunks, seconds, rule.tasks, 4 * count_values(shapes), request.bandwidth)
    ladder = list(_ladder(request.workers))
    # One chunk of every step for each worker: a meta-batch that grows with them.
    grown = [replace(load, chunks=workers, tasks=workers * rule.chunk) for workers in ladder]

    def row(load: Load, workers: int) -> dict[str, Any]:
        return _row(predict(rim, load, workers), load, job.steps, request.gpus_per_worker)

    return about_machine() | {
        "values": count_values(shapes),
        "load": dataclasses.asdict(load),
        "rim": dataclasses.asdict(rim),
        "saturates_at_workers": saturation(rim, load),
        "predictions": [row(load, workers) for workers in ladder],
        "grown": [row(larger, workers) for larger, workers in zip(grown, ladder, strict=True)],
    }


def _row(row: Prediction, load: Load, steps: int, gpus: float) -> dict[str, Any]:
    return {
        "workers": row.workers,
        "gpus": row.workers * gpus,
        "step_seconds": row.seconds,
        "steps_per_second": 1 / row.seconds,
        "tasks_per_second": load.tasks / row.seconds,
        "finished_after_seconds": steps * row.seconds,
        "waiting": row.waiting,
        **{name: getattr(row, name) for name in ("compute", "server", "network")},
    }


def _ladder(most: int) -> Iterator[int]:
    """1, 2, 4, … and `most`."""
    workers = 1
    while workers < most:
        yield workers
        workers *= 2
    yield most


def chunk_seconds(experiment: Experiment, device: torch.device) -> float:
    """Median seconds that a worker takes for a chunk at a new version, everything in its own process included."""
    make_deterministic(device)
    worker = Worker(experiment, device)
    strategy = choose_strategy(experiment.learner, device)[0]
    published = publish(OuterState(0, experiment.initial(), {}))
    times: list[float] = []
    until = time.perf_counter() + SECONDS
    version = 0
    while len(times) <= LEAST_CHUNKS or time.perf_counter() < until:
        began = time.perf_counter()
        worker.run(GradientWork(ChunkKey(RUN, version, 0, 0), strategy), replace(published, version=version))
        times.append(time.perf_counter() - began)
        version += 1
    return statistics.median(times[1:])  # the first one imports and allocates


def measure_rim(shapes: Shapes, steps: int = RIM_STEPS) -> Rim:
    """Take steps without work with the product's own server and pool, in a Ray session that is there."""
    values = count_values(shapes)
    measured = min(values, MOST_VALUES)
    if measured < values:
        shapes = shapes_of(measured)
    pool = FakePool(shapes)
    try:
        dispatcher = new_dispatcher(pool)

        def median(workers: int, chunks: int, server: ParameterServer) -> float:
            pool.grow(dispatcher, workers)
            line = start_line(ready_experiment(shapes, chunks), dispatcher, server, workers, "loop")
            return statistics.median(record.seconds for record in line.take(steps))

        with ready_server(shapes, 1) as server:
            one = median(1, 1, server)
        with ready_server(shapes, MANY) as server:
            alone, many = median(1, MANY, server), median(MANY, MANY, server)
    finally:
        pool.close()
    return Rim.fit(one, many, alone, MANY).scaled(values / measured)


@contextmanager
def ready_server(shapes: Shapes, chunks: int) -> Iterator[ParameterServer]:
    """The product's own server actor, for `ready_experiment`."""
    server = RayServer(Blueprint(functools.partial(ready_experiment, shapes, chunks), threads=1, run=RUN), DEADLINE)
    try:
        yield server
    finally:
        server.close()


def summary(plan: dict[str, Any]) -> Iterator[str]:
    """What a plan says beside its table, in sentences."""
    load, rim = plan["load"], plan["rim"]
    yield (
        f"{plan['values']:,} values, {load['chunks']} chunks a step of {1e3 * load['chunk_seconds']:.1f} ms; "
        f"beside them {1e3 * rim['worker']:.2f} ms a chunk on its worker, {1e3 * rim['step']:.2f} ms a step and "
        f"{1e3 * rim['push']:.2f} ms a chunk on the server"
    )
    most = plan["predictions"][-1]["workers"]
    if most > load["chunks"]:
        yield (
            f"a step has {load['chunks']} chunks: more than {load['chunks']} workers have nothing to do "
            "(tasks.batch and tasks.chunk)"
        )
    yield (
        f"with one chunk of every step for each worker, in a meta-batch that grows with them, they wait for the one "
        f"server half of the time at {plan['saturates_at_workers']:.0f} workers"
    )
