"""Benches of the actors: they run the product's own, and their figures belong together."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from metadist.bench import plan, transport
from metadist.bench.gloo import measure_gloo
from metadist.bench.model import Rim
from metadist.bench.ready import TENSORS, count_values, ready_experiment, shapes_of
from metadist.cli.plan import parse_bandwidth
from metadist.errors import UserError
from metadist.testing.toys import sinusoid_experiment

REPOSITORY = Path(__file__).parent.parent.parent


@pytest.mark.parametrize("values", [1, 7, TENSORS, 100_000])
def test_a_net_has_the_values_that_were_asked_for(values: int) -> None:
    shapes = shapes_of(values)
    assert count_values(shapes) == values
    assert len(shapes) == min(values, TENSORS)
    assert sum(value.numel() for value in ready_experiment(shapes, 3).initial().parameters.values()) == values


def test_plain_processes_take_steps_too() -> None:
    assert all(0 < seconds < 60 for seconds in measure_gloo(100, 2, 3))


def test_a_step_without_work(ray: Any, metadist: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transport, "measure_gloo", lambda values, workers, steps: [0.5] * steps)
    monkeypatch.setattr(transport, "copy_speed", lambda: 4e6)
    done = metadist("bench", "transport", "--values", "1000", "--workers", "2", "--steps", "3", "--json")
    assert done.code == 0, done.err
    (result,) = done.result["results"]
    assert (result["values"], result["workers"], result["copy"]) == (1000, 2, 1.0)
    assert result["gloo"] == {"median": 500.0, "low": 500.0, "high": 500.0}
    assert 0 < result["step"]["low"] <= result["step"]["median"] <= result["step"]["high"]


@pytest.mark.slow
def test_workers_that_compute_and_workers_that_sleep(
    ray: Any, metadist: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plan, "MANY", 2)
    monkeypatch.setattr(plan, "SECONDS", 0.01)
    call = "bench scaling --case E5 --workers 1 --fakes 2 --values 1000 --sleep 0.05 --steps 2 --repeats 1 --json"
    done = metadist(*call.split())
    assert done.code == 0, done.err
    own, one = done.result["scaling"]
    assert (own["runtime"], one["runtime"]) == ("in process", "1 worker")
    assert one["over_inprocess"] == pytest.approx(one["rate"]["median"] / own["rate"]["median"])
    assert one["off"] == pytest.approx(one["predicted"] / one["rate"]["median"] - 1)
    assert 0 < one["added"] < 1
    quick, slow = done.result["fakes"]
    for fake in (quick, slow):
        assert fake["pushes"]["median"] == pytest.approx(2 / fake["step_seconds"])
        assert 0 < fake["megabytes"] < 150  # none has imported torch
    assert slow["step_seconds"] > 0.05


def test_a_plan(metadist: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan, "ray_session", lambda *_, **__: contextlib.nullcontext())
    monkeypatch.setattr(plan, "measure_rim", lambda shapes: Rim(0.0, 0.01, 0.02))
    job = str(REPOSITORY / "jobs" / "sinusoid-maml.yaml")
    chunks = ["--set", "tasks.chunk=5", "--set", "steps=100"]
    done = metadist("plan", job, "--workers", "6", "--chunk-seconds", "0.1", *chunks, "--json")
    assert done.code == 0, done.err
    assert done.result["values"] == 40 + 40 + 40 * 40 + 40 + 40 + 1
    rows = done.result["predictions"]
    assert [row["workers"] for row in rows] == [1, 2, 4, 6]
    assert [row["step_seconds"] for row in rows] == pytest.approx([0.57, 0.37, 0.27, 0.17])
    assert rows[-1]["finished_after_seconds"] == pytest.approx(17.0)
    assert rows[-1]["tasks_per_second"] == pytest.approx(25 / 0.17)
    grown = done.result["grown"][-1]  # six chunks of five tasks
    assert grown["step_seconds"] == pytest.approx(0.18)
    assert grown["tasks_per_second"] == pytest.approx(30 / 0.18)
    assert done.result["saturates_at_workers"] == pytest.approx(8.0)
    assert "more than 5 workers have nothing to do" in done.err
    assert "17.0 s" in done.err


def test_chunks_are_timed_at_ever_new_versions(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    versions = []
    run = plan.Worker.run

    def seen(worker: Any, work: Any, published: Any) -> Any:
        versions.append((work.key.version, published.version))
        return run(worker, work, published)

    monkeypatch.setattr(plan.Worker, "run", seen)
    monkeypatch.setattr(plan, "SECONDS", 0.0)
    assert 0 < plan.chunk_seconds(sinusoid_experiment(), torch.device("cpu")) < 10
    assert versions == [(number, number) for number in range(plan.LEAST_CHUNKS + 1)]


@pytest.mark.parametrize(
    ("text", "speed"), [("25Gbit", 25e9 / 8), ("100 mbit/s", 1e8 / 8), ("3GB", 3e9), ("8000", 1e3), ("1.5gbyte", 1.5e9)]
)
def test_bandwidths(text: str, speed: float) -> None:
    assert parse_bandwidth(text) == pytest.approx(speed)


@pytest.mark.parametrize("text", ["fast", "", "0Gbit", "1..5Gbit", "-1"])
def test_what_is_no_bandwidth(text: str) -> None:
    with pytest.raises(UserError, match="--bandwidth"):
        parse_bandwidth(text)


JOB = str(REPOSITORY / "jobs" / "sinusoid-maml.yaml")
MISTAKES = {
    f"plan {JOB} --workers 0": "--workers: got 0",
    f"plan {JOB} --workers 1 --chunk-seconds 0": "--chunk-seconds: got 0",
    f"plan {JOB} --workers 1 --bandwidth fast": "--bandwidth: got 'fast'",
    f"plan {JOB} --workers 1 --gpus-per-worker -1": "--gpus-per-worker: got -1",
    "bench transport --values 0": "--values: got 0",
    "bench transport --workers x": "--workers: got 'x'",
    "bench transport --steps 0": "--steps: got 0",
    "bench scaling --workers 0": "--workers: got 0",
    "bench scaling --case none --fakes 0": "--fakes: got 0",
    "bench scaling --case none --sleep -1": "--sleep: got -1",
    "bench scaling --case Z": "--case: got 'Z'",
}


@pytest.mark.parametrize("call", MISTAKES)
def test_mistakes_of_sizes_are_one_message(call: str, metadist: Callable[..., Any]) -> None:
    done = metadist(*call.split())
    assert done.code == 2
    assert MISTAKES[call] in done.err
    assert len(done.err.splitlines()) == 1
