"""Which parameters the adaptation changes, and what is refused."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch

from metadist.config import build_experiment, parse_job
from metadist.errors import UserError
from metadist.learners import adapting
from metadist.outer import Experiment
from metadist.tasks import take

NAMES = ["layers.0.weight", "norms.0.weight", "norms.0.film.weight", "head.weight", "gates.out.weight"]


@pytest.mark.parametrize(
    ("patterns", "chosen"),
    [
        (["*"], NAMES),
        (["head.*"], ["head.weight"]),
        (["head.*", "*.film.*"], ["norms.0.film.weight", "head.weight"]),
        (["*", "!head.*", "!gates.*"], NAMES[:3]),
        (["!head.*", "*", "!norms.*"], ["layers.0.weight", "gates.out.weight"]),
        (["!head.*"], []),
        ([], []),
    ],
)
def test_names_are_chosen_by_pattern(patterns: list[str], chosen: list[str]) -> None:
    assert list(adapting({name: torch.zeros(()) for name in NAMES}, patterns)) == chosen


def experiment(model: dict[str, Any] | None = None, freeze: Sequence[str] = (), **learner: Any) -> Experiment:
    content = {
        "tasks": {"kind": "linear", "shots": 2, "query": 3, "batch": 5, "chunk": 2},
        "model": {"kind": "mlp", "hidden": [6], "norm": "batch", "film": True} | (model or {}),
        "learner": learner,
        "freeze": list(freeze),
    }
    return build_experiment(parse_job(content), "run")


@pytest.mark.parametrize("kind", ["maml", "anil", "boil", "metasgd", "reptile"])
def test_only_what_is_named_adapts(kind: str) -> None:
    made = experiment(kind=kind, adapt=["*.film.*"])
    meta = made.initial()
    task = take(made.distribution.batch("train", 0, [0], made.episode, torch.device("cpu")), 0)
    adapted = made.learner.adapt(meta, task.support, 1).parameters
    changed = {name for name, value in adapted.items() if not torch.equal(value, meta.parameters[name])}
    assert changed == {"norms.0.film.weight", "norms.0.film.bias"}
    sizes = {name for name in meta.parameters if name.startswith("step_sizes.")}
    assert sizes == {f"step_sizes.{name}" for name in changed if kind == "metasgd"}


@pytest.mark.parametrize(
    ("adapt", "field", "expected"),
    [
        (["haed.*"], "learner.adapt.0", "a pattern of"),
        (["head.*", "!gates.*"], "learner.adapt.1", "a pattern of"),
        (["head.*", "!head.*"], "learner.adapt", "patterns of some of"),
        ([], "learner.adapt", "patterns of some of"),
    ],
)
def test_patterns_that_choose_nothing_are_refused(adapt: list[str], field: str, expected: str) -> None:
    with pytest.raises(UserError, match=rf"^{field}: got .*, expected {expected}"):
        experiment(kind="maml", adapt=adapt)


@pytest.mark.parametrize("kind", ["hybrid", "task_relation"])
@pytest.mark.parametrize(
    ("learner", "freeze", "expected"),
    [
        ({"adapt": ["generator.*"]}, [], r"learner\.adapt\.0: got 'generator.*', expected a pattern of"),
        ({"adapt": ["head.*", "generator.*"]}, [], r"learner\.adapt\.1: got 'generator"),
        ({"generate": ["head.*", "nek.*"]}, [], r"learner\.generate\.1: got 'nek.*', expected a pattern of"),
        ({}, ["[!g]*"], r"freeze: got .*, expected patterns that leave some"),
    ],
)
def test_a_generator_does_not_adapt(kind: str, learner: dict, freeze: list[str], expected: str) -> None:
    with pytest.raises(UserError, match=expected):
        experiment(kind=kind, **learner, freeze=freeze)


def test_what_is_frozen_stays_as_the_task_begins_it() -> None:
    """Of a start that a generator adds to."""
    made = experiment(kind="hybrid", freeze=["layers.*"])
    meta, learner = made.initial(), made.learner.with_frozen(made.initial().frozen)
    task = take(made.distribution.batch("train", 0, [0], made.episode, torch.device("cpu")), 0)
    before, after = (each.parameters for each in learner.adaptation(meta, task.support, 1))
    same = {name for name, value in before.items() if torch.equal(value, after[name])}
    assert same == {name for name in before if name.startswith("layers.")}
    assert same
    assert not torch.equal(before["layers.0.weight"], meta.frozen["layers.0.weight"])


def test_a_gate_has_hidden_units() -> None:
    with pytest.raises(UserError, match=r"^model\.gates: got 0, expected a whole number of at least 1"):
        experiment({"gates": 0}, kind="maml")
