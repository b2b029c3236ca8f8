"""A Ray session: embedded and quiet, or a cluster's."""

from __future__ import annotations

import contextlib
import logging
import math
import os
import secrets
import signal
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

from metadist.distributed.local_cluster import use_local_cluster
from metadist.distributed.logs import streaming
from metadist.errors import UserError

OBJECT_STORE_BYTES = 512 * 2**20
#: seconds within which a cluster must accept a connection
CONNECT_SECONDS = 10.0


@contextlib.contextmanager
def ray_session(address: str | None, cpus: float, gpus: float = 0, pretend_gpus: int | None = None) -> Iterator[None]:
    """Connect to the cluster at `address`, or start an embedded one of this process's own.

    An embedded session ends with the block and leaves no process behind. Within a session that this process
    already has, nothing is started and nothing is ended.

    Args:
        cpus: CPUs that an embedded session may give away.
        gpus: GPUs that the job needs.
        pretend_gpus: GPUs that an embedded session is told of, whatever the machine has.

    Raises:
        UserError: nothing answers at the address, or there are fewer GPUs than asked for.
    """
    import ray

    if ray.is_initialized():
        _check_gpus(gpus, "this session")
        yield
        return
    logging.getLogger("ray").setLevel(logging.ERROR)
    on_sigterm = signal.getsignal(signal.SIGTERM)
    if address is None:
        _ensure_token()
        ray.init(
            address="local",
            num_cpus=max(1, math.ceil(cpus)),
            num_gpus=pretend_gpus,
            include_dashboard=False,
            log_to_driver=True,
            logging_level=logging.ERROR,
            object_store_memory=OBJECT_STORE_BYTES,
            configure_logging=True,
        )
    else:
        _connect(address)
    if callable(on_sigterm) and threading.current_thread() is threading.main_thread():
        # Ray has put a handler of its own there, which would end a run without a checkpoint.
        signal.signal(signal.SIGTERM, on_sigterm)
    with streaming():
        try:
            _check_gpus(gpus, address or "this machine")
            yield
        finally:
            ray.shutdown()


def _check_gpus(gpus: float, where: str) -> None:
    import ray

    have = ray.cluster_resources().get("GPU", 0)
    if gpus > have:
        raise UserError(
            "resources.gpus_per_worker",
            gpus,
            f"at most the {have:g} GPUs of {where} for all workers together",
            "Lower resources.workers or resources.gpus_per_worker, or set the latter to 0.",
        )


def _ensure_token() -> None:
    """A token for an embedded session where the user has none: Ray with `RAY_AUTH_MODE` set makes none itself."""
    named = any(os.environ.get(name) for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"))
    if not named and not (Path.home() / ".ray" / "auth_token").exists():
        os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)  # of this process and its children only


def _connect(address: str) -> None:
    local = use_local_cluster(address)
    if local is not None:
        address = local.address

    import ray
    from ray.exceptions import RayError

    try:
        if address != "auto":
            # Ray itself would try for minutes.
            host, _, port = address.removeprefix("ray://").rpartition(":")
            socket.create_connection((host, int(port)), timeout=CONNECT_SECONDS).close()
        ray.init(address=address, log_to_driver=True, logging_level=logging.ERROR)
    except (OSError, ValueError, RuntimeError, RayError) as error:
        raise UserError(
            "--address",
            address,
            "the address of a running Ray cluster (HOST:PORT, local or auto)",
            f"Nothing usable answers there ({_reason(error)}). Leave --address out for an embedded Ray.",
        ) from error


def _reason(error: Exception) -> str:
    if "authentication" in f"{error} {error.__cause__}".lower():
        return "the cluster's token is not here, or another one is"
    return str(error).strip().splitlines()[0][:200]
