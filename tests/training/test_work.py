"""What a worker gives to its learner, and what it takes from it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from metadist.learners import Maml, Meta, Outcome
from metadist.outer import ChunkKey, Published, Strategy, capture
from metadist.outer.messages import to_arrays
from metadist.tasks import Examples, Task, take
from metadist.testing.toys import linear_experiment
from metadist.training.work import CheckWork, EvaluationWork, GradientWork, OutOfMemory, TaskScores, Worker

CPU = torch.device("cpu")


class Scheduled(Maml):
    """Of first order until the second outer step; reports the sum of its outputs as a statistic."""

    def at(self, step: int) -> Maml:
        return Scheduled(replace(self.config, first_order=step < 2), self.network)

    def task_loss(self, meta: Meta, task: Task) -> Outcome:
        outcome = super().task_loss(meta, task)
        return outcome._replace(statistics={"sum": outcome.outputs.sum() + meta.statistics["sum"]})


def published(meta: Meta, version: int) -> Published:
    return Published(version, to_arrays(meta.parameters), {"sum": torch.ones(()).numpy()})


@pytest.mark.parametrize("strategy", ["loop", "vectorized"])
@pytest.mark.parametrize(("version", "first_order"), [(1, True), (2, False)])
def test_the_learner_is_the_one_of_the_step(strategy: Strategy, version: int, first_order: bool) -> None:
    experiment = linear_experiment()
    plain = experiment.learner
    assert isinstance(plain, Maml)
    scheduled = Scheduled(plain.config, plain.network)
    meta = experiment.initial()
    payload, _ = Worker(replace(experiment, learner=scheduled), CPU).run(
        GradientWork(ChunkKey("toy", version, 0, 1), strategy), published(meta, version)
    )
    expected, outputs = [], []
    learner = Maml(replace(plain.config, first_order=first_order), plain.network)
    batch = experiment.distribution.batch("train", 0, experiment.rule.chunk_tasks(version, 1), experiment.episode, CPU)
    leaves = {name: value.clone().requires_grad_() for name, value in meta.parameters.items()}
    for index in range(2):
        outcome = learner.task_loss(meta._replace(parameters=leaves), take(batch, index))
        expected.append(torch.autograd.grad(outcome.loss, tuple(leaves.values())))
        outputs.append(float(outcome.outputs.detach().sum()) + 1)
    assert payload is not None
    for name, parts in zip(leaves, zip(*expected, strict=True), strict=True):
        assert torch.allclose(torch.from_numpy(payload.gradient[name]), sum(parts), atol=1e-6), name
    assert float(payload.statistics["sum"]) == pytest.approx(sum(outputs), rel=1e-5)


@pytest.mark.parametrize("wrong", [0, 4])
def test_every_stage_of_a_learner_is_checked(wrong: int) -> None:
    """The first stage that is wrong when it is vectorised decides."""

    class Stage(Maml):
        good = True

        def at(self, step: int) -> Maml:
            stage = Stage(self.config, self.network)
            stage.good = step != wrong
            return stage

        def task_loss(self, meta: Meta, task: Task) -> Outcome:
            outcome = super().task_loss(meta, task)
            return outcome if self.good else outcome._replace(loss=outcome.loss * float(outcome.loss.detach()))

    experiment = linear_experiment(steps=4)
    assert isinstance(experiment.learner, Maml)
    staged = replace(experiment, learner=Stage(experiment.learner.config, experiment.learner.network))
    meta = experiment.initial()
    _, found = Worker(staged, CPU).run(
        CheckWork("train", 0, experiment.episode), Published(0, to_arrays(meta.parameters), {})
    )
    assert found.strategy == "loop"
    assert "vectorised it fails" in found.reason


class Greedy(Maml):
    """Wants more memory than there is, from torch or from the processor's allocator."""

    error: RuntimeError

    def task_loss(self, meta: Meta, task: Task) -> Outcome:
        raise self.error

    def adaptation(self, meta: Meta, support: Examples, steps: int) -> Iterator[Any]:
        raise self.error


@pytest.mark.parametrize(
    "error", [torch.OutOfMemoryError("CUDA"), RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried")]
)
def test_too_little_memory_names_the_work_and_its_shapes(error: RuntimeError) -> None:
    experiment = linear_experiment()
    plain = experiment.learner
    assert isinstance(plain, Maml)
    greedy = Greedy(plain.config, plain.network)
    greedy.error = error
    worker = Worker(replace(experiment, learner=greedy), CPU)
    work = GradientWork(ChunkKey("toy", 4, 0, 1), "loop")
    with pytest.raises(
        OutOfMemory, match=r"^chunk 1 of step 5: 2 tasks with support \[6, 2\] and query \[8, 2\], on cpu$"
    ):
        worker.run(work, published(experiment.initial(), 4))
    judged = EvaluationWork("test", 0, 3, 5, experiment.episode, 1, False, "loop")
    with pytest.raises(OutOfMemory, match=r"^the test tasks from 3: 5 tasks with support"):
        worker.run(judged, published(experiment.initial(), 4))


def test_tasks_that_fill_a_cores_caches_are_judged_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    experiment = linear_experiment()
    monkeypatch.setattr(experiment.learner.network.module, "activations", 4, raising=False)
    work = EvaluationWork("test", 0, 0, 3, experiment.episode, 2, False, "captured")
    rows = experiment.episode.shots * experiment.episode.ways
    together = []
    vmap = torch.func.vmap

    def seen(*arguments: Any, **options: Any) -> Any:
        together.append(piece)
        return vmap(*arguments, **options)

    monkeypatch.setattr(torch.func, "vmap", seen)
    scores = []
    for piece in (2 * rows * 4 - 1, 2 * rows * 4):
        monkeypatch.setattr(capture, "PIECE", piece)
        _, found = Worker(experiment, CPU).run(work, published(experiment.initial(), 0))
        assert isinstance(found, TaskScores)
        scores.append(found.losses)
    assert together == [2 * rows * 4]
    assert np.allclose(*scores, atol=1e-6)
