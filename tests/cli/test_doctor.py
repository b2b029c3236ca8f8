"""`metadist doctor`: a table for people, JSON for programs, and an exit code."""

from __future__ import annotations

import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_all_is_well(ray: Any, metadist: Callable[..., Any], job: str) -> None:
    ended = metadist("doctor", "--job", job, "--json")
    assert ended.code == 0, ended.err
    checks = {check["name"]: check for check in ended.result["checks"]}
    assert ended.result["problems"] == 0
    assert {"libraries", "processors", "storage", "MLflow", "data", "Ray", "nodes' versions"} <= set(checks)
    assert checks["MLflow"]["found"] == "switched off"
    assert "✓ libraries" in ended.err
    assert f"{len(checks)} checks: 0 problems" in ended.err


def test_problems_end_in_1(start: Callable[..., Any], job: str) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    program = start("doctor", "--job", job, "--set", "data.source=nowhere", "--address", f"127.0.0.1:{port}", "--json")
    out, err = program.communicate(timeout=200)
    assert program.returncode == 1, err
    assert "Traceback" not in err
    assert "✗ data" in err
    assert "There is nothing at" in err
    assert f"no cluster at 127.0.0.1:{port}" in out.splitlines()[-1]


def test_a_job_that_is_none_is_a_mistake(metadist: Callable[..., Any], job: str) -> None:
    for arguments in (["--job", "nowhere.yaml"], ["--job", job, "--set", "stpes=3"]):
        ended = metadist("doctor", *arguments)
        assert ended.code == 2
        assert ended.out == ""
