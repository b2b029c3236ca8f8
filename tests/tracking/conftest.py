"""What the tests of tracking share: a listener for what the user is told, and SQLite stores."""

from __future__ import annotations

import shutil
import threading
from pathlib import Path

import pytest


class Listener:
    """Collects what a tracker says and lets a test wait for it."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.heard = threading.Event()

    def __call__(self, line: str) -> None:
        self.lines.append(line)
        self.heard.set()


@pytest.fixture(autouse=True)
def _own_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    # Short enough for a test to see the end of it.
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def said() -> Listener:
    return Listener()


@pytest.fixture
def absent_uri(tmp_path: Path) -> str:
    """A store that nobody has made."""
    return f"sqlite:///{tmp_path}/store/mlflow.db"


@pytest.fixture
def sqlite_uri(absent_uri: str, empty_store: Path, tmp_path: Path) -> str:
    """A store without a run."""
    (tmp_path / "store").mkdir()
    shutil.copy(empty_store, tmp_path / "store")
    return absent_uri
