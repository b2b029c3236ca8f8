"""What `local.sh` knows of its cluster, kept in `~/.metadist/local-cluster` or where `METADIST_CLUSTER` says.

`metadist/distributed/local_cluster.py` reads it too.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path


@dataclass(frozen=True)
class Detection:
    """How soon a lost node is noticed."""

    #: seconds from the loss of a node (killed) to its being marked as dead, measured
    seconds: float
    #: Ray's settings, of the head node only
    health_check: dict[str, int]


DETECTION = {
    "fast": Detection(
        1.3,
        {
            "health_check_initial_delay_ms": 1000,
            "health_check_period_ms": 500,
            "health_check_timeout_ms": 1000,
            "health_check_failure_threshold": 3,
        },
    ),
    "default": Detection(
        4.0,
        {
            "health_check_initial_delay_ms": 5000,
            "health_check_period_ms": 1000,
            "health_check_timeout_ms": 5000,
            "health_check_failure_threshold": 4,
        },
    ),
    "ray": Detection(14.0, {}),
}


class Failure(Exception):
    """What ends the command: a message for people, and the exit code."""

    def __init__(self, message: str, code: int) -> None:
        super().__init__(message)
        self.code = code


@dataclass(frozen=True)
class Cluster:
    """A cluster as its state file has it.

    Attributes:
        root: where the nodes' folders are.
        address: HOST:PORT of the head node; empty until it is up.
        nodes: numbers of the nodes that were started and not killed; 0 is the head.
        killed: numbers of the nodes that were killed.
    """

    root: str
    token: str
    cpus: int
    object_store_mb: int
    detect: str
    address: str = ""
    dashboard: str = ""
    nodes: list[int] = field(default_factory=list)
    killed: list[int] = field(default_factory=list)

    def folder(self, node: int) -> Path:
        return Path(self.root) / str(node)


def state_folder() -> Path:
    return Path(os.environ.get("METADIST_CLUSTER") or Path.home() / ".metadist" / "local-cluster")


def load() -> Cluster | None:
    """The cluster in the state folder, up or not; `None` where there is none."""
    try:
        return Cluster(**json.loads((state_folder() / "cluster.json").read_text()))
    except FileNotFoundError:
        return None


@contextlib.contextmanager
def alone() -> Iterator[None]:
    """Keep out other commands that change the cluster.

    Raises:
        Failure: one is at work.
    """
    folder = state_folder()
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    with (folder / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise Failure(f"another `local.sh` is at work in {folder}", 2) from None
        yield


def save(cluster: Cluster) -> Cluster:
    file = state_folder() / "cluster.json"
    aside = file.with_suffix(".new")
    aside.write_text(json.dumps(asdict(cluster), indent=2) + "\n")
    aside.replace(file)
    return cluster


def forget(cluster: Cluster, keep: bool = False) -> None:
    if not keep:
        shutil.rmtree(cluster.root, ignore_errors=True)
    for name in ("cluster.json", "token"):
        (state_folder() / name).unlink(missing_ok=True)
