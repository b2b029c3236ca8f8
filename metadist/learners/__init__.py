"""Learners: one algorithm a file, each reads like its paper."""

from metadist.learners.adapt import NOT, adapting, matches
from metadist.learners.anil import Anil, AnilConfig
from metadist.learners.base import Learner, Meta, Network, Outcome, Precision, TaskGradient, plain_meta
from metadist.learners.boil import Boil, BoilConfig
from metadist.learners.cavia import Cavia, CaviaConfig
from metadist.learners.finetune import Finetune, FinetuneConfig
from metadist.learners.gates import gated
from metadist.learners.gradient import functional_gradients, inner_gradient
from metadist.learners.imaml import Imaml, ImamlConfig
from metadist.learners.incontext import InContext, InContextConfig
from metadist.learners.kinds import LEARNERS, learner_class
from metadist.learners.maml import Maml, MamlConfig
from metadist.learners.mamlpp import MamlPlusPlus, MamlPlusPlusConfig
from metadist.learners.mann import Mann, MannConfig
from metadist.learners.matching import MatchingConfig, MatchingNet
from metadist.learners.metasgd import MetaSgd, MetaSgdConfig
from metadist.learners.protonet import ProtoNet, ProtoNetConfig
from metadist.learners.relation import RelationConfig, RelationNet
from metadist.learners.reptile import Reptile, ReptileConfig

__all__ = [
    "LEARNERS",
    "NOT",
    "Anil",
    "AnilConfig",
    "Boil",
    "BoilConfig",
    "Cavia",
    "CaviaConfig",
    "Finetune",
    "FinetuneConfig",
    "Imaml",
    "ImamlConfig",
    "InContext",
    "InContextConfig",
    "Learner",
    "Maml",
    "MamlConfig",
    "MamlPlusPlus",
    "MamlPlusPlusConfig",
    "Mann",
    "MannConfig",
    "MatchingConfig",
    "MatchingNet",
    "Meta",
    "MetaSgd",
    "MetaSgdConfig",
    "Network",
    "Outcome",
    "Precision",
    "ProtoNet",
    "ProtoNetConfig",
    "RelationConfig",
    "RelationNet",
    "Reptile",
    "ReptileConfig",
    "TaskGradient",
    "adapting",
    "functional_gradients",
    "gated",
    "inner_gradient",
    "learner_class",
    "matches",
    "plain_meta",
]
