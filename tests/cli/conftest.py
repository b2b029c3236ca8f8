"""A tiny job, a whole run of it, and the command line as a program."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

JOB = """\
name: tiny
steps: 6
runtime: inprocess
data: {source: 'sklearn:digits', split: {train: [0, 1, 2, 3], valid: [4, 5], test: [6, 7, 8, 9]}}
tasks: {kind: images, ways: 2, shots: 1, query: 2, batch: 4, chunk: 2}
model: {kind: conv4, width: 4, layers: 2, pool: false}
learner: {kind: maml, inner_lr: 0.1, inner_steps: 1, eval_steps: 1}
evaluation: {every: 2, tasks: 4, test_tasks: 4, query: 2}
checkpoint: {every: 3}
tracking: {uri: none}
"""


@pytest.fixture
def start() -> Callable[..., subprocess.Popen[str]]:
    """Start the command line as a program of its own, with pipes."""

    def begin(*arguments: str, **options: Any) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-m", "metadist", *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=os.environ | {"PYTHONUNBUFFERED": "1"},
            **options,
        )

    return begin


@pytest.fixture
def job(tmp_path: Path) -> str:
    """Path of the tiny job's file."""
    path = tmp_path / "job.yaml"
    path.write_text(JOB)
    return str(path)


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory, metadist: Callable[..., Any]) -> Any:
    """A whole run of the tiny job, with --json."""
    folder = tmp_path_factory.mktemp("finished")
    (folder / "job.yaml").write_text(JOB)
    ended = metadist("train", str(folder / "job.yaml"), "--storage", str(folder / "runs"), "--json")
    assert ended.code == 0, ended.err
    return ended


@pytest.fixture(scope="session")
def run(finished: Any) -> str:
    """Folder of the finished run; only read it."""
    return str(finished.result["run_dir"])
