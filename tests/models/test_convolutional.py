"""The convolutional models against their papers: sizes, and one forward pass written out."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from metadist.errors import UserError
from metadist.models import MODELS, ModelConfig, ResNet12, ResNet12Config, initial_parameters

F64 = torch.float64


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
    w = {name: v.double() for name, v in initial_parameters(model, "default", torch.Generator().manual_seed(0)).items()}
    for index, name in enumerate(w):
        if w[name].dim() == 1:
            w[name] = w[name] + 0.1 * index / len(w)
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


@pytest.mark.parametrize(
    ("config", "shape", "message"),
    [
        (ResNet12Config(), (4,), r"model\.kind: got 'resnet12', expected a model for inputs of shape \[4\]\. Use mlp"),
        (ResNet12Config(), (1, 28, 15), "expected images of at least 16 pixels a side for resnet12, these are 28×15"),
    ],
)
def test_inputs_that_do_not_fit_are_refused(config: ModelConfig, shape: tuple[int, ...], message: str) -> None:
    with pytest.raises(UserError, match=message):
        MODELS[type(config)](config, shape, 5)


@pytest.mark.parametrize("widths", [[], [4, 0]])
def test_impossible_settings_are_refused(widths: list[int]) -> None:
    with pytest.raises(UserError, match=r"^widths: got"):
        ResNet12Config(widths=widths)
