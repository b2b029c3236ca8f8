"""Scores of single tasks, and which runs can be compared by them: those that were judged on the same tasks.

Tasks differ more than learners do: on one set of tasks the differences of two runs, task by task, have a much
narrower interval than the runs' own.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from metadist.errors import UserError
from metadist.training.evaluation import Evaluation

#: file of a run's folder with what its final evaluations scored on each task
SCORES = "test-scores.json"
#: settings of tasks that concern training alone, or that the evaluation has its own of
_NOT_OF_A_TEST = ("ways", "shots", "query", "train_ways", "train_shots", "batch", "chunk")


@dataclass(frozen=True)
class TaskSet:
    """What a version scored on each task of a fixed set.

    Attributes:
        protocol: which tasks they are: set, sizes, family, content and split of the data; by dotted name.
        steps, norm: how it adapted, which may differ between runs that are compared.
        rows: query rows a task; 0 for regression.
        scores: correct query rows of each task; its mean squared error for regression.
        from_scratch: the same for a random start.
    """

    protocol: dict[str, Any]
    steps: int
    norm: str
    rows: int
    scores: list[float]
    from_scratch: list[float]

    @property
    def measure(self) -> str:
        """What the values are."""
        return "accuracy" if self.rows else "loss"

    @property
    def values(self) -> np.ndarray:
        """Accuracy of each task, or its loss [tasks], float64."""
        return np.asarray(self.scores, dtype=np.float64) / (self.rows or 1)

    @property
    def scratch_values(self) -> np.ndarray:
        """The same for the random start."""
        return np.asarray(self.from_scratch, dtype=np.float64) / (self.rows or 1)

    def as_dict(self) -> dict[str, Any]:
        """As plain data."""
        return asdict(self)


def task_set(evaluation: Evaluation, identity: Mapping[str, Any]) -> TaskSet:
    """The scores of an evaluation that also judged a random start.

    Args:
        identity: of the job that was judged, see `metadist.config.identity`.
    """
    assert evaluation.from_scratch_per_task is not None
    e, tasks, data = evaluation, identity["tasks"], identity.get("data", {})
    protocol = {"set": e.name, "count": e.tasks, "ways": e.ways, "shots": e.shots, "query": e.query}
    protocol |= {f"tasks.{key}": value for key, value in tasks.items() if key not in _NOT_OF_A_TEST}
    if data:
        protocol |= {f"data.{key}": data[key] for key in ("sha256", "rotations")}
        protocol |= {f"data.split.{key}": value for key, value in data["split"].items()}
    rows = 0 if e.accuracy is None else e.ways * e.query
    return TaskSet(protocol, e.steps, e.norm, rows, e.per_task, evaluation.from_scratch_per_task)


def dump_scores(sets: Sequence[TaskSet]) -> bytes:
    """The file of some sets, the most important one first."""
    return json.dumps({"tests": [one.as_dict() for one in sets]}).encode() + b"\n"


def parse_scores(content: Any, where: str) -> list[TaskSet]:
    """The sets in the content of such a file.

    Raises:
        UserError: it is something else.
    """
    try:
        sets = [TaskSet(**{name: one[name] for name in TaskSet.__dataclass_fields__}) for one in content["tests"]]
        kinds = {"protocol": dict, "steps": int, "norm": str, "rows": int}
        right = all(isinstance(getattr(one, name), kind) for one in sets for name, kind in kinds.items())
        right = right and all({"set", "count", "query"} <= one.protocol.keys() for one in sets)
        shapes = [(one.values.shape, one.scratch_values.shape) for one in sets]
        if sets and right and shapes == [((one.protocol["count"],),) * 2 for one in sets]:
            return sets
    except (LookupError, TypeError, ValueError, AttributeError, OverflowError):
        pass
    raise UserError(where, "something else", "scores of single tasks", "The file was changed.")


def check_comparable(runs: Mapping[str, TaskSet]) -> None:
    """Raise `UserError` unless all runs were judged on the same tasks; names the fields in which they differ."""
    (first, reference), *others = runs.items()
    for name, other in others:
        if other.measure != reference.measure:
            raise UserError("RUN", name, f"a run that was judged by its {reference.measure}, as {first} was")
        fields = differing(reference, other)
        if fields:
            told = [
                f"{field} ({reference.protocol.get(field)!r} and {other.protocol.get(field)!r})" for field in fields
            ]
            raise UserError(
                "RUN",
                name,
                f"a run that was judged on the same tasks as {first}; different: {', '.join(told)}",
                "Runs of different protocols cannot be ranked; `metadist evaluate RUN` judges one on other tasks.",
            )


def differing(one: TaskSet, other: TaskSet) -> list[str]:
    """Names of the fields in which two protocols differ; the set's name only if nothing else says it."""
    keys = [key for key in {**one.protocol, **other.protocol} if one.protocol.get(key) != other.protocol.get(key)]
    return [key for key in keys if key != "set"] or keys
