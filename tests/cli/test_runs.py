"""`metadist runs`: what is listed is what there is, in folders and in MLflow."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

JOB = """\
name: toy
steps: 4
runtime: inprocess
tasks: {kind: sinusoid, batch: 4, chunk: 2}
model: {kind: mlp, hidden: [8]}
learner: {kind: maml, inner_lr: 0.01}
evaluation: {every: 2, tasks: 4, test_tasks: 4}
checkpoint: {every: 2}
"""


@pytest.fixture
def place(_place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with a finished and a stopped run, both in its mlflow.db too."""
    copy = Path(shutil.copytree(_place, tmp_path / "place"))
    monkeypatch.chdir(copy)
    return copy


@pytest.fixture(scope="module")
def _place(tmp_path_factory: pytest.TempPathFactory, empty_store: Path, metadist: Callable[..., Any]) -> Path:
    folder = tmp_path_factory.mktemp("place")
    shutil.copy(empty_store, folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        Path("job.yaml").write_text(JOB)
        for arguments in (["--name", "whole"], ["--name", "half", "--stop-after", "3"]):
            assert metadist("train", "job.yaml", *arguments).code == 0
    return folder


def listed(metadist: Callable[..., Any], *arguments: str) -> dict[str, dict[str, Any]]:
    ended = metadist("runs", "list", "--json", *arguments)
    assert ended.code == 0, ended.err
    return {row["name"].rsplit("-", 3)[0]: row for row in ended.result["runs"]}


def test_list(metadist: Callable[..., Any], place: Path) -> None:
    rows = listed(metadist)
    whole, half = rows["whole"], rows["half"]
    assert set(rows) == {"whole", "half"}
    for row in rows.values():
        assert row["found"] == ["folder", "mlflow"]
        assert (
            row["mlflow_run_id"] == json.loads((place / row["location"] / "summary.json").read_text())["mlflow_run_id"]
        )
        assert row["started"].endswith("+00:00")
    summary = json.loads((place / whole["location"] / "summary.json").read_text())
    assert (whole["state"], whole["step"], whole["steps"]) == ("finished", 4, 4)
    assert (half["state"], half["step"], half["steps"]) == ("stopped", 3, 4)
    assert (whole["measure"], whole["test"]) == ("loss", summary["test"]["loss"])
    table = metadist("runs", "list").out
    assert "half" in table.splitlines()[1]
    assert "folder + mlflow" in table
    assert "finished" in table


def test_a_run_whose_folder_is_gone(metadist: Callable[..., Any], place: Path) -> None:
    before = listed(metadist)["whole"]
    shutil.rmtree(place / before["location"])
    row = listed(metadist)["whole"]
    assert (row["found"], row["location"]) == (["mlflow"], None)
    same = ("state", "step", "steps", "measure", "mlflow_run_id")
    assert {key: row[key] for key in same} == {key: before[key] for key in same}
    assert row["test"] == pytest.approx(before["test"])
    assert row["valid"] == pytest.approx(before["valid"])
    for name in (row["name"], row["mlflow_run_id"], row["mlflow_run_id"][:8]):
        assert metadist("runs", "show", name, "--json").result["name"] == row["name"]


def test_without_mlflow(metadist: Callable[..., Any], place: Path) -> None:
    (place / "mlflow.db").rename(place / "elsewhere.db")
    assert {row["found"][0] for row in listed(metadist).values()} == {"folder"}
    ended = metadist("runs", "list", "--tracking", "http://127.0.0.1:9")
    assert ended.code == 0
    assert "refuses the connection; its runs are not shown" in ended.err
    assert "finished" in ended.out


def test_folders_that_are_no_runs(metadist: Callable[..., Any], place: Path) -> None:
    (place / "runs" / "notes").mkdir()
    (place / "runs" / "broken").mkdir()
    (place / "runs" / "broken" / "run.json").write_text("{")
    ended = metadist("runs", "list")
    assert ended.code == 0
    assert "· notes: not a run folder" in ended.err
    assert "· broken: " in ended.err
    states = {row["name"]: row["state"] for row in metadist("runs", "list", "--json").result["runs"]}
    assert (states["notes"], states["broken"]) == ("foreign", "unreadable")


def test_show(metadist: Callable[..., Any], place: Path) -> None:
    half = listed(metadist)["half"]
    about = json.loads((place / half["location"] / "run.json").read_text())
    facts = metadist("runs", "show", half["name"], "--json").result
    assert facts["identity_sha256"] == about["identity_sha256"]
    assert facts["checkpoints"][-1] == "checkpoints/step-00000003.safetensors"
    assert [point["step"] for point in facts["validations"]] == [2]
    assert facts["next"][0] == f"metadist train --resume {half['location']}"
    resumed = metadist(*facts["next"][0].split()[1:])
    assert resumed.code == 0, resumed.err
    shown = metadist("runs", "show", half["location"])
    assert shown.code == 0
    assert about["identity_sha256"] in shown.out
    assert "test, by inner step" in shown.out
    assert f"metadist evaluate {half['location']}" in shown.out
    assert "--resume" not in shown.out


@pytest.mark.parametrize("run", ["nothing", "runs"])
def test_show_of_no_run(metadist: Callable[..., Any], place: Path, run: str) -> None:
    ended = metadist("runs", "show", run)
    assert ended.code == 2
    assert "expected a run folder" in ended.err
    assert ended.out == ""
