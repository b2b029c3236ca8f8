"""The check of the execution strategy before the first step."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from metadist.errors import UserError
from metadist.learners import Maml, MamlConfig, Network
from metadist.models import BaseModel, Conv4, Conv4Config, Mlp, MlpConfig
from metadist.outer import capture, check_strategy, choose_strategy, compute_meta_gradient
from metadist.outer.strategy import relative_difference
from metadist.tasks import Task
from tests.numerics.conftest import in_float32

CPU = torch.device("cpu")


class TanhWrongUnderVmap(torch.autograd.Function):
    """tanh, but a little larger under vmap."""

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return x.tanh()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
        ctx.save_for_backward(inputs[0])

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient / ctx.saved_tensors[0].cosh() ** 2

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int], x: Tensor) -> tuple[Tensor, int]:
        return TanhWrongUnderVmap.apply(x) * (1 + 1e-5), in_dims[0]


class Foreign(BaseModel):
    """A model of a user's own: `inner` between two layers."""

    def __init__(self, inner: Callable[[], nn.Module]) -> None:
        super().__init__("batch", 4, 3)
        self.conv = nn.Conv2d(1, 4, 3, 2, 1)
        self.inner = inner()

    def features(self, x: Tensor, reference: int | None) -> Tensor:
        return self.inner(self.conv(x)).tanh().mean((2, 3))


class WrongRule(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return TanhWrongUnderVmap.apply(x)


class Branch(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * 2 if x.mean() > 0 else x


class InPlace(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.zeros(x.shape, dtype=x.dtype).add_(x)


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.cell = nn.LSTM(16, 16, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.cell(x.flatten(2))[0].unflatten(2, x.shape[2:])


class Shifted(nn.Module):
    """Adds a buffer, as a positional encoding does."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("shift", torch.linspace(0, 1, 4))

    def forward(self, x: Tensor) -> Tensor:
        return torch.nn.functional.linear(x, torch.diag(1 + self.shift))


def check(setting: Callable, inner: Callable[[], nn.Module], steps: int = 1) -> Any:
    _, _, batch = setting("maml-1", "conv", "batch")
    learner = Maml(MamlConfig(inner_steps=steps), Network(Foreign(inner), "kaiming", "cross_entropy"))
    meta = learner.init(torch.Generator().manual_seed(0))
    return check_strategy(learner, meta, batch, "vectorized", "the rule")


@pytest.mark.parametrize("steps", [1, 3])
@pytest.mark.parametrize(
    "inner",
    [
        lambda: nn.BatchNorm2d(4, track_running_stats=False),
        lambda: nn.InstanceNorm2d(4, affine=True),
        WrongRule,
    ],
    ids=["batch-norm", "instance-norm", "custom-rule"],
)
def test_finds_a_derivative_that_is_silently_wrong(setting: Callable, inner: Callable, steps: int) -> None:
    found = check(setting, inner, steps)
    assert found.difference > 1e-7
    assert (found.strategy, found.rule) == ("loop", "vectorized")
    assert "differs from the plain loop" in found.reason


@pytest.mark.parametrize("inner", [Branch, InPlace, Recurrent])
def test_finds_a_model_that_fails_when_vectorised(setting: Callable, inner: Callable) -> None:
    found = check(setting, inner)
    assert math.isnan(found.difference)
    assert (found.strategy, found.rule) == ("loop", "vectorized")
    assert "fails" in found.reason


@pytest.mark.parametrize("inner", [nn.Tanh, lambda: nn.GroupNorm(2, 4), Shifted], ids=["tanh", "group-norm", "buffer"])
def test_accepts_foreign_models_that_are_right(setting: Callable, inner: Callable) -> None:
    found = check(setting, inner)
    assert (found.strategy, found.rule, found.reason) == ("vectorized", "vectorized", "the rule")
    assert found.difference < 1e-12


@pytest.mark.parametrize("norm", ["batch", "support", "layer", "none"])
@pytest.mark.parametrize(
    "name",
    [
        "maml-3",
        "maml-3-remat",
        "boil-2-remat",
        "fomaml-3",
        "reptile-adam-batches",
        "protonet",
        "anil-3",
        "foboil-2",
        "metasgd-2",
        "metalstm-3",
        "matching-scaled",
        "relation",
        "metasgd-2-film",
        "anil-2-gates",
        "distill-maml-2",
        "distill-maml-remat",
        "distill-mamlpp",
        "distill-protonet",
        "fusion-agreement",
        "incontext",
        "mann",
        "hypernetwork-depth-2",
        "hybrid-2",
        "fohybrid-2",
        "task-relation-0",
        "task-relation-2",
    ],
)
@pytest.mark.parametrize("pool", [False, True])
def test_accepts_our_own(setting: Callable, name: str, norm: str, pool: bool) -> None:
    learner, meta, batch = setting(name, "conv", norm, pool)
    found = check_strategy(learner, meta, batch, "vectorized", "the rule")
    assert (found.strategy, found.reason) == ("vectorized", "the rule")
    assert found.difference < 1e-11


@pytest.mark.parametrize(
    ("name", "norm", "pool"),
    [
        ("maml-1", "batch", False),
        ("maml-3", "batch", True),
        ("maml-1", "support", False),
        ("maml-1", "layer", True),
        ("maml-3-remat", "batch", True),
        ("maml-3-remat", "layer", False),
        ("boil-2-remat", "support", False),
        ("foboil-2", "batch", False),
        ("reptile-sgd-batches", "batch", False),
        ("metalstm-3", "batch", True),
        ("protonet", "batch", True),
        ("distill-maml-2", "batch", False),
        ("distill-mamlpp", "support", True),
        ("distill-protonet", "batch", False),
        ("fusion-3", "batch", False),
        ("incontext", "batch", True),
        ("mann", "batch", True),
        ("hypernetwork-depth-2", "batch", True),
        ("hybrid-2", "batch", True),
        ("fohybrid-2", "support", False),
        ("task-relation-0", "batch", True),
        ("task-relation-2", "layer", True),
    ],
)
def test_what_is_captured_is_the_same(setting: Callable, name: str, norm: str, pool: bool) -> None:
    learner, meta, batch = setting(name, "conv", norm, pool)
    found = check_strategy(learner, meta, batch, "captured", "the rule")
    assert (found.strategy, found.reason) == ("captured", "the rule")
    assert found.difference < 1e-11


@pytest.mark.parametrize("loss", ["conv", "mlp"])
def test_what_is_captured_holds_for_other_values_and_precisions(setting: Callable, loss: str) -> None:
    learner, meta, batch = setting("maml-1", loss, "batch")
    meta32, batch32 = in_float32(meta, batch)
    assert compute_meta_gradient(learner, meta32, batch32, "captured").gradient["head.bias"].dtype == torch.float32
    backwards = sorted(meta.parameters, reverse=True)  # a checkpoint may have another order
    moved = meta._replace(parameters={name: meta.parameters[name] * 1.25 for name in backwards})
    other = Task(*(part._replace(x=part.x.flip(0), y=part.y.flip(0)) for part in batch))
    captured, loop = (compute_meta_gradient(learner, moved, other, way) for way in ("captured", "loop"))
    assert relative_difference(loop, captured) < 1e-12
    assert float(captured.loss) == pytest.approx(float(loop.loss), rel=1e-12)
    assert captured.correct == loop.correct
    assert list(captured.gradient) == backwards


@pytest.mark.parametrize(
    ("inner", "strategy", "words"),
    [
        (Branch, "loop", "task by task: vectorised it fails"),
        (lambda: nn.BatchNorm2d(4, track_running_stats=False), "loop", "task by task: vectorised it differs"),
        (Shifted, "captured", "the rule"),
    ],
    ids=["branch", "batch-norm", "buffer"],
)
def test_what_cannot_be_captured_falls_back_and_buffers_can(
    setting: Callable, inner: Callable, strategy: str, words: str
) -> None:
    _, _, batch = setting("maml-1", "conv", "batch")
    learner = Maml(MamlConfig(), Network(Foreign(inner), "kaiming", "cross_entropy"))
    meta = learner.init(torch.Generator().manual_seed(0))
    batch = Task(*(part._replace(x=part.x.float()) for part in batch))
    found = check_strategy(learner, meta, batch, "captured", "the rule")
    assert (found.strategy, found.rule) == (strategy, "captured")
    assert found.reason.startswith(words)


def test_a_chunk_is_cut_into_equal_pieces_that_fit_the_caches(
    setting: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    learner, meta, batch = setting("maml-1", "conv", "batch")
    batch = Task(*(part._replace(x=part.x.repeat(2, 1, 1, 1, 1), y=part.y.repeat(2, 1)) for part in batch))
    whole = compute_meta_gradient(learner, meta, batch, "captured")
    each = 9 * learner.network.module.activations  # the query's rows
    for room, sizes in ((6 * each, [6]), (5 * each, [3, 3]), (each - 1, [1] * 6)):
        monkeypatch.setattr(capture, "PIECE", room)
        assert [piece.query.y.shape[0] for piece in capture.pieces(learner, batch)] == sizes
    again, _, _ = setting("maml-3-remat", "conv", "batch")
    monkeypatch.setattr(capture, "PIECE", 6 * each)
    assert [piece.query.y.shape[0] for piece in capture.pieces(again, batch)] == [3, 3]  # memory for half as many
    monkeypatch.setattr(capture, "PIECE", 3 * each)
    parts = compute_meta_gradient(learner, meta, batch, "captured")
    assert relative_difference(whole, parts) < 1e-12
    assert float(parts.loss) == pytest.approx(float(whole.loss), rel=1e-12)
    assert (parts.correct, parts.rows) == (whole.correct, whole.rows)


class Dropout(nn.Module):
    """Another mask in every forward pass."""

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.rand(x.shape, dtype=x.dtype).round()


@pytest.mark.parametrize("rule", ["loop", "vectorized"])
def test_finds_steps_that_are_not_the_same_when_taken_again(setting: Callable, rule: str) -> None:
    _, _, batch = setting("maml-1", "conv", "batch")
    learner = Maml(MamlConfig(inner_steps=3, remat=True), Network(Foreign(Dropout), "kaiming", "cross_entropy"))
    meta = learner.init(torch.Generator().manual_seed(0))
    with pytest.raises(UserError, match=r"^learner\.remat: got True"):
        check_strategy(learner, meta, batch, rule, "the rule")


def test_the_loop_is_checked_where_it_takes_steps_again(setting: Callable) -> None:
    learner, meta, batch = setting("maml-3-remat", "conv", "batch")
    found = check_strategy(learner, meta, batch, "loop", "the rule")
    assert (found.strategy, found.rule, found.reason) == ("loop", "loop", "the rule")
    assert learner.remat


def test_the_loop_needs_no_check(setting: Callable) -> None:
    learner, meta, batch = setting("maml-1", "conv", "batch")
    found = check_strategy(learner, meta, batch, "loop", "the rule")
    assert (found.strategy, found.rule, found.difference, found.reason) == ("loop", "loop", 0.0, "the rule")


def test_a_gradient_that_is_not_finite_is_no_agreement(setting: Callable) -> None:
    learner, meta, batch = setting("maml-1", "conv", "batch")
    meta.parameters["head.bias"][:] = math.nan
    assert check_strategy(learner, meta, batch, "vectorized", "the rule").strategy == "loop"


@pytest.mark.parametrize(
    ("module", "device", "strategy"),
    [
        (Mlp(MlpConfig(), (1,), 1), "cpu", "captured"),
        (Conv4(Conv4Config(width=4, layers=2, pool=False), (1, 8, 8), 3), "cpu", "captured"),
        (Conv4(Conv4Config(width=4, layers=2), (1, 8, 8), 3), "cpu", "captured"),
        (Conv4(Conv4Config(width=64), (1, 28, 28), 3), "cpu", "captured"),
        (Conv4(Conv4Config(width=64), (1, 28, 28), 3), "cuda", "vectorized"),
    ],
)
def test_the_rule_is_of_model_and_device(module: BaseModel, device: str, strategy: str) -> None:
    learner = Maml(MamlConfig(), Network(module, "xavier", "mse"))
    chosen, reason = choose_strategy(learner, torch.device(device))
    assert chosen == strategy
    assert reason


def test_what_does_not_pay_is_not_captured() -> None:
    small, large = Mlp(MlpConfig(), (1,), 1), Conv4(Conv4Config(width=64), (1, 28, 28), 3)
    for module, strategy in ((small, "vectorized"), (large, "loop")):
        assert choose_strategy(Maml(MamlConfig(inner_steps=17), Network(module, "xavier", "mse")), CPU)[0] == strategy
