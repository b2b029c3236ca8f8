"""Dynamic feature selection: gates over the features, computed from the support set.

A small network sees the mean and the variance of every feature over the support set and gives each feature a factor
from 0 to 2, about 1 at the start. Support and query features are multiplied by these factors before they meet the head
(or, of an embedding, each other): a task picks among the features that all tasks share, without a gradient step. This
is squeeze-and-excitation (Hu, Shen, Sun, "Squeeze-and-Excitation Networks", CVPR 2018) with the support set's rows in
the place of positions.

The network's parameters, named `gates.…`, are meta-parameters like all others: an inner loop that changes all
parameters changes them too, and leaves them as they are with `learner.adapt: ["*", "!gates.*"]`.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from metadist.errors import UserError
from metadist.learners.base import Network
from metadist.learners.gradient import Parameters
from metadist.tasks import Examples


class Gates(nn.Module):
    """Factors [features] for a support set's features [rows, features]."""

    def __init__(self, features: int, hidden: int) -> None:
        super().__init__()
        self.hidden, self.out = nn.Linear(2 * features, hidden), nn.Linear(hidden, features)

    def forward(self, features: Tensor) -> Tensor:
        mean = features.mean(0)
        variance = (features - mean).square().mean(0)
        factors: Tensor = 2 * self.out(self.hidden(torch.cat([mean, variance])).tanh()).sigmoid()
        return factors


class GatedNetwork(Network):
    """A base model whose features go through gates (see `gated`)."""

    def support(self, parameters: Parameters, support: Examples) -> Tensor:
        return self.head(parameters, self.support_features(parameters, support))

    def support_features(self, parameters: Parameters, support: Examples) -> Tensor:
        features = super().support_features(parameters, support)
        return features * self._gates(parameters, features)

    def query(self, parameters: Parameters, support: Examples, x: Tensor, head: bool = True) -> Tensor:
        gates = self._gates(parameters, super().support_features(parameters, support))
        features = super().query(parameters, support, x, head=False) * gates
        return self.head(parameters, features) if head else features

    def _gates(self, parameters: Parameters, features: Tensor) -> Tensor:
        return self.through("gates", parameters, features)


def gated(network: Network, hidden: int) -> GatedNetwork:
    """The network with gates of so many hidden units, which become a part of its base model."""
    if hidden < 1:
        raise UserError("model.gates", hidden, "a whole number of at least 1, or null")
    network.module.gates = Gates(math.prod(network.module.feature_shape), hidden)
    return GatedNetwork(**vars(network))
