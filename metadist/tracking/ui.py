"""MLflow's own web interface on the store that the runs are in."""

from __future__ import annotations

import errno
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType

from metadist.errors import UserError
from metadist.tracking.config import uri_scheme
from metadist.tracking.environment import set_defaults
from metadist.tracking.masking import mask_passwords
from metadist.tracking.sqlite_place import artifact_root, database_path

_GRACE = 10.0  # Seconds that the server may take to end before it is killed.


def serve_ui(uri: str, port: int, host: str = "127.0.0.1") -> int:
    """Serve the runs at `uri` until Ctrl-C (or a termination signal) and return the server's exit code.

    Being ended by the user counts as 0. MLflow's own start-up lines say where to look.

    Args:
        uri: the store's resolved address (see `resolve_uri`).
        port: where to listen.
        host: which address to listen on; the default serves this machine only.

    Raises:
        UserError: the port is taken, or the store is a server that has its own web interface.
    """
    if uri_scheme(uri) in ("http", "https", "databricks", "uc"):
        shown = mask_passwords(uri)
        raise UserError("tracking.uri", shown, "a database or a folder", "Open this address in the browser.")
    _check_port(host, port)
    env = dict(os.environ)
    set_defaults(uri, env)
    # It would start several more processes that serve features of no use to training runs.
    env.setdefault("MLFLOW_SERVER_ENABLE_JOB_EXECUTION", "false")
    # By the environment and not as an option: a process list shows options, with their passwords.
    env["MLFLOW_BACKEND_STORE_URI"] = uri
    command = [sys.executable, "-m", "mlflow", "server", "--host", host, "--port", str(port)]
    command += ["--workers", "1"]
    database = database_path(uri)
    if database is not None:
        command += ["--artifacts-destination", artifact_root(database).as_uri()]
    # In a session of its own, so that the whole family can be ended: MLflow's command starts the
    # server as a child of its own, and a terminal's Ctrl-C would reach all of them in any order.
    server = subprocess.Popen(command, env=env, start_new_session=True)
    with _ended_by_signals():
        try:
            return server.wait()
        except KeyboardInterrupt:
            return 0
        finally:
            _end_family(server)


def _check_port(host: str, port: int) -> None:
    if not 1 <= port <= 65535:
        raise UserError("--port", port, "a number from 1 to 65535")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        # As servers do, so that connections of a server just ended do not count as taken.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                raise UserError("--port", port, "a free port", "Another program listens there.") from None
            if error.errno == errno.EACCES:
                raise UserError("--port", port, "a port you may use", "Take one above 1023.") from None
            raise UserError("--host", host, "an address of this machine", str(error)) from None


@contextmanager
def _ended_by_signals() -> Iterator[None]:
    """Inside, termination and a closed terminal end the wait as Ctrl-C does."""
    if threading.current_thread() is not threading.main_thread():
        yield  # Only the main thread may say what signals do.
        return

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    signals = [signal.SIGINT, signal.SIGTERM]
    if hasattr(signal, "SIGHUP"):
        signals.append(signal.SIGHUP)
    before = [(number, signal.signal(number, interrupt)) for number in signals]
    try:
        yield
    finally:
        for number, handler in before:
            signal.signal(number, handler)


def _end_family(server: subprocess.Popen[bytes]) -> None:
    """End the server and everything that it has started."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(server.pid, number)
        # A second Ctrl-C while waiting goes straight on to the kill.
        with suppress(subprocess.TimeoutExpired, KeyboardInterrupt):
            server.wait(_GRACE)
