"""Tests of a run that were cut off go on where they were."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from metadist.errors import UserError
from metadist.outer import Experiment
from metadist.tasks import Episode
from metadist.testing.toys import linear_experiment, sinusoid_experiment
from metadist.training import judged
from metadist.training.inprocess import InProcessPool
from metadist.training.judged import JudgedTasks
from metadist.training.run_folder import JUDGED, RunFolder
from metadist.training.seams import Ref
from metadist.training.work import EvaluationWork, TaskScores, Work

WORK = EvaluationWork("test", 0, 4, 2, Episode(5, 1, 2), 3, False, "loop")
SCORES = TaskScores(
    (0, 3),
    np.array([[0.1, np.nan], [1 / 3, np.inf]]),
    np.array([[0, 2], [1, 2]]),
    np.array([[4, 1], [0, 0]]),
    np.array([[4, 2], [0, 1]]),
    figures={"bytes": np.array([1e-300, -0.0])},
)


class CutOff(Exception):
    """The driver dies."""


class Counting(InProcessPool):
    """Counts evaluation work of a split, and dies when it is asked for more than `most` pieces."""

    def __init__(self, experiment: Experiment, most: int) -> None:
        super().__init__(experiment, torch.device("cpu"))
        self.most, self.asked = most, list[EvaluationWork]()

    def submit(self, worker: int, ticket: int, work: Work, version: Ref) -> Ref:
        if isinstance(work, EvaluationWork) and not work.last_only:
            if len(self.asked) == self.most:
                raise CutOff
            self.asked.append(work)
        return super().submit(worker, ticket, work, version)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunFolder:
    monkeypatch.setattr(judged, "SECONDS", 0.0)
    return RunFolder(str(tmp_path / "run")).acquire()


@pytest.mark.parametrize("build", [sinusoid_experiment, linear_experiment])
@pytest.mark.parametrize("most", [1, 4, 8, 11])
def test_what_was_judged_is_not_judged_again(
    make_run: Callable, monkeypatch: pytest.MonkeyPatch, build: Callable[[], Experiment], most: int
) -> None:
    """Validation and test have three pieces each, and three for a random start."""
    monkeypatch.setattr(judged, "SECONDS", 0.0)

    def go(pieces: int, run: Any = None) -> tuple[Any, Any, Counting]:
        resume = run is not None
        run = run or make_run(build())
        run.plan = replace(run.plan, tests={"test": replace(run.plan.validate, split="test")})
        pool = Counting(run.experiment, pieces)
        try:
            return run, run.go(pool, resume=resume), pool
        except CutOff:
            return run, None, pool

    _, whole, pool = go(100)
    every = set(pool.asked)
    assert len(pool.asked) == len(every) == 12
    run, nothing, _ = go(most)
    assert nothing is None
    kept = len(run.folder.names(JUDGED))
    assert most - 2 <= kept <= most  # two pieces are in hand at most
    _, result, pool = go(100, run)
    assert len(pool.asked) == 12 - kept
    assert (result.valid, result.tests) == (whole.valid, whole.tests)


def test_scores_come_back_to_the_bit(folder: RunFolder) -> None:
    JudgedTasks(folder, 7, "sha").keep(WORK, SCORES)
    found = JudgedTasks(folder, 7, "sha").find(WORK)
    assert found is not None
    assert found.steps == SCORES.steps
    for name in ("losses", "correct", "predictions", "labels"):
        ours, theirs = getattr(found, name), getattr(SCORES, name)
        assert (ours.dtype, ours.shape, ours.tobytes()) == (theirs.dtype, theirs.shape, theirs.tobytes())
    assert found.figures["bytes"].tobytes() == SCORES.figures["bytes"].tobytes()


@pytest.mark.parametrize("version", [(8, "sha"), (7, "other")])
def test_scores_are_a_versions_and_a_works_own(folder: RunFolder, version: tuple[int, str]) -> None:
    JudgedTasks(folder, 7, "sha").keep(WORK, SCORES)
    assert JudgedTasks(folder, *version).find(WORK) is None
    assert JudgedTasks(folder, 7, "sha").find(replace(WORK, first=6)) is None
    assert JudgedTasks(folder, 7, "sha").find(replace(WORK, scratch=True)) is None


def test_few_files_are_written(folder: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(judged, "SECONDS", 1e9)
    JudgedTasks(folder, 7, "sha").keep(WORK, SCORES)
    assert folder.names(JUDGED) == []


def test_files_that_were_changed(folder: RunFolder) -> None:
    """What is no JSON is refused, as everywhere in a run's folder; what else is odd is judged again."""
    JudgedTasks(folder, 7, "sha").keep(WORK, SCORES)
    (name,) = folder.names(JUDGED)
    (key,) = folder.read_json(name)
    good = folder.read_json(name)[key]
    odd: list[Any] = [None, 3, [], {}, good | {"steps": 1}, good | {"losses": "x"}, good | {"labels": [[1, 2]]}]
    for content in (
        [],
        *({key: one} for one in odd),
        {key: good | {"figures": []}},
        {key: good | {"correct": [[1], [1, 2]]}},
    ):
        folder.write(name, json.dumps(content).encode())
        assert JudgedTasks(folder, 7, "sha").find(WORK) is None, content
    folder.write(name, b"{")
    with pytest.raises(UserError, match=r"000000\.json: .*JSON"):
        JudgedTasks(folder, 7, "sha")
    folder.remove(JUDGED)
    folder.remove(JUDGED)
    assert folder.names(JUDGED) == []
