"""What a synchronous step takes that has no work to do, beside gloo and the machine's memory."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from metadist.bench.gloo import measure_gloo
from metadist.bench.line import about_machine, ray_line
from metadist.bench.ready import ready_experiment, shapes_of
from metadist.bench.timing import Milliseconds
from metadist.errors import UserError
from metadist.training.machine import set_threads

#: parameters, and workers, where nobody says otherwise
VALUES, WORKERS = (100_000, 1_000_000, 10_000_000), (1, 2, 4)
#: steps of each size
STEPS = 50
#: bytes that are copied to find the memory's speed: more than any cache holds
COPIED = 256 * 2**20


@dataclass(frozen=True)
class TransportResult:
    """Steps without work: publish, one ready gradient per worker, aggregate, update.

    Attributes:
        values: fp32 parameters.
        step: of metadist's own actors: one server, so many workers.
        gloo: of as many plain processes that all-reduce one flat gradient and take Adam's step, each its own.
        copy: one copy of the parameters from memory to memory, in ms.
    """

    values: int
    workers: int
    step: Milliseconds
    gloo: Milliseconds
    copy: float


def copy_speed(repeats: int = 5) -> float:
    """Bytes that this machine copies per second with one thread, the best of some copies."""
    source, target = np.ones(COPIED, np.uint8), np.empty(COPIED, np.uint8)
    np.copyto(target, source)  # its pages come to be
    times = []
    for _ in range(repeats):
        began = time.perf_counter()
        np.copyto(target, source)
        times.append(time.perf_counter() - began)
    return COPIED / min(times)


def measure_transport(
    values: Sequence[int], workers: Sequence[int], steps: int, show: Callable[[TransportResult], None]
) -> dict[str, Any]:
    """Measure every size with every number of workers on this machine; plain data, ready for JSON.

    Args:
        steps: steps of each, without the first ones.
        show: called with each result as soon as it is there.

    Raises:
        UserError: a size, a number of workers or of steps below 1.
    """
    for field, numbers in (("--values", values), ("--workers", workers), ("--steps", [steps])):
        for number in numbers:
            if number < 1:
                raise UserError(field, number, "numbers of at least 1")
    from metadist.distributed.session import ray_session

    set_threads(1)
    speed = copy_speed()
    results = []
    with ray_session(None, cpus=os.cpu_count() or 1):
        for size, count in itertools.product(values, workers):
            with ray_line(functools.partial(ready_experiment, shapes_of(size), count), count, "loop") as line:
                step = Milliseconds.of([record.seconds for record in line.take(steps)])
            gloo = Milliseconds.of(measure_gloo(size, count, steps))
            results.append(TransportResult(size, count, step, gloo, 1e3 * 4 * size / speed))
            show(results[-1])
    measured = {"steps": steps, "copy_bytes_per_second": speed, "results": [dataclasses.asdict(r) for r in results]}
    return about_machine() | measured
