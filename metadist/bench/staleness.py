"""What a run reaches whose answers are some steps old: the same job at one age after the other, in one process.

There are as many workers as the age and one more, each of which is given its next chunk when its last one was taken.
They take turns, so that every answer but the first is of just that age.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast, get_args

import torch

from metadist import config
from metadist.config import Job, build_experiment
from metadist.distributed.run import evaluation_plan
from metadist.errors import UserError
from metadist.outer import AgeWeight, StrategyCheck
from metadist.tasks.base import Split
from metadist.training.dispatch import Dispatcher
from metadist.training.evaluation import evaluate
from metadist.training.free_stepper import FreeStepper
from metadist.training.inprocess import InProcessPool, InProcessServer
from metadist.training.machine import keep_freed_memory, make_deterministic, set_threads
from metadist.training.stepper import Diverged
from metadist.training.work import CheckWork

CPU = torch.device("cpu")
RUN = "staleness"


@dataclass(frozen=True)
class StalenessResult:
    """A run at one age.

    Attributes:
        age: mean of the steps' ages.
        weight: the run's `server.age_weight`.
        value, ci95: accuracy, or loss for regression, on the job's test tasks, or validation tasks where it has none.
        diverged: the run ended before its last step, at a meta-gradient that was not finite.
    """

    age: float
    weight: str
    value: float | None
    ci95: float | None
    diverged: bool = False


def measure_staleness(
    job: Job, ages: Sequence[int], weights: Sequence[str], show: Callable[[StalenessResult], None]
) -> dict[str, Any]:
    """Train a job at each age with each weight of old answers; plain data, ready for JSON.

    Its meta-batch becomes one chunk, and its steps as many more as take the same tasks.

    Raises:
        UserError: an age or a weight is out of range, or the job cannot do without steps that wait.
    """
    for age in ages:
        if age < 0:
            raise UserError("--ages", age, "whole numbers of at least 0")
    for weight in weights:
        if weight not in get_args(AgeWeight):
            raise UserError("--weights", weight, f"some of {', '.join(get_args(AgeWeight))}")
    set_threads(job.resources.threads)
    keep_freed_memory()
    make_deterministic(CPU)
    job = config.with_store(job, config.open_data(job))
    tasks, steps = job.tasks, job.steps * -(-job.tasks.batch // job.tasks.chunk)
    free = replace(job, tasks=replace(tasks, batch=tasks.chunk), steps=steps)
    results = []
    for weight in weights:
        for age in ages:
            server = replace(job.server, mode="async", age_weight=cast(AgeWeight, weight))
            results.append(_train(replace(free, server=server), age))
            show(results[-1])
    return {"job": job.name, "steps": steps, "staleness": [dataclasses.asdict(result) for result in results]}


def _train(job: Job, age: int) -> StalenessResult:
    experiment = build_experiment(job, RUN)
    pool, server = InProcessPool(experiment, CPU, workers=age + 1), InProcessServer(experiment)
    dispatcher = Dispatcher(pool, job.resources.timeout, lambda text: None)
    published, weight = server.start(None, None), job.server.age_weight
    (check,) = dispatcher.run_all([CheckWork("train", job.seed, experiment.episode)], published)
    assert isinstance(check, StrategyCheck)
    classifies = experiment.distribution.classifies
    stepper = FreeStepper(
        dispatcher, server, experiment.rule, check.strategy, classifies, 0, published, lambda text: None
    )
    try:
        ages = [record.age or 0 for record in stepper.advance(job.steps)]
    except Diverged:
        return StalenessResult(age, weight, None, None, diverged=True)
    split: Split = "test" if experiment.distribution.has("test") else "valid"
    learner, episode = experiment.learner, config.evaluation_episode(job)
    plan = evaluation_plan(job, split, job.evaluation.test_tasks, episode, learner.eval_steps)
    averages = job.steps > experiment.rule.average_after
    judged = server.judged(job.steps) if averages else stepper.published
    found = evaluate(dispatcher, plan, check.strategy, judged, last_only=True)
    value = found.loss if found.accuracy is None else found.accuracy
    return StalenessResult(sum(ages) / len(ages), weight, value, found.ci95)


def staleness_curves(measured: dict[str, Any]) -> dict[str, list[tuple[float, float, float]]]:
    """By weight, points of age, figure and the half width of its interval; without runs that diverged."""
    curves: dict[str, list[tuple[float, float, float]]] = {}
    for one in measured["staleness"]:
        if not one["diverged"]:
            point = (one["age"], one["value"], one["ci95"] or 0.0)
            curves.setdefault(f"age_weight: {one['weight']}", []).append(point)
    return curves
