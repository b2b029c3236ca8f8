"""A run is a folder, on a local path or on any file system that pyarrow knows by URI.

Files appear whole or not at all: they are written aside and then renamed. One driver at a time holds the
folder, by a lease with an epoch that every write checks.
"""

from __future__ import annotations

import contextlib
import errno
import json
import math
import os
import re
import secrets
import socket
import time
from dataclasses import dataclass, replace
from typing import Any, Literal

from pyarrow import fs

from metadist.errors import UserError
from metadist.reading import MOST_JSON, check_size, parse_json

CHECKPOINT = re.compile(r"step-(\d{8})\.safetensors")
#: folder of what the tests have judged so far, while they run
JUDGED = "judged"
#: what `RunFolder.write` calls a file that is not whole yet
ASIDE = re.compile(r"\..+\.[0-9a-f]{8}")
#: seconds after which the lease of a driver on another host counts as abandoned
LEASE_SECONDS = 60.0


class LeaseLost(RuntimeError):
    """Another driver has taken over the run folder."""


def _file_system(location: str) -> tuple[fs.FileSystem, str]:
    if "://" in location:
        try:
            return fs.FileSystem.from_uri(location)  # type: ignore[no-any-return]
        except Exception as error:
            raise UserError(
                "storage", location, "a folder or a URI that pyarrow can open", str(error).splitlines()[0]
            ) from error
    return fs.LocalFileSystem(), os.path.abspath(location)


def _info(system: fs.FileSystem, path: str, inside: bool = False) -> Any:
    """What is at a path, or in the folder there; a path may be one that no system takes."""
    try:
        return system.get_file_info(fs.FileSelector(path, allow_not_found=True) if inside else path)
    except (OSError, ValueError) as error:
        reason = _reason(error) if isinstance(error, OSError) else str(error)
        raise UserError(path, reason, "a place that can be read") from error


@dataclass(frozen=True)
class RunFolder:
    """One run's folder; a small value that can be sent to other processes.

    Attributes:
        location: path or URI of the folder.
        epoch: the lease under which this holder writes; 0 for readers.
    """

    location: str
    epoch: int = 0

    def _place(self, name: str) -> tuple[fs.FileSystem, str]:
        system, root = _file_system(self.location)
        return system, f"{root}/{name}" if name else root

    @property
    def local(self) -> str | None:
        """The folder's path, if it is on this machine's file system."""
        system, path = self._place("")
        return path if isinstance(system, fs.LocalFileSystem) else None

    def anchored(self) -> RunFolder:
        """The same folder for a process with another working folder."""
        return self if self.local is None else replace(self, location=self.local)

    def exists(self, name: str = "") -> bool:
        """Whether the folder, or a file in it, is there."""
        system, path = self._place(name)
        return bool(_info(system, path).type != fs.FileType.NotFound)

    def read(self, name: str, most: int | None = None) -> bytes:
        """The content of a file.

        Raises:
            UserError: there is no such file, it cannot be read, or it has more than `most` bytes.
        """
        system, path = self._place(name)
        try:
            if _info(system, path).type == fs.FileType.Unknown:  # a pipe, say, which would be waited for
                raise UserError(path, "no file", "a file that can be read")
            with system.open_input_stream(path, compression=None) as stream:
                data = bytes(stream.read(None if most is None else most + 1))
            if most is not None:
                check_size(data, most, path)
            return data
        except OSError as error:
            raise UserError(path, _reason(error), "a file that can be read") from error

    def read_json(self, name: str) -> Any:
        """The content of a JSON file."""
        try:
            return parse_json(self.read(name, MOST_JSON))
        except UserError:
            raise
        except ValueError as error:
            path = self._place(name)[1]
            raise UserError(path, str(error), "JSON", "The file was changed or cut off.") from error

    def write(self, name: str, data: bytes) -> None:
        """Write a file whole: aside first, then renamed.

        Raises:
            LeaseLost: another driver holds the folder.
            UserError: it cannot be written; nothing is left behind.
        """
        if self.epoch and self._lease().get("epoch") != self.epoch:
            raise LeaseLost(f"{self.location} was taken over by another driver: {self._lease()}")
        self._write(name, data)

    def _write(self, name: str, data: bytes) -> None:
        system, path = self._place(name)
        folder, _, file = path.rpartition("/")
        aside = f"{folder}/.{file}.{secrets.token_hex(4)}"
        try:
            system.create_dir(folder, recursive=True)
            if isinstance(system, fs.LocalFileSystem):
                with open(aside, "wb") as stream:
                    stream.write(data)
                    stream.flush()
                    os.fsync(stream.fileno())
            else:
                with system.open_output_stream(aside, compression=None) as stream:
                    stream.write(data)
            system.move(aside, path)
        except OSError as error:
            with contextlib.suppress(OSError):
                system.delete_file(aside)
            hint = "Free some space, then go on with --resume." if error.errno == errno.ENOSPC else ""
            raise UserError(path, _reason(error), "a file that can be written", hint) from error

    def write_json(self, name: str, content: Any) -> None:
        """Write a JSON file whole."""
        self.write(name, (json.dumps(content, indent=2) + "\n").encode())

    def checkpoints(self) -> list[str]:
        """Names of the complete checkpoints, oldest first."""
        system, path = self._place("checkpoints")
        found = _info(system, path, inside=True)
        return sorted(f"checkpoints/{info.base_name}" for info in found if CHECKPOINT.fullmatch(info.base_name))

    def names(self, folder: str) -> list[str]:
        """Names of the files in a folder of it, in order."""
        system, path = self._place(folder)
        found = _info(system, path, inside=True)
        return sorted(f"{folder}/{info.base_name}" for info in found if not ASIDE.fullmatch(info.base_name))

    def remove(self, folder: str) -> None:
        """Delete a folder of it with all files, if it is there."""
        if self.exists(folder):
            system, path = self._place(folder)
            system.delete_dir(path)

    def prune(self, keep: int, spare: set[str]) -> None:
        """Delete all checkpoints but the newest `keep` and the ones in `spare`."""
        for name in self.checkpoints()[:-keep]:
            if name not in spare:
                system, path = self._place(name)
                system.delete_file(path)

    def _lease(self) -> dict[str, Any]:
        if not self.exists("lease.json"):
            return {}
        lease: dict[str, Any] = self.read_json("lease.json")
        if not _is_lease(lease):
            hint = "The file was changed; remove it if no driver runs."
            raise UserError(self._place("lease.json")[1], lease, "a lease", hint)
        return lease

    def acquire(self) -> RunFolder:
        """Take the lease; the result may write.

        Raises:
            UserError: a driver that is alive holds it.
        """
        self.check_free()
        held = RunFolder(self.location, self._lease().get("epoch", 0) + 1)
        held._write_lease(released=False)
        held._remove_asides()
        return held

    def _remove_asides(self) -> None:
        """Delete what writers that were killed had not renamed yet."""
        for folder in ("", "checkpoints", JUDGED):
            system, path = self._place(folder)
            for info in _info(system, path, inside=True):
                if ASIDE.fullmatch(info.base_name):
                    system.delete_file(info.path)

    def check_free(self) -> None:
        """Raise `UserError` when a driver that is alive holds the lease."""
        lease = self._lease()
        if lease and not lease.get("released") and _alive(lease):
            raise UserError(
                self.location,
                f"a run held by process {lease['pid']} on {lease['host']}",
                "a run that no driver holds",
                "Wait for that driver to end, or stop it (Ctrl-C saves a checkpoint).",
            )

    def lease_state(self) -> Literal["free", "held", "abandoned"]:
        """Whether a driver holds the folder: none, one that is alive, or one that is not."""
        lease = self._lease()
        if not lease or lease.get("released"):
            return "free"
        return "held" if _alive(lease) else "abandoned"

    def renew(self) -> None:
        """Say that this holder lives; call it from time to time."""
        if self._lease().get("epoch") != self.epoch:
            raise LeaseLost(f"{self.location} was taken over by another driver: {self._lease()}")
        self._write_lease(released=False)

    def release(self) -> None:
        """Give the lease back, if it is still this holder's."""
        with contextlib.suppress(UserError):
            if self._lease().get("epoch") == self.epoch:
                self._write_lease(released=True)

    def _write_lease(self, released: bool) -> None:
        lease = {
            "epoch": self.epoch,
            "pid": os.getpid(),
            "started": _process_start(os.getpid()),
            "host": socket.gethostname(),
            "time": time.time(),
            "released": released,
        }
        self._write("lease.json", json.dumps(lease).encode())


def subfolders(location: str) -> list[str]:
    """Locations of the folders right below a path or URI, but for hidden ones; none where there is nothing."""
    system, root = _file_system(location)
    found = _info(system, root, inside=True)
    names = [info.base_name for info in found if info.type == fs.FileType.Directory]
    return [f"{location.rstrip('/')}/{name}" for name in sorted(names) if not name.startswith(".")]


def check_writable(location: str) -> None:
    """Raise `UserError` unless files can be written under a path or URI. Leaves nothing behind, and makes nothing."""
    system, root = _file_system(location)
    if isinstance(system, fs.LocalFileSystem):
        # Of a folder that is not there yet, the nearest that is must take it.
        while not os.path.lexists(root):
            root = os.path.dirname(root)
    probe = f"{root}/.metadist-{secrets.token_hex(4)}"
    try:
        with system.open_output_stream(probe, compression=None) as stream:
            stream.write(b"probe")
        system.delete_file(probe)
    except OSError as error:
        hint = "Name another place, or mend its permissions or space."
        raise UserError(location, _reason(error), "a place where files can be written", hint) from error


def checkpoint_name(version: int) -> str:
    """Name of the checkpoint of a version, in its run folder."""
    return f"checkpoints/step-{version:08d}.safetensors"


def checkpoint_version(name: str) -> int:
    """Version of a checkpoint, from its name."""
    match = CHECKPOINT.search(name)
    if match is None:
        raise UserError("checkpoint", name, "a file named step-NNNNNNNN.safetensors")
    return int(match.group(1))


def _is_lease(content: Any) -> bool:
    kinds = {"epoch": int, "pid": int, "host": str, "time": int | float, "released": bool}
    if not isinstance(content, dict) or not all(isinstance(content.get(key), kind) for key, kind in kinds.items()):
        return False
    return 0 < content["pid"] < 2**31 and math.isfinite(content["time"])


def _alive(lease: dict[str, Any]) -> bool:
    if lease["host"] != socket.gethostname():
        return time.time() - float(lease["time"]) < LEASE_SECONDS
    return _process_start(lease["pid"]) == lease.get("started") is not None


def _process_start(pid: int) -> str | None:
    """When a process of this machine started, or `None` when there is none: tells a reused pid."""
    try:
        with open(f"/proc/{pid}/stat") as stat:
            return stat.read().rpartition(")")[2].split()[19]
    except OSError:
        pass
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return None
    except PermissionError:
        pass
    return "unknown"


def _reason(error: OSError) -> str:
    return os.strerror(error.errno) if error.errno else str(error).splitlines()[0]
