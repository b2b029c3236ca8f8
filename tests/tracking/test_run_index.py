"""Reading a store: the runs that this project made, in bounded time, and nothing is written."""

from __future__ import annotations

import socket
import time
from pathlib import Path

import pytest

from metadist.tracking import VERSION_TAG, TrackingConfig, open_tracker
from metadist.tracking.run_index import RunIndex
from metadist.tracking.sqlite_place import StoreUnusable


def record(uri: str, name: str, status: str) -> str:
    """A run of three steps; returns its id."""
    tracker = open_tracker(TrackingConfig(uri, "exp"), print)
    tracker.start(name, {"steps": 3}, {VERSION_TAG: "0"})
    for step, value in ((1, 0.5), (2, 0.9), (3, 0.7)):
        tracker.metrics(step, {"valid/accuracy": value, "train/loss": 1.0})
    report = tracker.finish(status, 120.0)  # type: ignore[arg-type]
    assert report.run_id is not None
    return report.run_id


def test_the_runs_of_this_project(sqlite_uri: str) -> None:
    first, second = record(sqlite_uri, "one", "FINISHED"), record(sqlite_uri, "two", "KILLED")
    from mlflow.tracking import MlflowClient

    client = MlflowClient(tracking_uri=sqlite_uri)
    client.create_run(client.create_experiment("other"), run_name="foreign")
    index = RunIndex(sqlite_uri)
    found = index.runs(("valid/accuracy", "valid/loss"))
    assert [(run.run_id, run.name, run.status) for run in found] == [
        (second, "two", "KILLED"),
        (first, "one", "FINISHED"),
    ]
    run = found[1]
    assert (run.step, run.params, run.experiment) == (3, {"steps": "3"}, "exp")
    assert run.metrics == {"valid/accuracy": 0.7, "train/loss": 1.0}
    assert run.histories == {"valid/accuracy": [(1, 0.5), (2, 0.9), (3, 0.7)]}
    assert abs(run.started - time.time()) < 600
    assert [run.name for run in index.runs(limit=1)] == ["two"]
    assert index.check() == 3  # MLflow's own default, exp and other


def test_a_store_that_was_never_made_stays_so(absent_uri: str, tmp_path: Path) -> None:
    assert RunIndex(absent_uri).runs() == []
    with pytest.raises(StoreUnusable, match="there is no database"):
        RunIndex(absent_uri).check()
    assert list(tmp_path.iterdir()) == []


def test_something_else_in_its_place(absent_uri: str, tmp_path: Path) -> None:
    (tmp_path / "store").mkdir()
    (tmp_path / "store" / "mlflow.db").write_text("not a database, but a file of some length" * 100)
    with pytest.raises(StoreUnusable, match="failed"):
        RunIndex(absent_uri).runs()


def test_nobody_there() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with pytest.raises(StoreUnusable, match=f"^http://127.0.0.1:{port} refuses the connection$"):
        RunIndex(f"http://127.0.0.1:{port}").check()


def test_a_server_that_hangs_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "60")
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        uri = f"http://u:hunter2@127.0.0.1:{silent.getsockname()[1]}"
        began = time.monotonic()
        with pytest.raises(StoreUnusable, match=r"does not answer within 0\.5 s") as caught:
            RunIndex(uri, seconds=0.5).runs()
        assert time.monotonic() - began < 10
        assert "hunter2" not in str(caught.value)
