"""The one compute function: a chunk of tasks in, sums of meta-gradients out.

The in-process runtime and the remote workers both call `compute_meta_gradient`. Its results are sums and
counts, never means, so that chunks can be added up in any fixed order.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from metadist.learners import Learner, Meta, Outcome, TaskGradient, functional_gradients
from metadist.learners.gradient import Parameters
from metadist.outer.capture import pieces, run_captured
from metadist.tasks import TASK_AXES, Task, take

#: how a chunk is computed: task by task; all tasks at once by `torch.func.vmap`; or so, by a program that was written
#: down the first time
Strategy = Literal["loop", "vectorized", "captured"]


@dataclass(frozen=True)
class MetaGradient:
    """Sums over the tasks of a chunk.

    Attributes:
        gradient: sum of the tasks' meta-gradients, by parameter.
        statistics: sum of the tasks' statistics, by name.
        tasks: how many tasks.
        loss: sum of the query losses after adaptation, a scalar in float64.
        correct: number of query rows classified correctly (0 for regression).
        rows: number of query rows.
    """

    gradient: Parameters
    statistics: dict[str, Tensor]
    tasks: int
    loss: Tensor
    correct: Tensor
    rows: int


def compute_meta_gradient(learner: Learner, meta: Meta, batch: Task, strategy: Strategy) -> MetaGradient:
    """Meta-gradient of a batch of tasks, summed over the tasks.

    Args:
        meta: the meta-parameters; not changed, and no graph is left on them.
        batch: tasks with a leading task dimension, on the device and in the precision of `meta`.
        strategy: how it is computed; the result is the same up to rounding.
    """
    count = batch.query.x.shape[0]
    result = _COMPUTE[strategy](learner, meta, batch)
    correct = torch.zeros((), dtype=torch.int64)
    if batch.query.ways:
        correct = (result.outputs.argmax(-1) == batch.query.y).sum()
    rows = batch.query.y.shape[0] * batch.query.y.shape[1]
    return MetaGradient(result.gradient, result.statistics, count, result.loss, correct, rows)


def _loop(learner: Learner, meta: Meta, batch: Task) -> TaskGradient:
    learner = learner.with_frozen(meta.frozen)
    total: TaskGradient | None = None
    outputs = []
    for index in range(batch.query.x.shape[0]):
        one = _task_gradient(learner, meta, take(batch, index))
        outputs.append(one.outputs)
        one = one._replace(loss=one.loss.double())
        total = one if total is None else _add(total, one)
    assert total is not None, "a chunk has at least one task"
    return total._replace(outputs=torch.stack(outputs))


def _add(a: TaskGradient, b: TaskGradient) -> TaskGradient:
    return TaskGradient(
        {name: value + b.gradient[name] for name, value in a.gradient.items()},
        a.loss + b.loss,
        a.outputs,
        {name: value + b.statistics[name] for name, value in a.statistics.items()},
    )


def _task_gradient(learner: Learner, meta: Meta, task: Task) -> TaskGradient:
    if learner.own_gradient:
        with torch.no_grad():
            return _of_shared(learner.task_gradient(meta.whole, task), meta)
    leaves = {name: value.detach().requires_grad_() for name, value in meta.whole.parameters.items()}
    outcome = learner.task_loss(meta._replace(parameters=leaves), task)
    values = torch.autograd.grad(outcome.loss, [leaves[name] for name in meta.parameters], materialize_grads=True)
    statistics = {name: value.detach() for name, value in outcome.statistics.items()}
    return TaskGradient(
        dict(zip(meta.parameters, values, strict=True)), outcome.loss.detach(), outcome.outputs.detach(), statistics
    )


def _of_shared(own: TaskGradient, meta: Meta) -> TaskGradient:
    """A gradient by a learner's own rule without that of the parameters that stay with the task."""
    return own._replace(gradient={name: own.gradient[name] for name in meta.parameters})


def _captured(learner: Learner, meta: Meta, batch: Task) -> TaskGradient:
    parts = [run_captured(_folded, learner, meta, piece) for piece in pieces(learner, batch)]
    total = parts[0]
    for part in parts[1:]:
        total = _add(total, part)
    gradient = {name: total.gradient[name] for name in meta.parameters}
    return total._replace(gradient=gradient, outputs=torch.cat([part.outputs for part in parts]))


def _folded(learner: Learner, meta: Meta, batch: Task) -> TaskGradient:
    return _vectorized(learner, meta, batch, folded=True)


def _vectorized(learner: Learner, meta: Meta, batch: Task, folded: bool = False) -> TaskGradient:
    learner = learner.with_frozen(meta.frozen)
    with functional_gradients(folded):
        if learner.own_gradient:
            with torch.no_grad():
                own = _of_shared(
                    torch.func.vmap(learner.task_gradient, in_dims=(None, TASK_AXES))(meta.whole, batch), meta
                )
            return TaskGradient(
                {name: value.sum(0) for name, value in own.gradient.items()},
                own.loss.double().sum(),
                own.outputs,
                {name: value.sum(0) for name, value in own.statistics.items()},
            )
        # The outer derivative is plain autograd over the vectorised losses, whose sum each task's parameters take part
        # in by its own loss only. Where tasks are folded, each has a copy of the parameters from the start.
        leaves = {name: value.detach() for name, value in meta.whole.parameters.items()}
        if folded:
            leaves = {name: _for_each(value, batch.query.x.shape[0]) for name, value in leaves.items()}
        for value in leaves.values():
            value.requires_grad_()

        def loss(parameters: Parameters, task: Task) -> Outcome:
            return learner.task_loss(meta._replace(parameters=parameters), task)

        each = torch.func.vmap(loss, in_dims=(0 if folded else None, TASK_AXES))(leaves, batch)
        shared = [leaves[name] for name in meta.parameters]
        values = torch.autograd.grad(each.loss.sum(), shared, materialize_grads=True)
    if folded:
        values = tuple(value.sum(0).contiguous() for value in values)
    gradient = dict(zip(meta.parameters, values, strict=True))
    statistics = {name: value.detach().sum(0) for name, value in each.statistics.items()}
    return TaskGradient(gradient, each.loss.detach().double().sum(), each.outputs.detach(), statistics)


def _for_each(value: Tensor, tasks: int) -> Tensor:
    """A copy for each task [tasks, …]; a convolution's weights channels last, which is fastest, and a step keeps it."""
    if value.dim() != 4:
        return value.expand(tasks, *value.shape).clone(memory_format=torch.contiguous_format)
    last = value.movedim(1, -1)
    return last.expand(tasks, *last.shape).clone(memory_format=torch.contiguous_format).movedim(-1, 2)


_COMPUTE = {"loop": _loop, "vectorized": _vectorized, "captured": _captured}
