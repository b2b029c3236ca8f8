"""A run folder is written whole or not at all, by one driver at a time."""

from __future__ import annotations

import errno
import json
import os
import pickle
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from metadist.errors import UserError
from metadist.training.run_folder import (
    LeaseLost,
    RunFolder,
    check_writable,
    checkpoint_name,
    checkpoint_version,
    subfolders,
)


@pytest.fixture(params=["path", "uri"])
def location(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return str(tmp_path / "run") if request.param == "path" else (tmp_path / "run").as_uri()


@pytest.fixture
def folder(location: str) -> RunFolder:
    return RunFolder(location)


def names(tmp_path: Path) -> list[str]:
    return sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file())


def test_reads_what_was_written(folder: RunFolder, tmp_path: Path) -> None:
    assert not folder.exists()
    folder.write("deep/er/file", b"one")
    folder.write("deep/er/file", b"two")
    folder.write_json("about.json", {"a": [1, 2.5, None]})
    assert folder.read("deep/er/file") == b"two"
    assert folder.read_json("about.json") == {"a": [1, 2.5, None]}
    assert folder.exists("deep/er/file")
    assert not folder.exists("other")
    assert folder.local == str(tmp_path / "run")
    assert names(tmp_path) == ["run/about.json", "run/deep/er/file"]


def test_travels_as_a_value(folder: RunFolder) -> None:
    held = folder.acquire()
    copy = pickle.loads(pickle.dumps(held))
    copy.write("file", b"x")
    assert held.read("file") == b"x"


@pytest.mark.parametrize("name", ["missing", ""])
def test_what_cannot_be_read_is_the_users(folder: RunFolder, name: str) -> None:
    with pytest.raises(UserError, match="expected a file that can be read"):
        folder.read(name)


def test_broken_json_is_the_users(folder: RunFolder) -> None:
    folder.write("a.json", b'{"a": ')
    with pytest.raises(UserError, match=r"a\.json: got .*expected JSON"):
        folder.read_json("a.json")


@pytest.mark.parametrize("step", ["fsync", "move"])
def test_a_full_disk_leaves_the_old_file_and_nothing_else(
    folder: RunFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    folder.write("file", b"old")

    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    if step == "fsync":
        monkeypatch.setattr(os, "fsync", full)
        name = "file"
    else:
        (tmp_path / "run/folder/inner").mkdir(parents=True)
        name = "folder"
    with pytest.raises(UserError) as error:
        folder.write(name, b"new")
    monkeypatch.undo()
    if step == "fsync":
        assert "No space left on device" in str(error.value)
        assert "Free some space" in str(error.value)
    assert folder.read("file") == b"old"
    assert names(tmp_path) == ["run/file"]


def test_a_place_that_is_a_file_is_the_users(folder: RunFolder, tmp_path: Path) -> None:
    (tmp_path / "run").write_bytes(b"")
    with pytest.raises(UserError, match="expected a file that can be written"):
        folder.write("file", b"x")


def test_an_unknown_uri_is_the_users() -> None:
    with pytest.raises(UserError, match=r"^storage: got 'nowhere://a/b', expected a folder or a URI"):
        RunFolder("nowhere://a/b").exists()


def test_lists_complete_checkpoints_in_order(folder: RunFolder, tmp_path: Path) -> None:
    assert folder.checkpoints() == []
    for version in (10, 2, 12345678, 100):
        folder.write(checkpoint_name(version), b"")
    for other in ("step-1.safetensors", ".step-00000001.safetensors.0a1b", "step-00000001.safetensors.tmp"):
        folder.write(f"checkpoints/{other}", b"")
    assert [checkpoint_version(name) for name in folder.checkpoints()] == [2, 10, 100, 12345678]
    assert checkpoint_version(f"{tmp_path}/{checkpoint_name(7)}") == 7
    with pytest.raises(UserError, match="a file named step-NNNNNNNN"):
        checkpoint_version("best.safetensors")


@pytest.mark.parametrize(("keep", "left"), [(1, [2, 5]), (2, [2, 4, 5]), (9, [1, 2, 3, 4, 5])])
def test_prunes_all_but_the_newest_and_the_spared(folder: RunFolder, keep: int, left: list[int]) -> None:
    for version in range(1, 6):
        folder.write(checkpoint_name(version), b"")
    folder.prune(keep, {checkpoint_name(2)})
    assert [checkpoint_version(name) for name in folder.checkpoints()] == left


def test_one_driver_at_a_time(folder: RunFolder) -> None:
    held = folder.acquire()
    held.write("file", b"x")
    with pytest.raises(UserError, match=rf"a run held by process {os.getpid()} on .*a run that no driver holds"):
        folder.acquire()
    held.release()
    assert folder.acquire().epoch == held.epoch + 1


def change_lease(folder: RunFolder, **changes: Any) -> None:
    RunFolder(folder.location)._write("lease.json", json.dumps(folder.read_json("lease.json") | changes).encode())


def dead_process() -> int:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait(timeout=60)
    return process.pid


@pytest.mark.parametrize(
    ("changes", "alive"),
    [
        ({"host": "elsewhere", "time": 0.0}, False),
        ({"host": "elsewhere"}, True),
        ({"pid": "dead"}, False),
        ({"started": "another process had this number"}, False),
        ({"released": True}, False),
    ],
)
def test_only_a_dead_drivers_folder_is_taken_over(folder: RunFolder, changes: dict[str, Any], alive: bool) -> None:
    held = folder.acquire()
    assert folder.read_json("lease.json")["host"] == socket.gethostname()
    change_lease(folder, **changes | ({"pid": dead_process()} if "pid" in changes else {}))
    if alive:
        with pytest.raises(UserError, match="a run that no driver holds"):
            folder.acquire()
        return
    other = folder.acquire()
    other.write("file", b"theirs")
    for write in (lambda: held.write("file", b"mine"), held.renew):
        with pytest.raises(LeaseLost, match="taken over"):
            write()
    held.release()
    assert other.read("file") == b"theirs"
    assert folder.read_json("lease.json")["released"] is False, "the old holder cannot release the new one's lease"
    other.renew()


def test_renewing_tells_the_time(folder: RunFolder) -> None:
    held = folder.acquire()
    change_lease(folder, time=0.0)
    held.renew()
    assert folder.read_json("lease.json")["time"] > 1e9


@pytest.mark.parametrize(
    "changes", [None, {"epoch": "1"}, {"pid": None}, {"pid": -1}, {"pid": 2**40}, {"host": 5}, {"time": float("nan")}]
)
def test_a_broken_lease_is_the_users(folder: RunFolder, changes: dict[str, Any] | None) -> None:
    folder.acquire()
    if changes is None:
        folder.write("lease.json", b"{")
    else:
        change_lease(folder, **changes)
    with pytest.raises(UserError, match=r"lease\.json"):
        folder.acquire()


def test_state_of_the_lease(folder: RunFolder, tmp_path: Path) -> None:
    assert folder.lease_state() == "free"
    held = folder.acquire()
    assert folder.lease_state() == "held"
    lease = tmp_path / "run" / "lease.json"
    lease.write_text(json.dumps(json.loads(lease.read_text()) | {"started": "before the flood"}))
    assert folder.lease_state() == "abandoned"
    held.release()
    assert folder.lease_state() == "free"


@pytest.mark.parametrize("as_uri", [False, True])
def test_folders_below(tmp_path: Path, as_uri: bool) -> None:
    location = tmp_path.as_uri() if as_uri else str(tmp_path)
    for name in ("b", "a", ".hidden"):
        (tmp_path / name).mkdir()
    (tmp_path / "file").write_text("")
    assert subfolders(location + "/") == [f"{location}/a", f"{location}/b"]
    assert subfolders(f"{location}/nowhere") == []


@pytest.mark.parametrize("as_uri", [False, True])
def test_whether_a_place_can_be_written(tmp_path: Path, as_uri: bool) -> None:
    place = tmp_path / "not" / "yet"
    check_writable(place.as_uri() if as_uri else str(place))
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "not").write_text("a file")
    with pytest.raises(UserError, match="a place where files can be written"):
        check_writable(place.as_uri() if as_uri else str(place))
