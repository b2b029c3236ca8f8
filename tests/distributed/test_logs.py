"""Actors' lines: in the run's folder, at the end of a failed run's message, and not on the console."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pyarrow import fs

from metadist.config import Job, parse_job
from metadist.distributed import logs
from metadist.distributed.blueprint import FaultHook
from metadist.distributed.logs import LAST_LINES, RunLogs
from metadist.distributed.run import RunOptions, train_job
from metadist.errors import UserError
from metadist.testing.faults import KillOnce
from metadist.testing.observers import Notes
from metadist.training.run_folder import LeaseLost, RunFolder
from metadist.training.seams import PoolError


def job(storage: Path) -> Job:
    """Milliseconds a step, one worker."""
    return parse_job(
        {
            "name": "toy",
            "steps": 6,
            "storage": str(storage),
            "tasks": {"kind": "sinusoid", "batch": 4, "chunk": 2},
            "model": {"kind": "mlp", "hidden": [8]},
            "learner": {"kind": "maml", "inner_lr": 0.01},
            "resources": {"workers": 1},
            "evaluation": {"every": 6, "tasks": 4, "test_tasks": 4},
            "checkpoint": {"every": 2},
            "tracking": {"uri": "none"},
        }
    )


def batch(lines: list[str], actor: str | None = None, pid: object = "41", ip: str = "10.0.0.1") -> dict[str, Any]:
    """Lines as Ray hands them over."""
    name = actor if actor is None or "/" not in actor else f"metadist:{actor}"
    return {"ip": ip, "pid": pid, "job": "01000000", "is_err": False, "actor_name": name, "lines": lines}


def take(*batches: dict[str, Any]) -> None:
    for one in batches:
        logs._stream.take(one)


@pytest.fixture(autouse=True)
def _no_processes_of_before() -> None:
    logs._stream.forget()


def text(folder: Path, name: str) -> str:
    return (folder / "logs" / f"{name}.log").read_text()


def test_lines_go_to_their_actor_and_their_run(tmp_path: Path) -> None:
    with RunLogs("one") as one, RunLogs("two") as two:
        one.keep_in(RunFolder(str(tmp_path)).acquire())
        take(batch(["a"], "one/worker-0"), batch(["b"], "one/server", pid="42"), batch(["c"], "two/worker-0", pid="43"))
    take(batch(["late"], "one/worker-0"))
    assert text(tmp_path, "worker-0") == "a\n"
    assert text(tmp_path, "server") == "b\n"
    assert "worker-0 | c" in two.last_lines()


def test_lines_before_the_folder_and_before_the_name(tmp_path: Path) -> None:
    with RunLogs("one") as one:
        take(
            batch(["imported"]),
            batch(["of another process"], pid="99"),
            batch(["imported there"], ip="10.0.0.2"),
            batch(["built"], "one/worker-3"),
        )
        one.keep_in(RunFolder(str(tmp_path)).acquire())
        take(batch(["trained"], "WorkerActor"))
    assert text(tmp_path, "worker-3") == "imported\nbuilt\ntrained\n"
    assert [path.name for path in (tmp_path / "logs").iterdir()] == ["worker-3.log"]


def test_rays_own_lines_are_kept_apart(tmp_path: Path) -> None:
    with RunLogs("one") as one:
        one.keep_in(RunFolder(str(tmp_path)).acquire())
        take({"lines": ["A worker died"], "pid": "raylet", "is_err": False}, batch(["status"], pid="autoscaler"))
        assert one.last_lines() == ""
    assert text(tmp_path, "ray") == "(raylet) A worker died\n"


def test_a_broken_batch_ends_nothing() -> None:
    with RunLogs("one") as one:
        take({"lines": 7}, {}, batch(["well"], "one/server"))
        assert "server | well" in one.last_lines()


def test_the_actor_that_failed_is_shown() -> None:
    with RunLogs("one") as one:
        take(batch(["from 1"], "one/worker-1"), batch(["from 10"], "one/worker-10", pid="42"))
        take(batch(["from server"], "one/server", pid="43"))
    assert one.last_lines("worker 1 failed").splitlines()[1:] == ["  worker-1 | from 1"]
    assert one.last_lines("ray::ServerActor.apply()").splitlines()[1:] == ["  server | from server"]
    assert len(one.last_lines("worker 5 failed").splitlines()) == len(one.last_lines().splitlines()) == 4


def test_only_the_last_lines_are_shown() -> None:
    with RunLogs("one") as one:
        take(batch([f"line {number}" + "." * 1000 for number in range(100)], "one/worker-0"))
    shown = one.last_lines().splitlines()[1:]
    assert len(shown) == LAST_LINES
    assert "line 99" in shown[-1]
    assert max(map(len, shown)) < 400


def failing(said: str, error: Exception, held: RunFolder | None) -> None:
    """A run that prints one line and fails."""
    with RunLogs("one") as one:
        if held is not None:
            one.keep_in(held)
        take(batch([said], "one/worker-0"))
        raise error


@pytest.mark.parametrize(
    ("error", "noted"), [(PoolError("x"), True), (UserError("a", 1, "b"), False), (LeaseLost(), False)]
)
def test_which_errors_carry_lines(error: Exception, noted: bool) -> None:
    with pytest.raises(type(error)):
        failing("seen", error, None)
    assert (["seen" in note for note in getattr(error, "__notes__", [])] == [True]) is noted


def test_a_folder_that_is_not_on_this_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    elsewhere = fs.SubTreeFileSystem(str(tmp_path), fs.LocalFileSystem())
    monkeypatch.setattr("metadist.training.run_folder._file_system", lambda location: (elsewhere, "run"))
    for said in ("first", "resumed"):
        held = RunFolder("far://run").acquire()
        assert held.local is None
        with pytest.raises(PoolError) as caught:
            failing(said, PoolError("no worker"), held)
        held.release()
        assert caught.value.__notes__[0].endswith("logs: far://run/logs")
    assert text(tmp_path / "run", "worker-0") == "first\nresumed\n"


def test_a_run_that_never_began_leaves_no_folder(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    with RunLogs("one") as one:
        one.keep_in(RunFolder(str(folder)).acquire())
        (folder / "lease.json").unlink()
        folder.rmdir()
        take(batch(["said"], "one/worker-0"))
        assert one.last_lines().splitlines() == ["last lines of the actors' logs:", "  worker-0 | said"]
    assert not folder.exists()


def chatter(at: int, fail: str = "") -> FaultHook:
    """Prints in every way there is, in the first process of each kind that comes to version `at`; then may fail."""

    def hook(point: str, version: int) -> None:
        import faulthandler
        import logging
        import os
        import warnings

        if version == at and point in ("work", "apply"):
            print(f"printed at {point}")  # noqa: T201
            warnings.warn(f"warned at {point}", stacklevel=1)
            logging.getLogger("some.library").warning(f"logged at {point}")
            os.write(2, f"written at {point}\n".encode())
            if point == fail:
                raise RuntimeError("broken on purpose")
            faulthandler.dump_traceback()

    return hook


def kinds(point: str) -> list[str]:
    return [f"{kind} at {point}" for kind in ("printed", "warned", "logged", "written")] + ["most recent call first"]


@pytest.mark.slow
def test_a_run_that_loses_a_worker(ray: Any, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Everything that its actors print, and what Ray tells of the loss, is in the folder and not on the console."""
    say, kill = chatter(3), KillOnce("work", 4, str(tmp_path / "struck"))

    def fault(point: str, version: int) -> None:
        say(point, version)
        kill(point, version)

    summary = train_job(job(tmp_path), Notes(), RunOptions(fault=fault))
    assert Path(kill.marker).exists()
    assert summary["worker_losses"] == 1
    folder = Path(summary["run_dir"])
    for name, point in (("worker-0", "work"), ("server", "apply")):
        found = text(folder, name)
        assert not [kind for kind in kinds(point) if kind not in found], found
    assert "A worker died or was killed" in text(folder, "ray")
    console = capfd.readouterr()
    assert " at work" not in console.out + console.err
    assert "raylet" not in console.out + console.err


@pytest.mark.parametrize(
    ("point", "actor"), [("work", "worker-0"), pytest.param("apply", "server", marks=pytest.mark.slow)]
)
def test_a_failed_run_ends_with_the_lines(
    ray: Any,
    tmp_path: Path,
    metadist: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
    point: str,
    actor: str,
) -> None:
    monkeypatch.setattr("metadist.cli.train.parse_fault", lambda _: chatter(4, point))
    (tmp_path / "job.yaml").write_text("")
    monkeypatch.setattr("metadist.cli.train.load_job", lambda *_: job(tmp_path))
    ended = metadist("train", str(tmp_path / "job.yaml"), "--fault", "x")
    assert ended.code == 1
    _, found, end = ended.err.partition("last lines of the actors' logs:\n")
    assert found, ended.err
    assert f"  {actor} | printed at {point}" in end
    (folder,) = (path.parent for path in tmp_path.glob("*/run.json"))
    assert f"logs: {folder}/logs" in end
    assert f"printed at {point}" in text(folder, actor)
