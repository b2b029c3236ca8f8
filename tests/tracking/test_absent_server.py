"""A server that refuses, hangs or answers nonsense must neither stall nor end a run."""

from __future__ import annotations

import http.server
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from metadist.tracking import TrackingConfig, open_tracker

WAIT = 60.0


@pytest.fixture
def closed_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture
def hanging_port() -> Iterator[int]:
    # The backlog accepts; nobody ever answers.
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen(50)
        yield int(silent.getsockname()[1])


#: seconds that a call takes at most which waits for nobody, also on a busy machine; a request takes 1 s to give up
AT_ONCE = 0.5


def _fill(tracker, calls: int) -> float:
    """The longest of so many calls, in seconds."""
    longest = 0.0
    for step in range(calls):
        before = time.perf_counter()
        tracker.metrics(step, {"a": 1.0, "b": 2.0})
        longest = max(longest, time.perf_counter() - before)
    return longest


def test_server_that_refuses(said, closed_port: int, tmp_path: Path, capfd) -> None:
    tracker = open_tracker(TrackingConfig(f"http://user:hunter2@127.0.0.1:{closed_port}"), said)
    tracker.start("a", {"x": 1}, {})
    assert said.heard.wait(WAIT)
    assert _fill(tracker, 1000) < AT_ONCE
    tracker.text("a.txt", "a")
    before = time.monotonic()
    report = tracker.finish("FINISHED", 20.0)
    assert time.monotonic() - before < 20.0
    assert (report.run_id, report.sent, report.lost, report.lost_files) == (None, 0, 2000, 1)
    assert "refuses" in str(report.problem)
    assert len(said.lines) == 1
    assert "hunter2" not in said.lines[0] + str(report)
    assert capfd.readouterr() == ("", "")  # Nothing of MLflow's on the console.


def test_server_that_hangs(said, hanging_port: int) -> None:
    tracker = open_tracker(TrackingConfig(f"http://127.0.0.1:{hanging_port}"), said)
    tracker.start("a", {"x": 1}, {})
    assert _fill(tracker, 500) < AT_ONCE
    assert said.heard.wait(WAIT)
    assert _fill(tracker, 500) < AT_ONCE
    before = time.monotonic()
    report = tracker.finish("FINISHED", 15.0)
    assert time.monotonic() - before < 20.0
    assert (report.sent, report.lost) == (0, 2000)
    assert "does not answer" in str(report.problem)
    assert len(said.lines) == 1


def test_finish_keeps_its_time_while_a_call_hangs(said, hanging_port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "12")
    tracker = open_tracker(TrackingConfig(f"http://127.0.0.1:{hanging_port}"), said)
    tracker.start("a", {}, {})
    tracker.metrics(1, {"a": 1.0})
    before = time.monotonic()
    report = tracker.finish("KILLED", 0.5)
    assert time.monotonic() - before < 6.0
    assert (report.sent, report.lost) == (0, 1)
    assert "within 0.5 s" in str(report.problem)
    tracker.metrics(2, {"a": 1.0})  # Late, and harmless.
    assert len(said.lines) == 1


class _Nonsense(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/html")
        self.end_headers()
        self.wfile.write(b"<html>some other program</html>")

    do_POST = do_GET

    def log_message(self, *args: object) -> None:
        pass


def test_server_that_is_something_else(said) -> None:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Nonsense) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
        thread.start()
        tracker = open_tracker(TrackingConfig(f"http://127.0.0.1:{server.server_port}"), said)
        tracker.start("a", {}, {})
        tracker.metrics(1, {"a": 1.0})
        report = tracker.finish("FINISHED", WAIT)
        server.shutdown()
    assert (report.sent, report.lost) == (0, 1)
    assert len(said.lines) == 1


def test_full_queue_drops_and_counts(said, closed_port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("metadist.tracking.mlflow_tracker._MOST_METRICS", 10)
    tracker = open_tracker(TrackingConfig(f"http://127.0.0.1:{closed_port}"), said)
    _fill(tracker, 50)
    tracker.start("a", {}, {})
    assert tracker.finish("FINISHED", WAIT).lost == 100


def test_outage_in_the_midst_loses_nothing(said, sqlite_uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from metadist.tracking import mlflow_tracker, run_store

    monkeypatch.setattr(mlflow_tracker, "_FIRST_PAUSE", 0.05)
    real, failures = run_store.RunStore.send_metrics, 3

    def fails_at_first(self, entries):
        nonlocal failures
        if failures:
            failures -= 1
            if failures == 0:
                real(self, entries)  # Stored, and only the answer is lost.
            raise ConnectionResetError("reset by peer")
        return real(self, entries)

    monkeypatch.setattr(run_store.RunStore, "send_metrics", fails_at_first)
    tracker = open_tracker(TrackingConfig(sqlite_uri), said)
    tracker.start("a", {}, {})
    tracker.metrics(1, {"a": 1.0})
    assert said.heard.wait(WAIT)
    tracker.metrics(2, {"a": 2.0})
    deadline = time.monotonic() + WAIT
    while tracker._sent < 2 and time.monotonic() < deadline:
        threading.Event().wait(0.02)
    report = tracker.finish("FINISHED", WAIT)
    assert (report.sent, report.lost) == (2, 0)
    assert "reset by peer" in str(report.problem)
    assert len(said.lines) == 1
    from mlflow.tracking import MlflowClient

    history = MlflowClient(tracking_uri=sqlite_uri).get_metric_history(report.run_id, "a")
    assert sorted((m.step, m.value) for m in history) == [(1, 1.0), (2, 2.0)]


def test_lost_answer_to_the_runs_making_makes_no_second_run(
    said, sqlite_uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlflow.tracking import MlflowClient

    from metadist.tracking import mlflow_tracker

    monkeypatch.setattr(mlflow_tracker, "_FIRST_PAUSE", 0.05)
    real, calls = MlflowClient.create_run, []

    def answer_lost(self, *args, **kwargs):
        made = real(self, *args, **kwargs)
        calls.append(made.info.run_id)
        raise ConnectionResetError("reset by peer")

    monkeypatch.setattr(MlflowClient, "create_run", answer_lost)
    tracker = open_tracker(TrackingConfig(sqlite_uri), said)
    tracker.start("a", {"p": 1}, {})
    assert [tracker.wait_for_run_id(WAIT)] == calls
    tracker.finish("FINISHED", WAIT)
    assert MlflowClient(tracking_uri=sqlite_uri).get_run(calls[0]).data.params == {"p": "1"}
