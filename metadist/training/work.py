"""Pieces of work, and the worker that does them. Pure torch: the same class serves both runtimes."""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from metadist.learners import Meta, functional_gradients
from metadist.outer import (
    ChunkKey,
    ChunkReport,
    Experiment,
    Payload,
    Published,
    Strategy,
    StrategyCheck,
    all_finite,
    check_strategy,
    choose_strategy,
    compute_meta_gradient,
    pieces,
    to_meta,
    to_payload,
)
from metadist.tasks import TASK_AXES, Episode, Task, run_of, take
from metadist.tasks.base import Loss, Split


@dataclass(frozen=True)
class GradientWork:
    """Compute the meta-gradient of one chunk; answered by a payload and a `ChunkReport`."""

    key: ChunkKey
    strategy: Strategy


@dataclass(frozen=True)
class CheckWork:
    """Choose the execution strategy and check it on some of the run's own tasks; answered by a `StrategyCheck`.

    Attributes:
        split, seed, episode: address and size of the tasks.
    """

    split: Split
    seed: int
    episode: Episode


@dataclass(frozen=True)
class EvaluationWork:
    """Adapt to some evaluation tasks and judge on the way; answered by `TaskScores`.

    Attributes:
        split: split that the tasks are drawn from.
        seed: seed of their addresses.
        first: index of the first task.
        count: number of tasks.
        episode: their size.
        steps: adaptation steps.
        scratch: start from random weights instead of the version's.
        last_only: judge after the last step only; otherwise after each of `judged_steps`.
    """

    split: Split
    seed: int
    first: int
    count: int
    episode: Episode
    steps: int
    scratch: bool
    strategy: Strategy
    last_only: bool = False


def judged_steps(steps: int) -> tuple[int, ...]:
    """After which of 0…`steps` adaptation steps a learner is judged: all of the first ten, then ever fewer."""
    later = (digit * 10**power for power in range(1, 9) for digit in (1, 2, 5))
    return (*range(min(steps, 10) + 1), *(step for step in later if 10 < step < steps), *([steps] * (steps > 10)))


Work = GradientWork | CheckWork | EvaluationWork


@dataclass(frozen=True)
class TaskScores:
    """Scores of some tasks.

    Attributes:
        steps: the numbers of adaptation steps after which the tasks were judged.
        losses: mean query loss [tasks, judged], float64.
        correct: correctly classified query rows [tasks, judged], int64; zeros for regression.
        predictions: class per query row after the last step [tasks, rows], int64; empty for regression.
        labels: true class per query row [tasks, rows], int64; empty for regression.
    """

    steps: tuple[int, ...]
    losses: np.ndarray
    correct: np.ndarray
    predictions: np.ndarray
    labels: np.ndarray


Report = ChunkReport | StrategyCheck | TaskScores


class Worker:
    """Does work on one device.

    Args:
        experiment: what the run is.
        device: where to adapt.
    """

    def __init__(self, experiment: Experiment, device: torch.device) -> None:
        self.experiment, self.device = experiment, device
        experiment.learner.network.module.to(device)  # its buffers; weights come with each version
        #: never change, so that no version brings them
        self._frozen = {name: value.to(device) for name, value in experiment.initial().frozen.items()}
        self._version: tuple[tuple[int, bool], Meta] | None = None

    def run(self, work: Work, published: Published) -> tuple[Payload | None, Report]:
        """Do one piece of work at a published version."""
        meta = self._meta(published)
        if isinstance(work, GradientWork):
            return self._gradient(work, meta)
        if isinstance(work, CheckWork):
            return None, self._check(work, meta)
        return None, self._evaluate(work, meta)

    def _meta(self, published: Published) -> Meta:
        key = (published.version, published.judged)
        if self._version is None or self._version[0] != key:
            self._version = (key, to_meta(published, self._frozen, self.device))
        return self._version[1]

    def _check(self, work: CheckWork, meta: Meta) -> StrategyCheck:
        learner, steps = self.experiment.learner, self.experiment.rule.steps
        rule, reason = choose_strategy(learner, self.device)
        stages = dict.fromkeys((learner.at(0), learner.at(steps)))  # one, but for learners with a schedule
        chunks = self.experiment.rule.chunk_sizes() if rule == "captured" else (2,)
        batches = [self._batch_to_check(work, tasks) for tasks in chunks]
        checks = [check_strategy(stage, meta, batch, rule, reason) for stage in stages for batch in batches]
        return next((check for check in checks if check.strategy != rule), checks[0])

    def _batch_to_check(self, work: CheckWork, chunk: int) -> Task:
        """As many tasks as a chunk's are computed at once, and at least two where a chunk has two."""
        distribution = self.experiment.distribution
        whole = distribution.batch(work.split, work.seed, range(chunk), work.episode, self.device)
        at_once = next(pieces(self.experiment.learner, whole)).query.x.shape[0]
        return run_of(whole, slice(0, max(at_once, min(chunk, 2))))

    def _gradient(self, work: GradientWork, meta: Meta) -> tuple[Payload, ChunkReport]:
        start = time.process_time()
        experiment = self.experiment
        tasks = experiment.rule.chunk_tasks(work.key.version, work.key.chunk)
        batch = experiment.distribution.batch("train", experiment.seed, tasks, experiment.episode, self.device)
        result = compute_meta_gradient(experiment.learner.at(work.key.version), meta, batch, work.strategy)
        report = ChunkReport(
            key=work.key,
            tasks=result.tasks,
            loss=float(result.loss),
            correct=int(result.correct),
            rows=result.rows,
            finite=all_finite(result.gradient) and all_finite(result.statistics),
            seconds=time.process_time() - start,
        )
        return to_payload(work.key, result), report

    def _evaluate(self, work: EvaluationWork, meta: Meta) -> TaskScores:
        if work.scratch:
            fresh = self.experiment.scratch()
            meta = Meta(*({n: v.to(self.device) for n, v in group.items()} for group in fresh))
        indices = range(work.first, work.first + work.count)
        batch = self.experiment.distribution.batch(work.split, work.seed, indices, work.episode, self.device)
        steps, outputs = self._outputs(meta, batch, work)  # [tasks, judged, rows, outputs]
        losses = _row_losses(outputs, batch.query.y, self.experiment.distribution.loss).mean(-1)
        correct = torch.zeros(outputs.shape[:2], dtype=torch.int64)
        predictions = labels = torch.zeros((work.count, 0), dtype=torch.int64)
        if batch.query.ways:
            chosen = outputs.argmax(-1)
            correct = (chosen == batch.query.y[:, None]).sum(-1)
            predictions, labels = chosen[:, -1], batch.query.y
        return TaskScores(steps, *(part.cpu().numpy() for part in (losses, correct, predictions, labels)))

    def _outputs(self, meta: Meta, batch: Task, work: EvaluationWork) -> tuple[tuple[int, ...], Tensor]:
        learner = self.experiment.learner.with_frozen(meta.frozen)
        wanted = () if work.last_only else judged_steps(work.steps)
        judged: list[int] = []

        def curve(task: Task) -> Tensor:
            outputs = {}
            for step, adapted in enumerate(learner.adaptation(meta, task.support, work.steps)):
                if step in wanted:
                    outputs[step] = learner.answer(adapted, task.query)
            if step not in outputs:
                outputs[step] = learner.answer(adapted, task.query)
            judged[:] = outputs  # the same for every task
            return torch.stack(list(outputs.values()))

        with torch.no_grad():
            if work.strategy == "loop" or not getattr(learner.network.module, "vectorizes", True):
                every = torch.stack([curve(take(batch, index)) for index in range(work.count)])
            else:
                with functional_gradients():
                    every = torch.func.vmap(curve, in_dims=(TASK_AXES,))(batch)
        return tuple(judged), every


def _row_losses(outputs: Tensor, y: Tensor, loss: Loss) -> Tensor:
    """Loss of every query row [tasks, judged, rows] in float64."""
    tasks, steps, rows, width = outputs.shape
    outputs = outputs.double()
    if loss == "mse":
        return (outputs - y.double()[:, None]).square().mean(-1)
    y = y[:, None].expand(tasks, steps, rows)
    if loss == "binary_cross_entropy":
        of_class = nn.functional.one_hot(y, width).double()
        return nn.functional.binary_cross_entropy_with_logits(outputs, of_class, reduction="none").mean(-1)
    each: Tensor = nn.functional.cross_entropy(outputs.reshape(-1, width), y.reshape(-1), reduction="none")
    return each.reshape(tasks, steps, rows)
