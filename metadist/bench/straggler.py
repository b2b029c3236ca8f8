"""What one slow worker costs a run: workers that sleep, one of them longer."""

from __future__ import annotations

import dataclasses
import os
from dataclasses import dataclass
from typing import Any

from metadist.bench.fakes import FakePool
from metadist.bench.line import about_machine, new_dispatcher, start_line
from metadist.bench.plan import ready_server
from metadist.bench.ready import ready_experiment, shapes_of
from metadist.bench.timing import Rate, check_rounds
from metadist.distributed.session import ray_session
from metadist.errors import UserError
from metadist.training.machine import keep_freed_memory, set_threads

#: parameters that the workers send sums of
VALUES = 100_000


@dataclass(frozen=True)
class StragglerResult:
    """Seconds per step.

    Attributes:
        alike, slow: with all workers alike, and with one that takes `times` as long.
        ratio: of the medians.
        bound: what the ratio would be if the slow one's share went to the others in pieces of any size.
        doubled: chunks per step that were given to a second worker.
    """

    workers: int
    chunks: int
    sleep: float
    times: float
    alike: Rate
    slow: Rate
    ratio: float
    bound: float
    doubled: float


def measure_straggler(
    workers: int, chunks: int, sleep: float, times: float, steps: int, repeats: int
) -> tuple[StragglerResult, dict[str, Any]]:
    """Measure `workers` sleeping workers with `chunks` chunks each, without and with a slow one in turns.

    Returns:
        The figures, and the same as plain data, ready for JSON.

    Raises:
        UserError: a number is out of range.
    """
    check_rounds(1.0, repeats)
    for option, value, least in (("--workers", workers, 2), ("--chunks", chunks, 1), ("--steps", steps, 1)):
        if value < least:
            raise UserError(option, value, f"a whole number of at least {least}")
    for name, number, above in (("--sleep", sleep, 0.0), ("--times", times, 1.0)):
        if not above < number < float("inf"):
            raise UserError(name, number, f"a number above {above:g}")
    set_threads(1)
    keep_freed_memory()
    shapes = shapes_of(VALUES)
    seconds: dict[bool, list[float]] = {False: [], True: []}
    doubled = 0
    with ray_session(None, cpus=os.cpu_count() or 1):
        pool = FakePool(shapes)
        try:
            dispatcher = new_dispatcher(pool)
            pool.grow(dispatcher, workers)
            with ready_server(shapes, workers * chunks) as server:
                pool.sleep(sleep)
                line = start_line(ready_experiment(shapes, workers * chunks), dispatcher, server, workers, "loop")
                for _ in range(repeats):
                    for slow in (False, True):
                        pool.sleep(sleep * times if slow else sleep, of=1)
                        before = dispatcher.doubled
                        # One step more than is counted: the slow one's last chunk of the round before.
                        taken = sum(record.seconds for record in line.take(steps + 1)[1:])
                        seconds[slow].append(taken / steps)
                        doubled += (dispatcher.doubled - before) * slow
        finally:
            pool.close()
    alike, late = Rate.of(seconds[False]), Rate.of(seconds[True])
    result = StragglerResult(
        workers,
        chunks,
        sleep,
        times,
        alike,
        late,
        ratio=late.median / alike.median,
        bound=workers / (workers - 1 + 1 / times),
        doubled=doubled / (repeats * (steps + 2)),
    )
    return result, about_machine() | {"steps": steps, "repeats": repeats} | dataclasses.asdict(result)
