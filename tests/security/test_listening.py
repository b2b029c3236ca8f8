"""What the project opens itself listens on this machine only, unless it is told otherwise."""

from __future__ import annotations

import contextlib
import re
import subprocess
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]


class Ended(Exception):
    """Raised in the place of what would listen."""


@pytest.mark.parametrize(("options", "host"), [([], "127.0.0.1"), (["--host", "::1"], "::1")])
def test_mlflow(
    metadist: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: list[str], host: str
) -> None:
    begun: list[list[str]] = []

    def popen(command: list[str], **_: object) -> Any:
        begun.append(command)
        raise KeyboardInterrupt

    monkeypatch.setattr(subprocess, "Popen", popen)
    metadist("ui", "--uri", f"sqlite:///{tmp_path}/m.db", "--port", "50999", *options)
    (command,) = begun
    assert command[command.index("--host") + 1] == host
    assert not any("0.0.0.0" in word for word in command)


def test_an_embedded_session_has_no_dashboard(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor is there one of Ray's to reach: what it does open asks for a token."""
    from metadist.distributed import session

    told: dict[str, Any] = {}

    def init(**options: Any) -> None:
        told.update(options)
        raise Ended

    fake = types.SimpleNamespace(is_initialized=lambda: False, init=init)
    monkeypatch.setitem(sys.modules, "ray", fake)
    with contextlib.suppress(Ended), session.ray_session(None, 1):
        raise AssertionError("the stand-in never begins")
    assert told["include_dashboard"] is False
    assert told["address"] == "local"


def test_files_of_deployment() -> None:
    """All interfaces only inside of Kubernetes, where a service is what others reach; and in what people are told."""
    files = [path for path in REPOSITORY.rglob("*") if path.suffix in (".py", ".yaml", ".sh", ".sbatch")]
    ours = [path for path in files if path.relative_to(REPOSITORY).parts[0] in ("cluster", "metadist")]
    wide = {path.name for path in ours if re.search(r"host[=:]\s*\[?0\.0\.0\.0", path.read_text())}
    assert wide <= {"mlflow.yaml", "ray-cluster.yaml", "dashboard.py"}
    heads = [line for path in ours for line in path.read_text().splitlines() if "ray start --head" in line]
    assert heads
    assert all("--dashboard-host=127.0.0.1" in line or "--include-dashboard=false" in line for line in heads)
