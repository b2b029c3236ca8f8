"""The convolutional models against their papers: sizes, and one forward pass written out."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from metadist.errors import UserError
from metadist.models import (
    MODELS,
    BaseModel,
    MnistNet,
    MnistNetConfig,
    ModelConfig,
    ResNet12,
    ResNet12Config,
    SimpleCnn,
    SimpleCnnConfig,
    initial_parameters,
)

F64 = torch.float64


def weights(model: BaseModel) -> dict[str, Tensor]:
    """Initial weights; those of one dimension are moved, so that none is 0 or 1."""
    drawn = initial_parameters(model, "default", torch.Generator().manual_seed(0))
    return {name: v.double() + 0.1 * (v.dim() == 1) * n / len(drawn) for n, (name, v) in enumerate(drawn.items(), 1)}


def test_resnet12_has_the_size_of_the_literature() -> None:
    """12.4 million weights of 64-160-320-640 filters on 84×84 (Tian et al., ECCV 2020), 8 of 64-128-256-512."""
    sizes = {640: 0, 512: 0}
    for widths in ([64, 160, 320, 640], [64, 128, 256, 512]):
        model = ResNet12(ResNet12Config(widths=widths), (3, 84, 84), None)
        sizes[widths[-1]] = sum(parameter.numel() for parameter in model.parameters())
        convolutions = sum(9 * (a * b + 2 * b * b) + a * b for a, b in zip([3, *widths], widths, strict=False))
        assert sizes[widths[-1]] == convolutions + 4 * 2 * sum(widths)
    assert (round(sizes[640] / 1e6, 1), round(sizes[512] / 1e6, 1)) == (12.4, 8.0)


def test_resnet12_by_hand() -> None:
    model = ResNet12(ResNet12Config(widths=[3, 4]), (2, 9, 8), 5).double()
    w = weights(model)
    x = torch.randn(3, 2, 9, 8, generator=torch.Generator().manual_seed(1), dtype=F64)

    def normalised(x: Tensor, name: str) -> Tensor:
        return F.batch_norm(x, None, None, w[f"{name}.weight"], w[f"{name}.bias"], training=True)

    out = x
    for block in ("blocks.0", "blocks.1"):
        around = normalised(F.conv2d(out, w[f"{block}.shortcut.weight"]), f"{block}.shortcut_norm")
        for layer in range(3):
            out = normalised(F.conv2d(out, w[f"{block}.convs.{layer}.weight"], padding=1), f"{block}.norms.{layer}")
            out = F.leaky_relu(out if layer < 2 else out + around, 0.1)
        out = F.max_pool2d(out, 2)
    expected = F.linear(out.mean((2, 3)), w["head.weight"], w["head.bias"])
    assert torch.allclose(torch.func.functional_call(model, w, (x,)), expected, atol=1e-10)


def test_simple_cnn_is_the_tutorials() -> None:
    model = SimpleCnn(SimpleCnnConfig(), (3, 32, 32), 10).double()
    w = weights(model)
    assert sum(v.numel() for v in w.values()) == 62006
    x = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1), dtype=F64)
    out = x
    for index in range(2):
        out = F.max_pool2d(F.relu(F.conv2d(out, w[f"convs.{index}.weight"], w[f"convs.{index}.bias"])), 2)
    out = out.reshape(2, 16 * 5 * 5)
    for name in ("layers.0", "layers.1", "head"):
        out = F.linear(out if name == "layers.0" else F.relu(out), w[f"{name}.weight"], w[f"{name}.bias"])
        assert out.shape[1] == {"layers.0": 120, "layers.1": 84, "head": 10}[name]
    assert torch.allclose(torch.func.functional_call(model, w, (x,)), out, atol=1e-12)


def test_mnist_net_is_the_examples() -> None:
    model = MnistNet(MnistNetConfig(), (1, 28, 28), 10).double()
    w = weights(model)
    assert w["layers.0.weight"].shape == (128, 9216)
    x = torch.randn(2, 1, 28, 28, generator=torch.Generator().manual_seed(1), dtype=F64)
    out = F.relu(F.conv2d(x, w["convs.0.weight"], w["convs.0.bias"]))
    out = F.max_pool2d(F.relu(F.conv2d(out, w["convs.1.weight"], w["convs.1.bias"])), 2)
    out = F.relu(F.linear(out.flatten(1), w["layers.0.weight"], w["layers.0.bias"]))
    expected = F.linear(out, w["head.weight"], w["head.bias"])
    assert torch.allclose(torch.func.functional_call(model, w, (x,)), expected, atol=1e-12)


@pytest.mark.parametrize(
    ("config", "shape", "message"),
    [
        (ResNet12Config(), (4,), r"model\.kind: got 'resnet12', expected a model for inputs of shape \[4\]\. Use mlp"),
        (ResNet12Config(), (1, 28, 15), "expected images of at least 16 pixels a side for resnet12, these are 28×15"),
        (
            SimpleCnnConfig(),
            (1, 15, 28),
            "expected images of at least 16 pixels a side for simple_cnn, these are 15×28",
        ),
        (MnistNetConfig(kernel=5), (1, 8, 8), "expected images of at least 10 pixels a side for mnist_net"),
        (MnistNetConfig(), (1, 8), "expected a model for inputs of shape"),
    ],
)
def test_inputs_that_do_not_fit_are_refused(config: ModelConfig, shape: tuple[int, ...], message: str) -> None:
    with pytest.raises(UserError, match=message):
        MODELS[type(config)](config, shape, 5)


@pytest.mark.parametrize(
    ("config", "settings", "field"),
    [
        (ResNet12Config, {"widths": []}, "widths"),
        (ResNet12Config, {"widths": [4, 0]}, "widths"),
        (MnistNetConfig, {"filters": [4]}, "filters"),
        (MnistNetConfig, {"filters": [0, 4]}, "filters"),
        (MnistNetConfig, {"kernel": 0}, "kernel"),
        (MnistNetConfig, {"hidden": 0}, "hidden"),
    ],
)
def test_impossible_settings_are_refused(config: type[ModelConfig], settings: dict, field: str) -> None:
    with pytest.raises(UserError, match=rf"^{field}: got"):
        config(**settings)
