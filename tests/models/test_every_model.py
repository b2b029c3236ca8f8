"""Every base model that a job can name, small: shapes, statistics, exact derivatives."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch

from metadist.errors import UserError
from metadist.learners import Anil, AnilConfig, Maml, MamlConfig, Meta, Network
from metadist.models import (
    MODELS,
    BaseModel,
    Conv4Config,
    GruConfig,
    LstmConfig,
    MlpConfig,
    MnistNetConfig,
    ModelConfig,
    ResNet12Config,
    SimpleCnnConfig,
    TorchvisionConfig,
    TransformerConfig,
    base_model,
)
from metadist.outer import check_strategy, compute_meta_gradient
from metadist.outer.strategy import relative_difference
from metadist.tasks import Examples, Task, take

F64 = torch.float64
WAYS, TASKS = 3, 2

#: settings of a small net, and the shape of its inputs
SMALL: dict[str, tuple[ModelConfig | TorchvisionConfig, tuple[int, ...]]] = {
    "conv4": (Conv4Config(width=4, layers=2), (1, 8, 8)),
    "mlp": (MlpConfig(hidden=[6, 5]), (4,)),
    "mnist_net": (MnistNetConfig(filters=[3, 4], hidden=5), (2, 8, 7)),
    "simple_cnn": (SimpleCnnConfig(), (1, 16, 17)),
    "resnet12": (ResNet12Config(widths=[3, 4, 5, 6]), (2, 16, 18)),
    "torchvision": (TorchvisionConfig(name="shufflenet_v2_x0_5"), (3, 32, 32)),
    "lstm": (LstmConfig(width=5, layers=2), (1, 4, 6)),
    "gru": (GruConfig(width=5, readout="mean"), (5, 2)),
    "transformer": (TransformerConfig(width=6, heads=2, hidden=5), (5, 2)),
    "transformer-cls": (TransformerConfig(width=4, heads=1, layers=1, positions="sinusoidal", readout="cls"), (6,)),
}
NORMS = ["batch", "support", "layer", "none"]


def test_none_is_left_out() -> None:
    assert {type(config) for config, _ in SMALL.values()} == set(MODELS)


def build(kind: str, outputs: int | None = WAYS, **changes: Any) -> tuple[BaseModel, tuple[int, ...]]:
    config, shape = SMALL[kind]
    return MODELS[type(config)](replace(config, **changes), shape, outputs), shape


def random_tasks(shape: tuple[int, ...]) -> Task:
    generator = torch.Generator().manual_seed(1)

    def part(repeats: int) -> Examples:
        y = torch.arange(WAYS).repeat(repeats).expand(TASKS, repeats * WAYS).clone()
        x = torch.randn((*y.shape, *shape), generator=generator, dtype=F64)
        return Examples(x + y.reshape(*y.shape, *(1,) * len(shape)), y, WAYS)

    return Task(part(2), part(2))


def moved_meta(learner: Maml) -> Meta:
    """Initial weights with every value moved, so that no bias is 0 and no norm's weight is 1."""
    generator = torch.Generator().manual_seed(0)
    start = learner.init(generator)
    moved = {
        name: value.double() + 0.1 * torch.randn(value.shape, generator=generator, dtype=F64)
        for name, value in start.parameters.items()
    }
    return start._replace(parameters=moved)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("kind", SMALL)
def test_features_and_head(kind: str, norm: str) -> None:
    model, shape = build(kind, norm=norm)
    x = torch.randn(4, *shape, generator=torch.Generator().manual_seed(0))
    features = model(x, head=False)
    assert model(x).shape == (4, WAYS)
    assert features.shape == (4, model.head.in_features)
    assert torch.equal(model.head(features), model(x))
    assert build(kind, None, norm=norm)[0](x).shape == features.shape


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("kind", SMALL)
def test_only_reference_rows_make_statistics(kind: str, norm: str) -> None:
    model, shape = build(kind, norm=norm)
    model.double()
    x = torch.randn(6, *shape, generator=torch.Generator().manual_seed(0), dtype=F64)
    other = torch.cat([x[:5], 3 * x[5:] + 1])
    assert torch.allclose(model(x, 4)[:5], model(other, 4)[:5], atol=1e-10)
    moved = not torch.allclose(model(x)[:5], model(other)[:5], atol=1e-6)
    assert moved == (norm in ("batch", "support"))


#: fifty layers normalised over six rows have gradients in which every error of rounding grows by a million
EXACT = [(kind, norm) for kind in SMALL for norm in (["layer"] if kind == "torchvision" else ["support", "none"])]


@pytest.mark.parametrize(("kind", "norm"), EXACT)
def test_the_meta_gradient_is_exact(kind: str, norm: str) -> None:
    """Vectorised it is that of the plain loop, and both are the slope of the outer loss (central differences)."""
    smooth = {"activation": "tanh"} if isinstance(SMALL[kind][0], ModelConfig) else {}  # torchvision's has its own
    model, shape = build(kind, norm=norm, **smooth)
    learner = Maml(MamlConfig(inner_steps=2, inner_lr=0.1), Network(model, "xavier", "cross_entropy"))
    meta, batch = moved_meta(learner), random_tasks(shape)
    model.double()
    loop, vectorized = (compute_meta_gradient(learner, meta, batch, strategy) for strategy in ("loop", "vectorized"))
    assert relative_difference(loop, vectorized) < 1e-9

    generator = torch.Generator().manual_seed(2)
    way = {n: torch.randn(v.shape, generator=generator, dtype=F64) for n, v in meta.parameters.items()}
    length, step = math.sqrt(sum(float(v.square().sum()) for v in way.values())), 1e-6  # no pool's maximum changes

    def outer_loss(sign: int) -> float:
        at = meta._replace(parameters={n: v + sign * step / length * way[n] for n, v in meta.parameters.items()})
        return sum(float(learner.task_loss(at, take(batch, index))[0]) for index in range(TASKS))

    slope = sum(float((vectorized.gradient[n] * v).sum()) for n, v in way.items()) / length
    norm_of = math.sqrt(sum(float(v.square().sum()) for v in vectorized.gradient.values()))
    assert (outer_loss(1) - outer_loss(-1)) / (2 * step) == pytest.approx(slope, abs=1e-6 * norm_of)


@pytest.mark.parametrize("kind", SMALL)
def test_the_check_accepts_it_as_it_is(kind: str) -> None:
    """With its own activation and norm, and a learner that asks for features and head."""
    model, shape = build(kind)
    learner = Anil(AnilConfig(inner_steps=2, inner_lr=0.1), Network(model, "xavier", "cross_entropy"))
    found = check_strategy(learner, learner.init(torch.Generator()), random_tasks(shape), "vectorized", "the rule")
    assert (found.strategy, found.reason) == ("vectorized", "the rule")
    assert found.difference < 1e-9


@pytest.mark.parametrize("norm", ["batch", "none"])
@pytest.mark.parametrize("kind", [kind for kind, (config, _) in SMALL.items() if isinstance(config, ModelConfig)])
def test_film_begins_as_the_identity_and_reaches_the_features(kind: str, norm: str) -> None:
    (plain, shape), (model, _) = build(kind, norm=norm), build(kind, norm=norm, film=True)
    meta = {name: value.double() for name, value in model.initial("xavier", torch.Generator().manual_seed(0)).items()}
    film = [name for name in meta if ".film." in name]
    assert {name.rpartition(".film.")[2] for name in film} == {"weight", "bias"}
    x = torch.randn(4, *shape, generator=torch.Generator().manual_seed(1), dtype=F64)
    features = torch.func.functional_call(model, meta, (x,), {"head": False})
    without = {name: value for name, value in meta.items() if name not in film}
    assert torch.equal(torch.func.functional_call(plain, without, (x,), {"head": False}), features)
    for name in film:  # one factor for all channels may have no effect, where a normalisation follows
        by_channel = meta[name] + torch.linspace(0, 1, len(meta[name]), dtype=F64)
        moved = torch.func.functional_call(model, meta | {name: by_channel}, (x,), {"head": False})
        assert not torch.allclose(moved, features), name


def test_film_needs_a_place(monkeypatch: pytest.MonkeyPatch) -> None:
    class Placeless(BaseModel):
        def __init__(self, config: ModelConfig, shape: tuple[int, ...], outputs: int | None) -> None:
            super().__init__(config.norm, 4, outputs)

        def features(self, x: torch.Tensor, reference: int | None) -> torch.Tensor:
            return x

    monkeypatch.setitem(MODELS, MlpConfig, Placeless)
    assert isinstance(base_model(MlpConfig(), (4,), 3), Placeless)
    with pytest.raises(UserError, match=r"^model\.film: got True, expected false for mlp"):
        base_model(MlpConfig(film=True), (4,), 3)
