"""Reservation of CPUs and GPUs; the GPUs are ones that Ray is only told of."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from test_same_bits import job

from metadist.config import build_experiment
from metadist.distributed.run import RunOptions, train_job
from metadist.distributed.runtime import open_runtime
from metadist.errors import UserError
from metadist.testing.observers import Notes
from metadist.training.dispatch import Dispatcher


def test_fractions_of_a_gpu_are_reserved(ray: Any, tmp_path: Path) -> None:
    placed = job(tmp_path, "resources.workers=2", "resources.gpus_per_worker=0.5", "resources.cpus_per_worker=0.5")
    before = ray.available_resources()
    experiment = build_experiment(placed, "run")
    with open_runtime(placed, "run", experiment, None) as (pool, _):
        dispatcher = Dispatcher(pool, 120, print)
        while len(dispatcher.alive) < 2:
            dispatcher.poll()
        assert before["GPU"] - ray.available_resources().get("GPU", 0) == pytest.approx(1.0)


def test_more_gpus_than_there_are(ray: Any, tmp_path: Path) -> None:
    greedy = job(tmp_path, "resources.workers=3", "resources.gpus_per_worker=1")
    with pytest.raises(UserError, match=r"resources\.gpus_per_worker: got 3.*at most the 2 GPUs"):
        train_job(greedy, Notes(), RunOptions())


def test_threads_follow_the_reserved_cpus(ray: Any, tmp_path: Path) -> None:
    """Two threads may change bits: they are the job's, whatever Ray sets by itself."""
    placed = job(tmp_path, "resources.workers=1", "resources.cpus_per_worker=2")
    with open_runtime(placed, "run", build_experiment(placed, "run"), None) as (pool, _):
        dispatcher = Dispatcher(pool, 120, print)
        while not dispatcher.alive:
            dispatcher.poll()
        assert dispatcher.fingerprint["threads"] == "2"
