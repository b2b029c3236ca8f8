"""How MLflow is told to behave before it is imported: quiet, quick to give up, and without telemetry."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import MutableMapping

from metadist.tracking.config import uri_scheme

# Seconds that one HTTP request may take, and how often MLflow tries it again. Its own defaults (120 s,
# seven tries) would leave a hanging server unnoticed for a quarter of an hour. One further try is kept
# for the harmless case of a kept-alive connection that the server has closed meanwhile.
_HTTP_TIMEOUT = "4"
_HTTP_RETRIES = "1"

# MLflow reports every failed statement at ERROR with a traceback; the tracker says it in one line.
_SILENT = ("mlflow", "alembic")


def set_defaults(uri: str, environ: MutableMapping[str, str] | None = None) -> None:
    """Put the settings for a store at `uri` into `environ` where the user has set nothing else."""
    env = os.environ if environ is None else environ
    env.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    env.setdefault("DO_NOT_TRACK", "true")
    env.setdefault("MLFLOW_DISABLE_AGENT_HINT", "true")
    env.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
    env.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", _HTTP_TIMEOUT)
    env.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", _HTTP_RETRIES)
    if uri_scheme(uri) in ("", "file"):
        # MLflow 3 refuses folder stores unless told that they are meant.
        env.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")


def silence_loggers() -> None:
    """Keep MLflow's own log lines off the console (before and again after its import sets levels)."""
    if os.environ.get("MLFLOW_LOGGING_LEVEL"):
        return  # The user wants to see them.
    for name in _SILENT:
        logging.getLogger(name).setLevel(logging.CRITICAL + 1)


class _NotFromThread(logging.Filter):
    def __init__(self, thread_id: int) -> None:
        super().__init__()
        self._thread_id = thread_id

    def filter(self, record: logging.LogRecord) -> bool:
        return record.thread != self._thread_id


class QuietHttp:
    """Drops the HTTP library's retry warnings of the current thread while the block runs.

    By thread and not by level: other threads of the process may use the same library and want theirs.
    """

    def __enter__(self) -> None:
        self._filter = _NotFromThread(threading.get_ident())
        self._logger = logging.getLogger("urllib3.connectionpool")
        self._logger.addFilter(self._filter)

    def __exit__(self, *_: object) -> None:
        self._logger.removeFilter(self._filter)
