"""A tiny job, and a short run to spoil."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

JOB = """\
name: tiny
steps: 3
runtime: inprocess
data: {source: 'sklearn:digits', split: {train: [0, 1, 2, 3], valid: null, test: [6, 7, 8, 9]}}
tasks: {kind: images, ways: 2, shots: 1, query: 2, batch: 4, chunk: 2}
model: {kind: conv4, width: 4, layers: 2, pool: false}
learner: {kind: maml, inner_lr: 0.1, inner_steps: 1, eval_steps: 1}
evaluation: {tasks: 4, test_tasks: 4, query: 2}
checkpoint: {every: 1}
tracking: {uri: none}
"""


@pytest.fixture
def job(tmp_path: Path) -> str:
    """Path of the tiny job's file."""
    path = tmp_path / "job.yaml"
    path.write_text(JOB)
    return str(path)


@pytest.fixture
def storage(tmp_path: Path) -> Path:
    """A folder for runs, which a job that never starts leaves empty."""
    folder = tmp_path / "runs"
    folder.mkdir()
    return folder


def stopped_run(metadist: Callable[..., Any], folder: Path, *settings: str) -> Path:
    """The folder of the tiny job, stopped after two of its three steps."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "job.yaml").write_text(JOB)
    sets = [part for setting in settings for part in ("--set", setting)]
    ended = metadist("train", str(folder / "job.yaml"), "--storage", str(folder / "runs"), "--stop-after", "2", *sets)
    assert ended.code == 0, ended.err
    (run,) = (folder / "runs").iterdir()
    return run


@pytest.fixture(scope="session")
def _whole_run(tmp_path_factory: pytest.TempPathFactory, metadist: Callable[..., Any]) -> Path:
    return stopped_run(metadist, tmp_path_factory.mktemp("whole"))


@pytest.fixture(scope="session")
def wider_run(tmp_path_factory: pytest.TempPathFactory, metadist: Callable[..., Any]) -> Path:
    """A run of the tiny job with another model."""
    return stopped_run(metadist, tmp_path_factory.mktemp("wider"), "model.width=5")


@pytest.fixture
def run(_whole_run: Path, tmp_path: Path) -> Path:
    """A copy of a stopped run with checkpoints of steps 1 and 2, to be spoilt."""
    return Path(shutil.copytree(_whole_run, tmp_path / "run"))
