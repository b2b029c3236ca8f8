"""The cluster that `cluster/local.sh` starts on this machine: where it is, and its token.

Its state folder, `~/.metadist/local-cluster` or what `METADIST_CLUSTER` names, holds `cluster.json`.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
from dataclasses import dataclass
from pathlib import Path

from metadist.errors import UserError

#: seconds within which the head node must accept a connection
ANSWER_SECONDS = 2.0


@dataclass(frozen=True)
class LocalCluster:
    """A local cluster that is up.

    Attributes:
        address: HOST:PORT of the head node, for drivers.
        dashboard: http://HOST:PORT, for submitted jobs and for people.
        token: the file with the token that both of them ask for.
    """

    address: str
    dashboard: str
    token: Path


def find_local_cluster() -> LocalCluster | None:
    """The local cluster, or `None` where none is up."""
    folder = Path(os.environ.get("METADIST_CLUSTER") or Path.home() / ".metadist" / "local-cluster")
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        state = json.loads((folder / "cluster.json").read_text())
        cluster = LocalCluster(str(state["address"]), str(state["dashboard"]), Path(state["token"]))
        host, _, port = cluster.address.rpartition(":")
        socket.create_connection((host, int(port)), timeout=ANSWER_SECONDS).close()
        return cluster
    return None


def use_local_cluster(address: str) -> LocalCluster | None:
    """The local cluster if `address` means it, with its token in this process's environment; `None` otherwise.

    To be called before this process uses Ray, which reads the token once.

    Args:
        address: `local`, or the address of the head node or of the dashboard, or `auto`: that is the cluster that
            `RAY_ADDRESS` names, and the local one where it names none.

    Raises:
        UserError: `local`, and no local cluster is up.
    """
    if address == "auto" and os.environ.get("RAY_ADDRESS"):
        return None
    cluster = find_local_cluster()
    if cluster is None:
        if address == "local":
            hint = "Start one: cluster/local.sh up 3. It is looked for in ~/.metadist, or where METADIST_CLUSTER says."
            raise UserError("--address", address, "a local cluster that is up", hint)
        return None
    if not _means(address, cluster):
        return None
    os.environ.pop("RAY_AUTH_TOKEN", None)  # it would go before the file
    os.environ |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(cluster.token)}
    return cluster


def _means(address: str, cluster: LocalCluster) -> bool:
    if address in ("local", "auto", cluster.address):
        return True
    _, _, port = cluster.dashboard.rpartition(":")
    return address.rstrip("/") in {f"http://{host}:{port}" for host in ("127.0.0.1", "localhost")}
