"""Ray's client of the Job Submission API, with a timeout on every request and every failure in one sentence."""

from __future__ import annotations

import logging
import os
from typing import Any

from ray.exceptions import AuthenticationError
from ray.job_submission import JobSubmissionClient

from metadist.distributed.dashboard import CONNECT_SECONDS, no_dashboard, unreachable
from metadist.errors import UserError

#: seconds within which a dashboard must answer, and take what is sent
ANSWER_SECONDS = 60.0
#: bytes that a dashboard takes in one request
PACKAGE_BYTES = 100 * 2**20
#: how Ray itself is told of an address; it would go before the one that is given
_ADDRESS_VARIABLES = ("RAY_API_SERVER_ADDRESS", "RAY_ADDRESS")


class Refused(RuntimeError):
    """The dashboard answered that it could not do what was asked."""


class JobClient(JobSubmissionClient):  # type: ignore[misc]
    """A client of the dashboard at a URL.

    Raises:
        UserError: it cannot be reached, or asks for another token.
    """

    def __init__(self, url: str) -> None:
        for name in ("ray", "ray.dashboard.modules.dashboard_sdk", "ray.dashboard.modules.job.sdk"):
            logging.getLogger(name).setLevel(logging.ERROR)
        before = {name: os.environ.pop(name) for name in _ADDRESS_VARIABLES if name in os.environ}
        self._url = url
        try:
            super().__init__(url)
        except AuthenticationError as error:
            raise _bad_token(url) from error
        except RuntimeError as error:
            raise no_dashboard(url, str(error).splitlines()[0]) from error
        finally:
            os.environ.update(before)

    def _do_request(self, method: str, endpoint: str, **given: Any) -> Any:
        size = len(given.get("data") or b"")
        if size > PACKAGE_BYTES:
            raise UserError(
                "--working-dir",
                f"{size / 2**20:.0f} MiB when packed",
                f"at most {PACKAGE_BYTES // 2**20} MiB, which is what a Ray dashboard takes",
                "Keep data and runs out of it (a .gitignore or .rayignore in it is heeded), or name a smaller folder.",
            )
        try:
            return super()._do_request(method, endpoint, timeout=(CONNECT_SECONDS, ANSWER_SECONDS), **given)
        except AuthenticationError as error:
            raise _bad_token(self._url) from error
        except OSError as error:
            raise unreachable(self._url, error) from error

    def _raise_error(self, answer: Any) -> None:
        text = str(answer.text).strip()
        raise Refused(text.splitlines()[-1] if text else f"status {answer.status_code}")


def _bad_token(url: str) -> UserError:
    return UserError(
        "RAY_AUTH_TOKEN",
        "no token, or another one than the cluster's",
        f"the token that {url} asks for",
        "Set RAY_AUTH_TOKEN_PATH to a file with the cluster's token, or RAY_AUTH_TOKEN to the token itself "
        "(`ray get-auth-token` on the head node prints it).",
    )
