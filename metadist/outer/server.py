"""The parameter server's maths: state in, state out. No thread, no clock, no wait.

The same functions serve the in-process runtime and the server actor.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from metadist.errors import UserError
from metadist.learners import Meta, adapting
from metadist.outer.messages import Arrays, Payload, Published, Update, Verdict, to_arrays, to_tensors
from metadist.outer.optimizer import OptimizerConfig, OptimizerState, optimizer_step

# Small enough that torch sums a block in one thread, so that a norm does not depend on the thread count.
BLOCK = 16384

Mode = Literal["sync", "stale", "async"]
AgeWeight = Literal["one", "inverse"]


@dataclass(frozen=True)
class ServerConfig:
    """The parameter server."""

    #: `sync`: every step waits for all of its chunks, and its bits depend on nothing but the job; `stale` and `async`:
    #: each chunk is a step of its own, taken when it comes, though it was computed some steps ago
    mode: Mode = "sync"
    #: how many steps old an answer may be; with `stale`, older ones are refused
    staleness: int = 4
    #: what a step counts whose answer is some steps old: as much as any (`one`), or 1 / (1 + its age) of it (`inverse`)
    age_weight: AgeWeight = "one"
    #: patterns of the parameters that the server trains and publishes, and after a ! of those that stay with the task
    #: (`["*", "!head.*"]`): each task begins them as the job does, adapts them like the others, and drops them
    share: list[str] = field(default_factory=lambda: ["*"])
    #: share of the old value in a statistic's running mean
    statistics_momentum: float = 0.9
    #: what becomes of a step with a meta-gradient that is not finite, also when it is computed again: it is never
    #: applied; `stop` ends the run and names the tasks, `skip` goes on with the next step's tasks
    on_non_finite: Literal["stop", "skip"] = "stop"

    def __post_init__(self) -> None:
        if not 0 <= self.statistics_momentum < 1:
            raise UserError("statistics_momentum", self.statistics_momentum, "a number from 0 to below 1")
        if self.staleness < 0:
            raise UserError("staleness", self.staleness, "a whole number of at least 0")
        if self.mode == "sync" and self.age_weight != "one":
            raise UserError("age_weight", self.age_weight, "one with server.mode: sync, where no answer is old")


@dataclass(frozen=True)
class OuterState:
    """The server's whole state after `version` outer steps and `phase` phases of the next; a value, never changed.

    Attributes:
        average: mean of the parameters since `OuterRule.average_after`; empty up to there.
    """

    version: int
    meta: Meta
    optimizer: OptimizerState
    average: dict[str, Tensor] = field(default_factory=dict)
    phase: int = 0

    @property
    def judged(self) -> Meta:
        """What validation and tests judge: the average where there is one."""
        return self.meta._replace(parameters=self.average) if self.average else self.meta


@dataclass(frozen=True)
class OuterRule:
    """How a run takes its outer steps.

    Attributes:
        run: id of the run, part of every message's key.
        steps: outer steps of the whole run.
        tasks: tasks per outer step.
        chunk: tasks per chunk.
        statistics_momentum: share of the old value in a statistic's running mean.
        phases: patterns of the parameters that each phase of a step moves, in the order of the phases. Each is computed
            on all of the step's tasks, from what the phase before has made of the parameters.
        mode: `sync` but where steps of one chunk each do not wait for each other; see `ServerConfig`, as `staleness`
            and `age_weight`.
    """

    run: str
    optimizer: OptimizerConfig
    steps: int
    tasks: int
    chunk: int
    statistics_momentum: float = 0.9
    phases: tuple[tuple[str, ...], ...] = (("*",),)
    on_non_finite: Literal["stop", "skip"] = "stop"
    mode: Mode = "sync"
    staleness: int = 0
    age_weight: AgeWeight = "one"

    @property
    def chunks(self) -> int:
        """Chunks per outer step; the last one may be shorter."""
        return math.ceil(self.tasks / self.chunk)

    @property
    def average_after(self) -> int:
        """The version after which versions are averaged."""
        return self.steps - round(self.optimizer.average * self.steps)

    def moving(self, meta: Meta, phase: int) -> Meta:
        """The meta-parameters as a phase sees them: those that it does not move are frozen."""
        parameters = adapting(meta.parameters, self.phases[phase])
        still = {name: value for name, value in meta.parameters.items() if name not in parameters}
        return meta._replace(parameters=parameters, frozen=meta.frozen | still)

    def after(self, version: int, phase: int) -> tuple[int, int]:
        """Version and phase that follow."""
        return (version, phase + 1) if phase + 1 < len(self.phases) else (version + 1, 0)

    def chunk_sizes(self) -> tuple[int, ...]:
        """The numbers of tasks that chunks have: the last one of a step may have fewer."""
        return tuple({min(self.chunk, self.tasks - first): None for first in range(0, self.tasks, self.chunk)})

    def chunk_tasks(self, version: int, chunk: int) -> range:
        """Indices of the tasks in a chunk of the step that follows `version`."""
        first = version * self.tasks
        return range(first + chunk * self.chunk, min(first + (chunk + 1) * self.chunk, first + self.tasks))


def apply_step(
    rule: OuterRule, state: OuterState, version: int, payloads: Sequence[Payload], phase: int = 0
) -> tuple[OuterState, Update]:
    """Take one outer step, or one phase of it, if the payloads are right for it.

    Statistics and the average of versions take part in the last phase.

    Args:
        version: the version that the step starts from.
        payloads: all chunks of its meta-batch, in the order of their numbers; none of them skips the step, or what is
            left of its phases.

    Returns:
        The new state, or the same one where the verdict is not `ACCEPTED`; and the answer.
    """
    if not payloads and (version, phase) == (state.version, state.phase):
        average = _average(rule, version + 1, state.average, state.meta.parameters)
        after = replace(state, version=version + 1, phase=0, average=average)
        return after, Update(Verdict.SKIPPED, after.version, math.nan, math.nan)
    verdict = _verdict(rule, state, version, phase, payloads)
    age = 0 if rule.mode == "sync" else state.version - payloads[0].at
    if verdict is not Verdict.ACCEPTED:
        return state, Update(verdict, state.version, math.nan, math.nan, age)
    moving = rule.moving(state.meta, phase).parameters
    gradient = _mean(moving, [payload.gradient for payload in payloads], rule.tasks)
    norm = euclidean_norm(gradient)
    statistics = _mean(state.meta.statistics, [payload.statistics for payload in payloads], rule.tasks)
    if not math.isfinite(norm) or not all_finite(statistics):
        return state, Update(Verdict.NON_FINITE, state.version, norm, math.nan)
    clip = rule.optimizer.clip
    if clip is not None and norm > clip:
        gradient = {name: value * (clip / norm) for name, value in gradient.items()}
    moments = {name: moment for name, moment in state.optimizer.items() if name in moving}
    moved, moments, lr = optimizer_step(rule.optimizer, rule.steps, state.version, moving, gradient, moments)
    if rule.age_weight == "inverse" and age:  # Zhang et al., "Staleness-aware Async-SGD", 2016, equation 6
        moved = {name: moving[name] + (value - moving[name]) / (1 + age) for name, value in moved.items()}
    meta = state.meta._replace(parameters=state.meta.parameters | moved)
    average, (reached, following) = state.average, rule.after(version, phase)
    if following == 0:
        keep = rule.statistics_momentum
        statistics = {name: keep * old + (1 - keep) * statistics[name] for name, old in meta.statistics.items()}
        meta = meta._replace(statistics=statistics)
        average = _average(rule, reached, average, meta.parameters)
    after = OuterState(reached, meta, state.optimizer | moments, average, following)
    return after, Update(Verdict.ACCEPTED, after.version, norm, lr, age)


def _average(
    rule: OuterRule, version: int, average: dict[str, Tensor], parameters: dict[str, Tensor]
) -> dict[str, Tensor]:
    """The plain mean of the versions after `rule.average_after`, with `parameters` the newest of them."""
    count = version - rule.average_after
    if count < 1:
        return {}
    return {
        name: value + (average.get(name, value) - value) * ((count - 1) / count) for name, value in parameters.items()
    }


def _verdict(rule: OuterRule, state: OuterState, version: int, phase: int, payloads: Sequence[Payload]) -> Verdict:
    if rule.after(version, phase) == (state.version, state.phase):
        return Verdict.DUPLICATE
    if (version, phase) != (state.version, state.phase):
        return Verdict.STALE
    if rule.mode != "sync":
        (payload,) = payloads
        if payload.key.run != rule.run or payload.tasks != rule.tasks:
            return Verdict.INCOMPLETE
        late = rule.mode == "stale" and version - payload.at > rule.staleness
        return Verdict.STALE if late else Verdict.ACCEPTED
    expected = [(rule.run, version, phase, chunk) for chunk in range(rule.chunks)]
    if [payload.key for payload in payloads] != expected:
        return Verdict.INCOMPLETE
    if sum(payload.tasks for payload in payloads) != rule.tasks:
        return Verdict.INCOMPLETE
    return Verdict.ACCEPTED


def _mean(like: dict[str, Tensor], sums: Sequence[Arrays], tasks: int) -> dict[str, Tensor]:
    """Add sums in the order of their chunks, then divide by the number of tasks."""
    means = {}
    for name in like:
        total = to_tensors({name: sums[0][name]})[name]
        for part in sums[1:]:
            np.add(total.numpy(), part[name], out=total.numpy())
        means[name] = total / tasks
    return means


def euclidean_norm(tensors: dict[str, Tensor]) -> float:
    """Norm of all tensors together, in float64 over fixed blocks in the order of the names.

    Not finite exactly when a value is not finite (squares of fp32 fit into float64).
    """
    total = 0.0
    for name in sorted(tensors):
        for block in torch.split(tensors[name].flatten(), BLOCK):
            total += float(block.double().square().sum())
    return math.sqrt(total) if total >= 0 else total


def publish(state: OuterState, judged: bool = False) -> Published:
    """The state's meta-parameters for readers, in memory that nobody writes to.

    Args:
        judged: publish what validation and tests judge instead of what training goes on from.
    """
    meta = state.judged if judged else state.meta
    return Published(
        state.version,
        {name: array.copy() for name, array in to_arrays(meta.parameters).items()},
        {name: array.copy() for name, array in to_arrays(meta.statistics).items()},
        judged,
        state.phase,
    )


def own_copy(state: OuterState) -> OuterState:
    """A copy that shares no memory with `state`, for example with a message that it came in."""
    copies = (to_tensors(to_arrays(group)) for group in (state.meta.parameters, state.meta.statistics, state.average))
    parameters, statistics, average = copies
    optimizer = {name: to_tensors(to_arrays(tensors)) for name, tensors in state.optimizer.items()}
    meta = state.meta._replace(parameters=parameters, statistics=statistics)
    return replace(state, meta=meta, optimizer=optimizer, average=average)


def all_finite(tensors: dict[str, Tensor]) -> bool:
    """Whether no value is NaN or infinite."""
    return all(bool(torch.isfinite(value).all()) for value in tensors.values())
