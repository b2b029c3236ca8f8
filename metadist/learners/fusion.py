"""Fusion: several trained runs, the experts, are combined as f(x) = Σ wᵢ fᵢ(x), with weights that each task chooses.

A mixture of experts (Jacobs, Jordan, Nowlan, Hinton, "Adaptive Mixtures of Local Experts", Neural Computation 1991,
equation 1) whose experts are trained already, and whose weights w = softmax(z) are adapted, not computed from x. The
experts adapt to each task's support set as their own runs do; z begins at z₀, which is learned over tasks, and takes
steps of exponentiated gradient (Kivinen, Warmuth, "Exponentiated Gradient versus Gradient Descent for Linear
Predictors", Information and Computation 1997), z ← z − η ∂J/∂w, which keep to the simplex, on

    J(w) = Σ wᵢ Lᵢ + β · KL(w ‖ uniform) + γ · Σᵢⱼ wᵢ wⱼ ‖fᵢ − fⱼ‖²

β keeps the weights from collapsing to one expert: without γ they approach softmax(−L/β). γ draws them to experts that
agree. Lᵢ is the expert's negative log-likelihood of a row: cross-entropy, or half the log of its mean squared error
(Gaussian, with the variance that suits it best), so that no step depends on the units of a task. Classification mixes
probabilities, regression outputs; what differs in ‖fᵢ − fⱼ‖² are these, of regression in units of the targets, up to 1.
The outer loss is the mixture's on the query set; no derivative is taken of the experts.

Experts that have adapted to the support set fit it, whether they are right or not. So Lᵢ and fᵢ are of rows that an
expert has not seen: the support set is cut into folds, and each expert predicts every fold after adapting to the rest.
Where classes have one example each nothing can be left out: all tasks then have the weights that were learned. An
expert may diverge on tasks that are not its own. Of regression, an output above ten times the size of the support
targets counts as an error of that size, and as 0 in the mixture; of classification, a row that is not finite says
nothing about its classes.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple

import torch
from torch import Generator, Tensor

from metadist.errors import UserError
from metadist.learners.base import Learner, Meta, Network
from metadist.learners.gradient import Parameters
from metadist.learners.probabilities import from_log_probabilities, log_probabilities
from metadist.learners.trained import OnTrainedRuns, TrainedPart, TrainedRun, named_run
from metadist.tasks import Examples

#: name of the free logits z₀ of the weights [experts]
LOGITS = "logits"
#: least relative error, and largest distance of a class from the likeliest, that an expert is taken to have
TINY, LARGE = 1e-6, 1e4


@dataclass(frozen=True, kw_only=True)
class FusionConfig(OnTrainedRuns):
    """Fusion: a weighted sum of trained runs, with weights that adapt to each task."""

    kind: Literal["fusion"] = "fusion"
    #: the trained runs, each a path or {path, sha256}; they bring their models, and `model` says nothing
    experts: list[str | TrainedRun]
    #: step size η of the weights
    inner_lr: float = 2.0
    #: steps of the weights in training
    inner_steps: int = 5
    #: steps of the weights at evaluation
    eval_steps: int = 5
    #: parts of the support set that are left out in turn, at most one for each example of a class
    folds: int = 5
    #: strength β of the pull to equal weights
    uniform: float = 0.1
    #: strength γ of the pull to experts that agree
    agreement: float = 0.0

    def __post_init__(self) -> None:
        if len(self.experts) < 2:
            raise UserError("experts", self.experts, "two runs at least")
        if not self.inner_lr > 0:
            raise UserError("inner_lr", self.inner_lr, "a number above 0")
        for name, least in (("inner_steps", 0), ("eval_steps", 0), ("folds", 2), ("uniform", 0), ("agreement", 0)):
            if not getattr(self, name) >= least:
                raise UserError(name, getattr(self, name), f"a number of at least {least}")
        if self.inner_lr * self.uniform > 1:
            raise UserError(
                "inner_lr", self.inner_lr, f"at most 1/uniform = {1 / self.uniform:g}, beyond which it swings"
            )

    @property
    def runs(self) -> dict[str, TrainedRun]:
        return {f"experts.{number}": named_run(run) for number, run in enumerate(self.experts)}

    def with_runs(self, runs: Mapping[str, TrainedRun]) -> FusionConfig:
        return replace(self, experts=list(runs.values()))


class Mixture(NamedTuple):
    """Weights of the experts as logits [experts], the experts, each as it has adapted, and to what."""

    logits: Tensor
    experts: Sequence[Any]
    support: Examples


class Fusion(Learner):
    """Classification and regression; what the experts can, with the models that they have."""

    config_type = FusionConfig

    def __init__(self, config: FusionConfig, experts: Sequence[TrainedPart]) -> None:
        super().__init__(experts[0].network, config.eval_steps, config.inner_steps)
        self.config, self.experts = config, list(experts)
        self.part_steps = (config.folds + 1) * sum(expert.eval_steps for expert in experts)

    def beside(self) -> dict[str, Learner]:
        return {expert.prefix.rstrip("."): expert for expert in self.experts} | {"average": _Average(self)}

    def networks(self) -> list[Network]:
        return [network for expert in self.experts for network in expert.networks()]

    def with_frozen(self, frozen: Parameters) -> Learner:
        fusion = copy.copy(self)
        fusion.experts = [expert.with_frozen(frozen) for expert in self.experts]
        return fusion

    def init(self, generator: Generator) -> Meta:
        frozen: Parameters = {}
        for expert in self.experts:
            frozen |= expert.init(generator).frozen
        return Meta({LOGITS: torch.zeros(len(self.experts))}, {}, frozen)

    def adaptation(self, meta: Meta, support: Examples, steps: int) -> Iterator[Mixture]:
        with torch.no_grad():
            experts = [expert.adapt(meta, support) for expert in self.experts]
        logits, config = meta.parameters[LOGITS], self.config
        yield Mixture(logits, experts, support)
        evidence = self._evidence(meta, support) if steps else None
        for _ in range(steps):
            if evidence is not None:
                losses, apart = evidence
                slope = (
                    losses + config.uniform * logits.log_softmax(0) + 2 * config.agreement * apart @ logits.softmax(0)
                )
                logits = logits - config.inner_lr * slope
            yield Mixture(logits, experts, support)

    def _evidence(self, meta: Meta, support: Examples) -> tuple[Tensor, Tensor] | None:
        """L [experts] and ‖fᵢ − fⱼ‖² [experts, experts], both of rows that were left out; `None` where none can be."""
        rows, ways = len(support.x), max(1, support.ways)
        folds = min(self.config.folds, rows // ways)
        if folds < 2:
            return None
        order, seen = [], []
        for fold in range(folds):
            # Rows go shot by shot: every class keeps as many as the others.
            out = [row for row in range(rows) if row // ways % folds == fold]
            rest = [row for row in range(rows) if row // ways % folds != fold]
            known = support._replace(x=support.x[rest], y=support.y[rest])
            seen.append(torch.stack([expert.judge(meta, known, support.x[out]) for expert in self.experts]))
            order += out
        y, said = support.y[order], torch.cat(seen, 1)  # [experts, rows, outputs]
        outputs = self._sound(said, support)
        if self.network.loss == "mse":
            bound = _largest(support)
            size = y.square().mean() + TINY
            errors = torch.where(said.abs() <= bound, (outputs - y).square(), bound**2).mean((1, 2))
            apart = (outputs[:, None] - outputs[None]).square().mean((2, 3)) / size
            return (errors / size + TINY).log() / 2, apart.clamp(max=1.0)
        losses = torch.stack([self.network.cost(each, y) for each in outputs])
        shares = log_probabilities(outputs, self.network.loss).exp()
        return losses, (shares[:, None] - shares[None]).square().flatten(2).mean(-1)

    def _sound(self, outputs: Tensor, support: Examples) -> Tensor:
        """Outputs of experts as finite numbers, 0 where one has diverged."""
        if self.network.loss == "mse":
            return torch.where(outputs.abs() <= _largest(support), outputs, 0.0)
        outputs = torch.where(outputs.isfinite().all(-1, keepdim=True), outputs, 0.0)
        if self.network.loss == "cross_entropy":
            outputs = outputs - outputs.amax(-1, keepdim=True)  # which changes no probability
        return outputs.clamp(-LARGE, LARGE)

    def predict(self, adapted: Mixture, x: Tensor) -> Tensor:
        with torch.no_grad():
            each = zip(self.experts, adapted.experts, strict=True)
            outputs = torch.stack([expert.predict(state, x) for expert, state in each])  # [experts, rows, outputs]
            outputs = self._sound(outputs, adapted.support)
        logs, loss = adapted.logits.log_softmax(0), self.network.loss
        if loss == "mse":
            return (logs.exp()[:, None, None] * outputs).sum(0)
        said = log_probabilities(outputs, loss)
        mixed = (logs.view(-1, *(1,) * (said.dim() - 1)) + said).logsumexp(0)
        return from_log_probabilities(mixed, loss)

    def figures(self, adapted: Mixture) -> dict[str, Tensor]:
        return {f"weights.{number}": weight for number, weight in enumerate(adapted.logits.softmax(0))}


def _largest(support: Examples) -> Tensor:
    """The largest value that an expert is taken to mean, by output [outputs]."""
    return 10 * support.y.abs().amax(0)


class _Average(Learner):
    """The experts of a fusion, all with the same weight."""

    meta_trains = False

    def __init__(self, fusion: Fusion) -> None:
        super().__init__(fusion.network, eval_steps=0)
        self.fusion = fusion

    def networks(self) -> list[Network]:
        return self.fusion.networks()

    def init(self, generator: Generator) -> Meta:
        return self.fusion.init(generator)

    def adaptation(self, meta: Meta, support: Examples, steps: int) -> Iterator[Mixture]:
        equal = {name: torch.zeros_like(value) for name, value in meta.parameters.items()}
        return self.fusion.adaptation(meta._replace(parameters=equal), support, steps=0)

    def predict(self, adapted: Mixture, x: Tensor) -> Tensor:
        return self.fusion.predict(adapted, x)
