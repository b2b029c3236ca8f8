"""Small sweeps of sinusoid jobs, their MLflow runs read back, and a wait for what a sweep's folder says."""

from __future__ import annotations

import json
import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

JOB = """\
name: waves
seed: 3
steps: 12
runtime: inprocess
tasks: {kind: sinusoid, shots: 5, query: 5, batch: 4, chunk: 2}
model: {kind: mlp, hidden: [8]}
learner: {kind: maml, inner_lr: 0.01, inner_steps: 1, eval_steps: 1}
evaluation: {every: 4, tasks: 8, query: 5}
checkpoint: {every: 6}
"""

SWEEP = (
    JOB
    + """\
tune:
  space:
    learner.inner_lr: {grid: [0.02, 5.0, 1.0e+30]}
    optimizer.lr: {loguniform: [1.0e-4, 1.0e-2]}
  initial:
    - {learner.inner_lr: 0.01, optimizer.lr: 0.001}
  num_samples: 1
  max_concurrent: 1
"""
)


@pytest.fixture
def write(tmp_path: Path, empty_store: Path) -> Callable[..., str]:
    """Write a job file; tracking goes into a store of the test's own."""
    shutil.copy(empty_store, tmp_path)

    def put(text: str = SWEEP, uri: str | None = None) -> str:
        path = tmp_path / "job.yaml"
        shown = uri or f"sqlite:///{tmp_path}/mlflow.db"
        path.write_text(f"{text}tracking: {{uri: '{shown}', experiment: sweeps}}\n")
        return str(path)

    return put


class Runs:
    """All runs of a store."""

    def __init__(self, uri: str) -> None:
        from metadist.tracking.environment import set_defaults

        set_defaults(uri)
        from mlflow.tracking import MlflowClient

        self.client = MlflowClient(uri)
        experiments = [e.experiment_id for e in self.client.search_experiments()]
        self.all = self.client.search_runs(experiments, max_results=100)
        self.by_id = {run.info.run_id: run for run in self.all}

    @property
    def parents(self) -> list[Any]:
        return [run for run in self.all if "mlflow.parentRunId" not in run.data.tags]

    def children(self, parent: Any) -> dict[str, Any]:
        """The runs below a parent, by the first word of their names."""
        below = [run for run in self.all if run.data.tags.get("mlflow.parentRunId") == parent.info.run_id]
        return {run.info.run_name.split()[0]: run for run in below}

    def history(self, run: Any) -> dict[str, list[tuple[int, float]]]:
        """(step, value) of each metric, as stored."""
        ask = self.client.get_metric_history
        return {key: [(m.step, m.value) for m in ask(run.info.run_id, key)] for key in run.data.metrics}

    def artifacts(self, run: Any) -> set[str]:
        """Paths of a run's artifacts."""
        paths: set[str] = set()
        folders = [""]
        while folders:
            for entry in self.client.list_artifacts(run.info.run_id, folders.pop() or None):
                if entry.is_dir:
                    folders.append(entry.path)
                else:
                    paths.add(entry.path)
        return paths


@pytest.fixture
def runs() -> Callable[[str], Runs]:
    return Runs


@pytest.fixture
def await_record() -> Callable[..., dict[str, Any]]:
    """Wait until the record of a sweep below a folder is as wanted; returns it."""

    def wait(storage: Path, wanted: Callable[[Path, dict[str, Any]], bool], alive: Callable[[], bool]) -> Any:
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline and alive():
            for file in storage.glob("*/sweep.json"):
                record = json.loads(file.read_text())
                if wanted(file.parent, record):
                    return record
            threading.Event().wait(0.05)
        raise AssertionError("the sweep did not come to the wanted state")

    return wait


@pytest.fixture(scope="session")
def swept(ray: Any, tmp_path_factory: pytest.TempPathFactory, metadist: Callable[..., Any]) -> Any:
    """A small sweep by the command line: a point to compare with, a good one, a bad one, one that diverges."""
    folder = tmp_path_factory.mktemp("swept")
    job = folder / "job.yaml"
    job.write_text(f"{SWEEP}tracking: {{uri: 'sqlite:///{folder}/mlflow.db', experiment: sweeps}}\n")
    ended = metadist("tune", str(job), "--storage", str(folder / "runs"), "--json")
    assert ended.code == 0, ended.err
    return ended


@pytest.fixture
def place(swept: Any) -> Path:
    """Folder of the finished sweep; only read it."""
    return Path(swept.result["sweep_dir"])
