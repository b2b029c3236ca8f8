"""The outer optimiser against torch.optim, run statefully."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.optim.lr_scheduler import CosineAnnealingLR, LinearLR, StepLR

from metadist.errors import UserError
from metadist.outer import OptimizerConfig, check_groups
from metadist.outer.optimizer import GroupConfig, optimizer_step, schedule_factor

GROUPS = [GroupConfig("head.*", lr=0.3, weight_decay=0.0), GroupConfig("*.weight", lr=0.02)]

CASES: dict[str, tuple[dict[str, Any], Callable[[list], torch.optim.Optimizer]]] = {
    "sgd": ({"kind": "sgd", "lr": 0.1}, lambda p: torch.optim.SGD(p, 0.1, foreach=False)),
    "sgd-momentum": (
        {"kind": "sgd", "lr": 0.1, "momentum": 0.9, "weight_decay": 0.01},
        lambda p: torch.optim.SGD(p, 0.1, momentum=0.9, weight_decay=0.01, foreach=False),
    ),
    "adam": (
        {"kind": "adam", "lr": 0.1, "betas": [0.8, 0.95], "eps": 1e-6, "weight_decay": 0.01},
        lambda p: torch.optim.Adam(p, 0.1, (0.8, 0.95), 1e-6, 0.01, foreach=False),
    ),
    "adamw": (
        {"kind": "adamw", "lr": 0.1, "weight_decay": 0.1},
        lambda p: torch.optim.AdamW(p, 0.1, weight_decay=0.1, foreach=False),
    ),
}


def bits(tensors: dict[str, torch.Tensor]) -> dict[str, bytes]:
    return {name: value.numpy().tobytes() for name, value in tensors.items()}


@pytest.mark.parametrize("groups", [[], GROUPS], ids=["one-group", "groups"])
@pytest.mark.parametrize("case", CASES)
def test_takes_the_steps_of_torch_to_the_bit(tensors: Callable, case: str, groups: list[GroupConfig]) -> None:
    settings, build = CASES[case]
    config = OptimizerConfig(**settings, groups=groups)
    parameters, state = tensors(0), {}
    live = {name: value.clone().requires_grad_() for name, value in parameters.items()}
    optimizer = build([{"params": [value]} for value in live.values()])
    for name, group in zip(live, optimizer.param_groups, strict=True):
        if groups and name == "head.weight":
            group["lr"], group["weight_decay"] = 0.3, 0.0
        elif groups and name == "body.weight":
            group["lr"] = 0.02
    for version in range(5):
        gradient = tensors(10 + version)
        for name, value in live.items():
            value.grad = gradient[name].clone()
        optimizer.step()
        before = bits(parameters), bits(gradient), {n: bits(s) for n, s in state.items()}
        old = parameters, gradient, state
        parameters, state, lr = optimizer_step(config, 5, version, parameters, gradient, state)
        assert bits(parameters) == bits({name: value.detach() for name, value in live.items()})
        assert lr == 0.1
        # State in, state out: the arguments are as they were.
        assert before == (bits(old[0]), bits(old[1]), {n: bits(s) for n, s in old[2].items()})
        assert not any(value.requires_grad for value in parameters.values())


def test_the_first_matching_group_wins_and_its_rate_is_told(tensors: Callable) -> None:
    parameters = {"head.weight": torch.zeros(1)}
    gradient = {"head.weight": torch.ones(1)}
    config = OptimizerConfig(kind="sgd", lr=0.1, groups=[*GROUPS, GroupConfig("*", lr=9.0)])
    after, _, lr = optimizer_step(config, 1, 0, parameters, gradient, {})
    assert after["head.weight"].item() == pytest.approx(-0.3)
    assert lr == 0.3


def test_a_group_that_matches_nothing_is_refused() -> None:
    check_groups(OptimizerConfig(groups=GROUPS), ["body.weight", "head.bias"])
    with pytest.raises(UserError, match=r"optimizer\.groups\.0\.match: got 'head\.\*', expected a pattern of body"):
        check_groups(OptimizerConfig(groups=GROUPS), ["body.weight"])


SCHEDULES = {
    "linear": ({"final": 0.1}, lambda o, n: LinearLR(o, 1.0, 0.1, total_iters=n)),
    "linear-to-0": ({}, lambda o, n: LinearLR(o, 1.0, 0.0, total_iters=n)),
    "cosine": ({"final": 0.2}, lambda o, n: CosineAnnealingLR(o, T_max=n, eta_min=0.2)),
    "step": ({"every": 3, "factor": 0.5}, lambda o, n: StepLR(o, 3, 0.5)),
}


@pytest.mark.parametrize(("length", "extra"), [(None, 0), (7, 0)])
@pytest.mark.parametrize("name", SCHEDULES)
def test_schedules_are_those_of_torch(name: str, length: int | None, extra: int) -> None:
    settings, build = SCHEDULES[name]
    config = OptimizerConfig(schedule=name.partition("-")[0], schedule_steps=length, **settings)
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    scheduler = build(optimizer, length or 10)
    for version in range((length or 10) + 1):
        assert schedule_factor(config, 10, version) == pytest.approx(optimizer.param_groups[0]["lr"], abs=1e-12)
        optimizer.step()
        scheduler.step()


@pytest.mark.parametrize(("schedule", "end"), [("linear", 0.25), ("cosine", 0.25), ("constant", 1.0)])
def test_schedules_stay_at_their_end(schedule: str, end: float) -> None:
    config = OptimizerConfig(schedule=schedule, schedule_steps=4, final=0.25)
    assert [schedule_factor(config, 10, version) for version in (4, 5, 9)] == pytest.approx([end] * 3)


def test_the_rate_of_a_step_follows_its_version() -> None:
    config = OptimizerConfig(kind="sgd", lr=2.0, schedule="linear", groups=[GroupConfig("b", lr=4.0)])
    parameters, gradient = ({name: value.clone() for name in "ab"} for value in (torch.zeros(1), torch.ones(1)))
    for version, factor in ((0, 1.0), (5, 0.5), (10, 0.0)):
        after, _, lr = optimizer_step(config, 10, version, parameters, gradient, {})
        assert (after["a"].item(), after["b"].item(), lr) == (-2.0 * factor, -4.0 * factor, 2.0 * factor)


@pytest.mark.parametrize(
    ("settings", "field"),
    [
        ({"lr": -1.0}, "lr"),
        ({"lr": math.nan}, "lr"),
        ({"clip": 0.0}, "clip"),
        ({"betas": [0.9]}, "betas"),
        ({"betas": [0.9, 1.0]}, "betas"),
        *(({name: -0.1}, name) for name in ("momentum", "weight_decay", "eps", "final", "factor")),
        *itertools.product([{"schedule_steps": 0}], ["schedule_steps"]),
        ({"every": 0}, "every"),
    ],
)
def test_impossible_settings_are_refused(settings: dict[str, Any], field: str) -> None:
    with pytest.raises(UserError, match=f"^{field}: got"):
        OptimizerConfig(**settings)
