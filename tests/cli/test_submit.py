"""`metadist submit` and `metadist jobs` on a cluster of two real nodes that have not installed metadist."""

from __future__ import annotations

import contextlib
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
LOCAL = ROOT / "cluster" / "local.sh"

JOB = """\
name: toy
steps: 4
tasks: {kind: sinusoid, shots: 3, query: 3, batch: 4, chunk: 2}
model: {kind: mlp, hidden: [8]}
learner: {kind: maml, inner_lr: 0.01, inner_steps: 1, eval_steps: 1}
resources: {workers: 2}
evaluation: {every: 20, tasks: 2, test_tasks: 2, query: 2}
tracking: {uri: none}
"""
#: makes an interpreter forget the checkout that it was installed from
LACKING = (
    "import sys\nsys.meta_path[:] = [finder for finder in sys.meta_path if 'editable' not in repr(finder).lower()]\n"
)


@dataclass(frozen=True)
class User:
    """Somebody with a job file beside a cluster."""

    home: Path

    @property
    def environment(self) -> dict[str, str]:
        outside = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")}
        return outside | {"METADIST_CLUSTER": str(self.home / "cluster"), "PYTHONPATH": str(ROOT)}

    @property
    def shared(self) -> tuple[str, ...]:
        return ("--set", f"storage={self.home}/runs", "--shared-storage")

    @property
    def token(self) -> str:
        """The cluster's."""
        return (self.home / "cluster" / "token").read_text().strip()

    def files_with_the_token(self) -> list[Path]:
        """Of the user, with the run folders, and of the cluster's nodes, with their logs."""
        nodes = Path(json.loads((self.home / "cluster" / "cluster.json").read_text())["root"])
        files = [path for folder in (self.home, nodes) for path in folder.rglob("*") if path.is_file()]
        return [path for path in files if self.token.encode() in path.read_bytes()]

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "metadist", *arguments]
        pipes = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        return subprocess.Popen(command, env=self.environment, cwd=self.home, **pipes)  # type: ignore[call-overload]

    def types(self, *arguments: str) -> tuple[int, str, str]:
        """Exit code, stdout and stderr of a command."""
        program = self.start(*arguments)
        out, err = program.communicate(timeout=240)
        return program.returncode, out, err


def _command_lines() -> Iterator[str]:
    """Of all processes."""
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            yield entry.read_text(errors="replace")


@pytest.fixture(scope="module")
def user(tmp_path_factory: pytest.TempPathFactory) -> Iterator[User]:
    user = User(tmp_path_factory.mktemp("user"))
    (user.home / "job.yaml").write_text(JOB)
    (user.home / "lacking").mkdir()
    (user.home / "lacking" / "sitecustomize.py").write_text(LACKING)
    nodes = user.environment | {"PYTHON": sys.executable, "PYTHONPATH": str(user.home / "lacking")}
    blind = [sys.executable, "-c", "import metadist"]
    assert subprocess.run(blind, env=nodes, cwd=user.home, capture_output=True, timeout=60).returncode == 1
    local: dict[str, Any] = {"env": nodes, "capture_output": True, "text": True, "timeout": 400}
    up = subprocess.run([LOCAL, "up", "2", "--object-store-mb", "100"], **local)
    assert up.returncode == 0, up.stderr
    try:
        yield user
    finally:
        subprocess.run([LOCAL, "down"], check=True, **local)


def test_to_the_end(user: User) -> None:
    code, out, err = user.types("submit", "job.yaml", *user.shared, "--json", "--", "--steps", "6")
    assert code == 0, err
    result = json.loads(out.splitlines()[-1])
    assert (result["outcome"], result["step"]) == ("finished", 6)
    assert result["run_dir"] == f"{user.home}/runs/toy"
    assert (user.home / "runs" / "toy" / "summary.json").exists()
    assert "· toy-1 submitted to http://127.0.0.1:" in err
    assert f"params_sha256 {result['params_sha256']}" in err
    assert "· toy-1 SUCCEEDED after 0:00:" in err
    for noise in ("INFO", "WARNING", "Traceback", "run_dir", "entrypoint"):
        assert noise not in err
    assert user.token not in out + err
    assert user.token not in "".join(_command_lines())
    assert user.files_with_the_token() == [user.home / "cluster" / "token"]


@pytest.mark.slow
def test_a_mistake_that_only_the_cluster_knows(user: User) -> None:
    greedy = ("--set", "resources.gpus_per_worker=1", "--name", "greedy", "--json")
    code, out, err = user.types("submit", "job.yaml", *user.shared, *greedy)
    assert code == 2
    assert out == ""
    assert "metadist: resources.gpus_per_worker: got 2.0, expected at most the 0 GPUs" in err
    assert "· greedy-1 FAILED with exit code 2" in err


@pytest.mark.slow
def test_a_cluster_that_lacks_metadist(user: User) -> None:
    """What every other test here rests on: the package reaches both nodes because it is sent."""
    code, _, err = user.types("submit", "job.yaml", *user.shared, "--name", "bare", "--no-package")
    assert code == 1
    assert "No module named metadist" in err
    assert "· the cluster lacks a Python package" in err


@pytest.mark.slow
def test_stop_and_go_on(user: User) -> None:
    long = ("submit", "job.yaml", *user.shared, "--set", "resources.workers=1", "--name", "long", "--json")
    code, out, err = user.types(*long, "--no-follow", "--", "--steps", "1000000")
    assert code == 0, err
    submitted = json.loads(out)
    assert (submitted["id"], submitted["exit_code"]) == ("long-1", None)

    follower = user.start("jobs", "logs", "long", "--follow")
    assert follower.stdout is not None
    assert any("validation" in line for line in follower.stdout)

    code, out, err = user.types("jobs", "stop", "long", "--json")
    assert code == 0, err
    assert json.loads(out)["status"] == "STOPPED"
    rest, told = follower.communicate(timeout=60)
    assert follower.returncode == 143, told
    assert "long-1 STOPPED" in told
    found = re.search(r"· long-1 stopped at step (\d+); its checkpoint is in (.*)", err)
    assert found is not None
    step, run = int(found[1]), Path(found[2])
    assert run == user.home / "runs" / "long"
    assert (run / "checkpoints" / f"step-{step:08d}.safetensors").exists()
    assert f"Stopped at step {step}" in rest

    on = ("--", "--steps", "1000000", "--stop-after", str(step + 1))
    code, out, err = user.types(*long, *on)
    assert code == 0, err
    assert f"going on from step {step}" in err
    assert json.loads(out.splitlines()[-1])["step"] == step + 1
    assert "· long-2 SUCCEEDED" in err

    jobs = json.loads(user.types("jobs", "list", "--json")[1])["jobs"]
    ended = [(job["id"], job["status"], job["exit_code"]) for job in jobs if job["name"] == "long"]
    assert ended == [("long-1", "STOPPED", 143), ("long-2", "SUCCEEDED", 0)]
