"""A sweep whose driver is killed, or told to end, goes on without doing anything twice."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

LONG = (
    "steps=300",
    "evaluation.every=100",
    "checkpoint.every=10",
    "tune.scheduler=none",
    "tune.initial=[]",
    "tune.space={learner.inner_lr: {loguniform: [0.001, 0.1]}}",
    "tune.num_samples=3",
)


@pytest.fixture
def driver(tmp_path: Path, write: Callable[..., str]) -> Iterator[subprocess.Popen[bytes]]:
    """`metadist tune` as a program of its own, with an embedded Ray."""
    job = write()
    sets = [part for override in LONG for part in ("--set", override)]
    command = [sys.executable, "-m", "metadist", "tune", job, "--storage", str(tmp_path / "runs"), *sets]
    root = str(Path(__file__).resolve().parents[2])
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen(
            command, stdout=log, stderr=log, env=os.environ | {"PYTHONPATH": root}, start_new_session=True
        )
    yield process
    if process.poll() is None:
        process.kill()
    process.wait(30)


def one_ended_and_one_under_way(folder: Path, record: dict[str, Any]) -> bool:
    """The first trial is over, the second has a checkpoint."""
    states = [trial["state"] for trial in record["trials"]]
    return states == ["finished", "running"] and any((folder / "trial-001").glob("checkpoints/step-*"))


def epoch(folder: Path, trial: str) -> int:
    """How often a driver took hold of a trial's run folder."""
    return int(json.loads((folder / trial / "lease.json").read_text())["epoch"])


def steps(path: Path) -> list[int]:
    return [json.loads(line)["step"] for line in path.read_text().splitlines()]


@pytest.mark.slow
def test_killed_and_gone_on_with(
    ray: Any,
    driver: subprocess.Popen[bytes],
    tmp_path: Path,
    await_record: Callable[..., Any],
    metadist: Callable[..., Any],
    runs: Any,
) -> None:
    await_record(tmp_path / "runs", one_ended_and_one_under_way, lambda: driver.poll() is None)
    driver.send_signal(signal.SIGKILL)
    driver.wait(30)
    (folder,) = (tmp_path / "runs").iterdir()
    record = json.loads((folder / "sweep.json").read_text())
    assert [trial["state"] for trial in record["trials"]] == ["finished", "running"]
    assert not (folder / "trial-001" / "summary.json").exists()
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    before = {run.info.run_id for run in runs(uri).all}
    assert "RUNNING" in {run.info.status for run in runs(uri).all}
    finished = {path: path.stat().st_mtime_ns for path in (folder / "trial-000").rglob("*")}

    ended = metadist("tune", "--resume", str(folder), "--json")
    assert ended.code == 0, ended.err
    assert {row["trial"]: row["state"] for row in ended.result["trials"]} == dict.fromkeys(range(3), "finished")
    assert {path: path.stat().st_mtime_ns for path in (folder / "trial-000").rglob("*")} == finished
    assert "trial-000 " not in ended.err
    assert "· trial-001 goes on: " in ended.err
    assert "· trial-002 starts: " in ended.err
    assert epoch(folder, "trial-000") == 1
    assert epoch(folder, "trial-001") == 2  # from its own checkpoint, in the same folder
    for trial in ("trial-001", "trial-002"):
        path = folder / trial / "metrics.jsonl"
        assert sorted(set(steps(path))) == list(range(1, 301))
        assert len(steps(path)) == 303  # three validations have lines of their own
    store = runs(uri)
    assert before < {run.info.run_id for run in store.all}
    (parent,) = store.parents
    children = store.children(parent)
    assert sorted(children) == ["trial-000", "trial-001", "trial-002"]
    assert len(store.all) == 4
    assert {run.info.status for run in store.all} == {"FINISHED"}
    for child in children.values():
        history = store.history(child)
        assert [step for step, _ in history["train/loss"]] == list(range(1, 301))
        assert [step for step, _ in history["valid/loss"]] == [100, 200, 300]


@pytest.mark.slow
def test_interrupted_at_the_keyboard(
    driver: subprocess.Popen[bytes], tmp_path: Path, await_record: Callable[..., Any], runs: Any
) -> None:
    await_record(tmp_path / "runs", one_ended_and_one_under_way, lambda: driver.poll() is None)
    driver.send_signal(signal.SIGINT)
    assert driver.wait(60) == 130
    (folder,) = (tmp_path / "runs").iterdir()
    told = (tmp_path / "log").read_text()
    assert f"metadist tune --resume {folder}" in told
    assert "Traceback" not in told
    record = json.loads((folder / "sweep.json").read_text())
    assert record["state"] == "interrupted"
    assert [trial["state"] for trial in record["trials"]][:2] == ["finished", "unfinished"]
    assert {run.info.status for run in runs(f"sqlite:///{tmp_path}/mlflow.db").all} == {"FINISHED", "KILLED"}
    assert (folder / "best.yaml").exists()


def test_resuming_what_is_no_sweep(tmp_path: Path, metadist: Callable[..., Any]) -> None:
    ended = metadist("tune", "--resume", str(tmp_path))
    assert ended.code == 2
    assert "sweep.json" in ended.err
