"""Pieces of work, and the worker that does them. Pure torch: the same class serves both runtimes."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor, nn

from metadist.learners import Meta, functional_gradients
from metadist.outer import (
    ChunkKey,
    ChunkReport,
    Experiment,
    MetaGradient,
    Payload,
    Published,
    Strategy,
    StrategyCheck,
    all_finite,
    check_strategy,
    choose_strategy,
    compute_meta_gradient,
    fitting,
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
class CulpritsWork:
    """Find the tasks of a chunk whose meta-gradients are not finite; answered by `Culprits`."""

    key: ChunkKey


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
        part: judge this one of what is beside the learner (`Learner.beside`), as it adapts by itself.
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
    part: str | None = None


def judged_steps(steps: int) -> tuple[int, ...]:
    """After which of 0…`steps` adaptation steps a learner is judged: all of the first ten, then ever fewer."""
    later = (digit * 10**power for power in range(1, 9) for digit in (1, 2, 5))
    return (*range(min(steps, 10) + 1), *(step for step in later if 10 < step < steps), *([steps] * (steps > 10)))


Work = GradientWork | CulpritsWork | CheckWork | EvaluationWork


@dataclass(frozen=True)
class Culprits:
    """Indices of training tasks whose meta-gradients are not finite."""

    tasks: tuple[int, ...]


@dataclass(frozen=True)
class TaskScores:
    """Scores of some tasks.

    Attributes:
        steps: the numbers of adaptation steps after which the tasks were judged.
        losses: mean query loss [tasks, judged], float64.
        correct: correctly classified query rows [tasks, judged], int64; zeros for regression.
        predictions: class per query row after the last step [tasks, rows], int64; empty for regression.
        labels: true class per query row [tasks, rows], int64; empty for regression.
        figures: what else adapted learners say of themselves, by name [tasks].
    """

    steps: tuple[int, ...]
    losses: np.ndarray
    correct: np.ndarray
    predictions: np.ndarray
    labels: np.ndarray
    figures: dict[str, np.ndarray] = field(default_factory=dict, kw_only=True)


Report = ChunkReport | Culprits | StrategyCheck | TaskScores


class OutOfMemory(RuntimeError):
    """A device has not enough memory for a piece of work, which the text names with its shapes."""


class Worker:
    """Does work on one device.

    Args:
        experiment: what the run is.
        device: where to adapt.
    """

    def __init__(self, experiment: Experiment, device: torch.device) -> None:
        self.experiment, self.device = experiment, device
        for network in experiment.learner.all_networks():
            network.module.to(device)  # its buffers; weights come with each version
        #: what never changes, so that no version brings it
        self._still = _on(device, experiment.initial()._replace(parameters={}, statistics={}))
        self._version: tuple[tuple[int, int, bool], Meta] | None = None

    def run(self, work: Work, published: Published) -> tuple[Payload | None, Report]:
        """Do one piece of work at a published version.

        Raises:
            OutOfMemory: the device has not enough for it.
        """
        try:
            return self._run(work, published)
        except RuntimeError as error:
            if not isinstance(error, torch.OutOfMemoryError) and "can't allocate memory" not in str(error):
                raise
            if self.device.type == "cuda":
                torch.cuda.empty_cache()
            raise OutOfMemory(self._described(work)) from None

    def _described(self, work: Work) -> str:
        """What a piece of work takes memory for."""
        experiment = self.experiment
        if isinstance(work, GradientWork):
            tasks = experiment.rule.chunk_tasks(work.key.version, work.key.chunk)
            address: tuple[Split, int, range, Episode] = ("train", experiment.seed, tasks[:1], experiment.episode)
            name = f"chunk {work.key.chunk} of step {work.key.version + 1}"
        elif isinstance(work, EvaluationWork):
            tasks = range(work.first, work.first + work.count)
            address = (work.split, work.seed, tasks[:1], work.episode)
            name = f"the {work.split} tasks from {work.first}"
        else:
            return f"{work}, on {self.device}"
        one = experiment.distribution.batch(*address, torch.device("cpu"))
        support, query = (list(part.x.shape[1:]) for part in (one.support, one.query))
        return f"{name}: {len(tasks)} tasks with support {support} and query {query}, on {self.device}"

    def _run(self, work: Work, published: Published) -> tuple[Payload | None, Report]:
        meta = self._meta(published)
        if isinstance(work, GradientWork):
            return self._gradient(work, meta, published.version)
        if isinstance(work, CulpritsWork):
            return None, self._culprits(work.key, meta)
        if isinstance(work, CheckWork):
            return None, self._check(work, meta)
        return None, self._evaluate(work, meta)

    def _meta(self, published: Published) -> Meta:
        key = (published.version, published.phase, published.judged)
        if self._version is None or self._version[0] != key:
            self._version = (key, to_meta(published, self._still, self.device))
        return self._version[1]

    def _check(self, work: CheckWork, meta: Meta) -> StrategyCheck:
        learner, outer = self.experiment.learner, self.experiment.rule
        rule, reason = choose_strategy(learner, self.device)
        stages = dict.fromkeys((learner.at(0), learner.at(outer.steps)))  # one, but for learners with a schedule
        chunks = outer.chunk_sizes() if rule == "captured" else (2,)
        batches = [self._batch_to_check(work, tasks) for tasks in chunks]
        checks = [
            check_strategy(stage.in_phase(phase), outer.moving(meta, phase), batch, rule, reason)
            for stage in stages
            for phase in range(len(outer.phases))
            for batch in batches
        ]
        return next((check for check in checks if check.strategy != rule), checks[0])

    def _batch_to_check(self, work: CheckWork, chunk: int) -> Task:
        """As many tasks as a chunk's are computed at once, and at least two where a chunk has two."""
        distribution = self.experiment.distribution
        whole = distribution.batch(work.split, work.seed, range(chunk), work.episode, self.device)
        at_once = next(pieces(self.experiment.learner, whole)).query.x.shape[0]
        return run_of(whole, slice(0, max(at_once, min(chunk, 2))))

    def _gradient(self, work: GradientWork, meta: Meta, at: int) -> tuple[Payload, ChunkReport]:
        start = time.process_time()
        tasks = self.experiment.rule.chunk_tasks(work.key.version, work.key.chunk)
        result = self._compute(work.key, tasks, meta, work.strategy)
        payload = to_payload(work.key, result, at)
        report = ChunkReport(
            key=work.key,
            tasks=result.tasks,
            loss=float(result.loss),
            correct=int(result.correct),
            rows=result.rows,
            finite=_finite(result),
            seconds=time.process_time() - start,
            digest=payload.digest,
        )
        return payload, report

    def _culprits(self, key: ChunkKey, meta: Meta) -> Culprits:
        tasks = self.experiment.rule.chunk_tasks(key.version, key.chunk)
        alone = {task: self._compute(key, range(task, task + 1), meta, "loop") for task in tasks}
        return Culprits(tuple(task for task, result in alone.items() if not _finite(result)))

    def _compute(self, key: ChunkKey, tasks: range, meta: Meta, strategy: Strategy) -> MetaGradient:
        experiment, phase = self.experiment, key.phase
        batch = experiment.distribution.batch("train", experiment.seed, tasks, experiment.episode, self.device)
        learner = experiment.learner.at(key.version).in_phase(phase)
        return compute_meta_gradient(learner, experiment.rule.moving(meta, phase), batch, strategy)

    def _evaluate(self, work: EvaluationWork, meta: Meta) -> TaskScores:
        if work.scratch:
            meta = _on(self.device, self.experiment.scratch())
        indices = range(work.first, work.first + work.count)
        batch = self.experiment.distribution.batch(work.split, work.seed, indices, work.episode, self.device)
        steps, outputs, figures = self._outputs(meta, batch, work)  # [tasks, judged, rows, outputs]
        losses = _row_losses(outputs, batch.query.y, self.experiment.distribution.loss).mean(-1)
        correct = torch.zeros(outputs.shape[:2], dtype=torch.int64)
        predictions = labels = torch.zeros((work.count, 0), dtype=torch.int64)
        if batch.query.ways:
            chosen = outputs.argmax(-1)
            correct = (chosen == batch.query.y[:, None]).sum(-1)
            predictions, labels = chosen[:, -1], batch.query.y
        told = {name: value.double().cpu().numpy() for name, value in figures.items()}
        scores = (part.cpu().numpy() for part in (losses, correct, predictions, labels))
        return TaskScores(steps, *scores, figures=told)

    def _outputs(
        self, meta: Meta, batch: Task, work: EvaluationWork
    ) -> tuple[tuple[int, ...], Tensor, dict[str, Tensor]]:
        learner, last = self.experiment.learner.with_frozen(meta.frozen), work.steps
        if work.part is not None:
            learner = learner.beside()[work.part]
            last = learner.eval_steps
        wanted = () if work.last_only else judged_steps(last)
        judged: list[int] = []

        def curve(task: Task) -> tuple[Tensor, dict[str, Tensor]]:
            outputs = {}
            for step, adapted in enumerate(learner.adaptation(meta.whole, task.support, last)):
                if step in wanted:
                    outputs[step] = learner.answer(adapted, task.query)
            if step not in outputs:
                outputs[step] = learner.answer(adapted, task.query)
            judged[:] = outputs  # the same for every task
            return torch.stack(list(outputs.values())), learner.figures(adapted)

        alone = work.strategy == "loop" or not getattr(learner.network.module, "vectorizes", True)
        # On a CPU, tasks whose support sets fill a core's caches one by one are faster one by one.
        alone |= work.strategy == "captured" and fitting(learner, batch.support.x.shape[1]) == 1
        with torch.no_grad():
            if alone:
                each, said = zip(*(curve(take(batch, index)) for index in range(work.count)), strict=True)
                every = torch.stack(each)
                figures = {name: torch.stack([one[name] for one in said]) for name in said[0]}
            else:
                with functional_gradients():
                    every, figures = torch.func.vmap(curve, in_dims=(TASK_AXES,))(batch)
        return tuple(judged), every, figures


def _on(device: torch.device, meta: Meta) -> Meta:
    return Meta(*({name: value.to(device) for name, value in group.items()} for group in meta))


def _finite(result: MetaGradient) -> bool:
    return all_finite(result.gradient) and all_finite(result.statistics)


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
