"""MAML++'s schedules and statistics by hand."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from metadist.errors import UserError
from metadist.learners import MamlPlusPlus, MamlPlusPlusConfig, Meta, Network
from metadist.models import Conv4, Conv4Config, Mlp, MlpConfig
from metadist.outer import capture, choose_strategy, compute_meta_gradient
from metadist.outer.strategy import relative_difference
from metadist.tasks import Examples, Task, take

torch.set_num_threads(1)
F64 = torch.float64


def make(norm: str = "batch", **settings: Any) -> tuple[MamlPlusPlus, Meta]:
    """A net of one hidden layer with scales and step sizes that differ from step to step."""
    model = Mlp(MlpConfig(hidden=[4], activation="tanh", norm=norm), (3,), 2)
    learner = MamlPlusPlus(MamlPlusPlusConfig(**settings), Network(model, "xavier", "cross_entropy"))
    generator = torch.Generator().manual_seed(0)
    start = learner.init(generator)
    moved = {
        name: value.double() + 0.2 * torch.randn(value.shape, generator=generator, dtype=F64)
        for name, value in start.parameters.items()
    }
    return learner, Meta(moved, {name: value.double() for name, value in start.statistics.items()}, {})


@pytest.fixture
def batch() -> Task:
    """Three tasks of 4 support and 6 query rows."""
    generator = torch.Generator().manual_seed(1)

    def part(rows: int) -> Examples:
        x = torch.randn(3, rows, 3, generator=generator, dtype=F64)
        return Examples(x, torch.arange(2).repeat(rows // 2).expand(3, rows).clone(), 2)

    return Task(part(4), part(6))


@pytest.mark.parametrize(
    ("step", "expected"),
    [
        (0, (0.25, 0.25, 0.25, 0.25)),
        (9, (0.25, 0.25, 0.25, 0.25)),
        (10, (0.2, 0.2, 0.2, 0.4)),
        (39, (0.1, 0.1, 0.1, 0.7)),
        (40, (0.05, 0.05, 0.05, 0.85)),
        (50, (0.0, 0.0, 0.0, 1.0)),
    ],
)
def test_the_weights_of_the_losses_move_to_the_last_step(step: int, expected: tuple[float, ...]) -> None:
    config = MamlPlusPlusConfig(inner_steps=4, multi_step_loss_steps=50, multi_step_loss_stages=5)
    assert config.loss_weights(step) == pytest.approx(expected, rel=1e-14)


def test_no_loss_loses_all_its_weight_before_the_end() -> None:
    """With 100 stages, the last one would leave 0.01 of it; 0.03 is the least."""
    config = MamlPlusPlusConfig(inner_steps=2, multi_step_loss_steps=100, multi_step_loss_stages=100)
    assert config.loss_weights(99) == pytest.approx((0.015, 0.985), rel=1e-14)
    assert config.loss_weights(97) == pytest.approx((0.015, 0.985), rel=1e-12)
    assert config.loss_weights(96) == pytest.approx((0.02, 0.98), rel=1e-14)


def test_the_learner_changes_with_its_stages_only() -> None:
    learner, _ = make(inner_steps=2, multi_step_loss_steps=6, multi_step_loss_stages=3, first_order_until=4)
    assert learner.at(1) is learner
    found = [(stage.loss_weights[1], stage.first_order) for stage in map(learner.at, range(8))]
    weights = [0.5] * 2 + [2 / 3] * 2 + [5 / 6] * 2 + [1.0] * 2
    assert [weight for weight, _ in found] == pytest.approx(weights)
    assert [first for _, first in found] == [True] * 4 + [False] * 4
    plain, _ = make()
    assert plain.at(10**6) is plain


@pytest.mark.parametrize("strategy", ["loop", "vectorized"])
def test_the_meta_gradient_of_a_stage_is_the_weighted_sum(batch: Task, strategy: str) -> None:
    """The gradient is linear in the weights of the losses: 5/6 of that of the start and 1/6 of that of the end."""
    learner, meta = make(inner_steps=2, multi_step_loss_steps=6, multi_step_loss_stages=6)
    start, middle, end = (compute_meta_gradient(learner.at(step), meta, batch, strategy) for step in (0, 1, 6))
    assert float(middle.loss) == pytest.approx(5 / 6 * float(start.loss) + 1 / 6 * float(end.loss), rel=1e-12)
    for name, value in middle.gradient.items():
        assert torch.allclose(value, 5 / 6 * start.gradient[name] + 1 / 6 * end.gradient[name], rtol=1e-9, atol=1e-14)


def test_steps_beyond_the_learned_ones_take_the_last_ones_sizes_and_scales(batch: Task) -> None:
    learner, meta = make(inner_steps=2, eval_steps=3)
    support = take(batch, 0).support
    *_, second, third = learner.adaptation(meta, support, 3)
    scales = {name: meta.parameters[name][1] for name in ("norms.0.weight", "norms.0.bias")}
    assert all(torch.equal(third.parameters[name], value) for name, value in scales.items())
    adapting = {n: v.requires_grad_() for n, v in second.parameters.items() if n not in scales}
    loss = learner.network.cost(learner.network.support(adapting | scales, support), support.y)
    for name, slope in zip(adapting, torch.autograd.grad(loss, list(adapting.values())), strict=True):
        size = meta.parameters[f"step_sizes.{name}"][1]
        assert torch.allclose(third.parameters[name], adapting[name] - size * slope, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("strategy", ["loop", "vectorized"])
@pytest.mark.parametrize("multi_step_loss_steps", [0, 5])
def test_statistics_are_those_of_the_query_set_after_every_step(
    batch: Task, strategy: str, multi_step_loss_steps: int
) -> None:
    learner, meta = make(inner_steps=3, step_statistics="running", multi_step_loss_steps=multi_step_loss_steps)
    meta = meta._replace(statistics={name: value + 7 for name, value in meta.statistics.items()})  # of no effect here
    found = compute_meta_gradient(learner, meta, batch, strategy)
    means, variances = torch.zeros(3, 4, dtype=F64), torch.zeros(3, 4, dtype=F64)
    for index in range(3):
        support, query = take(batch, index)
        states = list(learner.adaptation(meta, support, 3))[1:]
        for step, state in enumerate(states):
            values = query.x @ state.parameters["layers.0.weight"].T
            means[step] += values.mean(0)
            variances[step] += ((values - values.mean(0)) ** 2).mean(0)
    assert found.statistics.keys() == {"norms.0.running_mean", "norms.0.running_variance"} == meta.statistics.keys()
    assert torch.allclose(found.statistics["norms.0.running_mean"], means, rtol=1e-10)
    assert torch.allclose(found.statistics["norms.0.running_variance"], variances, rtol=1e-10)
    assert not any(value.requires_grad for value in found.statistics.values())
    batchwise, _ = make(inner_steps=3, multi_step_loss_steps=multi_step_loss_steps)
    same = compute_meta_gradient(batchwise, meta._replace(statistics={}), batch, strategy)
    assert all(torch.allclose(found.gradient[name], value, atol=1e-15) for name, value in same.gradient.items())


def test_running_statistics_judge_each_query_alone(batch: Task) -> None:
    learner, meta = make(inner_steps=2, step_statistics="running")
    mean, variance = torch.tensor([[0.1] * 4, [-0.3] * 4], dtype=F64), torch.tensor([[2.0] * 4, [0.5] * 4], dtype=F64)
    meta = meta._replace(statistics={"norms.0.running_mean": mean, "norms.0.running_variance": variance})
    support, query = take(batch, 0)
    for step, adapted in enumerate(learner.adaptation(meta, support, 3)):
        row = (0, 0, 1, 1)[step]  # before any step, those of the first
        w = adapted.parameters
        values = (query.x @ w["layers.0.weight"].T - mean[row]) / (variance[row] + 1e-5).sqrt()
        values = values * meta.parameters["norms.0.weight"][row] + meta.parameters["norms.0.bias"][row]
        expected = values.tanh() @ w["head.weight"].T + w["head.bias"]
        together, alone = learner.predict(adapted, query.x), learner.predict(adapted, query.x[:1])
        assert torch.allclose(together, expected, rtol=1e-10)
        assert torch.allclose(alone, together[:1], rtol=1e-12)


def test_a_first_convolutions_statistics_are_by_channel() -> None:
    """Over rows and positions; the support set adapts with its own, whatever runs."""
    model = Conv4(Conv4Config(width=3, layers=1, pool=False), (1, 4, 4), 2)
    learner = MamlPlusPlus(
        MamlPlusPlusConfig(inner_steps=1, step_statistics="running"), Network(model, "xavier", "cross_entropy")
    )
    meta = learner.init(torch.Generator().manual_seed(0))
    assert {name: tuple(value.shape) for name, value in meta.statistics.items()} == {
        "norms.0.running_mean": (1, 3),
        "norms.0.running_variance": (1, 3),
    }
    x = torch.rand(4, 1, 4, 4, generator=torch.Generator().manual_seed(1))
    support = Examples(x, torch.tensor([0, 1, 0, 1]), 2)
    outcome = learner.task_loss(meta, Task(support, support))
    adapted = learner.adapt(meta, support, 1)
    values = torch.conv2d(x, adapted.parameters["convs.0.weight"], stride=2, padding=1)
    assert torch.allclose(outcome.statistics["norms.0.running_mean"][0], values.mean((0, 2, 3)), atol=1e-6)
    other = learner.adapt(meta._replace(statistics={n: v + 1 for n, v in meta.statistics.items()}), support, 1)
    assert torch.equal(other.parameters["convs.0.weight"], adapted.parameters["convs.0.weight"])


@pytest.mark.parametrize("norm", ["support", "layer", "none"])
def test_running_statistics_need_a_model_that_normalises_by_batch(norm: str) -> None:
    with pytest.raises(UserError, match=f"learner.step_statistics: got 'running'.*model.norm is {norm}"):
        make(norm, step_statistics="running")


@pytest.mark.parametrize(
    ("settings", "field"),
    [
        ({"inner_lr": 0.0}, "inner_lr"),
        ({"inner_steps": 0}, "inner_steps"),
        ({"eval_steps": -1}, "eval_steps"),
        ({"multi_step_loss_steps": -1}, "multi_step_loss_steps"),
        ({"multi_step_loss_stages": 0}, "multi_step_loss_stages"),
        ({"first_order_until": -1}, "first_order_until"),
    ],
)
def test_impossible_settings_are_refused(settings: dict[str, Any], field: str) -> None:
    with pytest.raises(UserError, match=f"^{field}: got"):
        MamlPlusPlusConfig(**settings)


def test_each_stage_is_captured_once(batch: Task, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = {"inner_steps": 2, "multi_step_loss_steps": 8, "multi_step_loss_stages": 4, "first_order_until": 3}
    learner, meta = make(**settings)
    assert choose_strategy(learner, torch.device("cpu"))[0] == "captured"
    programs = []
    plain = capture._capture
    monkeypatch.setattr(capture, "_capture", lambda *given: programs.append(given) or plain(*given))
    for _ in range(2):
        for step in range(10):
            stage = learner.at(step)
            loop, captured = (compute_meta_gradient(stage, meta, batch, way) for way in ("loop", "captured"))
            assert relative_difference(loop, captured) < 1e-12
    # Losses change at 2, 4, 6 and 8, the order of the derivatives at 3.
    assert len({learner.at(step) for step in range(10)}) == len(programs) == 6


def test_many_stages_are_not_captured() -> None:
    learner, _ = make(multi_step_loss_steps=50, multi_step_loss_stages=50)
    assert choose_strategy(learner, torch.device("cpu"))[0] == "vectorized"
