"""A sweep's runs in MLflow: nested, found again, each value once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from metadist.tracking import TrackingConfig
from metadist.tracking.sweep_tracker import PARENT_TAG, SweepTracker

HISTORY = [(step, {"train/loss": 1.0 / step, "valid/loss": 2.0 / step}) for step in range(1, 6)]


def stored(uri: str) -> tuple[Any, list[Any]]:
    from mlflow.tracking import MlflowClient

    client = MlflowClient(uri)
    experiments = [e.experiment_id for e in client.search_experiments()]
    return client, client.search_runs(experiments)


def open_sweep(uri: str, said: Any) -> SweepTracker:
    return SweepTracker(TrackingConfig(uri, "sweeps"), said, "it's a sweep")


def test_a_driver_that_forgot_everything_goes_on_with_the_same_runs(sqlite_uri: str, said: Any) -> None:
    """As after a kill before any id was written down."""
    first = open_sweep(sqlite_uri, said)
    parent = first.start("sweep", {"a": 1}, {})
    assert parent is not None
    first.begin("trial-000", "trial-000", {"lr": 0.1}, {"x": "y"})
    first.feed("trial-000", HISTORY[:3])
    first.feed("trial-000", HISTORY[:3])
    tracker = first._children["trial-000"].tracker
    assert tracker is not None
    assert tracker.wait_for_run_id(30) is not None
    # No end: the process is gone. What was queued may or may not have arrived.
    client, runs = stored(sqlite_uri)
    assert {run.info.status for run in runs} == {"RUNNING"}

    second = open_sweep(sqlite_uri, said)
    assert second.start("sweep", {"a": 1}, {}) == parent
    second.begin("trial-000", "trial-000", {"lr": 0.1}, {"x": "y"})
    second.feed("trial-000", HISTORY)
    ends: list[tuple[str | None, bool]] = []
    second.end("trial-000", "KILLED", lambda run, complete: ends.append((run, complete)))
    second.wait()
    second.parent.finish("FINISHED")
    client, runs = stored(sqlite_uri)
    assert len(runs) == 2
    (child,) = [run for run in runs if run.data.tags.get(PARENT_TAG) == parent]
    assert ends == [(child.info.run_id, True)]
    assert child.info.status == "KILLED"
    for key in ("train/loss", "valid/loss"):
        points = [(m.step, m.value) for m in client.get_metric_history(child.info.run_id, key)]
        assert points == [(step, values[key]) for step, values in HISTORY]


def test_tracking_that_is_off_is_complete(tmp_path: Path, said: Any) -> None:
    tracker = SweepTracker(TrackingConfig("none"), said, "sweep")
    assert tracker.start("sweep", {}, {}) is None
    tracker.begin("trial-000", "trial-000", {}, {})
    tracker.feed("trial-000", HISTORY)
    ends: list[tuple[str | None, bool]] = []
    tracker.end("trial-000", "FINISHED", lambda run, complete: ends.append((run, complete)))
    tracker.wait()
    assert ends == [(None, True)]
    assert list(tmp_path.iterdir()) == []
