"""`metadist submit` and `metadist jobs` before a stand-in of a dashboard: what is shown, what is sent, exit codes."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import typer
from test_submission_jobs import LOST, Dashboard, details

from metadist.distributed import cluster_jobs
from metadist.distributed.cluster_jobs import ClusterJobs

JOB = """\
name: toy
storage: s3://bucket/runs
tasks: {kind: sinusoid}
model: {kind: mlp}
tracking: {uri: none}
"""
RESULT = json.dumps({"run_dir": "s3://b/toy", "outcome": "stopped", "step": 7})
LOG = f"""\
2026-11-21 07:14:15,708\tINFO job_manager.py:581 -- Runtime env is setting up.
Running entrypoint for job toy-1: exec python -m metadist train job.yaml
· strategy: loop
step 7/9  loss 1.0
{RESULT}
"""
SHOWN = "· strategy: loop\nstep 7/9  loss 1.0\n"


def ctrl_c() -> None:
    signal.raise_signal(signal.SIGINT)


@pytest.fixture
def dashboard(monkeypatch: pytest.MonkeyPatch) -> Dashboard:
    found = Dashboard()
    monkeypatch.setattr(found, "get_job_logs", lambda identifier: LOG)
    monkeypatch.setattr(found, "stop_job", lambda identifier: None, raising=False)
    opened = (ClusterJobs(found), "http://head:8265", "token")
    for module in ("submit", "jobs"):
        monkeypatch.setattr(f"metadist.cli.{module}.open_jobs", lambda address: opened)
    monkeypatch.setattr(cluster_jobs, "PAUSE_SECONDS", 0.01)
    return found


@pytest.fixture
def submit(metadist: Callable[..., Any], tmp_path: Path) -> Callable[..., Any]:
    (tmp_path / "job.yaml").write_text(JOB)
    return lambda *arguments: metadist("submit", str(tmp_path / "job.yaml"), *arguments)


@pytest.mark.parametrize(
    ("status", "code", "expected"), [("SUCCEEDED", 0, 0), ("FAILED", 2, 2), ("STOPPED", None, 143)]
)
def test_followed_to_its_end(
    dashboard: Dashboard, submit: Callable[..., Any], status: str, code: int | None, expected: int
) -> None:
    dashboard.looks = [details("toy-1", "PENDING"), details("toy-1", status, code)]
    ended = submit("--json")
    assert ended.code == expected
    assert ended.out == f"{RESULT}\n"
    assert SHOWN in ended.err
    assert "entrypoint" not in ended.err
    assert f"· toy-1 {status}" in ended.err


def test_everything_is_sent(dashboard: Dashboard, submit: Callable[..., Any]) -> None:
    ended = submit("--no-follow", "--name", "two", "--env", "A=b=c", "--set", "seed=1", "--json", "--", "--steps", "5")
    assert ended.code == 0, ended.err
    assert ended.result["id"] == "two-1"
    assert ended.result["address"] == "http://head:8265"
    (sent,) = dashboard.sent
    command = "exec python -m metadist train job.yaml --address auto --run two --json --set seed=1 --steps 5"
    assert sent["entrypoint"] == command
    assert sent["runtime_env"]["env_vars"]["A"] == "b=c"
    assert "metadist jobs logs two --follow" in ended.err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--set", "stepz=5"], "stepz: got 5"),
        (["--", "--steps", "-1"], "steps: got -1"),
        (["--", "--stepz", "5"], "No such option: --stepz"),
        (["--", "--address", "auto"], "--address: got 'auto', expected no --address after --"),
        (["--", "--json"], "--json: got True, expected no --json after --"),
        (["--", "--storage", "runs"], "storage: got 'runs', expected a place that outlives the job"),
        (["--env", "A"], "--env: got 'A', expected KEY=VALUE"),
        (["--name", "my job"], "--name: got 'my job'"),
        (["--working-dir", "nowhere"], "--working-dir: got 'nowhere', expected a folder"),
    ],
)
def test_mistakes_are_found_before_anything_is_sent(
    dashboard: Dashboard, submit: Callable[..., Any], arguments: list[str], message: str
) -> None:
    ended = submit(*arguments)
    assert ended.code == 2
    assert message in ended.err
    assert ended.out == ""
    assert not dashboard.sent


def test_a_run_that_went_before_is_told(dashboard: Dashboard, submit: Callable[..., Any]) -> None:
    run = {"metadist.name": "toy", "metadist.attempt": "1", "metadist.run": "s3://bucket/runs/toy"}
    dashboard.jobs = [details("toy-1", "SUCCEEDED", 0, metadata=run)]
    assert "· toy-1 is done already; another --name makes another run" in submit("--no-follow").err
    dashboard.jobs = [details("toy-1", "STOPPED", metadata=run)]
    assert "· toy-1 STOPPED: going on with it" in submit("--no-follow").err


def test_ctrl_c_without_a_terminal_leaves_the_job_alone(dashboard: Dashboard, submit: Callable[..., Any]) -> None:
    dashboard.streams = [[LOG[: LOG.index("step 7")], ctrl_c, None]]
    ended = submit()
    assert ended.code == 130
    assert "· toy-1 goes on. To see it again: metadist jobs logs toy --follow." in ended.err
    assert "To stop it: metadist jobs stop toy" in ended.err


@pytest.mark.parametrize(
    ("answer", "stopped", "code"), [("stop\n", ["toy-1"], 143), ("detach\n", [], 130), ("", [], 130)]
)
def test_ctrl_c_on_a_terminal_asks(
    dashboard: Dashboard,
    submit: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
    answer: str,
    stopped: list[str],
    code: int,
) -> None:
    asked: list[str] = []

    def prompt(text: str, **_: object) -> str:
        asked.append(text)
        if not answer:
            raise typer.Abort
        return answer

    sent: list[str] = []
    monkeypatch.setattr("metadist.cli.follow.on_terminal", lambda: True)
    monkeypatch.setattr("typer.prompt", prompt)
    monkeypatch.setattr(dashboard, "stop_job", sent.append)
    dashboard.streams = [[LOG[: LOG.index("step 7")], ctrl_c, None]]
    dashboard.looks = [details("toy-1", "PENDING"), details("toy-1", "STOPPED")]
    ended = submit()
    assert len(asked) == 1
    assert sent == stopped
    assert ended.code == code
    assert ended.err.count("· strategy: loop") == 1


def test_lost_from_sight(dashboard: Dashboard, submit: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster_jobs, "LOST_SECONDS", 0.05)
    dashboard.looks = [details("toy-1", "PENDING"), LOST]
    ended = submit("--json")
    assert (ended.code, ended.out) == (1, "")
    assert "· lost sight of toy-1" in ended.err


def test_a_job_that_never_began(dashboard: Dashboard, submit: Callable[..., Any]) -> None:
    trace = 'runtime_env setup failed\nTraceback (most recent call last):\n  File "x"\nOSError: no space'
    dashboard.looks = [details("toy-1", "PENDING"), details("toy-1", "FAILED", message=trace)]
    ended = submit()
    assert ended.code == 1
    assert "OSError: no space\n· toy-1 FAILED with exit code 1" in ended.err
    assert 'File "x"' not in ended.err


def test_list(dashboard: Dashboard, metadist: Callable[..., Any]) -> None:
    assert metadist("jobs", "list").out == "No job was submitted.\n"
    times = {"start_time": 1_000, "end_time": 3_662_000}
    dashboard.jobs = [details("toy-1", "FAILED", 2, **times), details("foreign", "RUNNING")]
    listed = metadist("jobs", "list").out
    assert "toy-1" in listed
    assert "1:01:01" in listed
    assert "s3://b/toy" in listed
    assert "foreign" in listed
    first, second = metadist("jobs", "list", "--json").result["jobs"]
    assert (second["id"], second["exit_code"], second["attempt"]) == ("toy-1", 2, 1)
    assert (first["id"], first["name"], first["attempt"]) == ("foreign", None, None)


def test_status(dashboard: Dashboard, metadist: Callable[..., Any]) -> None:
    dashboard.jobs = [details("toy-1", "STOPPED"), details("toy-2", "RUNNING")]
    shown = metadist("jobs", "status", "toy").out
    assert "toy-2" in shown
    assert "RUNNING" in shown
    assert "step 7/9  loss 1.0" in shown
    assert metadist("jobs", "status", "toy-1", "--json").result["exit_code"] == 143
    ended = metadist("jobs", "status", "tiy")
    assert ended.code == 2
    assert "JOB: got 'tiy', expected the name or the id of a job on the cluster. Did you mean 'toy" in ended.err


def test_logs(dashboard: Dashboard, metadist: Callable[..., Any]) -> None:
    dashboard.jobs = [details("toy-1", "FAILED", 3)]
    assert metadist("jobs", "logs", "toy").out == LOG
    followed = metadist("jobs", "logs", "toy", "--follow")
    assert followed.code == 3
    assert followed.out == SHOWN


def test_stop(dashboard: Dashboard, metadist: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    dashboard.jobs = [details("toy-1", "RUNNING")]
    dashboard.looks = [details("toy-1", "RUNNING"), details("toy-1", "STOPPED")]
    stopped = metadist("jobs", "stop", "toy")
    assert stopped.code == 0
    assert "· toy-1 stopped at step 7; its checkpoint is in s3://b/toy" in stopped.err
    monkeypatch.setattr(dashboard, "get_job_logs", lambda identifier: "· strategy: loop\n")
    assert "without a last checkpoint" in metadist("jobs", "stop", "toy").err
    dashboard.jobs = [details("toy-1", "FAILED", 2)]
    assert "· toy-1 has ended before: FAILED" in metadist("jobs", "stop", "toy").err


def test_stop_that_takes_too_long(
    dashboard: Dashboard, metadist: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cluster_jobs, "MARGIN_SECONDS", 0.0)
    monkeypatch.setattr(cluster_jobs, "RAY_GRACE_SECONDS", 0.0)
    dashboard.jobs = [details("toy-1", "RUNNING")]
    stopped = metadist("jobs", "stop", "toy", "--json")
    assert stopped.code == 1
    assert stopped.result["status"] == "RUNNING"
    assert "· toy-1 is still RUNNING" in stopped.err
