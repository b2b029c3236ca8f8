"""Code is imported where a job file names it, and nowhere else: what lies in run folders names none."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from metadist.training.start_values import read_start

#: what would run if it were imported
MODULE = "import os\nos.mkdir({!r})\n\nclass Thing:\n    pass\n"


@pytest.fixture
def module(tmp_path: Path, sentinel: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A module in the working folder that is told of when it is imported."""
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "planted.py"
    path.write_text(MODULE.format(str(sentinel)))
    return path


def name_it(content: Any) -> Any:
    """The same with the module's name wherever there was text."""
    if isinstance(content, dict):
        return {key: name_it(value) for key, value in content.items()}
    if isinstance(content, list):
        return [name_it(value) for value in content]
    return "planted.Thing" if isinstance(content, str) else content


@pytest.mark.usefixtures("module")
def test_descriptions_name_no_code(
    metadist: Callable[..., Any], victim: Path, readings: list[list[str]], sentinel: Path
) -> None:
    for name in ("run.json", "summary.json", "test-scores.json"):
        path = victim / name
        path.write_text(json.dumps(name_it(json.loads(path.read_text()))))
    for line in readings[:3]:
        ended = metadist(*line)
        assert "Traceback" not in ended.err
    read_start(str(victim))
    assert not sentinel.exists()


@pytest.mark.usefixtures("module")
def test_a_run_is_looked_at_and_started_from_without_its_job(
    metadist: Callable[..., Any], victim: Path, readings: list[list[str]], sentinel: Path
) -> None:
    """Even what its job file names is imported only where that job is to be run."""
    path = victim / "job.yaml"
    path.write_text(path.read_text().replace("kind: maml", "kind: planted.Thing"))
    assert "planted" in path.read_text()
    for line in readings[:3]:
        assert metadist(*line).code == 0
    read_start(str(victim))
    assert not sentinel.exists()
    ended = metadist("evaluate", str(victim))
    assert ended.code == 2
    assert "learner.kind: got 'planted.Thing'" in ended.err
    assert sentinel.exists()
