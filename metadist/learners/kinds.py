"""Learners by kind: the project's own by name, a user's by where it is imported from."""

from __future__ import annotations

import dataclasses
from typing import Any

from metadist.errors import UserError
from metadist.learners.anil import Anil
from metadist.learners.base import Learner
from metadist.learners.boil import Boil
from metadist.learners.cavia import Cavia
from metadist.learners.distill import Distill
from metadist.learners.finetune import Finetune
from metadist.learners.fusion import Fusion
from metadist.learners.hybrid import Hybrid
from metadist.learners.hypernetwork import Hypernetwork
from metadist.learners.imaml import Imaml
from metadist.learners.incontext import InContext
from metadist.learners.maml import Maml
from metadist.learners.mamlpp import MamlPlusPlus
from metadist.learners.mann import Mann
from metadist.learners.matching import MatchingNet
from metadist.learners.metalstm import MetaLstm
from metadist.learners.metasgd import MetaSgd
from metadist.learners.protonet import ProtoNet
from metadist.learners.relation import RelationNet
from metadist.learners.reptile import Reptile
from metadist.learners.task_relation import TaskRelation
from metadist.models.own import named_class

_OURS: tuple[type[Learner], ...] = (
    Maml,
    MamlPlusPlus,
    Anil,
    Boil,
    MetaSgd,
    MetaLstm,
    Imaml,
    Cavia,
    Reptile,
    ProtoNet,
    MatchingNet,
    RelationNet,
    TaskRelation,
    Hybrid,
    Hypernetwork,
    InContext,
    Mann,
    Finetune,
    Distill,
    Fusion,
)
#: the project's own, by the `kind` of their settings
LEARNERS = {learner.config_type.kind: learner for learner in _OURS}


def learner_class(kind: str) -> type[Learner]:
    """The learner of a kind: one of `LEARNERS`, or a class by its import path (`my_package.MyLearner`).

    Raises:
        UserError: it cannot be imported, or is no learner that a job can build.
    """
    if kind in LEARNERS:
        return LEARNERS[kind]
    found = named_class("learner.kind", kind, "a learner")
    if not (isinstance(found, type) and issubclass(found, Learner)):
        raise UserError("learner.kind", kind, "the import path of a subclass of metadist.learners.Learner")
    missing = sorted(getattr(found, "__abstractmethods__", ()))
    if missing:
        raise UserError("learner.kind", kind, f"a learner that defines {', '.join(missing)}")
    if not _is_config(getattr(found, "config_type", None)):
        expected = "a learner whose config_type is a frozen dataclass with a field kind: str = ''"
        raise UserError("learner.kind", kind, expected)
    return found


def _is_config(kind: Any) -> bool:
    frozen = dataclasses.is_dataclass(kind) and getattr(kind, "__dataclass_params__").frozen  # noqa: B009  not typed
    return frozen and isinstance(getattr(kind, "kind", None), str)
