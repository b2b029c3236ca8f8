"""Recurrent nets and the transformer beside torch's own layers, which hold the same weights."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from metadist.errors import UserError
from metadist.models import (
    MODELS,
    BaseModel,
    Gru,
    GruConfig,
    Lstm,
    LstmConfig,
    ModelConfig,
    Transformer,
    TransformerConfig,
    initial_parameters,
)
from metadist.models.sequences import as_sequence

F64 = torch.float64


def filled(model: BaseModel) -> BaseModel:
    """The model in float64, with weights none of which is 0 or 1."""
    generator = torch.Generator().manual_seed(0)
    for name, value in initial_parameters(model, "default", generator).items():
        parameter = model.get_parameter(name)
        parameter.data = value + 0.1 * torch.rand(value.shape, generator=generator)
    return model.double()


def inputs(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(1), dtype=F64)


@pytest.mark.parametrize("readout", ["last", "mean"])
@pytest.mark.parametrize("kind", ["lstm", "gru"])
def test_recurrent_nets_are_torchs(kind: str, readout: str) -> None:
    config = {"lstm": LstmConfig, "gru": GruConfig}[kind](width=5, layers=2, readout=readout)
    model = filled({"lstm": Lstm, "gru": Gru}[kind](config, (7, 3), None))
    torchs = {"lstm": nn.LSTM, "gru": nn.GRU}[kind](3, 5, 2, batch_first=True).double()
    for number, layer in enumerate(model.layers):
        for name, own in (("ih", layer.from_input), ("hh", layer.from_state)):
            getattr(torchs, f"weight_{name}_l{number}").data = own.weight.data
            bias = torch.zeros(len(own.weight), dtype=F64) if own.bias is None else own.bias.data
            getattr(torchs, f"bias_{name}_l{number}").data = bias
    x = inputs(4, 7, 3)
    states, _ = torchs(x)
    assert torch.allclose(model(x), states[:, -1] if readout == "last" else states.mean(1), atol=1e-12)


@pytest.mark.parametrize("readout", ["mean", "cls"])
@pytest.mark.parametrize("positions", ["learned", "sinusoidal"])
def test_the_transformer_is_torchs(positions: str, readout: str) -> None:
    config = TransformerConfig(width=6, heads=3, hidden=5, positions=positions, readout=readout)
    model = filled(Transformer(config, (7, 2), None))
    x = inputs(4, 7, 2)
    hidden = nn.functional.linear(x, model.embedding.weight, model.embedding.bias) + model.positions
    if readout == "cls":
        hidden = torch.cat([model.cls.expand(4, 1, 6), hidden], 1)
    for layer in model.layers:
        torchs = nn.TransformerEncoderLayer(6, 3, 5, dropout=0.0, batch_first=True, norm_first=True).double()
        pairs = {
            "self_attn.in_proj_": layer.query_key_value,
            "self_attn.out_proj.": layer.mixed,
            "linear1.": layer.inner,
            "linear2.": layer.outer,
            "norm1.": layer.attention_norm.norm,
            "norm2.": layer.net_norm.norm,
        }
        torchs.load_state_dict(
            {f"{n}{part}": getattr(m, part) for n, m in pairs.items() for part in ("weight", "bias")}
        )
        hidden = torchs(hidden)
    final = model.final_norm.norm
    hidden = nn.functional.layer_norm(hidden, (6,), final.weight, final.bias)
    assert torch.allclose(model(x), hidden.mean(1) if readout == "mean" else hidden[:, 0], atol=1e-12)


def test_sinusoidal_positions_by_hand() -> None:
    model = Transformer(TransformerConfig(width=4, heads=1, positions="sinusoidal"), (3, 2), None)
    assert [name for name, _ in model.named_buffers()] == ["positions"]
    expected = [[math.sin(t), math.cos(t), math.sin(t / 100), math.cos(t / 100)] for t in range(3)]
    assert torch.allclose(model.positions, torch.tensor(expected))


def test_an_image_is_the_sequence_of_its_rows() -> None:
    x = torch.arange(2 * 3 * 4 * 5).reshape(2, 3, 4, 5)
    rows = as_sequence(x)
    assert rows.shape == (2, 4, 15)
    assert rows[1, 2].tolist() == [*x[1, 0, 2].tolist(), *x[1, 1, 2].tolist(), *x[1, 2, 2].tolist()]
    assert as_sequence(torch.zeros(2, 7)).shape == (2, 7, 1)


@pytest.mark.parametrize("kind", ["lstm", "gru", "transformer"])
def test_more_dimensions_are_refused(kind: str) -> None:
    (config,) = (config for config in MODELS if config.kind == kind)
    with pytest.raises(
        UserError, match=rf"^model\.kind: got '{kind}', expected a model for inputs of shape \[1, 2, 3, 4\]"
    ):
        MODELS[config](config(), (1, 2, 3, 4), 5)


@pytest.mark.parametrize(
    ("config", "settings", "message"),
    [
        (LstmConfig, {"width": 0}, r"^width: got 0"),
        (GruConfig, {"layers": 0}, r"^layers: got 0"),
        (TransformerConfig, {"hidden": 0}, r"^hidden: got 0"),
        (TransformerConfig, {"width": 6, "heads": 4}, r"^heads: got 4, expected a divisor of width = 6"),
    ],
)
def test_impossible_settings_are_refused(config: type[ModelConfig], settings: dict[str, int], message: str) -> None:
    with pytest.raises(UserError, match=message):
        config(**settings)
