"""Everything that a step of a run is a function of, as values."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from metadist.learners import Learner, Meta
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
    """

    distribution: TaskDistribution
    learner: Learner
    rule: OuterRule
    episode: Episode
    seed: int

    def initial(self) -> Meta:
        """The meta-parameters at version 0."""
        return self.learner.init(torch_generator("initial", self.seed))

    def scratch(self) -> Meta:
        """A random start that no training has seen, the baseline of every evaluation."""
        return self.learner.init(torch_generator("scratch", self.seed))
