"""What a learner costs at work, beside its parts: parameters, and the time that one task takes."""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass

import torch

from metadist.learners import Learner, Meta
from metadist.outer import Experiment
from metadist.tasks import Episode, Task, take

#: how often a task is adapted to; the median counts
REPEATS = 20
#: the learner itself, among what is beside it
OWN = "learner"


@dataclass(frozen=True)
class Cost:
    """What predictions take.

    Attributes:
        parameters: of the networks.
        milliseconds: to adapt to one evaluation task and predict its query set, one task at a time, on this machine.
    """

    parameters: int
    milliseconds: float


def measure_costs(experiment: Experiment, meta: Meta, episode: Episode, device: torch.device) -> dict[str, Cost]:
    """The cost of the learner (`learner`) and of what is beside it, by name, measured in turns."""
    meta = Meta(*({name: value.to(device) for name, value in group.items()} for group in meta))
    learner = experiment.learner.with_frozen(meta.frozen)
    learners = {OWN: learner} | learner.beside()
    task = take(experiment.distribution.batch("test", 0, [0], episode, device), 0)
    seconds: dict[str, list[float]] = {name: [] for name in learners}
    for _ in range(REPEATS + 1):
        for name, one in learners.items():
            seconds[name].append(_seconds(one, meta, task))
    return {
        name: Cost(_parameters(one), round(1e3 * statistics.median(seconds[name][1:]), 3))
        for name, one in learners.items()
    }


def _seconds(learner: Learner, meta: Meta, task: Task) -> float:
    start = time.perf_counter()
    with torch.no_grad():
        learner.predict(learner.adapt(meta, task.support), task.query.x).cpu()  # waits for the device
    return time.perf_counter() - start


def _parameters(learner: Learner) -> int:
    return sum(value.numel() for network in learner.networks() for value in network.module.parameters())
