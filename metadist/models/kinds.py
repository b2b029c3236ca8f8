"""Base models by the dataclass of their settings."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from metadist.errors import UserError
from metadist.models.base import BaseModel
from metadist.models.conv4 import Conv4, Conv4Config
from metadist.models.mlp import Mlp, MlpConfig
from metadist.models.mnist_net import MnistNet, MnistNetConfig
from metadist.models.norm import Film
from metadist.models.own import OwnModelConfig, own_model
from metadist.models.recurrent import Gru, GruConfig, Lstm, LstmConfig
from metadist.models.resnet12 import ResNet12, ResNet12Config
from metadist.models.simple_cnn import SimpleCnn, SimpleCnnConfig
from metadist.models.torchvision_nets import TorchvisionConfig, TorchvisionNet
from metadist.models.transformer import Transformer, TransformerConfig

#: what makes a model of its settings, the shape of an input, and the number of outputs (`None`: no head)
MODELS: dict[type[Any], Callable[[Any, tuple[int, ...], int | None], BaseModel]] = {
    Conv4Config: Conv4,
    MlpConfig: Mlp,
    MnistNetConfig: MnistNet,
    SimpleCnnConfig: SimpleCnn,
    ResNet12Config: ResNet12,
    TorchvisionConfig: TorchvisionNet,
    LstmConfig: Lstm,
    GruConfig: Gru,
    TransformerConfig: Transformer,
}


def base_model(config: Any, input_shape: tuple[int, ...], outputs: int | None) -> BaseModel:
    """The base model of its settings, without weights of its own."""
    if isinstance(config, OwnModelConfig):
        return own_model(config, input_shape, outputs)
    model = MODELS[type(config)](config, input_shape, outputs)
    if getattr(config, "film", False) and not any(isinstance(module, Film) for module in model.modules()):
        raise UserError("model.film", True, f"false for {config.kind}, which has no place for it")
    return model
