"""Command lines: arguments changed, gone, doubled and in other places, with all that would run or listen left out."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import strategies as st
from mutations import NUMBERS, TEXTS

from metadist.distributed import evaluate, pretrain, run
from metadist.tracking import ui

COMMANDS = [
    ["train", "JOB", "--steps", "3", "--workers", "1", "--name", "x", "--storage", "runs", "--stop-after", "2"],
    ["train", "JOB", "--set", "learner.inner_lr=0.1", "--set", "data.split.train=[0, 1, 2]", "--run", "r", "--json"],
    ["train", "--resume", "RUN", "--set", "resources.workers=2"],
    ["pretrain", "JOB", "--set", "pretrain={epochs: 1, batch: 8}", "--stop-after", "1"],
    ["evaluate", "RUN", "--split", "valid", "--tasks", "4", "--ways", "2", "--shots", "1", "--query", "2"],
    ["evaluate", "RUN", "--steps", "2", "--norm", "single", "--data", "STORE", "--set", "seed=1", "--scores", "s.json"],
    ["compare", "RUN", "SCORES", "--query", "2", "--json"],
    ["runs", "list", "--storage", "ABOVE", "--json"],
    ["runs", "show", "RUN", "--storage", "ABOVE"],
    ["data", "info", "STORE", "--verify"],
    ["list", "learners", "maml"],
    ["list", "models"],
    ["keys"],
    ["ui", "--uri", "sqlite:///x.db", "--port", "5001", "--host", "127.0.0.1"],
]
VALUES = [*map(str, NUMBERS), *TEXTS, "\ud800", "=", "a=b", "seed=", "steps=[1", "x.y.z=1", "--set", "--", "-1", "null"]


@pytest.fixture(scope="module")
def commands(small: dict[str, Any], whole: Path) -> list[list[str]]:
    """The commands on a job and a run that there are."""
    places = {"JOB": str(whole.parent / "job.yaml"), "RUN": str(whole), "ABOVE": str(whole.parent)}
    places |= {"SCORES": str(whole / "test-scores.json"), "STORE": small["data"]["source"]}
    return [[places.get(word, word) for word in command] for command in COMMANDS]


@st.composite
def changed(draw: st.DrawFn, commands: list[list[str]]) -> list[str]:
    """A command line with up to two changes."""
    line = list(draw(st.sampled_from(commands)))
    for _ in range(draw(st.integers(0, 2))):
        at = draw(st.integers(0, len(line) - 1)) if line else 0
        how = draw(st.sampled_from(["value", "value", "setting", "gone", "again", "misspelt", "other", "last"]))
        if how == "value" and line:
            line[at] = draw(st.sampled_from(VALUES))
        elif how == "setting":
            key = draw(st.sampled_from(["steps", "data.source", "learner", "tasks.ways", "storage", "init_from", "x"]))
            line += ["--set", f"{key}={draw(st.sampled_from(VALUES))}"]
        elif how == "gone":
            del line[at : at + 1]
        elif how == "again":
            line[at:at] = line[at : at + 2]
        elif how == "misspelt" and line:
            line[at] = line[at][:-1] + "x"
        elif how == "other" and line:
            line[at] = draw(st.sampled_from([word for command in commands for word in command]))
        else:
            line.append(draw(st.sampled_from(VALUES)))
    return line


def test_command_lines(
    search: Callable[..., None],
    metadist: Callable[..., Any],
    commands: list[list[str]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def begin(*_: object, **__: object) -> Any:
        raise SystemExit(0)

    for module, name in ((run, "open_runtime"), (evaluate, "open_runtime"), (pretrain, "_run"), (ui, "serve_ui")):
        monkeypatch.setattr(module, name, begin)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "none")
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", "http://127.0.0.1:1")

    def holds(line: list[str]) -> None:
        ended = metadist(*line)
        assert "Traceback" not in ended.err
        assert ended.code in (0, 2), ended.err
        if ended.code == 2:
            ours = [text for text in ended.err.splitlines() if text.startswith("metadist: ")]
            assert all(": got " in text and ", expected " in text for text in ours)
            assert ours or "Error" in ended.err or "Usage: metadist" in ended.out
        assert not list(tmp_path.iterdir())

    search(changed(commands), holds)
