"""MLflow's interface on the run's store: it answers, and ends without leaving anything behind."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from metadist.errors import UserError
from metadist.tracking.ui import serve_ui


def test_busy_port_is_the_users_to_mend(absent_uri: str) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        with pytest.raises(UserError) as caught:
            serve_ui(absent_uri, other.getsockname()[1])
    assert caught.value.field == "--port"


@pytest.mark.parametrize("port", [0, 70000])
def test_port_out_of_range(absent_uri: str, port: int) -> None:
    with pytest.raises(UserError):
        serve_ui(absent_uri, port)


@pytest.mark.parametrize("uri", ["http://u:hunter2@tracking:5000", "databricks"])
def test_server_has_its_own_interface(uri: str) -> None:
    with pytest.raises(UserError, match="browser") as caught:
        serve_ui(uri, 5000)
    assert "hunter2" not in str(caught.value)


def _fetch(url: str, body: bytes | None = None) -> bytes:
    request = urllib.request.Request(url, body, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=5) as answer:
        return bytes(answer.read())


def _answers(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def test_serves_and_ends(sqlite_uri: str, tmp_path: Path) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    code = f"import sys; from metadist.tracking.ui import serve_ui; sys.exit(serve_ui({sqlite_uri!r}, {port}))"
    root = Path(__file__).resolve().parents[2]
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen([sys.executable, "-c", code], cwd=root, stdout=log, stderr=log)
    try:
        deadline = time.monotonic() + 50
        page = b""
        while not page and process.poll() is None and time.monotonic() < deadline:
            try:
                page = _fetch(f"http://127.0.0.1:{port}/")
            except (urllib.error.URLError, OSError):
                threading.Event().wait(0.1)
        assert b"<html" in page, (tmp_path / "log").read_text()
        found = json.loads(_fetch(f"http://127.0.0.1:{port}/api/2.0/mlflow/experiments/search", b'{"max_results": 5}'))
        assert [e["name"] for e in found["experiments"]] == ["Default"]
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 0
        assert not _answers(port)
        assert "Traceback" not in (tmp_path / "log").read_text()
    finally:
        if process.poll() is None:
            process.terminate()
            process.wait(30)
