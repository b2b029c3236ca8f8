"""The product's own training step, taken again and again: pool, server and the stepper between them."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from metadist.bench.ready import RUN
from metadist.distributed.blueprint import Blueprint
from metadist.outer import Experiment, Strategy
from metadist.training.dispatch import Dispatcher
from metadist.training.machine import cpu_name
from metadist.training.seams import ParameterServer, WorkerPool
from metadist.training.stepper import Stepper, StepRecord

#: seconds within which all workers must have joined, and anything must happen
DEADLINE = 300.0
#: steps after which nothing is imported, allocated or connected to for the first time
WARM = 5


class NotWell(RuntimeError):
    """A worker or a server is not what was to be measured: the figures mean nothing."""


@dataclass
class Line:
    """A run that is under way.

    Attributes:
        workers: how many there are.
    """

    stepper: Stepper
    workers: int

    def take(self, steps: int) -> list[StepRecord]:
        """Take so many steps, after one that did not follow another and is left out.

        Raises:
            NotWell: a worker or the server was lost.
        """
        records = list(self.stepper.advance(self.stepper.version + steps + 1))[1:]
        if self.stepper.server_losses or self.stepper.redone or len(self.stepper.dispatcher.alive) != self.workers:
            raise NotWell("a worker or the server was lost while it was measured")
        return records


def new_dispatcher(pool: WorkerPool) -> Dispatcher:
    """The driver's view of a pool; losses are found by `Line.take`."""
    return Dispatcher(pool, DEADLINE, lambda text: None)


def start_line(
    experiment: Experiment, dispatcher: Dispatcher, server: ParameterServer, workers: int, strategy: Strategy
) -> Line:
    """Wait for all workers and take the first steps, which do not count.

    Raises:
        TimeoutError: the workers were not there within `DEADLINE` seconds.
    """
    published = server.start(None, None)
    until = time.monotonic() + DEADLINE
    while len(dispatcher.alive) < workers:
        if time.monotonic() > until:
            raise TimeoutError(f"{len(dispatcher.alive)} of {workers} workers came within {DEADLINE:g} s")
        dispatcher.poll()
    classifies = experiment.distribution.loss == "cross_entropy"
    stepper = Stepper(dispatcher, server, experiment.rule, strategy, classifies, 0, published, lambda text: None)
    line = Line(stepper, workers)
    line.take(WARM)
    return line


@contextmanager
def ray_line(build: Callable[[], Experiment], workers: int, strategy: Strategy) -> Iterator[Line]:
    """A run with the product's own actors, in a Ray session that is there.

    Args:
        build: makes the experiment, here and in every actor; sent by reference to its module.
    """
    from metadist.distributed.pool import RayPool
    from metadist.distributed.server import RayServer

    blueprint = Blueprint(build, threads=1, run=RUN)
    server, pool = RayServer(blueprint, DEADLINE), RayPool(blueprint, workers, cpus=0)
    try:
        yield start_line(build(), new_dispatcher(pool), server, workers, strategy)
    finally:
        pool.close()
        server.close()


def about_machine() -> dict[str, Any]:
    """What the figures depend on."""
    import ray

    return {"torch": torch.__version__, "ray": ray.__version__, "hardware": cpu_name(), "cores": os.cpu_count()}
