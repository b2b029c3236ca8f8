"""MLflow's client of a store."""

from __future__ import annotations

import contextlib
from typing import Any

from metadist.tracking.environment import set_defaults, silence_loggers
from metadist.tracking.sqlite_place import creation_lock, database_path


def open_client(uri: str) -> Any:
    """A client of the store at a resolved address; MLflow makes a database that is not there yet.

    Takes seconds, because it imports MLflow: never called in the thread that trains.
    """
    set_defaults(uri)
    silence_loggers()
    from mlflow.tracking import MlflowClient

    silence_loggers()
    database = database_path(uri)
    with contextlib.nullcontext() if database is None else creation_lock(database):
        return MlflowClient(tracking_uri=uri)
