"""Tasks per second of more workers, how many workers one server bears, and what the model of `plan` says of both."""

from __future__ import annotations

import dataclasses
import functools
import math
import multiprocessing
import os
import statistics
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, replace
from multiprocessing.synchronize import Barrier
from typing import Any

import torch

from metadist.bench.cases import JOB_CHUNK, Case, build_learner, build_setting, find_cases
from metadist.bench.fakes import FakePool
from metadist.bench.line import DEADLINE, Line, about_machine, new_dispatcher, ray_line, start_line
from metadist.bench.model import Load, Rim, predict
from metadist.bench.plan import RIM_STEPS, chunk_seconds, measure_rim, ready_server
from metadist.bench.ready import RUN, STEPS, Shapes, count_values, ready_experiment, shapes_of
from metadist.bench.timing import Rate, check_rounds, ratio
from metadist.distributed.session import ray_session
from metadist.errors import UserError
from metadist.outer import Experiment, OptimizerConfig, OuterRule, choose_strategy
from metadist.tasks import Episode, Examples, Task, TaskDistribution
from metadist.tasks.base import Split
from metadist.training.inprocess import InProcessPool, InProcessServer
from metadist.training.machine import keep_freed_memory, set_threads

CPU = torch.device("cpu")
#: tasks of a step, as the Omniglot jobs have it: four chunks
TASKS = 32


class Drawn(TaskDistribution):
    """A case's tasks, drawn before and gone through in turns: what sampling costs is another bench's."""

    def __init__(self, case: Case) -> None:
        setting = build_setting(case, CPU)
        self.loss, self._batch = setting.learner.network.loss, setting.batch
        self.input_shape = tuple(setting.batch.query.x.shape[3:])

    def sample(self, split: Split, seed: int, index: int, episode: Episode) -> int:
        return index % int(self._batch.query.x.shape[0])

    def gather(self, drawn: Sequence[int], device: torch.device) -> Task:
        rows = torch.tensor(drawn)
        return Task(*(Examples(part.x[rows].to(device), part.y[rows].to(device), part.ways) for part in self._batch))


def case_experiment(name: str) -> Experiment:
    """The case as a run has it: `TASKS` tasks a step, Adam."""
    (case,) = find_cases(name)
    rule = OuterRule(RUN, OptimizerConfig(), STEPS, TASKS, JOB_CHUNK)
    return Experiment(Drawn(case), build_learner(case), rule, case.episode, seed=0)


@dataclass(frozen=True)
class ScalingResult:
    """A case in one runtime.

    Attributes:
        rate: tasks per second of time.
        over_inprocess, over_one: medians of the rounds' ratios to the in-process runtime and to one worker.
        added: share of a step's time in which the workers, all together, do not compute.
        predicted: tasks per second by the model, and `off`, how far they are from what was measured.
    """

    case: str
    runtime: str
    rate: Rate
    over_inprocess: float
    over_one: float | None = None
    added: float | None = None
    predicted: float | None = None
    off: float | None = None


@dataclass(frozen=True)
class FakeResult:
    """Workers that sleep.

    Attributes:
        pushes: chunks that the server takes per second.
        step_seconds: median.
        predicted: seconds per step by the model, and `off`, how far it is from what was measured.
        megabytes: memory of its own that a worker has.
    """

    workers: int
    sleep: float
    step_seconds: float
    pushes: Rate
    predicted: float
    off: float
    megabytes: float


def measure_scaling(
    cases: Sequence[Case], workers: Sequence[int], steps: int, repeats: int, show: Callable[[ScalingResult], None]
) -> dict[str, Any]:
    """Measure cases in process and with so many workers on this machine, in turns; plain data, ready for JSON.

    Raises:
        UserError: a number is out of range.
    """
    check_rounds(1.0, repeats)
    _check("--workers", workers)
    _check("--steps", [steps])
    set_threads(1)
    keep_freed_memory()
    results = []
    with ray_session(None, cpus=os.cpu_count() or 1):
        for case in cases:
            for result in _measure_case(case, sorted(workers), steps, repeats):
                show(result)
                results.append(dataclasses.asdict(result))
    return about_machine() | {"steps": steps, "repeats": repeats, "scaling": results}


def _check(option: str, numbers: Sequence[int]) -> None:
    for number in numbers:
        if number < 1:
            raise UserError(option, number, "whole numbers of at least 1")


def _measure_case(case: Case, workers: Sequence[int], steps: int, repeats: int) -> list[ScalingResult]:
    experiment = case_experiment(case.name)
    strategy = choose_strategy(experiment.learner, CPU)[0]
    shapes = {name: tuple(value.shape) for name, value in experiment.initial().parameters.items()}
    rim, alone = measure_rim(shapes), chunk_seconds(experiment, CPU)
    load = Load(experiment.rule.chunks, alone, TASKS, 4 * count_values(shapes), cores=os.cpu_count())
    slower = (crowded_seconds(case.name) + rim_seconds(shapes, rim, load)) / alone
    loads: list[Load] = []
    rates: dict[str, list[float]] = {}
    added: dict[str, list[float]] = {}
    with ExitStack() as stack:
        own = InProcessPool(experiment, CPU)
        lines = {"in process": start_line(experiment, new_dispatcher(own), InProcessServer(experiment), 1, strategy)}
        for count in workers:
            build = functools.partial(case_experiment, case.name)
            lines[_name(count)] = stack.enter_context(ray_line(build, count, strategy))
        for _ in range(repeats):
            # A machine is faster at times: what the prediction starts from is measured in each round, too.
            alone = chunk_seconds(experiment, CPU)
            loads.append(replace(load, chunk_seconds=alone, crowded=slower * alone))
            for name, line in lines.items():
                took, computed = _round(line, steps)
                rates.setdefault(name, []).append(steps * TASKS / took)
                added.setdefault(name, []).append(1 - computed / (line.workers * took))
    one = rates.get(_name(1))
    results = [ScalingResult(case.name, "in process", Rate.of(rates["in process"]), 1.0)]
    for count in workers:
        each = rates[_name(count)]
        predicted = [TASKS / predict(rim, load, count).seconds for load in loads]
        results.append(
            ScalingResult(
                case=case.name,
                runtime=_name(count),
                rate=Rate.of(each),
                over_inprocess=ratio(each, rates["in process"]),
                over_one=None if one is None else ratio(each, one),
                added=statistics.median(added[_name(count)]),
                predicted=statistics.median(predicted),
                off=ratio(predicted, each) - 1,
            )
        )
    return results


def crowded_seconds(name: str) -> float:
    """Median seconds of a case's chunk while every core of the machine computes chunks, in processes of their own."""
    cores = os.cpu_count() or 1
    context = multiprocessing.get_context("spawn")
    start = context.Barrier(cores)
    with ProcessPoolExecutor(cores, context, _be_ready, (start,)) as processes:
        return statistics.median(processes.map(_beside_others, [name] * cores))


_start: Barrier


def _be_ready(start: Barrier) -> None:
    global _start
    _start = start
    set_threads(1)
    keep_freed_memory()


def _beside_others(name: str) -> float:
    experiment = case_experiment(name)
    _start.wait(DEADLINE)
    return chunk_seconds(experiment, CPU)


def rim_seconds(shapes: Shapes, rim: Rim, load: Load) -> float:
    """What driver, server and Ray take of the cores, in seconds a chunk, while workers compute on all of them.

    Measured with workers that keep their cores busy for as long as a chunk takes, in processor time.
    """
    cores = load.cores or 1
    pool = FakePool(shapes)
    try:
        dispatcher = new_dispatcher(pool)
        pool.grow(dispatcher, cores)
        pool.compute(load.chunk_seconds)
        with ready_server(shapes, load.chunks) as server:
            line = start_line(ready_experiment(shapes, load.chunks), dispatcher, server, cores, "loop")
            step = statistics.median(record.seconds for record in line.take(RIM_STEPS))
    finally:
        pool.close()
    return max(0.0, step - predict(rim, load, cores).seconds) / math.ceil(load.chunks / cores)


def _name(workers: int) -> str:
    return f"{workers} worker{'s' if workers > 1 else ''}"


def _round(line: Line, steps: int) -> tuple[float, float]:
    """Seconds of some steps, and seconds that workers computed in them, all workers together."""
    records = line.take(steps)
    return sum(record.seconds for record in records), sum(record.compute_seconds for record in records)


def measure_fakes(
    values: int,
    workers: Sequence[int],
    sleep: float,
    steps: int,
    repeats: int,
    show: Callable[[FakeResult], None],
) -> dict[str, Any]:
    """Let ever more workers sleep that have one chunk of each step; plain data, ready for JSON.

    Raises:
        UserError: a number is out of range.
    """
    check_rounds(1.0, repeats)
    _check("--fakes", workers)
    _check("--values", [values])
    _check("--steps", [steps])
    if not 0 <= sleep < float("inf"):
        raise UserError("--sleep", sleep, "a number of at least 0")
    set_threads(1)
    keep_freed_memory()
    shapes, results = shapes_of(values), []
    with ray_session(None, cpus=os.cpu_count() or 1):
        rim = measure_rim(shapes)
        pool = FakePool(shapes)
        try:
            dispatcher = new_dispatcher(pool)
            for count in sorted(workers):
                pool.grow(dispatcher, count)
                with ready_server(shapes, count) as server:
                    pool.sleep(0.0)
                    line = start_line(ready_experiment(shapes, count), dispatcher, server, count, "loop")
                    for seconds in (0.0, sleep):
                        pool.sleep(seconds)
                        rounds = [_round(line, steps)[0] / steps for _ in range(repeats)]
                        results.append(_fake_result(rim, shapes, count, seconds, rounds, pool.private_megabytes()))
                        show(results[-1])
        finally:
            pool.close()
    measured = {"values": values, "rim": dataclasses.asdict(rim), "fakes": [dataclasses.asdict(r) for r in results]}
    return about_machine() | measured


def _fake_result(
    rim: Rim, shapes: Shapes, workers: int, sleep: float, rounds: Sequence[float], megabytes: float
) -> FakeResult:
    load = Load(workers, sleep, workers, 4 * count_values(shapes))
    predicted, step = predict(rim, load, workers).seconds, statistics.median(rounds)
    pushes = Rate.of([workers / each for each in rounds])
    return FakeResult(workers, sleep, step, pushes, predicted, predicted / step - 1, megabytes)
