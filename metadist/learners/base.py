"""What a learner is: how to adapt to a task, and what its meta-parameters are judged by.

A learner is a value without trained state. Everything that is meta-learned is named tensors in three
groups, `Meta`, which the server holds and every learner's method takes as an argument.
"""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Literal, NamedTuple

import torch
from torch import Generator, Tensor, nn

from metadist.errors import UserError
from metadist.learners.gradient import Parameters
from metadist.models import BaseModel, InitName
from metadist.tasks import Examples, Task
from metadist.tasks.base import Loss


def _each_class_by_itself(outputs: Tensor, y: Tensor) -> Tensor:
    """Mean over rows and classes of the binary cross-entropy of "is it this class" (one against the rest)."""
    # Not one_hot, whose check of its values fails under a vectorised gradient.
    of_class = (y[:, None] == torch.arange(outputs.shape[-1], device=y.device)).to(outputs.dtype)
    return nn.functional.binary_cross_entropy_with_logits(outputs, of_class)


LOSSES: dict[Loss, Callable[[Tensor, Tensor], Tensor]] = {
    "cross_entropy": nn.functional.cross_entropy,
    "binary_cross_entropy": _each_class_by_itself,
    "mse": nn.functional.mse_loss,
}


#: what the layers of a network compute in: 32 bits, or `torch.autocast` to bfloat16
Precision = Literal["fp32", "bf16"]

#: how the names of the parameters of a model's head begin
HEAD = "head."
#: rows, of a task, that go through the model together where each query has a batch of its own; bounds memory
ROWS_AT_ONCE = 512


class Meta(NamedTuple):
    """Everything meta-learned, as named tensors.

    Attributes:
        parameters: get meta-gradients and the outer step.
        statistics: get the mean of what the tasks report, folded in once a step.
        frozen: never change. Those that have names of the network's parameters stand in for them.
        local: parameters that stay with the task: each task begins with these values and adapts them as it does the
            others, and they get no meta-gradient.
    """

    parameters: Parameters
    statistics: dict[str, Tensor]
    frozen: dict[str, Tensor]
    local: Parameters = {}  # noqa: RUF012  nobody writes to it

    @property
    def still(self) -> dict[str, Tensor]:
        """What no step changes, so that no version brings it."""
        return self.frozen | self.local

    @property
    def whole(self) -> Meta:
        """As a task meets them: with all the parameters that it begins with."""
        return self._replace(parameters=self.parameters | self.local)


class Outcome(NamedTuple):
    """What one task's query set says about a learner that has adapted to it.

    Attributes:
        loss: query loss, a scalar.
        outputs: query outputs [query rows, outputs].
        statistics: one tensor per statistic of `Meta`, which the server folds in; they get no gradient.
    """

    loss: Tensor
    outputs: Tensor
    statistics: dict[str, Tensor] = {}  # noqa: RUF012  nobody writes to it


class TaskGradient(NamedTuple):
    """What one task gives to the outer step.

    Attributes:
        gradient: one tensor per parameter.
        loss: query loss after adaptation, a scalar.
        outputs: query outputs after adaptation [query rows, outputs].
        statistics: one tensor per statistic.
    """

    gradient: Parameters
    loss: Tensor
    outputs: Tensor
    statistics: dict[str, Tensor]


@dataclass(frozen=True)
class Network:
    """A base model without weights: calls the module with whichever weights it is given.

    Attributes:
        fixed: parameters that every call has beside those that it is given (see `Learner.with_frozen`).
        precision: what the layers compute in; parameters and outputs are float32 in both.
    """

    module: BaseModel
    init: InitName | None
    loss: Loss
    fixed: Parameters = field(default_factory=dict, compare=False)
    precision: Precision = "fp32"

    def _call(
        self, module: nn.Module, parameters: Parameters, inputs: tuple[Tensor, ...], options: Any = None
    ) -> Tensor:
        if self.precision == "fp32":
            out: Tensor = torch.func.functional_call(module, parameters, inputs, options)
            return out
        with torch.autocast(inputs[0].device.type, torch.bfloat16, cache_enabled=False):
            out = torch.func.functional_call(module, parameters, inputs, options)
        return out.float() if out.dtype == torch.bfloat16 else out

    def fresh(self, generator: Generator) -> Parameters:
        """New weights."""
        return self.module.initial(self.init, generator)

    def require_head(self, learner: str) -> None:
        """Raise `UserError` where the model has no head, which `learner` treats in its own way."""
        if not any(name.startswith(HEAD) for name, _ in self.module.named_parameters()):
            hint = "Have the module apply a layer called head last of all, or use maml."
            raise UserError("learner.kind", learner, "a learner for a model that is all trunk and no head", hint)

    def linear_head(self) -> nn.Linear:
        """The model's head, for learners that put something before it or in its place; `UserError` for any other."""
        if not isinstance(self.module.head, nn.Linear):
            kind = type(self.module).__name__
            raise UserError("model.kind", kind, "a model whose head is a linear layer", "Or use maml or protonet.")
        return self.module.head

    def support(self, parameters: Parameters, support: Examples) -> Tensor:
        """Outputs on the support set itself [rows, outputs]."""
        return self._call(self.module, self.fixed | parameters, (support.x,))

    def support_features(self, parameters: Parameters, support: Examples) -> Tensor:
        """What the head would see of the support set [rows, features]."""
        return self._call(self.module, self.fixed | parameters, (support.x,), {"head": False})

    def part(self, parameters: Parameters, prefix: str) -> Parameters:
        """The parameters of a part of the model, by their names in it."""
        every = self.fixed | parameters
        return {name.removeprefix(prefix): value for name, value in every.items() if name.startswith(prefix)}

    def head(self, parameters: Parameters, features: Tensor) -> Tensor:
        """Outputs of the head alone [rows, outputs], from the parameters named `head.…`."""
        return self.through("head", parameters, features)

    def through(self, name: str, parameters: Parameters, *inputs: Tensor) -> Tensor:
        """Outputs of a part of the module called `name`, from the parameters named `name.…`."""
        return self._call(self.module.get_submodule(name), self.part(parameters, f"{name}."), inputs)

    def query(self, parameters: Parameters, support: Examples, x: Tensor, head: bool = True) -> Tensor:
        """Outputs on other inputs `x` [rows, outputs] or features, normalised as the model's `norm` says."""
        parameters = self.fixed | parameters
        norm, rows = getattr(self.module, "norm_kind", None), support.x.shape[0]
        if norm == "single":
            return self._one_by_one(parameters, support, x, head)
        if norm != "support":
            return self._call(self.module, parameters, (x,), {"head": head})
        both = torch.cat([support.x, x])
        return self._call(self.module, parameters, (both,), {"reference": rows, "head": head})[rows:]

    def _one_by_one(self, parameters: Parameters, support: Examples, x: Tensor, head: bool) -> Tensor:
        """Each input in a batch of its own with the support set."""

        def alone(row: Tensor) -> Tensor:
            both = torch.cat([support.x, row[None]])
            return self._call(self.module, parameters, (both,), {"head": head})[-1]

        at_once = max(1, ROWS_AT_ONCE // (support.x.shape[0] + 1))
        out: Tensor = torch.func.vmap(alone, chunk_size=at_once)(x)
        return out

    def cost(self, outputs: Tensor, y: Tensor) -> Tensor:
        """Mean loss over the rows, a scalar."""
        return LOSSES[self.loss](outputs, y)


class Learner(ABC):
    """The interface of all learners.

    Adapted learners are opaque: `adapt` makes them, `predict` uses them. A job calls the class with an object of
    its `config_type` and with the base model.

    Args:
        network: the base model.
        eval_steps: number of adaptation steps at evaluation.
        train_steps: number of adaptation steps in training.
    """

    #: Frozen dataclass of the settings that a job may give, one of them `kind`.
    config_type: ClassVar[type[Any]]
    #: Whether `task_gradient` is the learner's own rule. Otherwise the meta-gradient is the derivative
    #: of `task_loss`, and no method but that one is called in training.
    own_gradient = False
    #: Whether there is anything to meta-train; without, a job takes 0 steps and judges what it starts from.
    meta_trains = True
    #: Whether the base model is an embedding, without a head. Such a learner classifies by comparing with the
    #: support set, so that training may have other ways than evaluation.
    embeds = False
    #: Whether a task may have no support set, its query set being a sequence whose labels are told one step late.
    sequential = False
    #: Whether the inner steps are taken again in the backward pass instead of being kept (`learners.remat`).
    remat = False
    #: Adaptation steps that its parts take in a training task, beside its own.
    part_steps = 0
    #: Patterns of the parameters that each phase of an outer step moves, phase after phase (see `in_phase`).
    phases: tuple[tuple[str, ...], ...] = (("*",),)
    #: Whether `at` gives only a few learners, and the same object for each again, so that each can be captured once.
    few_stages = False

    def __init__(self, network: Network, eval_steps: int, train_steps: int = 0) -> None:
        self.network, self.eval_steps, self.train_steps = network, eval_steps, train_steps

    def at(self, step: int) -> Learner:
        """The learner as it trains after `step` outer steps: itself, unless it has a schedule of its own."""
        return self

    def in_phase(self, phase: int) -> Learner:
        """The learner whose meta-gradient a phase takes, the same object each time; its meta-parameters are those that
        the phase moves, and the others are frozen."""
        return self

    def with_frozen(self, frozen: Parameters) -> Learner:
        """The learner whose network has the `frozen` parameters of `Meta` beside those that it is called with.

        So no learner needs to know that some parameters do not change: it never meets them.
        """
        if not frozen:
            return self
        learner = copy.copy(self)
        learner.network = replace(self.network, fixed=self.network.fixed | frozen)
        return learner

    def beside(self) -> dict[str, Learner]:
        """What a report judges beside it on the same meta-parameters: the parts that it is made of, by name."""
        return {}

    def networks(self) -> list[Network]:
        """The networks that its predictions take."""
        return [self.network]

    def all_networks(self) -> list[Network]:
        """These, and those of what is beside it."""
        return [*self.networks(), *(network for part in self.beside().values() for network in part.networks())]

    @abstractmethod
    def init(self, generator: Generator) -> Meta:
        """Meta-parameters before any training; every draw comes from `generator`."""

    @abstractmethod
    def adaptation(self, meta: Meta, support: Examples, steps: int) -> Iterator[Any]:
        """Adapt to one task's support set: yields what it has after 0, 1, …, `steps` steps."""

    @abstractmethod
    def predict(self, adapted: Any, x: Tensor) -> Tensor:
        """Outputs [rows, outputs] of an adapted learner for inputs `x` [rows, …]."""

    def answer(self, adapted: Any, query: Examples) -> Tensor:
        """Outputs [rows, outputs] for a query set as it is judged: the labels of rows tell nothing of themselves."""
        return self.predict(adapted, query.x)

    def task_loss(self, meta: Meta, task: Task) -> Outcome:
        """Adapt as in training and judge on the query set; its loss is what the meta-gradient is the derivative of."""
        outputs = self.answer(self.adapt(meta, task.support, self.train_steps), task.query)
        return Outcome(self.network.cost(outputs, task.query.y), outputs)

    def task_gradient(self, meta: Meta, task: Task) -> TaskGradient:
        """The meta-gradient of one task, for learners whose rule is not the derivative of a loss."""
        raise TypeError(f"{type(self).__name__} has no rule of its own; differentiate task_loss")

    def figures(self, adapted: Any) -> dict[str, Tensor]:
        """What a report says of an adapted learner beside its score: scalars by name."""
        return {}

    def adapt(self, meta: Meta, support: Examples, steps: int | None = None) -> Any:
        """The learner adapted to a support set (`eval_steps` steps unless told otherwise)."""
        *_, adapted = self.adaptation(meta, support, self.eval_steps if steps is None else steps)
        return adapted


def plain_meta(parameters: Parameters) -> Meta:
    """Meta-parameters of a learner that has nothing but parameters."""
    return Meta(parameters, {}, {})
