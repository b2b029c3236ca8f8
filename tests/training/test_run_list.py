"""Rows of a list of runs, from folders in every state and from what a store knows."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from pyarrow import fs

from metadist.tracking import MetricsFile
from metadist.tracking.run_index import StoredRun
from metadist.training.run_folder import RunFolder
from metadist.training.run_list import RunRow, best_validation, folder_row, folder_rows, merged, stored_row

ABOUT = {"run": "toy-1", "started": 1000.0, "identity": {"steps": 9}, "mlflow_run_id": "a" * 32}
TEST = {"accuracy": 0.75, "ci95": 0.01, "loss": 0.5}


def make(place: Path, lease: str = "free", **summary: Any) -> Path:
    """A run's folder with metrics up to step 6 and a checkpoint of step 5."""
    folder = RunFolder(str(place)).acquire()
    folder.write("job.yaml", b"tracking: {uri: 'sqlite:////somewhere/mlflow.db'}\n")
    folder.write_json("run.json", ABOUT)
    folder.write("checkpoints/step-00000005.safetensors", b"")
    with MetricsFile(str(place / "metrics.jsonl")) as metrics:
        for step, accuracy in ((2, 0.5), (4, 0.7), (6, 0.6)):
            metrics.append(step, {"train/loss": 1.0, "valid/accuracy": accuracy})
    if summary:
        folder.write_json("summary.json", summary)
    if lease == "free":
        folder.release()
    elif lease == "abandoned":
        about = json.loads((place / "lease.json").read_text())
        (place / "lease.json").write_text(json.dumps(about | {"started": "before the flood"}))
    return place


def test_a_finished_run(tmp_path: Path) -> None:
    place = make(tmp_path / "toy-1", outcome="finished", step=6, test=TEST)
    assert folder_row(str(place)) == RunRow(
        name="toy-1",
        found=("folder",),
        location=str(place),
        started=1000.0,
        state="finished",
        step=6,
        steps=9,
        measure="accuracy",
        valid=0.7,
        test=0.75,
        test_ci95=0.01,
        mlflow_run_id="a" * 32,
        tracking_uri="sqlite:////somewhere/mlflow.db",
    )


@pytest.mark.parametrize(
    ("lease", "summary", "state"),
    [
        ("held", {}, "running"),
        ("held", {"outcome": "stopped", "step": 6}, "running"),
        ("free", {"outcome": "early", "step": 6}, "finished"),
        ("free", {"outcome": "stopped", "step": 6}, "stopped"),
        ("free", {"outcome": "stopped", "step": 4}, "failed"),  # of an earlier start
        ("free", {}, "failed"),
        ("abandoned", {}, "killed"),
        ("abandoned", {"outcome": "stopped", "step": 4}, "killed"),
    ],
)
def test_states(tmp_path: Path, lease: str, summary: dict[str, Any], state: str) -> None:
    assert folder_row(str(make(tmp_path / "run", lease, **summary))).state == state


def test_a_run_that_has_only_begun(tmp_path: Path) -> None:
    folder = RunFolder(str(tmp_path / "new")).acquire()
    folder.write("job.yaml", b"")
    assert folder_row(folder.location) == RunRow("new", ("folder",), folder.location, state="running")


@pytest.mark.parametrize("started", ["1e308", "-1", "NaN", "1" + "0" * 400])
def test_a_time_that_no_calendar_has(tmp_path: Path, started: str) -> None:
    place = make(tmp_path / "run", outcome="finished", step=6)
    (place / "run.json").write_text(f'{{"run": "run", "started": {started}}}')
    row = folder_row(str(place))
    assert row.started == pytest.approx(json.loads((place / "metrics.jsonl").read_text().splitlines()[0])["time"])


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("run.json", b"{"),
        ("run.json", b"[1]"),
        ("run.json", b"\xff\xfe"),
        ("summary.json", b"null"),
        ("lease.json", b"7"),
    ],
)
def test_a_spoilt_folder_is_a_row(tmp_path: Path, name: str, content: bytes) -> None:
    place = make(tmp_path / "run", outcome="finished", step=6)
    (place / name).write_bytes(content)
    row = folder_row(str(place))
    assert (row.state, row.name) == ("unreadable", "run")
    assert row.problem


def test_odd_values_are_left_out(tmp_path: Path) -> None:
    place = make(tmp_path / "run", outcome="finished", step=6, test=[1])
    (place / "run.json").write_text('{"run": 7, "identity": 1, "started": "now", "mlflow_run_id": 3}')
    (place / "job.yaml").write_bytes(b"\xff")
    row = folder_row(str(place))
    assert (row.state, row.name, row.steps, row.mlflow_run_id, row.test) == ("finished", "7", None, None, None)
    assert row.started == pytest.approx(json.loads((place / "metrics.jsonl").read_text().splitlines()[0])["time"])


def test_folders_of_a_storage(tmp_path: Path) -> None:
    make(tmp_path / "toy-1")
    (tmp_path / "other" / "deep").mkdir(parents=True)
    (tmp_path / ".hidden").mkdir()
    (tmp_path / "file").write_text("")
    found = {row.name: row.state for row in folder_rows(str(tmp_path))}
    assert found == {"toy-1": "failed", "other": "foreign"}
    assert {row.name for row in folder_rows(tmp_path.as_uri())} == set(found)
    assert folder_rows(str(tmp_path / "nowhere")) == []


def test_a_storage_that_is_not_on_this_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make(tmp_path / "bucket" / "toy-1", outcome="finished", step=6, test=TEST)
    here = folder_row(str(tmp_path / "bucket" / "toy-1"))
    elsewhere = fs.SubTreeFileSystem(str(tmp_path), fs.LocalFileSystem())
    monkeypatch.setattr(
        "metadist.training.run_folder._file_system", lambda location: (elsewhere, location.removeprefix("far://"))
    )
    assert folder_rows("far://bucket/") == [replace(here, location="far://bucket/toy-1")]


def test_best_validation() -> None:
    assert best_validation([]) == (None, None)
    assert best_validation([(1, {"valid/loss": 2.0}), (2, {"valid/loss": 1.0}), (3, {"valid/loss": float("nan")})]) == (
        "loss",
        1.0,
    )
    both = [(1, {"valid/loss": 1.0, "valid/accuracy": 0.5}), (2, {"valid/loss": 2.0, "valid/accuracy": 0.6})]
    assert best_validation(both) == ("accuracy", 0.6)


STORED = StoredRun(
    run_id="a" * 32,
    name="toy-1",
    experiment="metadist",
    status="RUNNING",
    started=2000.0,
    step=6,
    params={"steps": "9"},
    metrics={"test/accuracy": 0.75, "test/ci95": 0.01},
    histories={"valid/accuracy": [(2, 0.5), (4, 0.7)]},
)


def test_a_stored_run() -> None:
    row = stored_row(STORED, "http://store")
    assert (row.found, row.state, row.step, row.steps, row.started) == (("mlflow",), "running", 6, 9, 2000.0)
    assert (row.measure, row.valid, row.test, row.test_ci95) == ("accuracy", 0.7, 0.75, 0.01)


def test_one_row_a_run(tmp_path: Path) -> None:
    place = make(tmp_path / "toy-1", "abandoned")
    shutil.copytree(place, tmp_path / "toy-1-copy")
    unnoted = make(tmp_path / "toy-2")
    (unnoted / "run.json").write_text('{"run": "toy-2"}')
    stored = [
        stored_row(STORED, "http://store"),
        stored_row(replace(STORED, run_id="b" * 32, name="toy-2"), "http://store"),
        stored_row(replace(STORED, run_id="c" * 32, name="gone", started=3000.0), "http://store"),
    ]
    (tmp_path / "other").mkdir()
    rows = {str(row.location): row for row in merged(folder_rows(str(tmp_path)), stored)}
    assert len(rows) == 5
    both = ("folder", "mlflow")
    for name, run_id, state in (("toy-1", "a", "killed"), ("toy-1-copy", "a", "killed"), ("toy-2", "b", "failed")):
        row = rows[str(tmp_path / name)]
        assert (row.found, row.mlflow_run_id, row.state) == (both, run_id * 32, state)
    assert (rows["None"].name, rows["None"].found) == ("gone", ("mlflow",))
    names = [row.name for row in merged(folder_rows(str(tmp_path)), stored)]
    assert names[0] == "toy-2"  # its metrics were written just now
    assert names[1] == "gone"
    assert names[-1] == "other"
