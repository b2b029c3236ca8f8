"""Base models: plain modules that a learner calls with whichever weights it likes."""

from metadist.models.base import BaseModel, ModelConfig
from metadist.models.conv4 import Conv4, Conv4Config
from metadist.models.cosine import CosineHead, cosine_headed
from metadist.models.initial import InitName, initial_parameters
from metadist.models.kinds import MODELS, base_model
from metadist.models.mlp import Mlp, MlpConfig
from metadist.models.mnist_net import MnistNet, MnistNetConfig
from metadist.models.norm import Film, Norm, NormKind, record_statistics
from metadist.models.operations import using_operations
from metadist.models.own import OwnModelConfig, own_model_config
from metadist.models.recurrent import Gru, GruConfig, Lstm, LstmConfig
from metadist.models.resnet12 import ResNet12, ResNet12Config
from metadist.models.simple_cnn import SimpleCnn, SimpleCnnConfig
from metadist.models.torchvision_nets import TorchvisionConfig, TorchvisionNet
from metadist.models.transformer import Transformer, TransformerConfig

__all__ = [
    "MODELS",
    "BaseModel",
    "Conv4",
    "Conv4Config",
    "CosineHead",
    "Film",
    "Gru",
    "GruConfig",
    "InitName",
    "Lstm",
    "LstmConfig",
    "Mlp",
    "MlpConfig",
    "MnistNet",
    "MnistNetConfig",
    "ModelConfig",
    "Norm",
    "NormKind",
    "OwnModelConfig",
    "ResNet12",
    "ResNet12Config",
    "SimpleCnn",
    "SimpleCnnConfig",
    "TorchvisionConfig",
    "TorchvisionNet",
    "Transformer",
    "TransformerConfig",
    "base_model",
    "cosine_headed",
    "initial_parameters",
    "own_model_config",
    "record_statistics",
    "using_operations",
]
