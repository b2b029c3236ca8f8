"""LSTM meta-learner: Ravi, Larochelle, "Optimization as a Model for Few-Shot Learning", ICLR 2017.

Learns the optimiser of the inner loop, and the initial weights that it starts from. A weight is the cell state of an
LSTM, one for each coordinate, and a step on the support set is its update (equation 2)

    θₜ = fₜ ∘ θₜ₋₁ − iₜ ∘ ∇L(θₜ₋₁)

whose gates, the share of the weight that is kept and the rate of learning, are computed anew for every weight and
step. They see the weight, their own value before, and the output of an ordinary LSTM that reads the gradient and the
loss (section 3.2), each as a logarithm and a sign (Andrychowicz et al., "Learning to learn by gradient descent by
gradient descent", NeurIPS 2016, appendix A, p = 10). All coordinates share the parameters, named `optimizer.…`, so that
their number does not depend on the net; states are a coordinate's own, and a task's.

The outer loss is L_query after the last step. Its derivative goes through weights, gates and states, and takes
gradients and losses of the inner loop for constants (section 3.3), so that there is no second derivative.

Deviations: the gates' weights begin at 0, so that training starts from gradient descent with `inner_lr`, where the
authors draw them within 0.01 of it; gates and states are 0 before the first step, of which the paper says nothing; the
net is normalised as the model's `norm` says, where the paper has running statistics in the test.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from torch import Generator, Tensor

from metadist.errors import UserError
from metadist.learners.base import Learner, Meta, Network, plain_meta
from metadist.learners.gradient import Parameters, inner_gradient_and_loss
from metadist.learners.maml import AdaptedWeights, detached
from metadist.tasks import Examples

#: how the names of the learned optimiser's parameters begin
OPTIMIZER = "optimizer."
#: p of the preprocessing: below e⁻ᵖ a value is its own sign, and no logarithm
P = 10.0
#: what a gate may begin at, and what it may leave out of 1
LEAST = 1e-6
#: what the ordinary LSTM reads: logarithm and sign of gradient and loss
INPUTS = 4


@dataclass(frozen=True, kw_only=True)
class MetaLstmConfig:
    """LSTM meta-learner: learns the optimiser of the inner loop, and the weights that it starts from."""

    kind: Literal["metalstm"] = "metalstm"
    #: width of the LSTM that reads gradients and losses; one of it runs for each weight, so the net must be small
    hidden: int = 20
    #: rate of learning before training
    inner_lr: float = 0.1
    #: share of each weight that a step keeps, before training
    keep: float = 0.999
    #: adaptation steps in training
    inner_steps: int = 5
    #: adaptation steps at evaluation
    eval_steps: int = 5

    def __post_init__(self) -> None:
        for name in ("inner_lr", "keep"):
            if not LEAST <= getattr(self, name) <= 1 - LEAST:
                expected = f"a number from {LEAST:g} to {1 - LEAST:g}, so that a gate can still move"
                raise UserError(name, getattr(self, name), expected)
        for name, least in (("hidden", 1), ("inner_steps", 1), ("eval_steps", 0)):
            if getattr(self, name) < least:
                raise UserError(name, getattr(self, name), f"a whole number of at least {least}")


class State(NamedTuple):
    """What the optimiser remembers from step to step: gates [weights], output and memory [weights, hidden]."""

    keep: Tensor
    rate: Tensor
    output: Tensor
    memory: Tensor


class MetaLstm(Learner):
    """Classification and regression, any base model."""

    config_type = MetaLstmConfig

    def __init__(self, config: MetaLstmConfig, network: Network) -> None:
        super().__init__(network, config.eval_steps, config.inner_steps)
        self.config = config

    def init(self, generator: Generator) -> Meta:
        weights, hidden = self.network.fresh(generator), self.config.hidden
        bound = 1 / math.sqrt(hidden)
        own = {
            "lstm.weight": torch.empty(4 * hidden, INPUTS + hidden).uniform_(-bound, bound, generator=generator),
            "lstm.bias": torch.zeros(4 * hidden),
        }
        for gate, begins in (("keep", self.config.keep), ("rate", self.config.inner_lr)):
            own |= {f"{gate}.weight": torch.zeros(hidden + 2), f"{gate}.bias": torch.full((1,), begins).logit()}
        return plain_meta(weights | {OPTIMIZER + name: value for name, value in own.items()})

    def adaptation(self, meta: Meta, support: Examples, steps: int) -> Iterator[AdaptedWeights]:
        own = {n.removeprefix(OPTIMIZER): value for n, value in meta.parameters.items() if n.startswith(OPTIMIZER)}
        weights = {name: value for name, value in meta.parameters.items() if not name.startswith(OPTIMIZER)}

        def loss(parameters: Parameters) -> Tensor:
            return self.network.cost(self.network.support(parameters, support), support.y)

        yield AdaptedWeights(weights, support)
        theta = _flat(weights)
        gate, wide = torch.zeros_like(theta), theta.new_zeros(len(theta), self.config.hidden)
        state = State(gate, gate, wide, wide)
        for _ in range(steps):
            gradient, value = inner_gradient_and_loss(loss, detached(weights))
            slope = _flat(gradient)
            state = self._read(own, state, theta, slope, value)
            theta = state.keep * theta - state.rate * slope
            parts = torch.split(theta, [weight.numel() for weight in weights.values()])
            weights = {n: part.reshape(w.shape) for (n, w), part in zip(weights.items(), parts, strict=True)}
            yield AdaptedWeights(weights, support)

    def _read(self, own: Parameters, state: State, theta: Tensor, slope: Tensor, loss: Tensor) -> State:
        """The state after it has seen weights and gradients [weights], and the loss, a scalar."""
        seen = torch.cat([preprocessed(slope), preprocessed(loss).expand(len(slope), 2), state.output], 1)
        enter, stay, candidate, show = (seen @ own["lstm.weight"].T + own["lstm.bias"]).chunk(4, 1)
        memory = stay.sigmoid() * state.memory + enter.sigmoid() * candidate.tanh()
        output = show.sigmoid() * memory.tanh()

        def gate(name: str, before: Tensor) -> Tensor:
            from_output, (from_theta, from_before) = own[f"{name}.weight"][:-2], own[f"{name}.weight"][-2:]
            total: Tensor = output @ from_output + theta * from_theta + before * from_before + own[f"{name}.bias"]
            return total.sigmoid()

        return State(gate("keep", state.keep), gate("rate", state.rate), output, memory)

    def predict(self, adapted: Any, x: Tensor) -> Tensor:
        return self.network.query(adapted.parameters, adapted.support, x)


def preprocessed(x: Tensor) -> Tensor:
    """Values […] as […, 2]: log|x| / p and the sign of x; −1 and eᵖ x where |x| is below e⁻ᵖ."""
    return torch.stack([x.abs().clamp(min=math.exp(-P)).log() / P, (math.exp(P) * x).clamp(-1, 1)], -1)


def _flat(parameters: Parameters) -> Tensor:
    return torch.cat([value.flatten() for value in parameters.values()])
