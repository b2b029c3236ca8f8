"""Everything that a step of a run is a function of, as values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from metadist.learners import Learner, Meta, adapting, matches
from metadist.outer.server import OuterRule
from metadist.tasks import Episode, TaskDistribution, generator


def torch_generator(*key: str | int) -> torch.Generator:
    """A torch generator on the CPU whose state follows from `key` (see `metadist.tasks.generator`)."""
    seed = int(generator(*key).integers(2**63))
    return torch.Generator().manual_seed(seed)


@dataclass(frozen=True)
class Experiment:
    """A learner, its tasks and its outer rule.

    Attributes:
        episode: size of a training task.
        seed: the job's seed, of which training tasks and initial weights are a function.
        start: values by name that version 0 has in the place of initial weights.
        freeze: patterns of the names of parameters that never change.
        share: patterns of the names of parameters that are the server's; the others are each task's own.
    """

    distribution: TaskDistribution
    learner: Learner
    rule: OuterRule
    episode: Episode
    seed: int
    start: Mapping[str, Tensor] = field(default_factory=dict)
    freeze: tuple[str, ...] = ()
    share: tuple[str, ...] = ("*",)

    def initial(self) -> Meta:
        """The meta-parameters at version 0."""
        return self._begin("initial", self.start)

    def scratch(self) -> Meta:
        """A random start that no training has seen, the baseline of every evaluation."""
        return self._begin("scratch", {})

    def _begin(self, what: str, given: Mapping[str, Tensor]) -> Meta:
        fresh = self.learner.init(torch_generator(what, self.seed))
        parameters, statistics = ({n: given.get(n, v) for n, v in group.items()} for group in fresh[:2])
        # What a learner itself does not train is a part of it, whatever it starts from.
        frozen = {name: self.start.get(name, value) for name, value in fresh.frozen.items()}
        still = {name: value for name, value in parameters.items() if matches(name, self.freeze)}
        moving = {name: value for name, value in parameters.items() if name not in still}
        shared = adapting(moving, self.share)
        local = {name: value for name, value in moving.items() if name not in shared}
        return Meta(shared, statistics, frozen | still, local)
