"""Trained runs as frozen parts of a learner: a teacher, experts.

Such a learner's settings name other runs by path. What their job files say of models and learners becomes a part of
these settings, with the sha256 of their tensors, which become parameters that never change, under the part's name
(`teacher.convs.0.weight`). So they do not travel with each version, and the run does not need the others any more.
"""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Generator, Tensor

from metadist.errors import UserError
from metadist.learners.adapt import matches
from metadist.learners.base import Learner, Meta, Network
from metadist.learners.gradient import Parameters
from metadist.tasks import Examples


@dataclass(frozen=True, kw_only=True)
class TrainedRun:
    """A run whose best version on validation is a part of this one."""

    #: run folder, or one of its checkpoints
    path: str
    #: of the tensors there, which a run's own job.yaml names; null takes them as they are
    sha256: str | None = None
    #: tasks, model and learner of its job, which a run's own job.yaml repeats; null reads them there
    job: dict[str, Any] | None = None

    def __post_init__(self) -> None:
        if not self.path.strip():
            raise UserError("path", self.path, "a run folder")


def named_run(run: str | TrainedRun) -> TrainedRun:
    """The run, which may be short for its path."""
    return TrainedRun(path=run) if isinstance(run, str) else run


class OnTrainedRuns(ABC):
    """Settings of a learner that has other runs as parts."""

    kind: str

    @property
    @abstractmethod
    def runs(self) -> dict[str, TrainedRun]:
        """The runs by the dotted names of the settings, which are those of the parts, too."""

    @abstractmethod
    def with_runs(self, runs: Mapping[str, TrainedRun]) -> Self:
        """The same settings with other facts about these runs."""


class TrainedPart(Learner):
    """A run's learner as a part of another one, on whose meta-parameters it works.

    Args:
        name: of the part.
        learner: the run's.
        freeze: the run's patterns of parameters that do not adapt.
    """

    meta_trains = False

    def __init__(self, name: str, learner: Learner, freeze: Sequence[str] = ()) -> None:
        super().__init__(learner.network, learner.eval_steps)
        self.prefix, self.learner = f"{name}.", learner
        parameters, statistics, frozen, _ = learner.init(Generator())
        still = [own for own in parameters if matches(own, freeze)]
        self._still = [*frozen, *still]
        self._names = [[own for own in parameters if own not in still], list(statistics), self._still]

    def networks(self) -> list[Network]:
        return self.learner.networks()

    def with_frozen(self, frozen: Parameters) -> Self:
        part = copy.copy(self)
        part.learner = self.learner.with_frozen({name: frozen[self.prefix + name] for name in self._still})
        return part

    def init(self, generator: Generator) -> Meta:
        """Values of the right shapes; those of the run are given to the experiment as its start."""
        groups = self.learner.init(generator)
        return Meta({}, {}, {self.prefix + name: value for group in groups for name, value in group.items()})

    def adaptation(self, meta: Meta, support: Examples, steps: int) -> Iterator[Any]:
        own = Meta(*({name: meta.frozen[self.prefix + name] for name in names} for names in self._names))
        return self.learner.adaptation(own, support, steps)

    def predict(self, adapted: Any, x: Tensor) -> Tensor:
        return self.learner.predict(adapted, x)

    def judge(self, meta: Meta, support: Examples, x: Tensor) -> Tensor:
        """Outputs [rows, outputs] for `x`, adapted as in its run's evaluation; no derivative is taken of them."""
        with torch.no_grad():
            return self.predict(self.adapt(meta, support), x)
