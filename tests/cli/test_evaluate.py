"""`metadist evaluate`: on a run, on a checkpoint, on other tasks."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image


def test_best_version_gives_the_figures_of_the_run(metadist: Callable[..., Any], finished: Any, run: str) -> None:
    ended = metadist("evaluate", run, "--json")
    assert ended.code == 0, ended.err
    assert ended.result["step"] == finished.result["tested_step"]
    for key in ("accuracy", "ci95", "loss", "per_step", "from_scratch", "tasks"):
        assert ended.result["test"][key] == finished.result["test"][key]


def test_nothing_is_written(metadist: Callable[..., Any], run: str, tmp_path: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in Path(run).rglob("*")}
    assert metadist("evaluate", run).code == 0
    assert {path: path.stat().st_mtime_ns for path in Path(run).rglob("*")} == before


def test_checkpoint(metadist: Callable[..., Any], run: str) -> None:
    newest = sorted(Path(run, "checkpoints").iterdir())[-1]
    ended = metadist("evaluate", str(newest), "--json")
    assert ended.code == 0, ended.err
    assert (ended.result["step"], ended.result["checkpoint"]) == (6, f"checkpoints/{newest.name}")


def test_relative_paths(metadist: Callable[..., Any], run: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(run)
    assert metadist("evaluate", ".", "--json").code == 0
    ended = metadist("evaluate", "checkpoints/step-00000006.safetensors", "--json")
    assert ended.code == 0, ended.err
    assert ended.result["step"] == 6


@pytest.mark.parametrize(
    ("options", "split", "expected"),
    [
        (["--split", "train"], "train", {"ways": 2}),
        (["--split", "valid", "--tasks", "3"], "valid", {"tasks": 3}),
        (["--shots", "3"], "test", {"shots": 3}),
        (["--query", "5"], "test", {"query": 5}),
        (["--steps", "4"], "test", {"steps": 4}),
        (["--norm", "support"], "test", {"norm": "support"}),
        (["--set", "evaluation.seed=3"], "test", {"tasks": 4}),
    ],
)
def test_other_tasks(
    metadist: Callable[..., Any], run: str, options: list[str], split: str, expected: dict[str, object]
) -> None:
    ended = metadist("evaluate", run, *options, "--json")
    assert ended.code == 0, ended.err
    figures = ended.result[split]
    assert expected.items() <= figures.items()
    assert len(figures["per_step"]) == figures["steps"] + 1


def test_other_data(metadist: Callable[..., Any], run: str, tmp_path: Path) -> None:
    root = tmp_path / "other images"
    for number in range(12):
        path = root / "abc"[number // 4] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.random.default_rng(number).integers(0, 256, (9, 9), dtype=np.uint8)).save(path)
    ended = metadist("evaluate", run, "--data", str(root), "--json")
    assert ended.code == 0, ended.err
    assert ended.result["data"] == str(root)
    assert ended.result["test"]["accuracy"] is not None
    some = metadist("evaluate", run, "--data", str(root), "--set", "data.split.test=[a]")
    assert some.code == 2
    assert "at most the 1 classes of the test split" in some.err


@pytest.mark.parametrize(
    ("options", "field", "expected"),
    [
        (["--ways", "3"], "--ways: got 3", "2, the number of outputs"),
        (["--norm", "suport"], "model.norm: got 'suport'", "Did you mean 'support'?"),
        (["--norm", "layer"], "checkpoints/step-", "as this job's model has it"),
        (["--data", "nowhere"], "data.source: got 'nowhere'", "There is nothing at"),
        (["--shots", "500"], "tasks.shots + query: got 502", "no more examples a class"),
        (["--set", "tasks.wys=3"], "tasks.wys: got 3", "Did you mean 'ways'?"),
        (["--set", "data.split.test=null"], "--split: got 'test'", "a split with classes"),
    ],
)
def test_mistakes(metadist: Callable[..., Any], run: str, options: list[str], field: str, expected: str) -> None:
    ended = metadist("evaluate", run, *options)
    assert ended.code == 2, ended.err
    assert field in ended.err
    assert expected in ended.err
    assert "Traceback" not in ended.err
