"""Each check of the machine, well and not well."""

from __future__ import annotations

import importlib.metadata
import shutil
import socket
import sys
from collections import namedtuple
from pathlib import Path
from typing import Any

import pytest

from metadist.config import Job, load_job, parse_job
from metadist.data import resolve_store
from metadist.distributed import machine_checks
from metadist.distributed.diagnosis import Check, Finding, examine

Usage = namedtuple("Usage", "total used free")
QUICKSTART = Path(__file__).parents[2] / "jobs" / "quickstart.yaml"


def finding(check: Check) -> Finding:
    (found,) = examine([("check", check)])
    return found


def job(tmp_path: Path, *overrides: str) -> Job:
    return load_job(str(QUICKSTART), [f"data.cache={tmp_path / 'cache'}", f"storage={tmp_path / 'runs'}", *overrides])


def test_libraries() -> None:
    found = finding(machine_checks.libraries)
    assert found.state == "ok"
    assert f"torch {importlib.metadata.version('torch')}" in found.found


def test_libraries_of_a_package_that_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> Any:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr("importlib.metadata.metadata", missing)
    python, requirements = machine_checks._requirements()
    assert {"ray", "torch", "mlflow"} <= {requirement.name for requirement in requirements}
    assert "pytest" not in {requirement.name for requirement in requirements}
    assert python.startswith(">=3.")


@pytest.mark.parametrize(("version", "wrong"), [("1.13.1", "torch 1.13.1 is not >=2.6"), (None, "torch is missing")])
def test_wrong_libraries(monkeypatch: pytest.MonkeyPatch, version: str | None, wrong: str) -> None:
    real = importlib.metadata.version

    def pretend(name: str) -> str:
        if name == "torch":
            if version is None:
                raise importlib.metadata.PackageNotFoundError(name)
            return version
        return real(name)

    monkeypatch.setattr("importlib.metadata.version", pretend)
    found = finding(machine_checks.libraries)
    assert (found.state, found.found) == ("problem", wrong)
    assert "constraints.txt" in found.advice


def test_wrong_python(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("platform.python_version", lambda: "3.9.1")
    assert "Python 3.9.1 is not " in finding(machine_checks.libraries).found


def test_torch_pair(monkeypatch: pytest.MonkeyPatch) -> None:
    assert finding(machine_checks.torch_pair).state == "ok"
    monkeypatch.setitem(sys.modules, "torchvision", None)
    found = finding(machine_checks.torch_pair)
    assert found.state == "problem"
    assert "torchvision" in found.found


@pytest.mark.parametrize(
    ("files", "cores"),
    [
        ({"cpu.max": "50000 100000"}, 0.5),
        ({"cpu.max": "max 100000"}, 4),
        ({"cpu/cpu.cfs_quota_us": "250000", "cpu/cpu.cfs_period_us": "100000"}, 2.5),
        ({"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, 4),
        ({}, 4),
    ],
)
def test_processors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, files: dict[str, str], cores: float) -> None:
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text + "\n")
    monkeypatch.setattr(machine_checks, "CONTROL_GROUP", tmp_path)
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {0, 1, 2, 3})
    assert machine_checks.usable_cores()[0] == cores
    greedy = job(tmp_path, "resources.workers=3")
    assert machine_checks.processors(greedy, embedded=True).state == ("ok" if cores >= 3 else "warning")
    assert machine_checks.processors(greedy, embedded=False).state == "ok"


def test_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine_checks, "CONTROL_GROUP", tmp_path)
    (tmp_path / "memory.max").write_text(f"{2**30}\n")
    (tmp_path / "memory.current").write_text(f"{2**29}\n")
    found = machine_checks.memory(None, embedded=True)
    assert (found.state, found.found) == ("warning", "512 MB of 1.0 GB free (limit of the container)")
    (tmp_path / "memory.max").write_text("max\n")
    many = machine_checks.memory(job(tmp_path, "resources.workers=100000"), embedded=True)
    assert many.state == "warning"
    assert "container" not in many.found


def test_gpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    greedy = job(tmp_path, "resources.gpus_per_worker=1")
    found = machine_checks.gpus(greedy, embedded=True)
    assert found.state == "problem"
    assert "resources.gpus_per_worker" in found.advice
    assert machine_checks.gpus(greedy, embedded=False).state != "problem"
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    monkeypatch.setattr("torch.cuda.get_device_name", lambda index: "Card")
    assert machine_checks.gpus(greedy, embedded=True) == Finding("GPUs", "ok", "torch sees 2: Card")


def test_shared_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(2**26, 0, 2**26))
    found = finding(machine_checks.shared_memory)
    assert (found.state, found.found) == ("warning", "64 MB of 64 MB free in /dev/shm")
    assert "--shm-size" in found.advice


@pytest.mark.parametrize(("free", "state"), [(2**29, "problem"), (2 * 2**30, "warning"), (2**40, "ok")])
def test_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, free: int, state: str) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(2**41, 2**41 - free, free))
    found = list(machine_checks.places(job(tmp_path)))
    assert [(one.name, one.state) for one in found] == [("storage", state), ("cache", state)]
    assert machine_checks.ray_folder().state == state
    assert list(tmp_path.iterdir()) == []


def test_rays_folder_that_is_nearly_full(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(2**41, 2**41 - 2**36, 2**36))
    assert machine_checks.ray_folder().state == "warning"


def test_places_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = finding(lambda: machine_checks.places(job(tmp_path, "storage=/dev/null/runs")))
    assert (found.state, found.found) == ("problem", "/dev/null/runs: Not a directory")
    monkeypatch.setenv("RAY_TMPDIR", "/proc/nowhere")
    assert finding(machine_checks.ray_folder).state == "problem"


def test_data(tmp_path: Path) -> None:
    whole = job(tmp_path)
    found = finding(lambda: machine_checks.data(whole))
    assert found.state == "ok"
    assert "to be prepared" in found.found
    assert not (tmp_path / "cache").exists()
    store = resolve_store(whole.data)
    assert "10 classes, 1797 images" in finding(lambda: machine_checks.data(whole)).found
    pixels = bytearray((store.path / "pixels.arrow").read_bytes())
    pixels[len(pixels) // 2] ^= 1
    (store.path / "pixels.arrow").write_bytes(pixels)
    found = finding(lambda: machine_checks.data(whole))
    assert found.state == "problem"
    assert "prepare or fetch it again" in found.advice


def test_data_that_is_not_there(tmp_path: Path) -> None:
    found = finding(lambda: machine_checks.data(job(tmp_path, "data.source=nowhere")))
    assert (found.state, found.found) == ("problem", "data.source: nowhere")
    assert finding(lambda: machine_checks.data(None)).state == "ok"


def test_mlflow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert finding(lambda: machine_checks.mlflow(job(tmp_path, "tracking.uri=none"))).found == "switched off"
    found = finding(lambda: machine_checks.mlflow(None))
    assert (found.state, found.found) == ("ok", f"sqlite:///{tmp_path}/mlflow.db, made by the first run")
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "mlflow.db").write_text("no database" * 1000)
    assert finding(lambda: machine_checks.mlflow(None)).state == "problem"
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    absent = parse_job({"tracking": {"uri": f"http://u:hunter2@127.0.0.1:{port}"}})
    found = finding(lambda: machine_checks.mlflow(absent))
    assert (found.state, found.found) == ("problem", f"http://u:***@127.0.0.1:{port} refuses the connection")
    assert "tracking.uri" in found.advice
