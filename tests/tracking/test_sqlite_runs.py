"""Runs in a SQLite store, end to end: what was handed over is there, once."""

from __future__ import annotations

import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from metadist.tracking import Tracker, TrackingConfig, TrackingReport, open_tracker

WAIT = 120.0


def _client(uri: str) -> Any:
    from mlflow.tracking import MlflowClient

    return MlflowClient(tracking_uri=uri)


def _record(
    uri: str, say, params=None, run_id: str | None = None, steps=(), status="FINISHED"
) -> tuple[Tracker, TrackingReport]:
    tracker = open_tracker(TrackingConfig(uri, "exp"), say)
    tracker.start("my run", params or {}, {"algorithm": "maml"}, run_id)
    for step in steps:
        tracker.metrics(step, {"train/loss": 1.0 / (step + 1), "valid/accuracy": 0.5})
    return tracker, tracker.finish(status, WAIT)


def _history(uri: str, run_id: str | None, key: str) -> list[tuple[int, float]]:
    return sorted((m.step, m.value) for m in _client(uri).get_metric_history(run_id, key))


def test_everything_handed_over_is_there(said, absent_uri: str, tmp_path: Path) -> None:
    picture = tmp_path / "curves.png"
    picture.write_bytes(b"png")
    tracker = open_tracker(TrackingConfig(absent_uri, "exp"), said)
    many = {f"group.key{i}": i for i in range(230)}
    params = {
        **many,
        "data.uri": "postgresql://u:hunter2@host/db",
        "long": "x" * 9000,
        "outer.optimizer!": "sgd",
        "empty": "",
    }
    tracker.start("my run", params, {"algorithm": "maml", "login": "http://u:hunter2@host"})
    for step in range(1200):
        tracker.metrics(step, {"train/loss": 1.0 / (step + 1), "valid/accuracy": 0.5})
    tracker.artifact(str(picture), "plots")
    tracker.text("job.yaml", "uri: mysql://u:hunter2@host/db\n")
    report = tracker.finish("FINISHED", WAIT)

    assert report == TrackingReport(tracker.run_id, absent_uri, 2400, 0, None, 0)
    assert tracker.problem is None
    assert said.lines == []
    assert tracker.finish("FAILED") is report
    client = _client(absent_uri)
    run = client.get_run(report.run_id)
    assert run.info.status == "FINISHED"
    assert run.data.params["group.key229"] == "229"
    assert len(run.data.params) == 234
    assert run.data.params["data.uri"] == "postgresql://u:***@host/db"
    assert len(run.data.params["long"]) == 6000
    assert run.data.params["outer.optimizer_"] == "sgd"
    assert run.data.tags["mlflow.runName"] == "my run"
    assert run.data.tags["mlflow.source.name"] == "metadist"
    assert run.data.tags["algorithm"] == "maml"
    assert run.data.tags["mlflow.user"]
    assert "hunter2" not in str(run.to_dictionary())
    assert _history(absent_uri, report.run_id, "train/loss") == [(s, 1.0 / (s + 1)) for s in range(1200)]
    # Artifacts lie beside the database, by an absolute address.
    assert run.info.artifact_uri.startswith(f"file://{tmp_path}/store/mlartifacts/exp/")
    assert Path(client.download_artifacts(report.run_id, "plots/curves.png")).read_bytes() == b"png"
    text = Path(client.download_artifacts(report.run_id, "job.yaml")).read_text()
    assert text == "uri: mysql://u:***@host/db\n"


def test_resumed_run_goes_on_without_repeating_itself(said, sqlite_uri: str) -> None:
    _, first = _record(sqlite_uri, said, {"a": 1, "steps": 10}, steps=range(10), status="KILLED")
    assert _client(sqlite_uri).get_run(first.run_id).info.status == "KILLED"

    tracker = open_tracker(TrackingConfig(sqlite_uri, "exp"), said)
    tracker.start("my run", {"a": 1, "steps": 20, "new": True}, {}, first.run_id)
    assert tracker.wait_for_run_id(WAIT) == first.run_id
    assert _client(sqlite_uri).get_run(first.run_id).info.status == "RUNNING"
    for step in range(8, 20):  # From the checkpoint of step 7 on.
        tracker.metrics(step, {"train/loss": 7.0})
    tracker.metrics(8, {"first/seen": 1.0})
    second = tracker.finish("FINISHED", WAIT)

    assert second.run_id == first.run_id
    assert (second.sent, second.lost) == (11, 0)
    assert said.lines == []
    client = _client(sqlite_uri)
    experiment = client.get_experiment_by_name("exp").experiment_id
    assert len(client.search_runs([experiment])) == 1
    assert [s for s, _ in _history(sqlite_uri, first.run_id, "train/loss")] == list(range(20))
    assert _history(sqlite_uri, first.run_id, "first/seen") == [(8, 1.0)]
    run = client.get_run(first.run_id)
    assert run.info.status == "FINISHED"
    assert run.data.params == {"a": "1", "steps": "10", "new": "True"}
    assert run.data.tags["metadist.changed_on_resume"] == '{"steps": "20"}'


def test_run_that_is_no_longer_there_is_made_anew(said, sqlite_uri: str) -> None:
    _, report = _record(sqlite_uri, said, run_id="0" * 32, steps=range(3))
    assert report.run_id not in (None, "0" * 32)
    assert report.problem is None
    assert len(said.lines) == 1
    assert "0" * 32 in said.lines[0]
    assert len(_history(sqlite_uri, report.run_id, "train/loss")) == 3


def test_deleted_experiment_is_restored(said, sqlite_uri: str) -> None:
    _record(sqlite_uri, said)
    client = _client(sqlite_uri)
    client.delete_experiment(client.get_experiment_by_name("exp").experiment_id)
    _, report = _record(sqlite_uri, said)
    assert report.problem is None
    assert client.get_experiment_by_name("exp").lifecycle_stage == "active"
    assert len(said.lines) == 1
    assert "restored" in said.lines[0]


def test_numbers_that_are_none_are_stored_as_such(said, sqlite_uri: str) -> None:
    tracker = open_tracker(TrackingConfig(sqlite_uri), said)
    tracker.start("diverged", {}, {})
    tracker.metrics(1, {"loss": math.nan, "norm": math.inf, "lr": 0.1})
    tracker.metrics(2, {"loss": 3.0, "norm": -math.inf, "lr": 0.1})
    report = tracker.finish("FINISHED", WAIT)
    assert (report.sent, report.lost) == (6, 0)
    losses = [value for _, value in _history(sqlite_uri, report.run_id, "loss")]
    assert math.isnan(losses[0])
    assert losses[1] == 3.0
    assert all(math.isnan(value) for _, value in _history(sqlite_uri, report.run_id, "norm"))
    assert _history(sqlite_uri, report.run_id, "lr") == [(1, 0.1), (2, 0.1)]


def test_lazy_contacts_the_store_with_the_first_metrics(said, absent_uri: str) -> None:
    tracker = open_tracker(TrackingConfig(absent_uri, "exp"), said)
    tracker.start("late", {"a": 1}, {}, lazy=True)
    tracker.text("job.yaml", "steps: 1")
    assert not Path(absent_uri.removeprefix("sqlite:///")).exists()
    tracker.metrics(1, {"a": 1.0})
    assert tracker.wait_for_run_id(WAIT) is not None
    report = tracker.finish("FINISHED", WAIT)
    assert (report.sent, report.lost, report.lost_files) == (1, 0, 0)


def test_lazy_records_a_run_that_failed_before_its_first_metrics(said, sqlite_uri: str) -> None:
    tracker = open_tracker(TrackingConfig(sqlite_uri, "exp"), said)
    tracker.start("failed early", {"a": 1}, {}, lazy=True)
    report = tracker.finish("FAILED", WAIT)
    run = _client(sqlite_uri).get_run(report.run_id)
    assert (run.info.status, run.data.params) == ("FAILED", {"a": "1"})


def test_missing_file_is_said_and_the_rest_is_kept(said, sqlite_uri: str, tmp_path: Path) -> None:
    tracker = open_tracker(TrackingConfig(sqlite_uri), said)
    tracker.start("a", {}, {})
    tracker.artifact(str(tmp_path / "missing.png"))
    tracker.text("there.txt", "yes")
    tracker.metrics(1, {"a": 1.0})
    report = tracker.finish("FINISHED", WAIT)
    assert (report.sent, report.lost, report.lost_files) == (1, 0, 1)
    assert "missing.png" in str(report.problem)
    assert len(said.lines) == 1
    assert [f.path for f in _client(sqlite_uri).list_artifacts(report.run_id)] == ["there.txt"]
    assert _client(sqlite_uri).get_run(report.run_id).info.status == "FINISHED"


def test_database_that_vanishes(said, sqlite_uri: str, tmp_path: Path) -> None:
    tracker = open_tracker(TrackingConfig(sqlite_uri), said)
    tracker.start("a", {}, {})
    assert tracker.wait_for_run_id(WAIT)
    database = tmp_path / "store" / "mlflow.db"
    database.unlink()
    tracker.metrics(1, {"a": 1.0, "b": 1.0})
    assert said.heard.wait(WAIT)
    for step in range(2, 100):
        tracker.metrics(step, {"a": 1.0})
    tracker.text("a.txt", "a")
    report = tracker.finish("FINISHED", WAIT)
    assert (report.sent, report.lost, report.lost_files) == (0, 100, 1)
    assert len(said.lines) == 1
    assert "is gone" in str(report.problem)
    assert not database.exists()  # No empty database in its place.


def test_folder_that_cannot_be_made_is_said_at_once(said, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    tracker = open_tracker(TrackingConfig(f"sqlite:///{tmp_path}/file/mlflow.db"), said)
    tracker.start("a", {}, {})
    tracker.metrics(1, {"a": 1.0})
    assert said.heard.wait(WAIT)
    assert tracker.wait_for_run_id(WAIT) is None
    report = tracker.finish("FAILED", WAIT)
    assert (report.run_id, report.sent, report.lost) == (None, 0, 1)


def test_folder_store(said, tmp_path: Path) -> None:
    _, report = _record("./mlruns", said, {"a": 1}, steps=range(3))
    assert (report.sent, report.lost, report.problem) == (6, 0, None)
    assert len(_history(f"file://{tmp_path}/mlruns", report.run_id, "train/loss")) == 3


def test_two_trackers_start_on_a_store_that_neither_has_made(said, absent_uri: str) -> None:
    code = (
        "from metadist.tracking import *\n"
        f"t = open_tracker(TrackingConfig({absent_uri!r}, 'exp'), print)\n"
        "t.start('a', {'x': 1}, {}); t.metrics(1, {'a': 1.0}); print(t.finish('FINISHED').sent)"
    )
    both = [
        subprocess.Popen([sys.executable, "-c", code], stdout=-1, stderr=-1, text=True, cwd=_root()) for _ in range(2)
    ]
    # Neither a problem nor a line of MLflow's or alembic's on the user's console.
    assert [process.communicate(timeout=WAIT) for process in both] == [("1\n", ""), ("1\n", "")]
    client = _client(absent_uri)
    assert len(client.search_runs([client.get_experiment_by_name("exp").experiment_id])) == 2


def test_importing_tracking_imports_neither_mlflow_nor_matplotlib() -> None:
    code = (
        "import sys, metadist.tracking, metadist.tracking.plots, metadist.tracking.ui\n"
        "metadist.tracking.open_tracker(metadist.tracking.TrackingConfig('sqlite:///a.db'), print)\n"
        "print([m for m in ('mlflow', 'matplotlib', 'torch', 'ray', 'sqlalchemy') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=_root())
    assert done.stdout == "[]\n", done.stderr


def _root() -> Path:
    return Path(__file__).resolve().parents[2]


def test_tracker_starts_once(said, sqlite_uri: str) -> None:
    tracker, _ = _record(sqlite_uri, said)
    with pytest.raises(RuntimeError):
        tracker.start("again", {}, {})
