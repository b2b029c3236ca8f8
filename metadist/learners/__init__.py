"""Learners: one algorithm a file, each reads like its paper."""

from metadist.learners.base import Learner, Meta, Network, TaskGradient, plain_meta
from metadist.learners.gradient import functional_gradients, inner_gradient
from metadist.learners.maml import Maml, MamlConfig
from metadist.learners.protonet import ProtoNet, ProtoNetConfig
from metadist.learners.reptile import Reptile, ReptileConfig

__all__ = [
    "Learner",
    "Maml",
    "MamlConfig",
    "Meta",
    "Network",
    "ProtoNet",
    "ProtoNetConfig",
    "Reptile",
    "ReptileConfig",
    "TaskGradient",
    "functional_gradients",
    "inner_gradient",
    "plain_meta",
]
