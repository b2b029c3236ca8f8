"""Nothing of a run grows with its steps: memory of driver, server and workers, the object store, open files."""

from __future__ import annotations

import gc
import os
import re
from pathlib import Path
from typing import Any

import pytest

from metadist.bench.line import ray_line
from metadist.distributed.chaos import processes_of
from metadist.testing.toys import sinusoid_experiment

MOST, WORKERS = 5000, 2


def build() -> Any:
    return sinusoid_experiment(steps=2 * MOST)


def private_bytes(process: int) -> int:
    """Memory of a process that no other one shares."""
    lines = Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()
    return sum(1024 * int(line.split()[1]) for line in lines if line.startswith("Private_"))


def stored_objects() -> int:
    import ray
    from ray._private.internal_api import memory_summary

    here = ray.get_runtime_context().gcs_address  # other tests may have a Ray of their own
    found = re.search(r"Plasma memory usage .*?, (\d+) objects", memory_summary(here, stats_only=True))
    assert found is not None
    return int(found.group(1))


def use() -> dict[str, int]:
    """Bytes, files and objects in use, by what uses them."""
    gc.collect()
    processes = {"driver": os.getpid()}
    for title in ("ServerActor", "WorkerActor"):
        for number, process in enumerate(sorted(processes_of(os.getpid(), f"ray::{title}".encode()))):
            processes[f"{title} {number}"] = process
    assert len(processes) == 2 + WORKERS
    found = {f"memory of {name}": private_bytes(process) for name, process in processes.items()}
    found |= {f"files of {name}": len(os.listdir(f"/proc/{process}/fd")) for name, process in processes.items()}
    return found | {"stored objects": stored_objects()}


@pytest.mark.parametrize("steps", [120, pytest.param(MOST, marks=pytest.mark.slow)])
def test_steps_leave_nothing_behind(ray: Any, steps: int) -> None:
    """Memory is settled after some hundreds of them only."""
    with ray_line(build, WORKERS, "loop") as line:
        quarters = []
        for _ in range(4):
            line.take(steps // 4)
            quarters.append(use())
    second, last = quarters[1], quarters[3]
    grown = {name for name, value in last.items() if value > 1.02 * second[name] + 2}
    assert {name for name in grown if steps == MOST or not name.startswith("memory")} == set(), (second, last)
