"""A hostile pickle, a short run, and the readers of everything that a run's folder holds."""

from __future__ import annotations

import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from hostile import Evil

JOB = {
    "name": "victim",
    "steps": 2,
    "runtime": "inprocess",
    "tasks": {"kind": "sinusoid", "batch": 4, "chunk": 2},
    "model": {"kind": "mlp", "hidden": [4]},
    "learner": {"kind": "maml"},
    "evaluation": {"every": 1, "tasks": 2, "test_tasks": 2},
    "checkpoint": {"every": 1},
    "tracking": {"uri": "none"},
}


@pytest.fixture
def content() -> dict[str, Any]:
    """Of a job file."""
    return JOB


@pytest.fixture
def sentinel(tmp_path: Path) -> Path:
    """A folder that is there once the hostile pickle was read."""
    return tmp_path / "sentinel"


@pytest.fixture
def evil(sentinel: Path) -> bytes:
    """The pickle, which is one that does harm."""
    data = pickle.dumps(Evil(sentinel))
    pickle.loads(data)
    sentinel.rmdir()
    return data


@pytest.fixture(scope="session")
def _trained(metadist: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trained")
    (folder / "job.yaml").write_text(yaml.safe_dump(JOB))
    ended = metadist("train", str(folder / "job.yaml"), "--storage", str(folder), "--run", "run")
    assert ended.code == 0, ended.err
    return folder / "run"


@pytest.fixture
def victim(_trained: Path, tmp_path: Path) -> Path:
    """A copy of a finished run, to be spoilt."""
    return Path(shutil.copytree(_trained, tmp_path / "runs" / "run"))


@pytest.fixture
def readings(victim: Path, _trained: Path, tmp_path: Path) -> list[list[str]]:
    """The command lines that read the run."""
    job = tmp_path / "job.yaml"
    job.write_text(yaml.safe_dump(JOB))
    storage = ["--storage", str(tmp_path / "more")]
    return [
        ["runs", "show", str(victim)],
        ["runs", "list", "--storage", str(victim.parent), "--tracking", "none"],
        ["compare", str(victim), str(_trained)],
        ["evaluate", str(victim)],
        ["train", "--resume", str(victim)],
        ["pretrain", "--resume", str(victim)],
        ["tune", "--resume", str(victim)],
        ["train", str(job), *storage, "--set", f"init_from={victim}", "--set", "steps=0"],
    ]
