"""`metadist chaos`: what is killed when, and a run that ends with the same bits."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from metadist.distributed.chaos import Schedule, lose_node, parse_kinds, processes_of
from metadist.errors import UserError

QUICKSTART = Path(__file__).parents[2] / "jobs" / "quickstart.yaml"


def test_kinds_have_times_of_their_own_or_the_common_one() -> None:
    assert parse_kinds("worker,server=20s", "2s") == {"worker": 2.0, "server": 20.0}
    assert parse_kinds("driver=1.5", "2s") == {"driver": 1.5}


@pytest.mark.parametrize(
    ("kinds", "every", "field"),
    [
        ("disk", "2s", "--kinds"),
        ("", "2s", "--kinds"),
        ("worker=0s", "2s", "--kinds"),
        ("worker=soon", "2s", "--kinds"),
        ("worker", "nan", "--every"),
        ("worker", "-1s", "--every"),
    ],
)
def test_mistakes(kinds: str, every: str, field: str) -> None:
    with pytest.raises(UserError, match=field):
        parse_kinds(kinds, every)


def test_a_schedule_follows_from_its_seed() -> None:
    def faults(seed: int) -> list[tuple[float, list[str]]]:
        schedule, now, found = Schedule({"worker": 2.0, "driver": 7.0}, seed), 0.0, []
        for _ in range(20):
            now += schedule.wait(now)
            found.append((now, schedule.due(now)))
        return found

    first = faults(0)
    assert first == faults(0) != faults(1)
    times = [at for at, kinds in first if "worker" in kinds]
    apart = [b - a for a, b in zip([0.0, *times], times, strict=False)]
    assert all(1.0 <= gap <= 3.0 for gap in apart)
    assert Schedule({}, 0).wait(5.0) == float("inf")


def test_processes_are_found_below_a_process_only() -> None:
    title = "ray::WorkerActor of a test"
    wait = "import sys; print(flush=True); sys.stdin.read()"
    with subprocess.Popen(
        [title, "-c", wait], executable=sys.executable, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        assert processes_of(os.getpid(), title.encode()) == [process.pid]
        assert processes_of(process.pid, title.encode()) == [process.pid]
        assert processes_of(os.getpid(), b"ray::ServerActor of a test") == []
        process.communicate(b"")


def test_a_job_without_actors_is_refused(metadist: Callable[..., Any], tmp_path: Path) -> None:
    job = tmp_path / "job.yaml"
    job.write_text("runtime: inprocess\ntasks: {kind: sinusoid}\nmodel: {kind: mlp}\n")
    found = metadist("chaos", str(job))
    assert found.code == 2
    assert "runtime: got 'inprocess'" in found.err


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--kinds", "node"], "--lose-node: got None"),
        (["--kinds", "node", "--lose-node", "true"], "--lose-node: got 'true'"),
        (["--kinds", "driver", "--address", "local", "--lose-node", "true"], "--lose-node: got 'true'"),
        (["--kinds", "worker,driver", "--address", "local"], "--kinds: got 'worker'"),
    ],
)
def test_nodes_are_lost_on_a_cluster_by_its_own_command(
    metadist: Callable[..., Any], options: list[str], says: str
) -> None:
    found = metadist("chaos", str(QUICKSTART), *options)
    assert found.code == 2
    assert says in found.err


@pytest.mark.parametrize(
    ("command", "reason"),
    [("ls /nowhere-at-all", "No such file"), ("nothing-like-it", "nothing-like-it"), ("'", "quot")],
)
def test_a_command_that_loses_no_node(command: str, reason: str) -> None:
    with pytest.raises(UserError, match=reason):
        lose_node(command)


@pytest.mark.slow
def test_whatever_dies_the_bits_are_the_same(metadist: Callable[..., Any], tmp_path: Path) -> None:
    small = ("model.width=8", "tracking.uri=none", "evaluation.test_tasks=16", "checkpoint.every=20")
    changes = [part for change in small for part in ("--set", change)]
    found = metadist(
        *("chaos", str(QUICKSTART), "--steps", "150", "--kinds", "worker=5s,server=11s,driver=60s"),
        *("--storage", str(tmp_path), "--json", *changes),
    )
    assert found.code == 0, found.err
    result = found.result
    assert result["same"]
    assert result["params_sha256"] == result["undisturbed_params_sha256"]
    assert result["steps"] == 150
    assert result["faults"]["worker"] >= 1
    assert result["faults"]["server"] + result["faults"]["driver"] >= 1
    assert "the same bits" in found.err
