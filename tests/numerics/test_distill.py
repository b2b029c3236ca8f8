"""Distillation against its paper, written once more: plain loops, probabilities row by row, nets by hand."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor

from metadist.learners import Distill, DistillConfig, Maml, MamlConfig, Network, ProtoNetConfig, TrainedPart
from metadist.models import Mlp, MlpConfig
from metadist.outer import choose_strategy, compute_meta_gradient
from metadist.tasks import Task, take
from tests.numerics.conftest import TEACHERS, embeds
from tests.numerics.test_meta_gradient import Net, Weights, cost, flat, grad, leaves, query_loss, relative_error

NAMES = ["distill-maml-2", "distill-maml-remat", "distill-protonet"]


def said(net: Net, config: Any, steps: int, w: Weights, task: Task) -> Tensor:
    """Query outputs after adaptation, as a differentiable function of `w`."""
    (x, y, _), (query_x, _, _) = task
    if isinstance(config, ProtoNetConfig):
        points, embedded = net(w, x, x), net(w, x, query_x)
        prototypes = [torch.stack([p for p, c in zip(points, y, strict=True) if c == k]).mean(0) for k in range(3)]
        return torch.stack([torch.stack([-((e - p) ** 2).sum() for p in prototypes]) for e in embedded])
    for _ in range(steps):
        step = grad(cost(net(w, x, x), y), w, graph=True)
        w = {name: value - config.inner_lr * step[name] for name, value in w.items()}
    return net(w, x, query_x)


def taught_loss(net: Net, config: DistillConfig, theta: Weights, frozen: Weights, task: Task) -> Tensor:
    teacher = TEACHERS[embeds(config)]
    weights = leaves({name.removeprefix("teacher."): value for name, value in frozen.items()})
    told = said(net, teacher, getattr(teacher, "eval_steps", 0), weights, task).detach()
    own = said(net, config.student, getattr(config.student, "inner_steps", 0), theta, task)
    hard = query_loss(net, config.student, theta, task)
    if not task.query.ways:
        soft = sum((a - b) ** 2 for a, b in zip(told.flatten(), own.flatten(), strict=True)) / told.numel()
    else:
        heat, soft = config.temperature, torch.zeros((), dtype=torch.float64)
        for t, s in zip(told, own, strict=True):
            p, q = ([(v / heat).exp() / sum((u / heat).exp() for u in row) for v in row] for row in (t, s))
            soft = soft + heat**2 / len(told) * sum(a * (a / b).log() for a, b in zip(p, q, strict=True))
    return (1 - config.weight) * hard + config.weight * soft


@pytest.mark.parametrize("strategy", ["loop", "vectorized", "captured"])
@pytest.mark.parametrize(("name", "kind", "norm"), product(NAMES, ["conv", "mlp"], ["batch", "support", "none"]))
def test_is_the_papers(setting: Callable, name: str, kind: str, norm: str, strategy: str) -> None:
    learner, meta, batch = setting(name, kind, norm)
    net, expected, losses = Net(kind, norm), [], 0.0
    for index in range(3):
        theta = leaves(meta.parameters)
        loss = taught_loss(net, learner.config, theta, meta.frozen, take(batch, index))
        expected.append(dict(zip(theta, torch.autograd.grad(loss, list(theta.values())), strict=True)))
        losses += float(loss.detach())
    found = compute_meta_gradient(learner, meta, batch, strategy)
    total = {n: sum(gradient[n] for gradient in expected) for n in meta.parameters}
    assert relative_error(found.gradient, total) < 1e-9
    assert float(found.loss) == pytest.approx(losses, rel=1e-12)


@pytest.mark.parametrize("name", ["distill-maml-2", "distill-mamlpp"])
def test_is_the_slope_of_the_loss(setting: Callable, name: str) -> None:
    learner, meta, batch = setting(name, "conv", "batch")
    gradient = flat(compute_meta_gradient(learner, meta, batch, "vectorized").gradient)
    generator = torch.Generator().manual_seed(2)
    way = {n: torch.randn(v.shape, generator=generator, dtype=torch.float64) for n, v in meta.parameters.items()}
    step, ends = 1e-5, []
    for sign in (1, -1):
        moved = meta._replace(parameters={n: v + sign * step * way[n] for n, v in meta.parameters.items()})
        ends.append(sum(float(learner.task_loss(moved, take(batch, i)).loss) for i in range(3)))
    assert (ends[0] - ends[1]) / (2 * step) == pytest.approx(float(gradient @ flat(way)), rel=1e-6)


def test_classes_that_are_judged_one_by_one() -> None:
    """At T = 2, a teacher of (0, 2 log 3) says yes with 1/2 and 3/4; a student of zeros says 1/2 to everything."""
    student = Maml(MamlConfig(), Network(Mlp(MlpConfig(), (1,), 2), "xavier", "binary_cross_entropy"))
    learner = Distill(DistillConfig(teacher="run", student=MamlConfig()), student, TrainedPart("teacher", student))
    told, own = torch.tensor([[0.0, 2 * math.log(3)]]), torch.zeros(1, 2)
    divergence = 0.75 * math.log(0.75 / 0.5) + 0.25 * math.log(0.25 / 0.5)
    assert float(learner.divergence(told, own)) == pytest.approx(4 * divergence / 2, rel=1e-6)


@pytest.mark.parametrize(("steps", "rule"), [(2, "captured"), (17, "vectorized")])
def test_the_strategy_is_the_students(steps: int, rule: str) -> None:
    student = Maml(MamlConfig(inner_steps=steps), Network(Mlp(MlpConfig(), (1,), 2), "xavier", "cross_entropy"))
    learner = Distill(DistillConfig(teacher="run", student=MamlConfig()), student, TrainedPart("teacher", student))
    assert choose_strategy(learner, torch.device("cpu"))[0] == rule
    assert learner.at(3) is learner


def test_a_student_with_a_schedule_has_few_stages(setting: Callable) -> None:
    learner, _, _ = setting("distill-mamlpp", "mlp", "none")
    assert learner.at(0) is learner
    assert learner.at(5) is learner.at(9) is not learner
    assert learner.at(9).student.loss_weights != learner.student.loss_weights
