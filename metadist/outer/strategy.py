"""Which execution strategy a job uses, by a static rule, and the proof before the first step.

The choice is a function of job and device kind, never of a stopwatch, because the strategies differ in the
last bits.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from metadist.errors import UserError
from metadist.learners import Learner, Meta
from metadist.outer.meta_gradient import MetaGradient, Strategy, compute_meta_gradient
from metadist.tasks import Examples, Task

#: largest relative difference between a strategy and the plain loop in float64; rounding stays below 1e-10
TOLERANCE = 1e-7

#: most inner steps that are captured: what it takes to write them down, some tenths of a second each, must pay
CAPTURED_STEPS = 16


@dataclass(frozen=True)
class StrategyCheck:
    """What the check of a strategy found.

    Attributes:
        strategy: the one to use.
        rule: the one that the rule chose; another than `strategy` when it was found wrong.
        difference: relative difference of the rule's choice from the plain loop, NaN where it failed.
        reason: why, in a sentence.
    """

    strategy: Strategy
    rule: Strategy
    difference: float
    reason: str


def choose_strategy(learner: Learner, device: torch.device) -> tuple[Strategy, str]:
    """The strategy for a learner on a kind of device, and why."""
    if device.type != "cpu":
        return "vectorized", f"all tasks of a chunk at once on {device.type}"
    # The learner, and its operations with it, with the step.
    changes = type(learner).at is not Learner.at and not learner.few_stages
    if not changes and learner.train_steps + learner.part_steps <= CAPTURED_STEPS:
        return "captured", "as many tasks at once as fit a core's caches, by operations that are written down once"
    if not getattr(learner.network.module, "vectorizes", True):
        return (
            "loop",
            "task by task: this model's activations outgrow the CPU's caches when tasks are batched",
        )
    return "vectorized", "all tasks of a chunk at once: small tasks are bound by the cost of each operation"


def check_strategy(learner: Learner, meta: Meta, batch: Task, rule: Strategy, reason: str) -> StrategyCheck:
    """Compare `rule` with the plain loop in float64 on `batch`, and fall back to the loop where it is wrong.

    What is captured is captured from `meta` and `batch` themselves, and used again in training for chunks of as many
    tasks as `batch` has. It falls back to `vectorized` first.

    Raises:
        UserError: inner steps that are taken again differ from the first time, so that `remat` is wrong; or the model
            has no second derivative, where one is taken.
    """
    if rule == "loop" and not learner.remat:
        return StrategyCheck("loop", "loop", 0.0, reason)
    # Buffers of the module go to float64 too, on a copy.
    double = copy.deepcopy(learner)
    for network in double.all_networks():
        network.module.double()
    meta64 = Meta(*(_double(group) for group in meta))
    batch64 = Task(*(Examples(_double_tensor(part.x), _double_tensor(part.y), part.ways) for part in batch))
    keeps_graphs = copy.copy(double)
    keeps_graphs.remat = False
    try:
        plain = compute_meta_gradient(keeps_graphs, meta64, batch64, "loop")
    except RuntimeError as error:
        if "derivative for" not in str(error):
            raise
        expected = f"true for this model, which has no second derivative: {str(error).splitlines()[0]}"
        hint = "Or write that operation with plain ones."
        raise UserError("learner.first_order", False, expected, hint) from error

    def difference(strategy: Strategy) -> float:
        if strategy == "captured":
            compute_meta_gradient(learner, meta, batch, strategy)
        which = learner if strategy == "captured" else double
        return relative_difference(plain, compute_meta_gradient(which, meta64, batch64, strategy))

    check = StrategyCheck("loop", "loop", 0.0, reason) if rule == "loop" else _checked(rule, reason, difference)
    if check.strategy == "loop" and learner.remat and (again := difference("loop")) > TOLERANCE:
        hint = f"Taken again, its inner steps differ from the first time: by {again:.1e} in float64."
        raise UserError("learner.remat", True, "false for this model", hint)
    return check


def _checked(rule: Strategy, reason: str, difference: Callable[[Strategy], float]) -> StrategyCheck:
    try:
        found = difference(rule)
        wrong = f"it differs from the plain loop by {found:.1e} in float64"
    except RuntimeError as error:
        found, wrong = float("nan"), f"it fails ({(str(error).splitlines() or [''])[0][:160]})"
    if found <= TOLERANCE:
        return StrategyCheck(rule, rule, found, reason)
    if rule == "captured":
        fallback = _checked("vectorized", f"all tasks of a chunk at once: captured {wrong}", difference)
        return replace(fallback, rule=rule, difference=found)
    return StrategyCheck("loop", rule, found, f"task by task: vectorised {wrong}")


def relative_difference(a: MetaGradient, b: MetaGradient) -> float:
    """Euclidean distance of two results, gradient and statistics together, over the norm of the first."""
    ours, theirs = ([*result.gradient.values(), *result.statistics.values()] for result in (a, b))
    distance = sum(float((one - other).square().sum()) for one, other in zip(ours, theirs, strict=True))
    norm = sum(float(value.square().sum()) for value in ours)
    return float((distance / max(norm, 1e-300)) ** 0.5)


def _double_tensor(value: Tensor) -> Tensor:
    return value.double() if value.is_floating_point() else value


def _double(group: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: _double_tensor(value) for name, value in group.items()}
