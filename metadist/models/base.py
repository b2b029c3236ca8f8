"""What every base model has: features, and a head unless it is an embedding."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
from torch import Generator, Tensor, nn

from metadist.models.initial import InitName, initial_parameters
from metadist.models.norm import NormKind

Activation = Literal["relu", "leaky_relu", "elu", "tanh"]

ACTIVATIONS: dict[Activation, Callable[[Tensor], Tensor]] = {
    "relu": nn.functional.relu,
    "leaky_relu": partial(nn.functional.leaky_relu, negative_slope=0.1),
    "elu": nn.functional.elu,
    "tanh": torch.tanh,
}


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """What every base model can be told."""

    #: statistics that normalise activations: of the current `batch` (transductive on a query set), of the `support`
    #: set only, of the support set and one query, each a `single` time (Reptile's non-transductive evaluation; slow),
    #: of each example's `layer`, or `none`
    norm: NormKind = "none"
    #: nonlinearity after every layer but the head (leaky_relu: of slope 0.1)
    activation: Activation = "relu"
    #: distribution of the initial weights
    init: InitName = "default"
    #: task-specific layers: a scale and a shift of each channel wherever activations are normalised, or would be;
    #: parameters named `*.film.*`, which `learner.adapt: ["head.*", "*.film.*"]` adapts with the head alone
    film: bool = False
    #: dynamic feature selection: hidden units of a net that computes a factor for every feature from the support set,
    #: parameters named `gates.*`; null: no gates
    gates: int | None = None


class BaseModel(ABC, nn.Module):  # in this order, in which `higher` can subclass it
    """A network as trunk and head.

    Args:
        norm: kind of normalisation, see `Norm`.
        features: width of what `features` returns.
        outputs: width of the head; `None` for an embedding, which has no head.
    """

    #: values per example after the first convolution
    activations = 0

    def __init__(self, norm: NormKind, features: int, outputs: int | None) -> None:
        super().__init__()
        self.norm_kind: NormKind = norm
        #: shape of one example's features before they are flattened: [channels, height, width] of a model that ends
        #: with feature maps
        self.feature_shape: tuple[int, ...] = (features,)
        self.head: nn.Module = nn.Identity() if outputs is None else nn.Linear(features, outputs)

    @abstractmethod
    def features(self, x: Tensor, reference: int | None) -> Tensor:
        """Features [n, features] of inputs [n, …]."""

    def forward(self, x: Tensor, reference: int | None = None, head: bool = True) -> Tensor:
        """Outputs [n, outputs] (or features, without a head) of inputs [n, …].

        Args:
            reference: the first `reference` rows are the ones whose statistics normalise all rows;
                `None`: every row counts.
            head: whether the features go through the head.
        """
        features = self.features(x, reference)
        out: Tensor = self.head(features) if head else features
        return out

    def initial(self, init: InitName | None, generator: Generator) -> dict[str, Tensor]:
        """Weights before any training, by name; `None`: in the model's own way, where it has one."""
        return initial_parameters(self, init or "default", generator)

    @property
    def vectorizes(self) -> bool:
        """Whether many tasks at once are faster than one after the other on a CPU.

        Pooled nets on larger images are bound by memory traffic, which many tasks at once make worse.
        """
        return self.activations <= 16384
