"""Binary cross-entropy: one output a class, each judged by itself."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from metadist.config import build_experiment, parse_job
from metadist.errors import UserError
from metadist.learners import Network
from metadist.models import Mlp, MlpConfig
from metadist.outer import Published, check_strategy
from metadist.tasks import take
from metadist.training.work import EvaluationWork, Worker, _row_losses

LINEAR: dict[str, Any] = {"tasks": {"kind": "linear", "loss": "binary_cross_entropy"}, "model": {"kind": "mlp"}}


def test_by_hand() -> None:
    """σ(0) = 1/2 and σ(ln 3) = 3/4, for rows of the second and of the first class."""
    outputs = torch.tensor([[0.0, math.log(3)], [0.0, math.log(3)]], dtype=torch.float64)
    y = torch.tensor([1, 0])
    rows = [(math.log(2) + math.log(4 / 3)) / 2, (math.log(2) + math.log(4)) / 2]
    network = Network(Mlp(MlpConfig(), (2,), 2), "default", "binary_cross_entropy")
    assert float(network.cost(outputs, y)) == pytest.approx(sum(rows) / 2, rel=1e-12)
    each = _row_losses(outputs.float()[None, None], y[None], "binary_cross_entropy")
    assert each.dtype == torch.float64
    assert each.flatten().tolist() == pytest.approx(rows, rel=1e-6)


def test_a_class_is_judged_without_the_others() -> None:
    """Another class's output does not change its gradient, as it does in cross-entropy."""
    network = Network(Mlp(MlpConfig(), (2,), 3), "default", "binary_cross_entropy")
    first = []
    for other in (0.0, 5.0):
        outputs = torch.tensor([[0.3, other, -1.0]], requires_grad=True)
        (gradient,) = torch.autograd.grad(network.cost(outputs, torch.tensor([0])), outputs)
        first.append(float(gradient[0, 0]))
    assert first[0] == first[1] == pytest.approx((1 / (1 + math.exp(-0.3)) - 1) / 3, rel=1e-6)


@pytest.mark.parametrize("kind", ["maml", "reptile", "metasgd"])
def test_in_a_job(kind: str) -> None:
    """Vectorised it is exact; the evaluation's figures are of the same loss, and of the largest output."""
    experiment = build_experiment(parse_job(LINEAR | {"learner": {"kind": kind}}), "run")
    cpu, meta = torch.device("cpu"), experiment.initial()
    batch = experiment.distribution.batch("train", 0, range(2), experiment.episode, cpu)
    assert check_strategy(experiment.learner, meta, batch, "vectorized", "the rule").strategy == "vectorized"

    work = EvaluationWork("train", 0, 0, 2, experiment.episode, 0, False, "loop")
    values = {name: value.numpy() for name, value in meta.parameters.items()}
    statistics = {name: value.numpy() for name, value in meta.statistics.items()}
    _, scores = Worker(experiment, cpu).run(work, Published(0, values, statistics))
    for index in range(2):
        task = take(batch, index)
        outputs = experiment.learner.predict(experiment.learner.adapt(meta, task.support, 0), task.query.x)
        loss = float(experiment.learner.network.cost(outputs, task.query.y))
        assert float(scores.losses[index, 0]) == pytest.approx(loss, rel=1e-5)
        assert int(scores.correct[index, 0]) == int((outputs.argmax(1) == task.query.y).sum())


@pytest.mark.parametrize("kind", ["protonet", "matching"])
def test_learners_that_compare_classes_are_refused(kind: str) -> None:
    with pytest.raises(UserError, match=rf"^tasks\.loss: got 'binary_cross_entropy', expected .* {kind}"):
        parse_job(LINEAR | {"learner": {"kind": kind}})
