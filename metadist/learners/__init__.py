"""Learners: one algorithm a file, each reads like its paper."""

from metadist.learners.adapt import NOT, adapting, matches
from metadist.learners.anil import Anil, AnilConfig
from metadist.learners.base import Learner, Meta, Network, Outcome, Precision, TaskGradient, plain_meta
from metadist.learners.boil import Boil, BoilConfig
from metadist.learners.cavia import Cavia, CaviaConfig
from metadist.learners.distill import Distill, DistillConfig, LearnerSettings
from metadist.learners.finetune import Finetune, FinetuneConfig
from metadist.learners.fusion import Fusion, FusionConfig
from metadist.learners.gates import gated
from metadist.learners.generator import own_weights
from metadist.learners.gradient import functional_gradients, inner_gradient
from metadist.learners.hybrid import ConditionedConfig, Hybrid, HybridConfig
from metadist.learners.hypernetwork import Hypernetwork, HypernetworkConfig
from metadist.learners.imaml import Imaml, ImamlConfig
from metadist.learners.incontext import InContext, InContextConfig
from metadist.learners.kinds import LEARNERS, learner_class
from metadist.learners.maml import Maml, MamlConfig
from metadist.learners.mamlpp import MamlPlusPlus, MamlPlusPlusConfig
from metadist.learners.mann import Mann, MannConfig
from metadist.learners.matching import MatchingConfig, MatchingNet
from metadist.learners.metalstm import MetaLstm, MetaLstmConfig
from metadist.learners.metasgd import MetaSgd, MetaSgdConfig
from metadist.learners.protonet import ProtoNet, ProtoNetConfig
from metadist.learners.relation import RelationConfig, RelationNet
from metadist.learners.reptile import Reptile, ReptileConfig
from metadist.learners.task_relation import TaskRelation, TaskRelationConfig
from metadist.learners.trained import OnTrainedRuns, TrainedPart, TrainedRun

__all__ = [
    "LEARNERS",
    "NOT",
    "Anil",
    "AnilConfig",
    "Boil",
    "BoilConfig",
    "Cavia",
    "CaviaConfig",
    "ConditionedConfig",
    "Distill",
    "DistillConfig",
    "Finetune",
    "FinetuneConfig",
    "Fusion",
    "FusionConfig",
    "Hybrid",
    "HybridConfig",
    "Hypernetwork",
    "HypernetworkConfig",
    "Imaml",
    "ImamlConfig",
    "InContext",
    "InContextConfig",
    "Learner",
    "LearnerSettings",
    "Maml",
    "MamlConfig",
    "MamlPlusPlus",
    "MamlPlusPlusConfig",
    "Mann",
    "MannConfig",
    "MatchingConfig",
    "MatchingNet",
    "Meta",
    "MetaLstm",
    "MetaLstmConfig",
    "MetaSgd",
    "MetaSgdConfig",
    "Network",
    "OnTrainedRuns",
    "Outcome",
    "Precision",
    "ProtoNet",
    "ProtoNetConfig",
    "RelationConfig",
    "RelationNet",
    "Reptile",
    "ReptileConfig",
    "TaskGradient",
    "TaskRelation",
    "TaskRelationConfig",
    "TrainedPart",
    "TrainedRun",
    "adapting",
    "functional_gradients",
    "gated",
    "inner_gradient",
    "learner_class",
    "matches",
    "own_weights",
    "plain_meta",
]
