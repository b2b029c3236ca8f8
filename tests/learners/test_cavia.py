"""What CAVIA adapts, and which layers it can condition."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from metadist.errors import UserError
from metadist.learners import Cavia, CaviaConfig, Network
from metadist.models import Conv4, Conv4Config, Mlp, MlpConfig
from metadist.tasks import Examples

torch.set_num_threads(1)
SUPPORT = Examples(torch.randn(6, 4, generator=torch.Generator().manual_seed(3)), torch.tensor([0, 1, 2] * 2), 3)


def make(norm: str = "none", **settings: Any) -> Cavia:
    model = Mlp(MlpConfig(hidden=[5, 6], activation="tanh", norm=norm), (4,), 3)
    return Cavia(CaviaConfig(context=2, **settings), Network(model, "xavier", "cross_entropy"))


@pytest.mark.parametrize(
    ("conditioning", "norm", "changed"),
    [
        ("film", "none", {"layers.1.weight", "layers.1.bias"}),
        ("film", "batch", {"norms.1.weight", "norms.1.bias"}),
        ("concat", "none", {"layers.1.bias"}),
        ("concat", "layer", {"layers.1.bias"}),
    ],
)
def test_the_context_begins_without_effect_and_conditions_one_layer(
    conditioning: str, norm: str, changed: set[str]
) -> None:
    learner = make(norm, layer=2, conditioning=conditioning)
    meta = learner.init(torch.Generator().manual_seed(0))
    before, *_, after = learner.adaptation(meta, SUPPORT, 3)
    assert before.parameters.keys() == {name for name in meta.parameters if not name.startswith("context.")}
    assert all(torch.equal(value, meta.parameters[name]) for name, value in before.parameters.items())
    moved = {name for name, value in after.parameters.items() if not torch.equal(value, meta.parameters[name])}
    assert moved == changed
    losses = [float(learner.network.cost(learner.predict(at, SUPPORT.x), SUPPORT.y)) for at in (before, after)]
    assert losses[1] < losses[0]


def test_a_convolutions_channels_are_scaled_and_shifted() -> None:
    model = Conv4(Conv4Config(width=3, layers=3, norm="batch", pool=False), (1, 8, 8), 2)
    learner = Cavia(CaviaConfig(layer=3, context=7), Network(model, "xavier", "cross_entropy"))
    parameters = learner.init(torch.Generator().manual_seed(0)).parameters
    assert {n: tuple(v.shape) for n, v in parameters.items() if n.startswith("context.")} == {
        "context.scale": (3, 7),
        "context.shift": (3, 7),
    }
    bound = 7**-0.5
    drawn = torch.cat([parameters["context.scale"], parameters["context.shift"]])
    assert bound / 2 < float(drawn.abs().max()) <= bound


@pytest.mark.parametrize(
    ("norm", "settings", "message"),
    [
        ("none", {"layer": 3}, "learner.layer: got 3, expected one of the model's layers, 1 to 2"),
        ("batch", {"layer": 3}, "learner.layer: got 3, expected one of the model's layers, 1 to 2"),
        ("batch", {"conditioning": "concat"}, "learner.conditioning: got 'concat', expected film"),
    ],
)
def test_layers_that_cannot_be_conditioned_are_refused(norm: str, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        make(norm, **settings)


def test_a_convolution_has_no_concat() -> None:
    """Its border of zeros would see the context where an input beside it has none."""
    network = Network(Conv4(Conv4Config(norm="none"), (1, 28, 28), 2), "xavier", "cross_entropy")
    with pytest.raises(UserError, match=r"learner.conditioning: got 'concat'.*Convolution"):
        Cavia(CaviaConfig(conditioning="concat"), network)


@pytest.mark.parametrize(
    ("settings", "field"),
    [
        ({"inner_lr": 0.0}, "inner_lr"),
        ({"context": 0}, "context"),
        ({"layer": 0}, "layer"),
        ({"inner_steps": 0}, "inner_steps"),
        ({"eval_steps": -1}, "eval_steps"),
    ],
)
def test_impossible_settings_are_refused(settings: dict[str, Any], field: str) -> None:
    with pytest.raises(UserError, match=f"^{field}: got"):
        CaviaConfig(**settings)
