"""Nodes of a local cluster as processes: starting them, knowing them again, ending them."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterable
from pathlib import Path

from local_state import Cluster, Failure

MARK = "METADIST_LOCAL_NODE"
#: seconds within which a node must have started, and killed processes must be gone
START_SECONDS, END_SECONDS = 120.0, 20.0
#: ports for the head, below those that the system gives to anyone and above Ray's own
PORTS = range(20000, 32000)
#: what the user's environment must not bring to the nodes: other places, other clusters, other trackers
FOREIGN = ("METADIST_", "MLFLOW_", "RAY_", "XDG_", "SLURM_")


def processes(folder: Path) -> list[int]:
    """Pids of a node's processes: marked ones, and all in a session with a marked one.

    Some of Ray's processes overwrite their environment with their title; a submitted job has a session of its own.
    """
    mark = f"{MARK}={folder}".encode()
    sessions: dict[int, int] = {}
    marked = set()
    for entry in Path("/proc").iterdir():
        # A process may end while it is looked at, and others' cannot be looked into.
        with contextlib.suppress(ProcessLookupError, FileNotFoundError, PermissionError):
            if entry.name.isdigit() and mark_and_session(entry, sessions, mark):
                marked.add(int(entry.name))
    own = {sessions[pid] for pid in marked}
    return sorted(pid for pid, session in sessions.items() if session in own)


def mark_and_session(entry: Path, sessions: dict[int, int], mark: bytes) -> bool:
    """Note a process's session unless the process has ended; whether it is marked."""
    state, _, _, session = (entry / "stat").read_text().rpartition(")")[2].split()[:4]
    if state in "ZX":
        return False
    sessions[int(entry.name)] = int(session)
    return mark in (entry / "environ").read_bytes().split(b"\0")


def end(folders: Iterable[Path]) -> int:
    """Kill all processes of nodes, as the loss of their machines would; how many there were.

    Raises:
        Failure: some are still there after a while.
    """
    everything: set[int] = set()
    deadline = time.monotonic() + END_SECONDS
    kept = list(folders)
    while alive := [pid for folder in kept for pid in processes(folder)]:
        if time.monotonic() > deadline:
            raise Failure(f"processes {alive} cannot be ended", 1)
        everything.update(alive)
        for pid in alive:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.05)
    return len(everything)


def start(cluster: Cluster, node: int, *head: str) -> subprocess.Popen[bytes]:
    """Start a node; the process ends with code 0 when the node is up."""
    folder = cluster.folder(node)
    places = {name: folder / name for name in ("home", "tmp", "cache", "work", "ray")}
    for place in places.values():
        place.mkdir(parents=True)
    environment = {key: value for key, value in os.environ.items() if not key.startswith(FOREIGN)}
    environment |= {
        MARK: str(folder),
        "HOME": str(places["home"]),
        "PWD": str(places["work"]),
        **dict.fromkeys(("TMPDIR", "TMP", "TEMP"), str(places["tmp"])),
        **dict.fromkeys(("METADIST_CACHE", "XDG_CACHE_HOME"), str(places["cache"])),
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', os.defpath)}",
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": cluster.token,
        "RAY_USAGE_STATS_ENABLED": "0",
        # A job that is stopped may take this long to write its checkpoint; Ray's default is 3 s.
        "RAY_JOB_STOP_WAIT_TIME_S": "120",
    }
    command = [
        str(Path(sys.executable).with_name("ray")),
        "start",
        *head,
        f"--num-cpus={cluster.cpus}",
        f"--object-store-memory={cluster.object_store_mb * 2**20}",
        f"--labels=local-node={node}",
        f"--temp-dir={places['ray']}",
        # The nodes have one network address: each port is whichever is free.
        "--min-worker-port=0",
        "--max-worker-port=0",
        "--dashboard-agent-listen-port=0",
        "--disable-usage-stats",
        "--log-style=record",
    ]
    with (folder / "start.log").open("wb") as log:
        return subprocess.Popen(
            command,
            cwd=places["work"],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


def wait(cluster: Cluster, node: int, starting: subprocess.Popen[bytes]) -> None:
    """Wait until a node is up.

    Raises:
        Failure: it failed, or took too long.
    """
    log = cluster.folder(node) / "start.log"
    try:
        code = starting.wait(START_SECONDS)
    except subprocess.TimeoutExpired:
        raise Failure(f"node {node} was not up after {START_SECONDS:g} s:\n{tail(log)}", 1) from None
    if code:
        raise Failure(f"node {node} did not start:\n{tail(log)}", 1)


def tail(log: Path) -> str:
    return "\n".join(log.read_text(errors="replace").splitlines()[-15:])


def own_address() -> str:
    """The machine's address as Ray finds it: that of the interface which leads out."""
    with contextlib.suppress(OSError), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect(("192.0.2.1", 1))  # sends nothing
        return str(probe.getsockname()[0])
    return socket.gethostbyname(socket.gethostname())


def free(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_server(("", port)):
        return True
    return False


def free_port() -> int:
    return next(port for port in random.sample(PORTS, len(PORTS)) if free(port))


def check_dashboard(cluster: Cluster) -> None:
    """Ask the dashboard, with the token.

    Raises:
        Failure: it does not answer.
    """
    headers = {"Authorization": f"Bearer {Path(cluster.token).read_text()}"}
    request = urllib.request.Request(f"{cluster.dashboard}/api/version", headers=headers)
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        direct.open(request, timeout=10).close()
    except OSError as error:
        raise Failure(f"the dashboard does not answer at {cluster.dashboard}: {error}", 1) from error
