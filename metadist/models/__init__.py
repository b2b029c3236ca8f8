"""Base models: plain modules that a learner calls with whichever weights it likes."""

from metadist.models.base import BaseModel, ModelConfig
from metadist.models.conv4 import Conv4, Conv4Config
from metadist.models.initial import InitName, initial_parameters
from metadist.models.mlp import Mlp, MlpConfig
from metadist.models.norm import Norm, NormKind

__all__ = [
    "BaseModel",
    "Conv4",
    "Conv4Config",
    "InitName",
    "Mlp",
    "MlpConfig",
    "ModelConfig",
    "Norm",
    "NormKind",
    "initial_parameters",
]
