"""MLflow's pages on a sweep, driven in a browser: the trials lie below the sweep, its pictures can be seen."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")
FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--window-size=1600,1000",
    "--remote-debugging-port=0",
]


def wait(ready: Callable[[], Any], what: str, seconds: float = 60.0) -> Any:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        with contextlib.suppress(OSError, ValueError, IndexError):
            if found := ready():
                return found
        threading.Event().wait(0.1)
    raise AssertionError(f"waited {seconds:g} s for {what}")


class Browser:
    """One page of a Chromium, driven by the DevTools protocol."""

    def __init__(self, profile: Path) -> None:
        port = wait(lambda: int((profile / "DevToolsActivePort").read_text().splitlines()[0]), "the browser")

        def page() -> str:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/json", timeout=5) as answer:
                return next(str(t["webSocketDebuggerUrl"]) for t in json.load(answer) if t["type"] == "page")

        self._socket = wait(page, "the browser's page")
        self._number = 0

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        """One command and its answer."""
        return asyncio.run(self._call(method, params))

    async def _call(self, method: str, params: dict[str, Any]) -> dict[str, Any]:
        self._number += 1
        message = {"id": self._number, "method": method, "params": params}
        limit = aiohttp.ClientTimeout(total=30)
        async with (
            aiohttp.ClientSession(timeout=limit) as session,
            session.ws_connect(self._socket, max_msg_size=0) as connection,
        ):
            await connection.send_json(message)
            async for received in connection:
                answer: dict[str, Any] = received.json()
                if answer.get("id") == self._number:
                    return answer["result"]  # type: ignore[no-any-return]
        raise AssertionError("the browser closed the connection")

    def run(self, script: str) -> Any:
        """The value of some JavaScript."""
        answer = self.call("Runtime.evaluate", expression=script, returnByValue=True)
        return answer["result"].get("value")

    def text(self) -> str:
        """What the page shows."""
        return str(self.run("document.body ? document.body.innerText : ''"))

    def open(self, url: str, *words: str) -> None:
        """Go to a page and wait until it shows some words."""
        self.call("Page.navigate", url="about:blank")
        self.call("Page.navigate", url=url)
        self.await_words(*words)

    def await_words(self, *words: str) -> None:
        def shown() -> bool:
            text = self.text()
            return all(word in text for word in words)

        try:
            wait(shown, f"{words}")
        except AssertionError as error:
            raise AssertionError(f"{error}; the page shows: {self.text()}") from None

    def picture(self, path: Path) -> None:
        """A screenshot."""
        path.write_bytes(base64.b64decode(self.call("Page.captureScreenshot")["data"]))


@contextlib.contextmanager
def program(command: list[str], number: signal.Signals, **options: Any) -> Iterator[None]:
    process = subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True, **options
    )
    try:
        yield
    finally:
        process.send_signal(number)
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait(30)


@pytest.fixture
def mlflow(place: Path) -> Iterator[str]:
    """Address of MLflow's pages on the swept store."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    uri = f"sqlite:///{place.parent.parent}/mlflow.db"
    root = str(Path(__file__).resolve().parents[2])
    command = [sys.executable, "-m", "metadist", "ui", "--uri", uri, "--port", str(port)]
    with program(command, signal.SIGINT, env=os.environ | {"PYTHONPATH": root}):
        address = f"http://127.0.0.1:{port}"

        def answers() -> bool:
            with urllib.request.urlopen(f"{address}/health", timeout=5) as answer:
                return bool(answer.status == 200)

        wait(answers, "MLflow")
        yield address


@pytest.fixture
def browser() -> Iterator[Browser]:
    with tempfile.TemporaryDirectory(prefix="metadist-", ignore_cleanup_errors=True) as profile:
        command = [str(CHROMIUM), *FLAGS, f"--user-data-dir={profile}", "about:blank"]
        with program(command, signal.SIGTERM):
            yield Browser(Path(profile))


def test_the_sweep_its_trials_and_its_artifacts_are_seen(
    swept: Any, place: Path, mlflow: str, browser: Browser, runs: Any, tmp_path: Path
) -> None:
    store = runs(f"sqlite:///{place.parent.parent}/mlflow.db")
    (parent,) = store.parents
    child = store.children(parent)["trial-000"]
    experiment = f"{mlflow}/#/experiments/{parent.info.experiment_id}"
    pictures = Path(os.environ.get("METADIST_TEST_PICTURES", tmp_path))

    # The list has one row, the sweep; opened, it has its trials below it.
    browser.open(f"{experiment}/runs", "matching runs", "waves-sweep-")
    assert "trial-00" not in browser.text()
    wait(lambda: browser.run(EXPAND), "the sweep's row to be opened")
    browser.await_words(*(f"trial-{n:03d}" for n in range(4)))
    browser.picture(pictures / "runs.png")

    # A trial's page has its parent, its parameters, its curves and its picture.
    browser.open(f"{experiment}/runs/{child.info.run_id}", "Parent run", "waves-sweep-", "learner.inner_lr", "Finished")
    browser.open(f"{experiment}/runs/{child.info.run_id}/model-metrics", "train", "valid", "tasks_per_second")
    wait(lambda: browser.run("document.querySelectorAll('.js-plotly-plot').length > 1"), "curves")
    browser.picture(pictures / "curves.png")
    browser.open(f"{experiment}/runs/{child.info.run_id}/artifacts/plots/training.png", "training.png")
    wait(lambda: browser.run(IMAGE), "the trial's picture")

    # The sweep's page has the map and the rest of the result.
    names = ("best.yaml", "heatmap.png", "table.csv", "checkpoints", "sweep.json")
    browser.open(f"{experiment}/runs/{parent.info.run_id}/artifacts/heatmap.png", *names)
    wait(lambda: browser.run(IMAGE), "the map")
    browser.picture(pictures / "heatmap.png")


#: opens the first row that has rows below it; true once it was clicked
EXPAND = "(() => { const b = document.querySelector('.ag-row button'); if (b) b.click(); return Boolean(b); })()"

#: whether the page shows a picture that was loaded
IMAGE = "[...document.querySelectorAll('img')].some(i => i.complete && i.naturalWidth > 500)"
