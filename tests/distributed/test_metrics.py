"""What a Prometheus server would read of a run."""

from __future__ import annotations

import time
import urllib.request
from pathlib import Path
from typing import Any

from prometheus_client.parser import text_string_to_metric_families
from test_logs import job

from metadist.distributed.run import RunOptions, train_job
from metadist.testing.faults import KillOnce
from metadist.testing.observers import Notes

DEADLINE = 60.0


def scraped(ray: Any, run: str) -> dict[str, float]:
    """The samples of a run by name (without `ray_`), as the node's agent exports them now."""
    (node,) = ray.nodes()
    url = f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
    with urllib.request.urlopen(url, timeout=10) as answer:
        families = text_string_to_metric_families(answer.read().decode())
    return {
        sample.name.removeprefix("ray_"): sample.value
        for family in families
        for sample in family.samples
        if sample.labels.get("run") == run and "le" not in sample.labels
    }


def test_a_run_of_two_accidents(ray: Any, tmp_path: Path) -> None:
    kills = [KillOnce("work", 2, str(tmp_path / "worker")), KillOnce("applied", 4, str(tmp_path / "server"))]

    def fault(point: str, version: int) -> None:
        for kill in kills:
            kill(point, version)

    summary = train_job(job(tmp_path), Notes(), RunOptions(fault=fault))
    assert (summary["worker_losses"], summary["server_losses"], summary["step"]) == (1, 1, 6)
    run = Path(summary["run_dir"]).name
    expected = {
        "metadist_steps_total": 6.0,
        "metadist_tasks_total": 24.0,
        "metadist_worker_restarts_total": 1.0,
        "metadist_server_restarts_total": 1.0,
        "metadist_workers": 1.0,
        "metadist_step_seconds_count": 6.0,
        "metadist_push_seconds_count": 6.0,
    }
    deadline = time.monotonic() + DEADLINE
    found: dict[str, float] = {}
    while not expected.items() <= found.items() and time.monotonic() < deadline:
        found = scraped(ray, run)
    assert found.items() >= expected.items()
    assert found["metadist_push_seconds_sum"] > 0
    assert 0 < found["metadist_step_seconds_sum"] < 600
