"""Tasks by their addresses, and what a run that diverges says."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

SINUSOIDS = """
name: waves
runtime: inprocess
steps: 3
tasks: {kind: sinusoid, shots: 3, query: 2, batch: 4, chunk: 2}
model: {kind: mlp, hidden: [4]}
learner: {kind: maml, inner_lr: 1.0e+30}
evaluation: {tasks: 2, test_tasks: 2}
tracking: {uri: none}
"""
DIGITS = """
data: {source: "sklearn:digits", split: {train: [0, 1, 2, 3, 4, 5], valid: null, test: [6, 7, 8, 9]}}
tasks: {kind: images, ways: 3, shots: 2, query: 4}
model: {kind: mlp}
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    Path("waves.yaml").write_text(SINUSOIDS)
    Path("digits.yaml").write_text(DIGITS)
    return tmp_path


def test_a_run_that_diverges_names_its_tasks(folder: Path, metadist: Callable[..., Any]) -> None:
    found = metadist("train", "waves.yaml", "--run", "far")
    assert found.code == 1
    assert "step 1: the meta-gradients of chunks 0, 1 are not finite; computed again" in found.err
    assert "not finite, from the training tasks 0, 1, 2, 3; `metadist task show" in found.err
    assert "server.on_non_finite: skip" in found.err
    told = json.loads(Path("runs/far/diverged.json").read_text())
    assert told == {"step": 1, "tasks": [f"train/0/{task}" for task in range(4)]}
    shown = metadist("task", "show", "runs/far", told["tasks"][2])
    assert shown.code == 0
    assert [line.split()[0] for line in shown.out.splitlines()] == ["set", *["support"] * 3, *["query"] * 2]
    assert shown.out == metadist("task", "show", "waves.yaml", "train/0/2").out
    assert shown.out != metadist("task", "show", "waves.yaml", "train/0/3").out
    assert (
        metadist("train", "waves.yaml", "--set", "server.on_non_finite=skip", "--run", "near", "--json").result[
            "steps_skipped"
        ]
        == 3
    )


def test_a_task_of_images_can_be_looked_at(folder: Path, metadist: Callable[..., Any]) -> None:
    found = metadist("task", "show", "digits.yaml", "train/5/1", "--picture", "task.png")
    assert found.code == 0
    assert len(found.out.splitlines()) == 1 + 3 * (2 + 4)
    with Image.open("task.png") as picture:
        assert picture.size == (3 * (8 + 2) + 2, 6 * (8 + 2) + 2)  # torchvision puts a border of 2 around each


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("digits.yaml", "train/5"), "ADDRESS: got 'train/5', expected SPLIT/SEED/INDEX"),
        (("digits.yaml", "train/5/-1"), "ADDRESS"),
        (("digits.yaml", "valid/0/1"), "valid has no classes"),
        (("waves.yaml", "test/0/1", "--picture", "task.png"), "tasks of images"),
        (("digits.yaml", "test/0/1", "--picture", "none/task.png"), "a file that can be written"),
        (("none.yaml", "test/0/1"), "none.yaml"),
    ],
)
def test_mistakes(folder: Path, metadist: Callable[..., Any], arguments: tuple[str, ...], message: str) -> None:
    found = metadist("task", "show", *arguments)
    assert found.code == 2
    assert message in " ".join(found.err.split())
    assert "Traceback" not in found.err
