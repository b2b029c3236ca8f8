"""Paired differences, by hand, and what may be compared with what."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from metadist.errors import UserError
from metadist.outer import OuterState, publish
from metadist.tasks import Episode
from metadist.testing.toys import linear_experiment, sinusoid_experiment
from metadist.training.comparison import (
    TaskSet,
    check_comparable,
    differing,
    dump_scores,
    parse_scores,
    task_set,
)
from metadist.training.dispatch import Dispatcher
from metadist.training.evaluation import Evaluation, EvaluationPlan, evaluate, paired
from metadist.training.inprocess import Box, InProcessPool
from metadist.training.machine import pick_device

PROTOCOL = {"set": "test-4x5w1s1q-seed0", "count": 4, "ways": 5, "shots": 1, "query": 1, "data.sha256": "ab"}
ONE = TaskSet(PROTOCOL, 3, "batch", 5, [5, 4, 3, 4], [1, 1, 2, 0])


def test_paired_by_hand() -> None:
    """Differences 0.2, 0, 0.4, 0.2: sd² = 0.08 / 3; t of 3 degrees of freedom is 3.182446305."""
    found = paired(ONE.values, replace(ONE, scores=[4, 4, 1, 3]).values)
    assert found.mean == pytest.approx(0.2, abs=1e-12)
    assert found.ci95 == pytest.approx(3.182446305 * np.sqrt(0.08 / 3 / 4), rel=1e-8)
    assert not found.excludes_zero
    # 0.2, 0.2, 0.4, 0.4: sd² = 0.04 / 3, and the interval 0.3 ± 0.1837.
    found = paired(ONE.values, replace(ONE, scores=[4, 3, 1, 2]).values)
    assert (found.mean, found.ci95) == pytest.approx((0.3, 3.182446305 * np.sqrt(0.04 / 3 / 4)), rel=1e-8)
    assert found.excludes_zero
    assert not paired(ONE.values, ONE.values).excludes_zero


def test_pairing_is_narrower_than_the_figures_alone() -> None:
    rng = np.random.default_rng(0)
    hard, noise = rng.normal(size=1000), rng.normal(scale=0.1, size=(2, 1000))
    found = paired(hard + 0.05 + noise[0], hard + noise[1])
    assert found.excludes_zero
    assert found.ci95 < 0.01


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"set": "test-4x5w1s15q-seed0", "query": 15}, "different: query (1 and 15). "),
        ({"set": "test-4x5w1s1q-seed1"}, "different: set ('test-4x5w1s1q-seed0' and 'test-4x5w1s1q-seed1')"),
        ({"data.sha256": "cd"}, "different: data.sha256 ('ab' and 'cd')"),
        ({"data.split.seed": 1}, "different: data.split.seed (None and 1)"),
        ({"ways": 20, "shots": 5}, "different: ways (5 and 20), shots (1 and 5)"),
    ],
)
def test_other_tasks_are_refused(changes: dict[str, Any], told: str) -> None:
    other = replace(ONE, protocol=PROTOCOL | changes)
    with pytest.raises(UserError) as refused:
        check_comparable({"maml": ONE, "anil": ONE, "reptile": other})
    assert "got 'reptile'" in str(refused.value)
    assert "same tasks as maml" in str(refused.value)
    assert told in str(refused.value)


def test_another_way_to_adapt_is_no_other_protocol() -> None:
    check_comparable({"a": ONE, "b": replace(ONE, steps=10, norm="support")})


def judged(name: str) -> tuple[Evaluation, TaskSet]:
    experiment = {"linear": linear_experiment, "sinusoid": sinusoid_experiment}[name]()
    plan = EvaluationPlan("test", 5, 9, Episode(experiment.episode.ways, 3, 6), 3, 4, norm="none")
    dispatcher = Dispatcher(InProcessPool(experiment, pick_device(0)), 1.0, print)
    version = Box(publish(OuterState(0, experiment.initial(), {})))
    found = evaluate(dispatcher, plan, "loop", version, with_scratch=True)
    tasks = {
        "kind": name,
        "ways": 9,
        "shots": 9,
        "query": 9,
        "train_ways": None,
        "batch": 4,
        "chunk": 2,
        "dimension": 2,
    }
    data = {"sha256": "ab", "rotations": "all", "size": 28, "standardize": True, "split": {"train": 2, "seed": 0}}
    return found, task_set(found, {"tasks": tasks, "data": data})


def test_scores_are_those_of_the_figures() -> None:
    found, scores = judged("linear")
    assert scores.measure == "accuracy"
    assert len(scores.scores) == 9
    assert np.mean(scores.values) == pytest.approx(found.accuracy)
    assert np.mean(scores.scratch_values) == pytest.approx(found.from_scratch)
    found, scores = judged("sinusoid")
    assert scores.measure == "loss"
    assert np.mean(scores.values) == pytest.approx(found.loss)
    assert np.mean(scores.scratch_values) == pytest.approx(found.from_scratch)
    assert "per_task" not in found.as_dict()


def test_a_protocol_is_what_makes_the_tasks() -> None:
    """Sizes as judged, the family and the data; nothing of training, and nothing of how pixels are scaled."""
    assert judged("linear")[1].protocol == {
        "set": "test-9x2w3s6q-seed5", "count": 9, "ways": 2, "shots": 3, "query": 6,
        "tasks.kind": "linear", "tasks.dimension": 2,
        "data.sha256": "ab", "data.rotations": "all", "data.split.train": 2, "data.split.seed": 0,
    }  # fmt: skip


def test_scores_survive_a_file() -> None:
    sets = [ONE, judged("sinusoid")[1]]
    read = parse_scores(json.loads(dump_scores(sets)), "file")
    assert read == sets
    assert not differing(read[1], sets[1])


@pytest.mark.parametrize(
    "spoil",
    [
        lambda content: content.clear(),
        lambda content: content.update(tests=[]),
        lambda content: content["tests"][0].pop("rows"),
        lambda content: content["tests"][0]["scores"].pop(),
        lambda content: content["tests"][0].update(scores="high"),
        lambda content: content["tests"][0].update(protocol=None),
        lambda content: content["tests"][0]["protocol"].pop("query"),
        lambda content: content["tests"][0].update(norm=0.5),
        lambda content: content["tests"][0].update(steps=[3]),
    ],
)
def test_something_else_is_noticed(spoil: Any) -> None:
    content = json.loads(dump_scores([ONE]))
    spoil(content)
    with pytest.raises(UserError, match="scores of single tasks"):
        parse_scores(content, "file")
