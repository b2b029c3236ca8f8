"""`metadist evaluate --folds`: every class is a test class once, of a learner that never saw it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from metadist.config import dump_job
from metadist.distributed.folds import fold_jobs
from metadist.errors import UserError

#: the tiny job with half of its steps
SHORT = ("--set", "steps=2", "--set", "evaluation.every=2")


def test_classes_are_dealt(run: str) -> None:
    jobs = [job for _, job in fold_jobs(run, 5, seed=1)]
    tests = [job.data.split.test for job in jobs]
    assert sorted(name for test in tests for name in test) == [str(digit) for digit in range(10)]
    for job in jobs:
        split = job.data.split
        assert (len(split.train), len(split.valid), len(split.test)) == (6, 2, 2)
        assert len({*split.train, *split.valid, *split.test}) == 10
    again = [job for _, job in fold_jobs(run, 5, seed=1)]
    other = [job.data.split.test for _, job in fold_jobs(run, 5, seed=2)]
    assert jobs == again
    assert other != tests


def test_each_fold_is_a_run(metadist: Callable[..., Any], run: str, tmp_path: Path) -> None:
    """The figures are the runs' own; one that was interrupted goes on, and finished ones are only read."""
    copy = Path(shutil.copytree(run, tmp_path / "mine"))
    _, (name, job) = fold_jobs(str(copy), 2, 0, SHORT[1::2])
    (tmp_path / "second.yaml").write_text(dump_job(job))
    stopped = metadist("train", str(tmp_path / "second.yaml"), "--run", name, "--stop-after", "1")
    assert stopped.code == 0, stopped.err
    ended = metadist("evaluate", str(copy), "--folds", "2", *SHORT, "--json")
    assert ended.code == 0, ended.err
    assert f"going on from step 1 of {tmp_path}/mine-fold-2-of-2" in ended.err
    folds = ended.result["folds"]
    accuracies = []
    for fold in folds:
        summary = json.loads(Path(fold["run_dir"], "summary.json").read_text())
        assert fold["accuracy"] == summary["test"]["accuracy"]
        assert yaml.safe_load(Path(fold["run_dir"], "job.yaml").read_text())["data"]["split"]["test"] == fold["classes"]
        accuracies.append(fold["accuracy"])
    assert ended.result["accuracy"] == pytest.approx(np.mean(accuracies))
    assert ended.result["error"] == pytest.approx(1 - np.mean(accuracies))
    assert ended.result["sd"] == pytest.approx(np.std(accuracies, ddof=1))
    assert "cross-validation error" in ended.err
    again = metadist("evaluate", str(copy), "--folds", "2", *SHORT, "--json")
    assert again.result == ended.result
    assert "testing version" not in again.err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--folds", "1"], "--folds: got 1, expected a number of folds of at least 2"),
        (["--folds", "11"], "--folds: got 11, expected at most the 10 classes of the run's splits"),
        (["--folds", "2", "--query", "3"], "--query: got '3', expected no --folds beside it"),
        (["--folds", "10"], "tasks.ways: got 2, expected at most the 1 classes of the test split"),
        (["--folds", "2", "--set", "tasks.wys=3"], "tasks.wys: got 3"),
    ],
)
def test_mistakes(metadist: Callable[..., Any], run: str, options: list[str], message: str) -> None:
    before = sorted(Path(run).parent.iterdir())
    ended = metadist("evaluate", run, *options)
    assert ended.code == 2, ended.err
    assert message in ended.err
    assert sorted(Path(run).parent.iterdir()) == before


def test_what_cannot_be_dealt(run: str, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(run, tmp_path / "copy"))
    job = yaml.safe_load((copy / "job.yaml").read_text())
    waves = {"tasks": {"kind": "sinusoid"}, "model": {"kind": "mlp"}}
    (copy / "job.yaml").write_text(yaml.safe_dump(job | waves))
    with pytest.raises(UserError, match="expected a job with image classes; this one's tasks are sinusoid"):
        fold_jobs(str(copy), 2, 0)
    (copy / "job.yaml").write_text(yaml.safe_dump(job | {"init_from": "runs/other"}))
    with pytest.raises(UserError, match="began from random weights"):
        fold_jobs(str(copy), 2, 0)
