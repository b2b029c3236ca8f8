"""A real Ray cluster of N nodes on one machine (Linux), whose nodes share as little as separate machines do.

Each node is a raylet of its own with its own home, temporary folder, cache and working directory, so that whatever
works only because nodes share them fails here. The nodes' processes carry a mark in their environment; only marked
processes, and those of their sessions, are ever ended. `ray stop` would end every Ray on the machine.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import json
import os
import random
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

MARK = "METADIST_LOCAL_NODE"
#: seconds within which a node must have started, and killed processes must be gone
START_SECONDS, END_SECONDS = 120.0, 20.0
#: ports for the head, below those that the system gives to anyone and above Ray's own
PORTS = range(20000, 32000)
#: what the user's environment must not bring to the nodes: other places, other clusters, other trackers
FOREIGN = ("METADIST_", "MLFLOW_", "RAY_", "XDG_", "SLURM_")


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

    def processes(self) -> list[int]:
        """What runs of the nodes, killed ones too: a node that was killed must stay so."""
        return [pid for node in (*self.nodes, *self.killed) for pid in processes(self.folder(node))]


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


# Processes of a node


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


# Starting


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


# Commands


def up(arguments: argparse.Namespace) -> None:
    """Start a cluster; whatever of it started ends again when something fails."""
    before = load()
    if before is not None and before.processes():
        raise Failure(f"a cluster is up at {before.address}: `local.sh down` ends it, `add` starts one more node", 2)
    if before is not None:
        forget(before)  # of before a reboot
    if not Path(sys.executable).with_name("ray").exists():
        raise Failure(f"no `ray` beside {sys.executable}: `make train` makes .venv, or set PYTHON", 2)
    token = state_folder().absolute() / "token"
    cluster = Cluster(
        # Paths of Unix sockets have at most 107 characters, so the nodes' folders cannot be in the state folder.
        root=tempfile.mkdtemp(prefix="metadist-nodes-", dir="/tmp"),
        token=str(token),
        cpus=arguments.cpus,
        object_store_mb=arguments.object_store_mb,
        detect=arguments.detect,
    )
    # Written before anything runs, so that `down` ends whatever is left if this process is killed.
    cluster = save(replace(cluster, nodes=list(range(arguments.nodes))))
    try:
        with open(os.open(token, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
            file.write(secrets.token_hex(32))
        cluster = start_head(cluster)
        rest = {node: start(cluster, node, f"--address={cluster.address}") for node in cluster.nodes[1:]}
        for node, starting in rest.items():
            wait(cluster, node, starting)
        check_dashboard(cluster)
        save(cluster)
    except BaseException:
        end(cluster.folder(node) for node in cluster.nodes)
        forget(cluster)
        raise
    show(cluster)


def start_head(cluster: Cluster) -> Cluster:
    """Start the head node; the cluster with its addresses."""
    host, port, dashboard = own_address(), free_port(), 8265 if free(8265) else free_port()
    head = [
        "--head",
        f"--node-ip-address={host}",
        f"--port={port}",
        f"--ray-client-server-port={free_port()}",
        "--include-dashboard=true",
        "--dashboard-host=127.0.0.1",
        f"--dashboard-port={dashboard}",
    ]
    if health_check := DETECTION[cluster.detect].health_check:
        head.append(f"--system-config={json.dumps(health_check)}")
    wait(cluster, 0, start(cluster, 0, *head))
    return replace(cluster, address=f"{host}:{port}", dashboard=f"http://127.0.0.1:{dashboard}")


def add(arguments: argparse.Namespace) -> None:
    """Start one more node."""
    cluster = running()
    node = max(cluster.nodes + cluster.killed) + 1
    cluster = save(replace(cluster, nodes=[*cluster.nodes, node]))
    try:
        wait(cluster, node, start(cluster, node, f"--address={cluster.address}"))
    except BaseException:
        end([cluster.folder(node)])
        shutil.rmtree(cluster.folder(node), ignore_errors=True)
        save(replace(cluster, nodes=cluster.nodes[:-1]))
        raise
    show(cluster)


def kill(arguments: argparse.Namespace) -> None:
    """Kill all processes of a node at once, as the loss of its machine would; its files go too."""
    cluster, node = running(), arguments.node
    if node not in cluster.nodes:
        raise Failure(f"no node {node}: there are {', '.join(map(str, cluster.nodes))}", 2)
    others = [other for other in cluster.nodes if other != node]
    save(replace(cluster, nodes=others, killed=[*cluster.killed, node]))
    ended = end([cluster.folder(node)])
    shutil.rmtree(cluster.folder(node), ignore_errors=True)
    lost = "; without the head the others end too" if node == 0 else ""
    print(f"killed node {node}, {ended} processes{lost}")


def down(arguments: argparse.Namespace) -> None:
    """End the cluster's processes, and only them."""
    cluster = load()
    if cluster is None:
        print("no cluster is up")
        return
    ended = end(cluster.folder(node) for node in (*cluster.nodes, *cluster.killed))
    forget(cluster, arguments.keep)
    print(f"ended {ended} processes" + (f"; logs are in {cluster.root}/*/ray" if arguments.keep else ""))


def status(arguments: argparse.Namespace) -> None:
    """Show the cluster; exit code 1 where none is up."""
    cluster = load()
    if cluster is None:
        raise Failure("no cluster is up: `local.sh up 3` starts one", 1)
    show(cluster)


def running() -> Cluster:
    cluster = load()
    if cluster is None or not cluster.address or not processes(cluster.folder(0)):
        raise Failure("no cluster is up: `local.sh up 3` starts one", 2)
    return cluster


def forget(cluster: Cluster, keep: bool = False) -> None:
    if not keep:
        shutil.rmtree(cluster.root, ignore_errors=True)
    for name in ("cluster.json", "token"):
        (state_folder() / name).unlink(missing_ok=True)


def show(cluster: Cluster) -> None:
    for node in sorted(cluster.nodes + cluster.killed):
        pids = processes(cluster.folder(node))
        state = "killed" if node in cluster.killed else "alive" if pids else "dead"
        where = f"{cluster.folder(node)}  pids {' '.join(map(str, pids))}" if pids else ""
        print(f"node {node}  {state:6}  {'head' if node == 0 else '    '}  {where}".rstrip())
    detection = DETECTION[cluster.detect]
    print(f"head       {cluster.address}, {cluster.cpus} CPU and {cluster.object_store_mb} MB of objects a node")
    print(f"dashboard  {cluster.dashboard}")
    print(f"token      {cluster.token} (metadist finds it)")
    print(f"node loss  noticed after about {detection.seconds:g} s (--detect {cluster.detect})")
    print("use it     metadist train JOB.yaml --address local, metadist submit JOB.yaml")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="local.sh", description="A Ray cluster of N nodes on this machine.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    start_up = commands.add_parser("up", help="start a cluster")
    start_up.add_argument(
        "nodes", type=at_least_one, nargs="?", default=3, metavar="N", help="nodes, head included (3)"
    )
    start_up.add_argument("--cpus", type=at_least_one, default=1, help="CPUs of each node, as Ray counts them (1)")
    start_up.add_argument("--object-store-mb", type=object_store, default=200, help="object store of each node (200)")
    times = ", ".join(f"{name}: {detection.seconds:g} s" for name, detection in DETECTION.items())
    start_up.add_argument(
        "--detect", choices=DETECTION, default="default", help=f"how soon a node's loss is seen; {times}"
    )
    start_up.set_defaults(command=up)
    end_all = commands.add_parser("down", help="end what `up` and `add` started, and nothing else")
    end_all.add_argument("--keep", action="store_true", help="leave the nodes' folders, with Ray's logs")
    end_all.set_defaults(command=down)
    commands.add_parser("status", help="nodes, pids, addresses").set_defaults(command=status)
    commands.add_parser("add", help="start one more node").set_defaults(command=add)
    kill_one = commands.add_parser("kill", help="kill node N as the loss of its machine would")
    kill_one.add_argument("node", type=int, metavar="N")
    kill_one.set_defaults(command=kill)
    return parser.parse_args()


def at_least_one(text: str) -> int:
    return at_least(1, text)


def object_store(text: str) -> int:
    return at_least(76, text)  # Ray's own least


def at_least(least: int, text: str) -> int:
    if not text.isdecimal() or int(text) < least:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least {least}")
    return int(text)


def main() -> int:
    arguments = parse()
    try:
        with contextlib.nullcontext() if arguments.command is status else alone():
            arguments.command(arguments)
    except Failure as failure:
        print(f"local.sh: {failure}", file=sys.stderr)
        return failure.code
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
