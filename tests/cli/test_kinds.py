"""`metadist list`: what a job can name, and the options of each."""

from __future__ import annotations

import typing
from collections.abc import Callable
from typing import Any

import pytest

from metadist.config import LearnerKind, ModelKind, TasksKind
from metadist.learners import LEARNERS

KINDS = {"learners": LearnerKind, "models": ModelKind, "tasks": TasksKind}


@pytest.mark.parametrize("what", KINDS)
def test_one_line_each(metadist: Callable[..., Any], what: str) -> None:
    ended = metadist("list", what)
    assert ended.code == 0, ended.err
    told = dict(line.split(maxsplit=1) for line in ended.out.splitlines())
    assert list(told) == [config.kind for config in typing.get_args(KINDS[what])]
    assert all(len(meaning) > 20 for meaning in told.values())


def test_every_learner_is_listed() -> None:
    assert {kind: learner.config_type for kind, learner in LEARNERS.items()} == {
        config.kind: config for config in typing.get_args(LearnerKind)
    }


@pytest.mark.parametrize(
    ("what", "kind", "line", "meaning"),
    [
        ("learners", "maml", "learner.inner_lr  (a number; default 0.4)", "step size α of the adaptation"),
        ("learners", "metasgd", "learner.inner_lr  (a number or a list, each a number; default [0.005, 0.1])", "step"),
        (
            "models",
            "mlp",
            "model.hidden  (a list, each a whole number; default [40, 40])",
            "widths of the hidden layers",
        ),
        ("tasks", "sinusoid", "tasks.shots  (a whole number; default 10)", "support examples per class"),
    ],
)
def test_options_of_one(metadist: Callable[..., Any], what: str, kind: str, line: str, meaning: str) -> None:
    ended = metadist("list", what, kind)
    assert ended.code == 0, ended.err
    lines = ended.out.splitlines()
    assert lines[lines.index(line) + 1].startswith(f"    {meaning}")
    assert not any(other.startswith(("learner.kind", "model.kind", "tasks.kind")) for other in lines)


def test_a_learner_without_options(metadist: Callable[..., Any]) -> None:
    assert metadist("list", "learners", "protonet").out.startswith("Prototypical Networks: ")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["learners", "mamml"], "KIND: got 'mamml', expected one of maml, mamlpp"),
        (["models", "conv"], "Did you mean 'conv4'?"),
        (["learners", "nowhere.Mine"], "No module named 'nowhere'"),
        (["teachers"], "'teachers'"),
    ],
)
def test_what_there_is_not(metadist: Callable[..., Any], arguments: list[str], message: str) -> None:
    ended = metadist("list", *arguments)
    assert ended.code == 2
    assert message in ended.err
    assert "Traceback" not in ended.err
