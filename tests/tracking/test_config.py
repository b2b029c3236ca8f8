"""The tracking address: defaults, absolute paths, mistakes."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from metadist.errors import UserError
from metadist.tracking import NullTracker, TrackingConfig, open_tracker, resolve_uri


def test_default_is_a_database_in_the_working_folder(tmp_path: Path) -> None:
    assert resolve_uri(TrackingConfig()) == f"sqlite:///{tmp_path}/mlflow.db"


def test_environment_is_used_when_the_job_says_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://tracking:5000")
    assert resolve_uri(TrackingConfig()) == "http://tracking:5000"
    assert resolve_uri(TrackingConfig("sqlite:////x.db")) == "sqlite:////x.db"


def test_mistake_in_the_environment_is_named_as_such(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "htp://tracking")
    with pytest.raises(UserError) as caught:
        resolve_uri(TrackingConfig())
    assert caught.value.field == "MLFLOW_TRACKING_URI"


def test_none_switches_tracking_off(said) -> None:
    assert resolve_uri(TrackingConfig("none")) is None
    tracker = open_tracker(TrackingConfig("none"), said)
    assert isinstance(tracker, NullTracker)
    tracker.start("a", {}, {})
    tracker.metrics(1, {"a": 1.0})
    assert tracker.wait_for_run_id(0) is None
    assert tracker.finish("FINISHED").sent == 0
    assert not said.lines


@pytest.mark.parametrize(
    ("given", "resolved"),
    [
        ("sqlite:///runs/a.db", "sqlite:///{cwd}/runs/a.db"),
        ("sqlite:////abs/a.db", "sqlite:////abs/a.db"),
        ("sqlite:///a.db?timeout=5", "sqlite:///{cwd}/a.db?timeout=5"),
        ("runs.db", "sqlite:///{cwd}/runs.db"),
        ("./mlruns", "file://{cwd}/mlruns"),
        ("file:///abs/mlruns", "file:///abs/mlruns"),
        ("postgresql+psycopg2://u:p@h/x", "postgresql+psycopg2://u:p@h/x"),
        ("databricks", "databricks"),
        ("uc", "uc"),
    ],
)
def test_resolved_forms(given: str, resolved: str) -> None:
    assert resolve_uri(TrackingConfig(given)) == resolved.format(cwd=os.getcwd())


@pytest.mark.parametrize(
    ("uri", "hint"),
    [
        ("htps://tracking:5000", "https"),
        ("localhost:5000", "http://localhost:5000"),
        ("redis://cache", ""),
        ("sqlite://mlflow.db", "sqlite:///mlflow.db"),
        ("sqlite:mlflow.db", "sqlite://"),
        ("http://", "http://localhost:5000"),
    ],
)
def test_invalid_addresses(uri: str, hint: str, said) -> None:
    with pytest.raises(UserError) as caught:
        open_tracker(TrackingConfig(uri), said)
    assert caught.value.field == "tracking.uri"
    assert hint in caught.value.hint


def test_error_shows_no_password(said) -> None:
    with pytest.raises(UserError) as caught:
        open_tracker(TrackingConfig("postgre://user:hunter2@host/db"), said)
    assert "hunter2" not in str(caught.value)
