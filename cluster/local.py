"""A real Ray cluster of N nodes on one machine (Linux), whose nodes share as little as separate machines do.

Each node is a raylet of its own with its own home, temporary folder, cache and working directory, so that whatever
works only because nodes share them fails here. The nodes' processes carry a mark in their environment; only marked
processes, and those of their sessions, are ever ended. `ray stop` would end every Ray on the machine.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import secrets
import shutil
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

from local_nodes import check_dashboard, end, free, free_port, own_address, processes, start, wait
from local_state import DETECTION, Cluster, Failure, alone, forget, load, save, state_folder


def up(arguments: argparse.Namespace) -> None:
    """Start a cluster; whatever of it started ends again when something fails."""
    before = load()
    if before is not None and alive(before):
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


def replace_one(arguments: argparse.Namespace) -> None:
    """Kill the node that is there longest, the head excepted, and start another one."""
    _, *others = running().nodes
    if not others:
        raise Failure("the head is the only node: `local.sh add` starts another one", 2)
    kill(argparse.Namespace(node=others[0]))
    add(arguments)


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


def alive(cluster: Cluster) -> bool:
    """Whether anything of the nodes runs, killed ones too: a node that was killed must stay so."""
    return any(processes(cluster.folder(node)) for node in (*cluster.nodes, *cluster.killed))


def running() -> Cluster:
    cluster = load()
    if cluster is None or not cluster.address or not processes(cluster.folder(0)):
        raise Failure("no cluster is up: `local.sh up 3` starts one", 2)
    return cluster


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
    commands.add_parser("replace", help="kill the oldest node but the head, and start one").set_defaults(
        command=replace_one
    )
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
            sys.stdout.flush()
    except Failure as failure:
        print(f"local.sh: {failure}", file=sys.stderr)
        return failure.code
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # whoever reads has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0


if __name__ == "__main__":
    sys.exit(main())
