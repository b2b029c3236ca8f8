"""Contract 2: the parameters after step t do not depend on runtime, workers, deaths, or being stopped."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from metadist.config import Job, load_job
from metadist.distributed.run import RunOptions, resume_run, train_job
from metadist.testing.faults import ExhaustOnce, HangOnce, KillOnce
from metadist.testing.observers import Notes
from metadist.training.stepper import StepRecord

REPOSITORY = Path(__file__).parent.parent.parent
STEPS = 12


def short(tmp_path: Path) -> list[str]:
    """What makes the quickstart's job short; its two workers stay."""
    return [
        f"steps={STEPS}",
        "model.width=8",
        "optimizer.average=0.5",
        "checkpoint.every=5",
        "evaluation.test_tasks=16",
        "tracking.uri=none",
        f"storage={tmp_path}",
    ]


def job(tmp_path: Path, *overrides: str) -> Job:
    return load_job(str(REPOSITORY / "jobs" / "quickstart.yaml"), [*short(tmp_path), *overrides])


def run(tmp_path: Path, *overrides: str, **options: Any) -> tuple[dict[str, Any], Notes]:
    notes = Notes()
    return train_job(job(tmp_path, *overrides), notes, RunOptions(**options)), notes


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The oracle: the in-process runtime, left alone."""
    return run(tmp_path_factory.mktemp("oracle"), "runtime=inprocess")[0]


def assert_same(summary: dict[str, Any], undisturbed: dict[str, Any]) -> None:
    assert summary["step"] == STEPS
    assert summary["params_sha256"] == undisturbed["params_sha256"]
    assert summary["test"] == undisturbed["test"]


# Two are what each run with a fault has; test_every_learner.py has one and two.
@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 3])
def test_any_number_of_workers(ray: Any, tmp_path: Path, undisturbed: dict[str, Any], workers: int) -> None:
    assert_same(run(tmp_path, f"resources.workers={workers}")[0], undisturbed)


@pytest.mark.parametrize("point", ["work", pytest.param("computed", marks=pytest.mark.slow)])
def test_worker_killed(ray: Any, tmp_path: Path, undisturbed: dict[str, Any], point: str) -> None:
    fault = KillOnce(point, 5, str(tmp_path / "struck"))
    summary, notes = run(tmp_path, fault=fault)
    assert Path(fault.marker).exists()
    assert summary["worker_losses"] == 1
    assert any("worker" in text and "lost" in text for text in notes.said)
    assert_same(summary, undisturbed)


@pytest.mark.slow
def test_worker_without_memory(ray: Any, tmp_path: Path, undisturbed: dict[str, Any]) -> None:
    fault = ExhaustOnce("work", 5, str(tmp_path / "struck"))
    summary, notes = run(tmp_path, fault=fault)
    assert Path(fault.marker).exists()
    assert (summary["worker_losses"], summary["chunks_redone"]) == (0, 1)
    assert any("had not enough memory for the work at version 5" in text for text in notes.said)
    assert_same(summary, undisturbed)


@pytest.mark.slow
@pytest.mark.parametrize("back_at", [None, 9])
def test_worker_hangs(ray: Any, tmp_path: Path, undisturbed: dict[str, Any], back_at: int | None) -> None:
    """To the end of the run, or until its answer is late by some steps."""
    fault = HangOnce("work", 5, str(tmp_path / "struck"), str(tmp_path / "gate"))
    os.mkfifo(fault.gate)

    class Opener(Notes):
        def stepped(self, record: StepRecord, workers: int, losses: int) -> None:
            super().stepped(record, workers, losses)
            if record.version == back_at:
                with open(fault.gate, "w"):
                    pass

    notes = Opener()
    summary = train_job(job(tmp_path), notes, RunOptions(fault=fault))
    assert Path(fault.marker).exists()
    assert summary["chunks_doubled"] >= 1
    assert (summary["worker_losses"], summary["server_losses"]) == (0, 0)
    assert any("takes far longer than the others" in text for text in notes.said)
    assert_same(summary, undisturbed)


@pytest.mark.parametrize(
    ("point", "version"),
    [("applied", 5), *(pytest.param(*at, marks=pytest.mark.slow) for at in (("apply", 5), ("state", 8)))],
)
def test_server_killed(ray: Any, tmp_path: Path, undisturbed: dict[str, Any], point: str, version: int) -> None:
    fault = KillOnce(point, version, str(tmp_path / "struck"))
    summary, notes = run(tmp_path, "resources.workers=1", fault=fault)
    assert Path(fault.marker).exists()
    assert summary["server_losses"] == 1
    assert any("server was lost" in text for text in notes.said)
    assert_same(summary, undisturbed)


def test_server_killed_between_states(
    ray: Any, tmp_path: Path, undisturbed: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The steps since the last state are taken again from their payloads."""
    monkeypatch.setattr("metadist.distributed.server.STATE_STEPS", 5)
    fault = KillOnce("applied", 6, str(tmp_path / "struck"))
    summary, _ = run(tmp_path, "resources.workers=1", fault=fault)
    assert Path(fault.marker).exists()
    assert summary["server_losses"] == 1
    assert_same(summary, undisturbed)


@pytest.mark.parametrize(
    ("first", "second"), [pytest.param("inprocess", "ray", marks=pytest.mark.slow), ("ray", "inprocess")]
)
def test_stop_and_resume_elsewhere(
    ray: Any, tmp_path: Path, undisturbed: dict[str, Any], first: str, second: str
) -> None:
    stopped, _ = run(tmp_path, f"runtime={first}", "resources.workers=1", stop_after=7)
    assert (stopped["outcome"], stopped["step"]) == ("stopped", 7)
    there = job(tmp_path, f"runtime={second}", "resources.workers=2")
    summary = resume_run(stopped["run_dir"], lambda _: there, Notes(), RunOptions())
    assert_same(summary, undisturbed)


def test_steps_that_do_not_wait(ray: Any, tmp_path: Path) -> None:
    """Every step is committed though a worker is killed."""
    free = ("server.mode=async", "tasks.batch=2", "tasks.chunk=2")
    fault = KillOnce("work", 5, str(tmp_path / "struck"))
    summary, notes = run(tmp_path, *free, fault=fault)
    assert Path(fault.marker).exists()
    assert (summary["step"], summary["worker_losses"], summary["chunks_redone"]) == (STEPS, 1, 1)
    assert all(record.age is not None for record in notes.records)
    assert all(0 <= share["idle"] <= 1 and share["tasks_per_second"] > 0 for share in summary["workers"].values())


def test_resume_of_another_job_is_refused(tmp_path: Path) -> None:
    stopped, _ = run(tmp_path, "runtime=inprocess", stop_after=3)
    other = job(tmp_path, "runtime=inprocess", "learner.inner_lr=0.3")
    with pytest.raises(ValueError, match=r"learner\.inner_lr"):
        resume_run(stopped["run_dir"], lambda _: other, Notes(), RunOptions())
