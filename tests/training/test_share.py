"""Runs in which some parameters stay with the task."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from metadist.outer import Experiment, OuterState, publish
from metadist.training.inprocess import InProcessPool
from tests.training.test_every_learner import assert_resumes, experiment

SHARE = {"share": ["*", "!head.*"]}
OWN = {"head.weight", "head.bias"}


@pytest.mark.parametrize("kind", ["maml", "metasgd", "metalstm", "reptile", "imaml"])
def test_a_head_of_the_tasks_own_begins_the_same_in_every_task(make_run: Callable[..., Any], kind: str) -> None:
    made = experiment(kind, server=SHARE)
    start = made.initial()
    assert start.local.keys() == OWN
    assert not OWN & publish(OuterState(0, start, {})).parameters.keys()
    assert torch.equal(start.local["head.weight"], experiment(kind).initial().parameters["head.weight"])
    support = made.distribution.batch("train", 0, [0], made.episode, torch.device("cpu")).support
    support = support._replace(x=support.x[0], y=support.y[0])
    adapted = made.learner.adapt(start.whole, support, 2).parameters
    assert not any(torch.equal(adapted[name], start.local[name]) for name in OWN)

    run, pool = make_run(made), InProcessPool(made, torch.device("cpu"))
    run.go(pool=pool)
    end = run.end().meta
    assert end.parameters.keys() == start.parameters.keys()
    assert not any(torch.equal(value, end.parameters[name]) for name, value in start.parameters.items())
    assert all(torch.equal(value, start.local[name]) for name, value in pool._worker._still.local.items())
    assert not OWN & run.end().optimizer.keys()


@pytest.mark.parametrize("kind", ["hybrid", "reptile"])
def test_stopped_and_resumed_is_uninterrupted(make_run: Callable[..., Any], kind: str) -> None:
    def build(**changes: Any) -> Experiment:
        return experiment(kind, server=SHARE, **changes)

    assert_resumes(make_run, build)


def test_what_does_not_change_is_not_shared_either() -> None:
    made = experiment("maml", server=SHARE, freeze=["head.bias"]).initial()
    assert (made.local.keys(), made.frozen.keys()) == ({"head.weight"}, {"head.bias"})
