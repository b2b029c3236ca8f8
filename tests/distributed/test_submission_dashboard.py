"""The way to a dashboard: what is said of an address at which something else answers, or nothing."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from metadist.distributed.dashboard import find_dashboard
from metadist.distributed.job_client import PACKAGE_BYTES, JobClient, Refused
from metadist.errors import UserError

VERSION = {"version": "4", "ray_version": "2.60.0", "ray_commit": "0"}


@pytest.fixture(autouse=True)
def _no_cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("METADIST_CLUSTER", str(tmp_path))
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    monkeypatch.setenv("RAY_AUTH_TOKEN", "0" * 64)
    monkeypatch.setenv("NO_PROXY", "*")
    monkeypatch.delenv("RAY_API_SERVER_ADDRESS", raising=False)


@contextmanager
def serving(answer: Callable[[str], tuple[int, str]]) -> Iterator[str]:
    """The URL of a server that answers a path with a status and a text."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            status, text = answer(self.path)
            self.send_response(status)
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text.encode())

        def log_message(self, *_: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join(10)


def ray(mode: str = "token", jobs: tuple[int, str] = (200, "[]")) -> Callable[[str], tuple[int, str]]:
    """What a dashboard of Ray's answers."""

    def answer(path: str) -> tuple[int, str]:
        if path == "/api/authentication_mode":
            return 200, json.dumps({"authentication_mode": mode})
        return (200, json.dumps(VERSION)) if path == "/api/version" else jobs

    return answer


@pytest.mark.parametrize(
    ("address", "message"),
    [
        (None, "--address: got None, expected the address of a cluster's dashboard. Give --address http://HEAD:8265"),
        ("10.0.0.1:6379", "expected http://HOST:PORT .* http://10.0.0.1:8265"),
        ("ray://head:10001", "expected http://HOST:PORT .* http://head:8265"),
        ("local", "--address: got 'local'"),
    ],
)
def test_what_is_no_address_of_a_dashboard(address: str | None, message: str) -> None:
    with pytest.raises(UserError, match=message):
        find_dashboard(address)


def test_nothing_there() -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with pytest.raises(UserError, match=r"nothing answers: .*refused"):
        find_dashboard(f"http://127.0.0.1:{port}")


def test_something_that_is_no_web_server() -> None:
    """As at the port that drivers connect to."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def answer() -> None:
            connection = server.accept()[0]
            connection.recv(1000)
            connection.sendall(b"\x00\x00\x18\x04\x00\x00\x00\x00\x00")
            connection.close()

        thread = threading.Thread(target=answer)
        thread.start()
        with pytest.raises(UserError, match=r"does not speak HTTP.* http://127\.0\.0\.1:8265"):
            find_dashboard(f"http://127.0.0.1:{server.getsockname()[1]}")
        thread.join(10)


def test_another_web_server() -> None:
    with serving(lambda path: (200, "<html>")) as url, pytest.raises(UserError, match="the address of a Ray dashboard"):
        find_dashboard(url)
    with serving(lambda path: (404, "nothing")) as url:
        assert find_dashboard(url).mode == "disabled"  # a Ray from before tokens would say so too
        with pytest.raises(UserError, match="the address of a Ray dashboard"):
            JobClient(url)


def test_tls_where_there_is_none() -> None:
    with serving(ray()) as url, pytest.raises(UserError, match=f"there is no TLS there.* {url}"):
        find_dashboard(url.replace("http", "https"))


@pytest.mark.parametrize("status", [401, 403])
def test_a_wrong_token(status: int) -> None:
    with serving(ray(jobs=(status, "Forbidden"))) as url:
        client = JobClient(find_dashboard(url).url)
        with pytest.raises(UserError, match=f"RAY_AUTH_TOKEN: .* the token that {url} asks for.* RAY_AUTH_TOKEN_PATH"):
            client.list_jobs()


def test_the_given_address_goes_before_the_environments(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray itself does it the other way round."""
    with serving(ray()) as url:
        monkeypatch.setenv("RAY_API_SERVER_ADDRESS", "http://elsewhere:8265")
        monkeypatch.setenv("RAY_ADDRESS", "elsewhere:6379")
        assert JobClient(find_dashboard(f"{url}/").url).list_jobs() == []
        monkeypatch.setenv("RAY_API_SERVER_ADDRESS", url)
        assert find_dashboard(None).url == url


def test_a_refusal_is_one_line() -> None:
    trace = "Traceback (most recent call last):\n  File x\nValueError: no such thing"
    with serving(ray(jobs=(500, trace))) as url, pytest.raises(Refused, match=r"^ValueError: no such thing$"):
        JobClient(url).list_jobs()


def test_a_package_that_a_dashboard_would_not_take() -> None:
    with serving(ray()) as url, pytest.raises(UserError, match=r"--working-dir: got '100 MiB.* at most 100 MiB"):
        JobClient(url)._do_request("PUT", "/api/packages/gcs/x.zip", data=bytes(PACKAGE_BYTES + 1))
