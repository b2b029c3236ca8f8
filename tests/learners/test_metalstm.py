"""The LSTM meta-learner: a step by hand, where it begins, and what its derivative takes for a constant."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from metadist.errors import UserError
from metadist.learners import MetaLstm, MetaLstmConfig, Network, metalstm, plain_meta
from metadist.learners.metalstm import preprocessed
from metadist.models import Mlp, MlpConfig
from metadist.outer import compute_meta_gradient
from metadist.tasks import Examples, Task
from tests.learners.conftest import Slope

torch.set_num_threads(1)
F64 = torch.float64


def values(*numbers: float) -> Tensor:
    return torch.tensor(numbers, dtype=F64)


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def test_values_are_seen_as_logarithm_and_sign() -> None:
    found = preprocessed(values(1.0, -math.e, math.exp(-9), -math.exp(-10), math.exp(-11), 0.0))
    expected = [[0.0, 1.0], [0.1, -1.0], [-0.9, 1.0], [-1.0, -1.0], [-1.0, math.exp(-1)], [-1.0, 0.0]]
    assert torch.allclose(found, torch.tensor(expected, dtype=F64), rtol=0, atol=1e-14)


def test_two_steps_by_hand() -> None:
    """L(w) = mean (w x − y)² = 2.5 w² − 8 w + 6.5 of two points; an LSTM of one unit whose weights are 0.1, 0.2, …"""
    learner = MetaLstm(MetaLstmConfig(hidden=1), Network(Slope(), "xavier", "mse"))
    own = {
        "lstm.weight": values(*(0.1 * n for n in range(1, 21))).reshape(4, 5),
        "lstm.bias": values(0.3, -0.2, 0.1, 0.4),
        "keep.weight": values(0.5, 0.6, 0.7),
        "keep.bias": values(2.0),
        "rate.weight": values(-0.5, -0.4, 0.3),
        "rate.bias": values(-1.0),
    }
    meta = plain_meta({"w": values(0.5)[None]} | {f"optimizer.{name}": value for name, value in own.items()})
    support = Examples(values(1.0, 2.0)[:, None], values(2.0, 3.0)[:, None], 0)
    found = [float(adapted.parameters["w"]) for adapted in learner.adaptation(meta, support, 2)]

    w, output, memory, keep, rate = 0.5, 0.0, 0.0, 0.0, 0.0
    expected = [w]
    for _ in range(2):
        slope, loss = 5 * w - 8, 2.5 * w * w - 8 * w + 6.5
        seen = [math.log(abs(slope)) / 10, math.copysign(1, slope), math.log(loss) / 10, 1.0, output]
        totals = [
            sum(0.1 * (5 * row + n + 1) * value for n, value in enumerate(seen)) + bias
            for row, bias in enumerate((0.3, -0.2, 0.1, 0.4))
        ]
        memory = sigmoid(totals[1]) * memory + sigmoid(totals[0]) * math.tanh(totals[2])
        output = sigmoid(totals[3]) * math.tanh(memory)
        keep = sigmoid(0.5 * output + 0.6 * w + 0.7 * keep + 2.0)
        rate = sigmoid(-0.5 * output - 0.4 * w + 0.3 * rate - 1.0)
        w = keep * w - rate * slope
        expected.append(w)
    assert found == pytest.approx(expected, rel=1e-13)


@pytest.fixture
def support() -> Examples:
    generator = torch.Generator().manual_seed(3)
    return Examples(torch.randn(6, 4, generator=generator, dtype=F64), torch.tensor([0, 1, 2, 0, 1, 2]), 3)


def make(layers: list[int], **settings: Any) -> MetaLstm:
    model = Mlp(MlpConfig(hidden=layers, activation="tanh"), (4,), 3)
    return MetaLstm(MetaLstmConfig(**settings), Network(model, "xavier", "cross_entropy"))


def test_begins_as_gradient_descent(support: Examples) -> None:
    learner = make([5], inner_lr=0.2, keep=0.99)
    meta = learner.init(torch.Generator().manual_seed(0))
    meta = plain_meta({name: value.double() for name, value in meta.parameters.items()})
    *_, adapted = learner.adaptation(meta, support, 3)
    w = {name: value for name, value in meta.parameters.items() if not name.startswith("optimizer.")}
    for _ in range(3):
        w = {name: value.detach().requires_grad_() for name, value in w.items()}
        slopes = torch.autograd.grad(learner.network.cost(learner.network.support(w, support), support.y), w.values())
        w = {name: 0.99 * value - 0.2 * slope for (name, value), slope in zip(w.items(), slopes, strict=True)}
    for name, value in w.items():
        assert torch.allclose(adapted.parameters[name], value, rtol=1e-6), name


def test_has_as_many_parameters_for_any_net() -> None:
    def own(layers: list[int]) -> dict[str, torch.Size]:
        drawn = make(layers).init(torch.Generator()).parameters
        return {name: value.shape for name, value in drawn.items() if name.startswith("optimizer.")}

    assert own([5]) == own([30, 20])


def test_what_the_inner_loop_measures_is_a_constant(support: Examples, monkeypatch: pytest.MonkeyPatch) -> None:
    """Central differences of the query loss, with the gradients and losses that there were at the middle."""
    learner = make([5], hidden=3, inner_steps=3)
    generator = torch.Generator().manual_seed(1)
    drawn = learner.init(generator).parameters.items()
    start = {n: v.double() + 0.2 * torch.randn(v.shape, generator=generator, dtype=F64) for n, v in drawn}
    task = Task(support, support._replace(x=support.x.flip(0)))
    batch = Task(*(part._replace(x=part.x[None], y=part.y[None]) for part in task))
    gradient = compute_meta_gradient(learner, plain_meta(start), batch, "loop").gradient

    measured: list[Any] = []
    measure = metalstm.inner_gradient_and_loss

    def record(*given: Any) -> Any:
        measured.append(measure(*given))
        return measured[-1]

    monkeypatch.setattr(metalstm, "inner_gradient_and_loss", record)
    learner.task_loss(plain_meta(start), task)
    assert len(measured) == 3
    way = {n: torch.randn(v.shape, generator=generator, dtype=F64) for n, v in start.items()}
    ends = []
    for sign in (1, -1):
        again = iter(measured)
        monkeypatch.setattr(metalstm, "inner_gradient_and_loss", lambda *_, again=again: next(again))
        moved = plain_meta({name: value + sign * 1e-5 * way[name] for name, value in start.items()})
        ends.append(float(learner.task_loss(moved, task).loss))
    slope = sum(float((gradient[name] * way[name]).sum()) for name in way)
    assert (ends[0] - ends[1]) / 2e-5 == pytest.approx(slope, rel=1e-7)
    assert all(bool(value.any()) for name, value in gradient.items())


@pytest.mark.parametrize("settings", [{"keep": 1.0}, {"keep": 0.99999999}, {"inner_lr": 0.0}, {"inner_lr": 1e-300}])
def test_a_gate_that_could_not_move_is_refused(settings: dict[str, float]) -> None:
    (name,) = settings
    with pytest.raises(UserError, match=f"^{name}: got .*, expected a number from 1e-06 to 0.999999"):
        MetaLstmConfig(**settings)
    begun = make([5], **{name: 1e-6}).init(torch.Generator()).parameters
    assert begun[f"optimizer.{'keep' if name == 'keep' else 'rate'}.bias"].isfinite().all()
