"""Fusion, written once more: experts by hand, each step from the derivative of J by the weights."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor

from metadist.learners import Fusion, FusionConfig, Maml, MamlConfig, Meta, Network, TrainedPart
from metadist.models import BaseModel
from metadist.outer import compute_meta_gradient
from metadist.tasks import Examples, Task, take
from tests.numerics.conftest import TEACHERS
from tests.numerics.test_distill import said
from tests.numerics.test_meta_gradient import Net, Weights, leaves

F64 = torch.float64


def expert_outputs(net: Net, frozen: Weights, number: int, task: Task) -> Tensor:
    place = f"experts.{number}."
    w = leaves({name.removeprefix(place): value for name, value in frozen.items() if name.startswith(place)})
    return said(net, TEACHERS[False], TEACHERS[False].eval_steps, w, task).detach()


def fused_loss(net: Net, config: FusionConfig, start: Tensor, frozen: Weights, task: Task) -> Tensor:
    """The mixture's query loss as a differentiable function of the logits before adaptation."""
    (x, y, ways), (_, query_y, _) = task
    count = len(config.experts)
    rows = max(1, ways)  # of a shot
    folds = min(config.folds, len(x) // rows)
    held: list[list[Tensor]] = [[] for _ in range(count)]
    truth = []
    for fold in range(folds):
        out = [row for row in range(len(x)) if (row // rows) % folds == fold]
        rest = [row for row in range(len(x)) if row not in out]
        part = Task(Examples(x[rest], y[rest], ways), Examples(x[out], y[out], ways))
        truth.append(y[out])
        for number in range(count):
            held[number].append(expert_outputs(net, frozen, number, part))
    outputs, target = [torch.cat(each) for each in held], torch.cat(truth)
    if ways:
        shares = [(o - o.logsumexp(1, keepdim=True)).exp() for o in outputs]
        losses = [-sum(s[row, target[row]].log() for row in range(len(s))) / len(s) for s in shares]
        size = 1.0
    else:
        shares, size = outputs, float(target.square().mean()) + 1e-6
        losses = [0.5 * (((o - target) ** 2).mean() / size + 1e-6).log() for o in outputs]
    z = start
    for _ in range(config.inner_steps):
        w = z.exp() / z.exp().sum()
        apart = sum(
            w[i] * w[j] * min(((shares[i] - shares[j]) ** 2).mean() / size, torch.ones((), dtype=F64))
            for i, j in product(range(count), repeat=2)
        )
        pull = sum(w[i] * (w[i] * count).log() for i in range(count))
        total = sum(w[i] * losses[i] for i in range(count)) + config.uniform * pull + config.agreement * apart
        (slope,) = torch.autograd.grad(total, [w], create_graph=True)
        z = z - config.inner_lr * slope
    w = z.exp() / z.exp().sum()
    outputs = [expert_outputs(net, frozen, number, task) for number in range(count)]
    if not ways:
        return ((sum(w[i] * outputs[i] for i in range(count)) - query_y) ** 2).mean()
    mixed = sum(w[i] * (o - o.logsumexp(1, keepdim=True)).exp() for i, o in enumerate(outputs))
    return -sum(mixed[row, query_y[row]].log() for row in range(len(mixed))) / len(mixed)


@pytest.mark.parametrize("strategy", ["loop", "vectorized", "captured"])
@pytest.mark.parametrize(("kind", "norm"), product(["conv", "mlp"], ["batch", "support", "none"]))
@pytest.mark.parametrize("name", ["fusion-3", "fusion-agreement"])
def test_is_the_formula(setting: Callable, name: str, kind: str, norm: str, strategy: str) -> None:
    learner, meta, batch = setting(name, kind, norm)
    net, total, losses = Net(kind, norm), torch.zeros(len(learner.experts), dtype=F64), 0.0
    for index in range(3):
        start = meta.parameters["logits"].clone().requires_grad_()
        loss = fused_loss(net, learner.config, start, meta.frozen, take(batch, index))
        total += torch.autograd.grad(loss, [start])[0]
        losses += float(loss.detach())
    found = compute_meta_gradient(learner, meta, batch, strategy)
    assert float((found.gradient["logits"] - total).norm() / total.norm()) < 1e-9
    assert float(found.loss) == pytest.approx(losses, rel=1e-12)


class Plain(BaseModel):
    """A head alone."""

    def features(self, x: Tensor, reference: int | None) -> Tensor:
        return x


def lines(*slopes: float, **settings: Any) -> tuple[Fusion, Meta]:
    """Experts that say a slope times x, whatever the support set says."""
    config = FusionConfig(experts=["run"] * len(slopes), **settings)
    network = Network(Plain("none", 1, 1), "xavier", "mse")
    parts = [TrainedPart(name, Maml(MamlConfig(eval_steps=0), network)) for name in config.runs]
    frozen = {}
    for part, slope in zip(parts, slopes, strict=True):
        values = {"head.weight": torch.tensor([[slope]], dtype=F64), "head.bias": torch.zeros(1, dtype=F64)}
        frozen |= {part.prefix + name: value for name, value in values.items()}
    return Fusion(config, parts), Meta({"logits": torch.zeros(len(slopes), dtype=F64)}, {}, frozen)


def points(slope: float, count: int = 4) -> Examples:
    x = torch.arange(1.0, count + 1, dtype=F64)[:, None]
    return Examples(x, slope * x, 0)


def test_the_weights_come_to_the_minimum() -> None:
    """Errors 1 and 3 times x, so L differ by log 3; without agreement w is softmax(−L/β)."""
    learner, meta = lines(1.0, 5.0, uniform=0.5, inner_lr=1.0, eval_steps=60)
    weights = learner.adapt(meta, points(2.0)).logits.softmax(0)
    odds = 3.0 ** (1 / 0.5)
    assert weights.tolist() == pytest.approx([odds / (1 + odds), 1 / (1 + odds)], rel=1e-5)
    assert {name: float(value) for name, value in learner.figures(learner.adapt(meta, points(2.0))).items()} == {
        "weights.0": pytest.approx(float(weights[0])),
        "weights.1": pytest.approx(float(weights[1])),
    }


def test_agreement_outvotes() -> None:
    """Of three experts that are equally wrong two agree."""
    alone, meta = lines(1.0, 3.0, 3.0, agreement=0.0)
    assert alone.adapt(meta, points(2.0)).logits.softmax(0).tolist() == pytest.approx([1 / 3] * 3)
    learner, meta = lines(1.0, 3.0, 3.0, agreement=0.5)
    weights = learner.adapt(meta, points(2.0)).logits.softmax(0)
    assert weights[0] < 0.3 < weights[1]


def test_outputs_are_the_weighted_sum_and_the_average_is_beside() -> None:
    learner, meta = lines(1.0, 4.0, eval_steps=0)
    meta = meta._replace(parameters={"logits": torch.tensor([math.log(3.0), 0.0], dtype=F64)})
    x = torch.tensor([[2.0]], dtype=F64)
    assert float(learner.predict(learner.adapt(meta, points(2.0)), x)) == pytest.approx(0.75 * 2 + 0.25 * 8)
    beside = learner.beside()
    assert list(beside) == ["experts.0", "experts.1", "average"]
    outputs = [float(one.predict(one.adapt(meta, points(2.0)), x)) for one in beside.values()]
    assert outputs == pytest.approx([2.0, 8.0, 5.0])


@pytest.mark.parametrize("slope", [math.nan, math.inf, 1e30])
def test_an_expert_that_diverges_does_not_take_the_mixture_with_it(slope: float) -> None:
    learner, meta = lines(2.1, slope, eval_steps=10)
    adapted = learner.adapt(meta, points(2.0))
    assert adapted.logits.softmax(0)[0] > 0.999
    assert float(learner.predict(adapted, torch.ones(1, 1, dtype=F64))) == pytest.approx(2.1, rel=1e-3)


@pytest.mark.parametrize("loss", ["cross_entropy", "binary_cross_entropy"])
def test_what_is_far_from_zero_may_be_right(loss: Any) -> None:
    """As a distance of thousands is; a row that is no number says nothing."""
    config = FusionConfig(experts=["run"] * 2, uniform=0.01)
    network = Network(Plain("none", 1, 2), "xavier", loss)
    learner = Fusion(config, [TrainedPart(name, Maml(MamlConfig(eval_steps=0), network)) for name in config.runs])
    meta = Meta({"logits": torch.zeros(2, dtype=F64)}, {}, {})
    for number, slope in enumerate((1.0, math.nan)):
        weight = torch.tensor([[-3e4], [3e4]], dtype=F64) * slope
        values = {"weight": weight, "bias": torch.full((2,), -1.0, dtype=F64)}
        meta.frozen.update({f"experts.{number}.head.{name}": value for name, value in values.items()})
    x = torch.tensor([[-1.0], [1.0]], dtype=F64)
    support = Examples(x.repeat(3, 1), torch.tensor([0, 1]).repeat(3), 2)
    adapted = learner.adapt(meta, support)
    assert adapted.logits.softmax(0)[0] > 0.95
    outputs = learner.predict(adapted, x)
    assert outputs.isfinite().all()
    assert outputs.argmax(1).tolist() == [0, 1]


def test_one_example_leaves_the_weights_that_were_learned() -> None:
    learner, meta = lines(1.0, 4.0, eval_steps=3)
    states = list(learner.adaptation(meta, points(2.0, 1), 3))
    assert len(states) == 4
    assert all(torch.equal(state.logits, meta.parameters["logits"]) for state in states)


def test_classes_that_are_judged_one_by_one() -> None:
    """Probabilities of each class are mixed: 1/2 and 3/4 with equal weights are 5/8."""
    config = FusionConfig(experts=["run"] * 2)
    network = Network(Plain("none", 1, 2), "xavier", "binary_cross_entropy")
    learner = Fusion(config, [TrainedPart(name, Maml(MamlConfig(eval_steps=0), network)) for name in config.runs])
    meta = Meta({"logits": torch.zeros(2)}, {}, {})
    for number, odds in enumerate((1.0, 3.0)):
        bias = torch.full((2,), math.log(odds))
        meta.frozen.update({f"experts.{number}.head.weight": torch.zeros(2, 1), f"experts.{number}.head.bias": bias})
    support = Examples(torch.ones(2, 1), torch.tensor([0, 1]), 2)
    outputs = learner.predict(learner.adapt(meta, support, 0), torch.ones(1, 1))
    assert outputs.sigmoid().flatten().tolist() == pytest.approx([5 / 8, 5 / 8])
