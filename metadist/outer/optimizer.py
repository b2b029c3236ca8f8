"""The outer optimiser: torch.optim and its schedules, as state in and state out."""

from __future__ import annotations

import fnmatch
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor
from torch.optim.adam import adam
from torch.optim.adamw import adamw
from torch.optim.sgd import sgd

from metadist.errors import UserError

#: far beyond any use, and still a number in float32
LARGEST = 1e30

OptimizerState = dict[str, dict[str, Tensor]]


@dataclass(frozen=True)
class GroupConfig:
    """Settings of their own for the parameters whose names match."""

    #: pattern of parameter names (`head.*`); the first group that matches wins
    match: str
    #: learning rate
    lr: float | None = None
    #: weight decay
    weight_decay: float | None = None

    def __post_init__(self) -> None:
        _check_numbers(self, "lr", "weight_decay")


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """The outer step."""

    #: optimiser of torch.optim
    kind: Literal["sgd", "adam", "adamw"] = "adam"
    #: outer learning rate
    lr: float = 0.001
    #: momentum of sgd
    momentum: float = 0.0
    #: decays of adam's and adamw's moments
    betas: list[float] = field(default_factory=lambda: [0.9, 0.999])
    #: adam's and adamw's term against division by zero
    eps: float = 1e-8
    #: weight decay
    weight_decay: float = 0.0
    #: largest Euclidean norm of the mean meta-gradient; null does not clip
    clip: float | None = None
    #: learning rate over the steps: `constant`, `linear` or `cosine` from `lr` to `lr · final`, or `step`
    schedule: Literal["constant", "linear", "cosine", "step"] = "constant"
    #: length of the schedule in outer steps; null is the job's `steps`
    schedule_steps: int | None = None
    #: factor reached at the end of `linear` and `cosine`
    final: float = 0.0
    #: `step` multiplies the rate by `factor` every so many outer steps
    every: int = 2000
    #: factor of `step`
    factor: float = 0.5
    #: share of the job's steps, at their end, over which versions are averaged: validation and tests judge the mean
    #: of these versions' meta-parameters (Polyak & Juditsky, 1992), training goes on from the last; 0 judges the last
    average: float = 0.0
    #: parameter groups by name pattern
    groups: list[GroupConfig] = field(default_factory=list)

    def __post_init__(self) -> None:
        if self.clip is not None and not self.clip > 0:
            raise UserError("clip", self.clip, "a number above 0, or null")
        if len(self.betas) != 2 or not all(0 <= beta < 1 for beta in self.betas):
            raise UserError("betas", self.betas, "two numbers from 0 to below 1")
        _check_numbers(self, "lr", "momentum", "weight_decay", "eps", "final", "factor")
        if not 0 <= self.average <= 1:
            raise UserError("average", self.average, "a share of the steps, from 0 to 1")
        for name in ("schedule_steps", "every"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UserError(name, value, "a whole number of at least 1")


def _check_numbers(config: object, *names: str) -> None:
    for name in names:
        value = getattr(config, name)
        if value is not None and not 0 <= value <= LARGEST:
            raise UserError(name, value, f"a number from 0 to {LARGEST:g}")


def check_groups(config: OptimizerConfig, names: Sequence[str]) -> None:
    """Raise `UserError` for a group that matches none of the parameters."""
    for number, group in enumerate(config.groups):
        if not fnmatch.filter(names, group.match):
            raise UserError(f"optimizer.groups.{number}.match", group.match, f"a pattern of {', '.join(names)}")


def optimizer_step(
    config: OptimizerConfig,
    steps: int,
    version: int,
    parameters: dict[str, Tensor],
    gradient: dict[str, Tensor],
    state: OptimizerState,
) -> tuple[dict[str, Tensor], OptimizerState, float]:
    """One step of the outer optimiser; the arguments are left as they are.

    Args:
        steps: outer steps of the whole run, the length of a schedule.
        version: outer steps taken so far; the schedule's position.
        gradient: mean meta-gradient by parameter.
        state: what the last step returned, empty before the first.

    Returns:
        New parameters, new optimiser state, and the learning rate of the first group.
    """
    fresh = {name: value.clone() for name, value in parameters.items()}
    kept = {name: {key: tensor.clone() for key, tensor in tensors.items()} for name, tensors in state.items()}
    factor = schedule_factor(config, steps, version)
    others = GroupConfig("*")
    chosen = {
        name: next((group for group in config.groups if fnmatch.fnmatch(name, group.match)), others) for name in fresh
    }
    rates = []
    for group in [others, *config.groups]:
        if members := {name: value for name, value in fresh.items() if chosen[name] is group}:
            rates.append((config.lr if group.lr is None else group.lr) * factor)
            decay = config.weight_decay if group.weight_decay is None else group.weight_decay
            _take(config, rates[-1], decay, members, gradient, kept)
    return fresh, kept, rates[0]


@torch.no_grad()
def _take(
    config: OptimizerConfig,
    lr: float,
    weight_decay: float,
    parameters: dict[str, Tensor],
    gradient: dict[str, Tensor],
    state: OptimizerState,
) -> None:
    """Change parameters and state in place, by the functions of torch's optimisers, whose objects import a compiler."""
    values, gradients = list(parameters.values()), [gradient[name] for name in parameters]
    # The for-loop implementations: fused and multi-tensor ones may add in another order.
    rates: dict[str, Any] = {
        "lr": lr,
        "weight_decay": weight_decay,
        "maximize": False,
        "foreach": False,
        "fused": False,
    }
    if config.kind == "sgd":
        buffers = [state.get(name, {}).get("momentum_buffer") for name in parameters]
        sgd(values, gradients, buffers, momentum=config.momentum, dampening=0.0, nesterov=False, **rates)
        state |= {
            name: {"momentum_buffer": each} for name, each in zip(parameters, buffers, strict=True) if each is not None
        }
        return
    for name, value in parameters.items():
        if name not in state:
            zeros = {key: torch.zeros_like(value) for key in ("exp_avg", "exp_avg_sq")}
            state[name] = {"step": torch.tensor(0.0), **zeros}
    first, second, step = ([state[name][key] for name in parameters] for key in ("exp_avg", "exp_avg_sq", "step"))
    rates |= {"beta1": config.betas[0], "beta2": config.betas[1], "eps": config.eps, "amsgrad": False}
    (adam if config.kind == "adam" else adamw)(values, gradients, first, second, [], step, **rates)


def schedule_factor(config: OptimizerConfig, steps: int, version: int) -> float:
    """Factor on the learning rate after `version` outer steps.

    The closed forms of torch's `LinearLR`, `CosineAnnealingLR` and `StepLR`, with which the tests compare
    them: a schedule object would carry state from step to step, a closed form makes the rate a function of
    the version alone.
    """
    length = config.schedule_steps or steps
    done = min(version / length, 1.0)
    if config.schedule == "linear":
        return 1.0 + (config.final - 1.0) * done
    if config.schedule == "cosine":
        return config.final + (1.0 - config.final) * (1.0 + math.cos(math.pi * done)) / 2.0
    if config.schedule == "step":
        return config.factor ** (version // config.every)
    return 1.0
