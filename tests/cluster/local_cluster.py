"""A cluster of `cluster/local.sh` for tests."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
LOCAL = ROOT / "cluster" / "local.sh"


@dataclass(frozen=True)
class Local:
    """A state folder for `local.sh`."""

    folder: Path

    @property
    def environment(self) -> dict[str, str]:
        outside = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")}
        return outside | {"METADIST_CLUSTER": str(self.folder), "PYTHON": sys.executable}

    @property
    def state(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((self.folder / "cluster.json").read_text())
        return found

    def sh(self, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        variables = self.environment | environment
        return subprocess.run([LOCAL, *arguments], env=variables, capture_output=True, text=True, timeout=400)

    def run(self, program: str, *arguments: str, timeout: float = 180) -> subprocess.CompletedProcess[str]:
        """A driver of its own, because this process may have a Ray session already."""
        return subprocess.run(
            [sys.executable, "-c", program, *arguments],
            env=self.environment | {"LOCAL": str(LOCAL)},
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=timeout,
        )


@pytest.fixture(scope="module", name="cluster")
def _cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Local]:
    local = Local(tmp_path_factory.mktemp("cluster"))
    try:
        started = local.sh("up", "2", "--detect", "fast")
        assert started.returncode == 0, started.stderr
        yield local
    finally:
        local.sh("down")
