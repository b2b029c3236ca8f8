"""The way to a cluster's dashboard, through which jobs are submitted: its address, its token, its failures."""

from __future__ import annotations

import http.client
import json
import os
import urllib.error
import urllib.request
from dataclasses import dataclass
from http import HTTPStatus
from urllib.parse import urlsplit

from metadist.distributed.local_cluster import find_local_cluster, use_local_cluster
from metadist.errors import UserError

#: seconds within which the dashboard must accept a connection
CONNECT_SECONDS = 10.0


class Unreachable(UserError):
    """The dashboard does not answer, now."""


@dataclass(frozen=True)
class Dashboard:
    """A dashboard that answers.

    Attributes:
        url: http://HOST:PORT.
        mode: how the cluster knows its users: `token` or `disabled`.
    """

    url: str
    mode: str


def find_dashboard(address: str | None) -> Dashboard:
    """The dashboard at an address, with its token in this process's environment where it is the local cluster's.

    To be called before Ray is imported, which reads the mode then.

    Args:
        address: http://HOST:PORT, or `local`; `None` for `RAY_API_SERVER_ADDRESS`, else the local cluster.

    Raises:
        UserError: no dashboard answers there.
    """
    url = _resolve(address)
    use_local_cluster(url)
    mode = _authentication_mode(url)
    if mode == "disabled":
        os.environ["RAY_AUTH_MODE"] = mode  # with no token at hand Ray would not even ask
    return Dashboard(url, mode)


def _resolve(address: str | None) -> str:
    given = (address or os.environ.get("RAY_API_SERVER_ADDRESS") or "").strip().rstrip("/")
    if given in ("", "local", "auto"):
        cluster = find_local_cluster()
        if cluster is None:
            hint = "Give --address http://HEAD:8265 or set RAY_API_SERVER_ADDRESS; cluster/local.sh starts one here."
            raise UserError("--address", given or None, "the address of a cluster's dashboard", hint)
        return cluster.dashboard
    parts = urlsplit(given if "://" in given else f"//{given}")
    if parts.scheme not in ("http", "https") or not parts.hostname:
        hint = (
            f"A job is submitted to the dashboard: http://{parts.hostname or 'HEAD'}:8265, unless it has another port."
        )
        raise UserError("--address", given, "http://HOST:PORT of a cluster's dashboard", hint)
    return given


def _authentication_mode(url: str) -> str:
    """What a dashboard tells everybody; the first question, because it tells a dashboard from anything else."""
    try:
        with urllib.request.urlopen(f"{url}/api/authentication_mode", timeout=CONNECT_SECONDS) as answer:
            return str(json.loads(answer.read())["authentication_mode"])
    except urllib.error.HTTPError as error:
        if error.code == HTTPStatus.NOT_FOUND:
            return "disabled"  # a Ray from before tokens, or no Ray: its version will tell
        raise no_dashboard(url, f"the answer is {error.code} {error.reason}") from error
    except (ValueError, KeyError, TypeError) as error:
        raise no_dashboard(url, "the answer is something else") from error
    except (OSError, http.client.HTTPException) as error:
        raise unreachable(url, error) from error


def no_dashboard(url: str, problem: str) -> UserError:
    """What is said of an address at which something else answers."""
    host = urlsplit(url).hostname
    hint = f"Ray's dashboard is at http://{host}:8265, unless it was started with another port."
    return UserError("--address", url, f"the address of a Ray dashboard ({problem})", hint)


def unreachable(url: str, error: BaseException) -> Unreachable:
    """What is said of an address at which nothing answers as it should."""
    reason = error
    while reason.__context__ is not None:  # libraries wrap what the system said
        reason = reason.__context__
    text, host = str(reason), urlsplit(url).hostname
    if "SSL" in text or "CERTIFICATE" in text:
        known = "WRONG_VERSION" in text or "RECORD_LAYER" in text
        problem = "there is no TLS there" if known else f"TLS failed: {text}"
        hint = f"Write http:// in place of https://: {url.replace('https', 'http', 1)}." if known else ""
    elif isinstance(reason, http.client.HTTPException | ConnectionResetError):
        problem = "something listens there that does not speak HTTP"
        hint = f"Drivers' ports (6379, 10001) are not the dashboard's: http://{host}:8265, or https:// behind TLS."
    else:
        problem = f"nothing answers: {text.strip().splitlines()[0] if text.strip() else type(reason).__name__}"
        hint = "Is the cluster up, its dashboard open to this machine (--dashboard-host=0.0.0.0, a port-forward)?"
    return Unreachable("--address", url, f"a dashboard that can be reached ({problem})", hint)
