"""Where a run is recorded: the settings of tracking and the address that follows from them."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

from metadist.errors import UserError, nearest
from metadist.tracking.masking import mask_passwords

#: What `tracking.uri` says to switch tracking off.
OFF = "none"
#: The tag that tells this project's runs from others in the same store; its value is the version.
VERSION_TAG = "metadist.version"

_SCHEMES = ("sqlite", "postgresql", "mysql", "mssql", "http", "https", "file", "databricks", "uc")
_EXPECTED = (
    "an address with one of the schemes sqlite, postgresql, mysql, mssql, http, https, file, "
    f"or databricks, a folder's path, or {OFF!r}"
)
_DATABASE_FILE = re.compile(r"\.(db|sqlite|sqlite3)$", re.IGNORECASE)
_HOST_AND_PORT = re.compile(r"^[\w.-]+:\d+(/.*)?$")
_SCHEME = re.compile(r"^([A-Za-z][A-Za-z0-9+.-]*):")


@dataclass(frozen=True)
class TrackingConfig:
    """Where MLflow keeps the runs."""

    #: Address of the MLflow server or database. Not given: the environment's `MLFLOW_TRACKING_URI`,
    #: else the database `mlflow.db` in the working folder. "none" switches tracking off.
    uri: str | None = None
    #: Name of the MLflow experiment that the run belongs to; made when it is missing.
    experiment: str = "metadist"


def resolve_uri(config: TrackingConfig) -> str | None:
    """The store's full address, or None when tracking is switched off.

    Relative paths (of a database file or a folder) are made absolute, so that neither another working
    folder nor another process turns the same job's address into a different store.

    Raises:
        UserError: the address has a form or a scheme that MLflow does not know.
    """
    field, uri = "tracking.uri", (config.uri or "").strip()
    if not uri:
        field, uri = "MLFLOW_TRACKING_URI", os.environ.get("MLFLOW_TRACKING_URI", "").strip()
    if not uri:
        field, uri = "tracking.uri", "sqlite:///mlflow.db"
    if uri.lower() == OFF:
        return None
    _check(field, uri)
    try:
        return _absolute(uri)
    except UnicodeEncodeError as error:
        raise UserError(field, uri, "a path that a file can have", str(error)) from error


def uri_scheme(uri: str) -> str:
    """The scheme without its driver ("postgresql" of "postgresql+psycopg2://…"), or "" for a path."""
    if uri in ("databricks", "uc"):
        return uri
    found = _SCHEME.match(uri)
    return found.group(1).split("+")[0].lower() if found else ""


def _check(field: str, uri: str) -> None:
    shown = mask_passwords(uri)
    if _HOST_AND_PORT.match(uri):
        raise UserError(field, shown, _EXPECTED, f"For a server write 'http://{shown}'.")
    scheme = uri_scheme(uri)
    if scheme and scheme not in _SCHEMES:
        raise UserError(field, shown, _EXPECTED, nearest(scheme, _SCHEMES))
    if scheme in ("http", "https") and not re.match(r"^https?://[^/]", uri, re.IGNORECASE):
        raise UserError(field, shown, "a server's address with its host", "For example http://localhost:5000.")
    if scheme in ("sqlite", "postgresql", "mysql", "mssql") and "://" not in uri:
        raise UserError(field, shown, _EXPECTED, f"A database's address starts with '{scheme}://'.")
    if scheme == "sqlite" and not re.match(r"^[\w+]+:///.", uri):
        # Two slashes name a host, which a database file does not have.
        raise UserError(field, shown, "a database file", "Write sqlite:///mlflow.db (three slashes).")


def _absolute(uri: str) -> str:
    scheme = uri_scheme(uri)
    if scheme == "sqlite":
        head, _, rest = uri.partition(":///")
        path, mark, options = rest.partition("?")
        if path == ":memory:":
            return uri
        return f"{head}:///{Path(path).expanduser().absolute()}{mark}{options}"
    if scheme == "":
        path = str(Path(uri).expanduser().absolute())
        # A bare "mlflow.db" means the database file; MLflow would make a folder of that name.
        return f"sqlite:///{path}" if _DATABASE_FILE.search(path) else Path(path).as_uri()
    if scheme == "file" and not uri.startswith("file:/"):
        return Path(uri[len("file:") :]).absolute().as_uri()
    return uri
