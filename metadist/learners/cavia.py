"""CAVIA: Zintgraf, Shiarlis, Kurin, Hofmann, Whiteson, "Fast Context Adaptation via Meta-Learning", ICML 2019.

Adapts a few context parameters φ and leaves the network θ as it is. φ begins at 0 in each task and takes gradient
steps on the support set, φ ← φ − α ∇φ L_support(φ, θ) (equation 5); the outer loop trains θ through these steps.
The context conditions one layer: it is an input beside the layer's own (`concat`, section 3.1), or it scales and
shifts each of its channels (`film`, section 3.3, as in FiLM: Perez et al., 2018).

Both are done to the layer's own parameters, which gives the same outputs for any base model. An input that is the
same in all rows adds its weights, times φ, to the layer's bias. Scales and shifts of channels go into those of the
normalisation after the layer, or into the layer's weights and bias where there is none: with 1 + Sφ and Tφ, the
paper's Sφ + s and Tφ + t, whose s and t are the normalisation's own.

Deviations: scales begin at 1 and shifts at 0, where the authors' code draws both; where a model pools, channels are
scaled before that, not after.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Generator, Tensor, nn

from metadist.errors import UserError
from metadist.learners.base import HEAD, Learner, Meta, Network, plain_meta
from metadist.learners.gradient import Parameters, inner_gradient
from metadist.learners.maml import AdaptedWeights, detached
from metadist.models import Norm
from metadist.tasks import Examples

#: what the context is multiplied by [channels, context], to scale and to shift
SCALE, SHIFT = "context.scale", "context.shift"


@dataclass(frozen=True, kw_only=True)
class CaviaConfig:
    """CAVIA: adapts a few context parameters that condition one layer, and leaves the network as it is."""

    kind: Literal["cavia"] = "cavia"
    #: number of context parameters
    context: int = 100
    #: the layer that they condition, from 1; the paper's is 3 for images, and 1 for sinusoids
    layer: int = 1
    #: how: `film` scales and shifts its channels, `concat` is beside its inputs (layers of an mlp, norm none or layer)
    conditioning: Literal["film", "concat"] = "film"
    #: step size of the adaptation
    inner_lr: float = 1.0
    #: adaptation steps in training
    inner_steps: int = 2
    #: adaptation steps at evaluation
    eval_steps: int = 2
    #: drop the second derivatives
    first_order: bool = False

    def __post_init__(self) -> None:
        if not self.inner_lr > 0:
            raise UserError("inner_lr", self.inner_lr, "a number above 0")
        for name, least in (("context", 1), ("layer", 1), ("inner_steps", 1), ("eval_steps", 0)):
            if getattr(self, name) < least:
                raise UserError(name, getattr(self, name), f"a whole number of at least {least}")


class Cavia(Learner):
    """Classification and regression, any base model that has the layer.

    Raises:
        UserError: there is no such layer, or it cannot be conditioned in this way.
    """

    config_type = CaviaConfig

    def __init__(self, config: CaviaConfig, network: Network) -> None:
        super().__init__(network, config.eval_steps, config.inner_steps)
        self.config = config
        self.layer = _conditioned_layer(config, network.module)

    def init(self, generator: Generator) -> Meta:
        weights = self.network.fresh(generator)
        channels, count = len(weights[f"{self.layer}.bias"]), self.config.context
        for name in (SCALE, SHIFT) if self.config.conditioning == "film" else (SHIFT,):
            bound = 1 / math.sqrt(count)
            weights[name] = torch.empty(channels, count).uniform_(-bound, bound, generator=generator)
        return plain_meta(weights)

    def adaptation(self, meta: Meta, support: Examples, steps: int) -> Iterator[AdaptedWeights]:
        start = meta.parameters
        # Zeros, yet a function of θ, as the context after a step is: their inner gradient keeps its graph.
        context = 0 * start[SHIFT][0]
        shared = detached(start) if self.config.first_order else start

        def loss(parts: Parameters) -> Tensor:
            weights = self._conditioned(shared, parts["context"])
            return self.network.cost(self.network.support(weights, support), support.y)

        yield AdaptedWeights(self._conditioned(start, context), support)
        for _ in range(steps):
            at = {"context": context.detach() if self.config.first_order else context}
            context = context - self.config.inner_lr * inner_gradient(loss, at)["context"]
            yield AdaptedWeights(self._conditioned(start, context), support)

    def predict(self, adapted: Any, x: Tensor) -> Tensor:
        return self.network.query(adapted.parameters, adapted.support, x)

    def _conditioned(self, parameters: Parameters, context: Tensor) -> Parameters:
        """The network's weights in this context [context parameters]."""
        weights = {name: value for name, value in parameters.items() if name not in (SCALE, SHIFT)}
        weight, bias = f"{self.layer}.weight", f"{self.layer}.bias"
        if SCALE in parameters:
            scale = 1 + parameters[SCALE] @ context  # [channels]
            weights[weight] = weights[weight] * scale.view(-1, *(1,) * (weights[weight].dim() - 1))
            weights[bias] = weights[bias] * scale
        weights[bias] = weights[bias] + parameters[SHIFT] @ context
        return weights


def _conditioned_layer(config: CaviaConfig, module: nn.Module) -> str:
    """Name of the module whose weight and bias take the context in."""
    named: list[tuple[str, nn.Module]] = list(module.named_modules())
    body = [(name, part) for name, part in named if not f"{name}.".startswith(HEAD)]
    layers = [(name, part) for name, part in body if isinstance(part, (nn.Linear, nn.Conv2d))]
    norms = [(name, part) for name, part in body if isinstance(part, Norm) and part.kind != "none"]
    found = norms if norms and config.conditioning == "film" else layers
    if config.layer > len(found):
        raise UserError("learner.layer", config.layer, f"one of the model's layers, 1 to {len(found)}")
    name, part = found[config.layer - 1]
    has_bias = getattr(part, "bias", None) is not None
    if not has_bias or (config.conditioning == "concat" and not isinstance(part, nn.Linear)):
        expected = "film, or concat for a linear layer with a bias, so without batch statistics after it"
        raise UserError("learner.conditioning", config.conditioning, expected, f"Layer {config.layer} is {part}.")
    return name
