"""Distillation: Hinton, Vinyals, Dean, "Distilling the Knowledge in a Neural Network", NIPS workshop 2014.

A small student learns from a large teacher, which is a trained run of any learner and architecture. On each task the
teacher adapts to the support set as its own run does at evaluation, and the student, a learner with settings of its
own, is trained to say of the query set what the teacher says:

    L = (1 − w) · L_hard + w · T² · KL(softmax(t/T) ‖ softmax(s/T))

with the outputs t and s of teacher and student, both adapted, and the student's own loss L_hard (section 2; T² keeps
both gradients of one size for any temperature T). For regression the second term is the mean squared difference of the
outputs, of classes that are judged one by one the mean divergence of each. No derivative is taken of the teacher, and
predictions are the student's alone: what is gained is a smaller and faster model.

Deviation: the paper matches the predictions of two classifiers of the same classes; here both adapt to each task.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal

from torch import Generator, Tensor, nn

from metadist.errors import UserError
from metadist.learners.base import Learner, Meta, Outcome
from metadist.learners.gradient import Parameters
from metadist.learners.probabilities import log_probabilities
from metadist.learners.trained import OnTrainedRuns, TrainedPart, TrainedRun, named_run
from metadist.tasks import Examples, Task

#: settings of any learner, as those of a job's own
LearnerSettings = Annotated[Any, "learner"]


@dataclass(frozen=True, kw_only=True)
class DistillConfig(OnTrainedRuns):
    """Distillation: a small student learns to predict as a trained run does, its teacher."""

    kind: Literal["distill"] = "distill"
    #: the trained run: a path, or {path, sha256}
    teacher: str | TrainedRun
    #: the learner that is trained, with the job's model: settings like those of `learner`, for example {kind: maml}
    student: LearnerSettings
    #: divides the outputs of both before they are compared (classification)
    temperature: float = 2.0
    #: share of what the teacher says in the loss; the rest is the student's own loss
    weight: float = 0.5

    def __post_init__(self) -> None:
        if isinstance(self.student, OnTrainedRuns):
            raise UserError("student.kind", self.student.kind, "a learner without parts of its own")
        if not self.temperature > 0:
            raise UserError("temperature", self.temperature, "a number above 0")
        if not 0 <= self.weight <= 1:
            raise UserError("weight", self.weight, "a share from 0 to 1")

    @property
    def runs(self) -> dict[str, TrainedRun]:
        return {"teacher": named_run(self.teacher)}

    def with_runs(self, runs: Mapping[str, TrainedRun]) -> DistillConfig:
        return replace(self, teacher=runs["teacher"])


class Distill(Learner):
    """Classification and regression; what student and teacher can.

    Raises:
        UserError: the student's meta-gradient is not the derivative of a loss that a teacher could be a part of.
    """

    config_type = DistillConfig

    def __init__(self, config: DistillConfig, student: Learner, teacher: TrainedPart) -> None:
        super().__init__(student.network, student.eval_steps, student.train_steps)
        if student.own_gradient or len(student.phases) > 1:
            expected = "a learner whose meta-gradient is the derivative of one loss"
            raise UserError("learner.student.kind", config.student.kind, expected, "For example maml or protonet.")
        self.config, self.student, self.teacher = config, student, teacher
        self.part_steps = teacher.eval_steps
        self.few_stages = student.few_stages or type(student).at is Learner.at
        self._stages: dict[Learner, Distill] = {}

    @property
    def remat(self) -> bool:
        return self.student.remat

    @remat.setter
    def remat(self, value: bool) -> None:
        self.student = copy.copy(self.student)
        self.student.remat = value

    def beside(self) -> dict[str, Learner]:
        return {"teacher": self.teacher}

    def at(self, step: int) -> Learner:
        student = self.student.at(step)
        if student is self.student:
            return self
        stage = self._stages.get(student) or self._with(student)
        if self.few_stages:
            self._stages[student] = stage
        return stage

    def with_frozen(self, frozen: Parameters) -> Learner:
        own = {name: value for name, value in frozen.items() if not name.startswith(self.teacher.prefix)}
        learner = self._with(self.student.with_frozen(own))
        learner.teacher = self.teacher.with_frozen(frozen)
        return learner

    def _with(self, student: Learner) -> Distill:
        learner = copy.copy(self)
        learner.student, learner.network = student, student.network
        return learner

    def init(self, generator: Generator) -> Meta:
        parameters, statistics, frozen, _ = self.student.init(generator)
        return Meta(parameters, statistics, frozen | self.teacher.init(generator).frozen)

    def adaptation(self, meta: Meta, support: Examples, steps: int) -> Iterator[Any]:
        return self.student.adaptation(meta, support, steps)

    def predict(self, adapted: Any, x: Tensor) -> Tensor:
        return self.student.predict(adapted, x)

    def task_loss(self, meta: Meta, task: Task) -> Outcome:
        hard = self.student.task_loss(meta, task)
        told = self.teacher.judge(meta, task.support, task.query.x)
        share = self.config.weight
        return hard._replace(loss=(1 - share) * hard.loss + share * self.divergence(told, hard.outputs))

    def divergence(self, told: Tensor, outputs: Tensor) -> Tensor:
        """How far `outputs` are from what the teacher told [rows, outputs], a scalar; its mean over the rows."""
        loss, heat = self.network.loss, self.config.temperature
        if loss == "mse":
            return nn.functional.mse_loss(outputs, told)
        soft, own = (log_probabilities(each / heat, loss) for each in (told, outputs))
        return heat**2 * (soft.exp() * (soft - own)).sum(-1).mean()
