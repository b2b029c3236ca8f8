"""Shapes, initial weights and normalisation of the base models."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from metadist.errors import UserError
from metadist.models import BaseModel, Conv4, Conv4Config, Mlp, MlpConfig, Norm, initial_parameters

torch.set_num_threads(1)
F64 = torch.float64


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("norm", ["batch", "support", "layer", "none"])
@pytest.mark.parametrize(
    ("config", "shape", "features"),
    [
        ({"pool": False}, (1, 28, 28), 64),
        ({"pool": True}, (1, 28, 28), 64),
        ({"pool": True, "width": 32}, (3, 84, 84), 800),
        ({"pool": True, "width": 8, "layers": 2}, (3, 9, 7), 16),
        ({"pool": True, "unpooled": 2}, (1, 28, 28), 64 * 7 * 7),
        ({"pool": True, "width": 8, "layers": 2, "unpooled": 2}, (3, 9, 7), 8 * 9 * 7),
        ({"pool": False, "width": 8, "layers": 6}, (3, 9, 7), 8),
    ],
)
def test_conv4_shapes(norm: str, config: dict, shape: tuple[int, ...], features: int) -> None:
    x = torch.zeros(2, *shape)
    model = Conv4(Conv4Config(norm=norm, **config), shape, 5)
    assert model.features(x, None).shape == (2, features)
    assert model(x).shape == (2, 5)
    assert Conv4(Conv4Config(norm=norm, **config), shape, None)(x).shape == (2, features)
    assert (model.convs[0].bias is not None) == (norm in ("layer", "none"))
    assert not list(model.buffers())


def test_conv4_of_the_papers_has_their_size() -> None:
    """Layer sizes of Finn et al., 2017: 4 blocks of 64 filters on 28×28 for 5 classes."""
    for pool in (False, True):
        model = Conv4(Conv4Config(pool=pool), (1, 28, 28), 5)
        weights = 9 * 64 + 3 * (9 * 64 * 64) + 4 * 2 * 64 + 64 * 5 + 5
        assert sum(parameter.numel() for parameter in model.parameters()) == weights


@pytest.mark.parametrize("norm", ["batch", "support", "layer", "none"])
def test_mlp_shapes(norm: str) -> None:
    config = MlpConfig(hidden=[7, 6], norm=norm)
    assert Mlp(config, (1, 4, 4), 5)(torch.zeros(3, 1, 4, 4)).shape == (3, 5)
    assert Mlp(config, (4,), None)(torch.zeros(3, 4)).shape == (3, 6)


def test_mlp_is_the_sinusoid_net() -> None:
    """Finn et al., 2017, section 5.1: two hidden layers of 40 units."""
    shapes = {name: tuple(value.shape) for name, value in Mlp(MlpConfig(), (1,), 1).named_parameters()}
    assert shapes == {
        "layers.0.weight": (40, 1),
        "layers.0.bias": (40,),
        "layers.1.weight": (40, 40),
        "layers.1.bias": (40,),
        "head.weight": (1, 40),
        "head.bias": (1,),
    }


@pytest.mark.parametrize(
    ("shape", "config", "message"),
    [
        ((4,), Conv4Config(), r"model\.kind: got 'conv4', expected a model for inputs of shape \[4\]\. Use mlp"),
        ((1, 8, 8), Conv4Config(), r"model\.pool: got True, expected images of at least 16 pixels .* these are 8×8"),
        ((1, 28, 15), Conv4Config(), r"these are 28×15"),
    ],
)
def test_inputs_that_do_not_fit_are_refused(shape: tuple[int, ...], config: Conv4Config, message: str) -> None:
    with pytest.raises(UserError, match=message):
        Conv4(config, shape, 5)


@pytest.mark.parametrize("config", [{"width": 0}, {"layers": 0}])
def test_impossible_settings_are_refused(config: dict) -> None:
    with pytest.raises(UserError, match="at least 1"):
        Conv4Config(**config)
    with pytest.raises(UserError, match="hidden"):
        MlpConfig(hidden=[4, 0])


@pytest.mark.parametrize("init", ["default", "normal", "xavier", "kaiming"])
def test_initial_weights_have_the_named_distribution(init: str) -> None:
    model = Conv4(Conv4Config(norm="layer"), (3, 28, 28), 20)
    drawn = initial_parameters(model, init, generator())
    assert list(drawn) == [name for name, _ in model.named_parameters()]
    for name, value in drawn.items():
        weight = drawn[name.removesuffix("bias") + "weight"] if name.endswith("bias") else value
        if name.startswith("norms"):
            assert (value == (0 if name.endswith("bias") else 1)).all()
            continue
        if name.endswith("bias") and init != "default":
            assert not value.any()
            continue
        fan_in, fan_out = nn.init._calculate_fan_in_and_fan_out(weight)
        bound = {"default": 1 / math.sqrt(fan_in), "xavier": math.sqrt(6 / (fan_in + fan_out))}.get(init)
        sd = bound / math.sqrt(3) if bound else {"normal": 0.01, "kaiming": math.sqrt(2 / fan_in)}[init]
        count = value.numel()
        assert value.std().item() == pytest.approx(sd, rel=5 / math.sqrt(2 * count))
        assert abs(value.mean().item()) < 5 * sd / math.sqrt(count)
        largest = value.abs().max().item()
        assert bound * (1 - 20 / count) < largest <= bound if bound else largest > 2.5 * sd


def test_the_default_is_what_torchs_own_layers_do() -> None:
    """Bounds of nn.Linear and nn.Conv2d, weights and biases, over many layers of few inputs."""
    for layer in (nn.Linear(3, 5000), nn.Conv2d(2, 5000, 3)):
        drawn = initial_parameters(layer, "default", generator())
        for name, value in layer.named_parameters():
            assert drawn[name].abs().max().item() == pytest.approx(value.abs().max().item(), rel=2e-3)
            assert drawn[name].std().item() == pytest.approx(value.std().item(), rel=0.05)


@pytest.mark.parametrize("init", ["normal", "xavier", "kaiming"])
def test_biases_of_foreign_layers_start_at_0(init: str) -> None:
    """Those of a recurrent cell (`bias_ih_l0`), and one that stands alone."""
    alone = nn.Module()
    alone.bias = nn.Parameter(torch.ones(3))
    for module in (nn.LSTM(3, 4), alone):
        drawn = initial_parameters(module, init, generator())
        assert not any(value.any() for name, value in drawn.items() if name.startswith("bias"))


@pytest.mark.parametrize("init", ["default", "normal", "xavier", "kaiming"])
def test_initial_weights_follow_from_the_generator(init: str) -> None:
    model = Mlp(MlpConfig(), (4,), 3)
    state = torch.get_rng_state()
    first, again, other = (initial_parameters(model, init, generator(seed)) for seed in (1, 1, 2))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["layers.0.weight"], other["layers.0.weight"])
    assert torch.equal(torch.get_rng_state(), state)


def norm_of(kind: str, positions: int) -> Norm:
    norm = Norm(kind, 3, positions).double()
    if kind != "none":
        norm.weight.data = torch.tensor([1.5, -0.5, 2.0], dtype=F64)
        norm.bias.data = torch.tensor([0.1, 0.2, -0.3], dtype=F64)
    return norm


def by_hand(x: Tensor, kind: str, reference: int | None) -> Tensor:
    out = torch.empty_like(x)
    for row in range(x.shape[0]):
        for channel in range(x.shape[1]):
            source = x[row] if kind == "layer" else x[:reference, channel]
            values = [float(value) for value in source.flatten()]
            mean = sum(values) / len(values)
            variance = sum((value - mean) ** 2 for value in values) / len(values)
            scale, shift = [1.5, -0.5, 2.0][channel], [0.1, 0.2, -0.3][channel]
            out[row, channel] = (x[row, channel] - mean) / math.sqrt(variance + 1e-5) * scale + shift
    return out


@pytest.mark.parametrize("reference", [None, 2])
@pytest.mark.parametrize("kind", ["batch", "support", "layer", "none"])
@pytest.mark.parametrize("shape", [(5, 3), (5, 3, 2, 2)])
def test_normalisation_by_hand(shape: tuple[int, ...], kind: str, reference: int | None) -> None:
    x = torch.randn(shape, generator=generator(), dtype=F64)
    expected = x if kind == "none" else by_hand(x, kind, reference)
    assert torch.allclose(norm_of(kind, len(shape) - 2)(x, reference), expected, rtol=1e-12, atol=1e-12)


def test_normalisation_is_that_of_torch() -> None:
    x = torch.randn(6, 3, 4, 4, generator=generator(), dtype=F64)
    norm = norm_of("batch", 2)
    batch = nn.functional.batch_norm(x, None, None, norm.weight, norm.bias, training=True, eps=norm.eps)
    assert torch.allclose(norm(x), batch, atol=1e-12)
    layer = nn.functional.group_norm(x, 1, norm.weight, norm.bias, eps=norm.eps)
    assert torch.allclose(norm_of("layer", 2)(x), layer, atol=1e-12)


@pytest.mark.parametrize("kind", ["mlp", "conv4", "conv4-pool"])
@pytest.mark.parametrize("norm", ["batch", "support", "layer", "none"])
def test_only_reference_rows_make_statistics(kind: str, norm: str) -> None:
    """Rows after the reference change nothing before or beside them."""
    model: BaseModel = (
        Mlp(MlpConfig(norm=norm), (1, 8, 8), 3)
        if kind == "mlp"
        else Conv4(Conv4Config(norm=norm, width=4, layers=2, pool=kind == "conv4-pool"), (1, 8, 8), 3)
    ).double()
    x = torch.randn(6, 1, 8, 8, generator=generator(), dtype=F64)
    other = torch.cat([x[:5], 3 * x[5:] + 1])
    assert torch.allclose(model(x, 4)[:5], model(other, 4)[:5], atol=1e-12)
    moved = not torch.allclose(model(x)[:5], model(other)[:5], atol=1e-3)
    assert moved == (norm in ("batch", "support"))


def test_feature_maps_have_a_shape() -> None:
    shape = (3, 9, 7)
    pooled = Conv4(Conv4Config(width=8, layers=2, unpooled=1), shape, None)
    assert pooled.feature_shape == (8, 4, 3)
    assert Conv4(Conv4Config(width=8, pool=False), shape, None).feature_shape == (8,)
    assert Mlp(MlpConfig(hidden=[7, 6]), shape, 5).feature_shape == (6,)


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"unpooled": 5}, "0 to layers = 4"),
        ({"unpooled": -1}, "0 to layers = 4"),
        ({"pool": False, "unpooled": 1}, "0,"),
    ],
)
def test_blocks_that_do_not_pool_are_counted(config: dict, expected: str) -> None:
    with pytest.raises(UserError, match=rf"^unpooled: got .*, expected {expected}"):
        Conv4Config(**config)
