"""What all tests share: torch's threads, a home for caches, one Ray session, the command line."""

from __future__ import annotations

import contextlib
import io
import json
import os
import signal
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

REPOSITORY = Path(__file__).parent.parent


#: they start clusters of `cluster/local.sh`, of which there is to be one at a time
CLUSTERS = ("tests/cluster/test_local.py", "tests/cluster/test_nodes.py", "tests/cli/test_submit.py")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Where the tests are shared out over processes (`make test`): a file stays together, for its fixtures."""
    from xdist.scheduler import LoadFileScheduling

    class Scheduling(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file: str = super()._split_scope(nodeid)
            return "clusters" if file in CLUSTERS else file

    return Scheduling(config, log)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Shared out, the files that take longest go first, for the processes to end together: those that start nodes."""
    if hasattr(config, "workerinput"):
        items.sort(key=lambda item: {"ray", "cluster", "user"}.isdisjoint(item.fixturenames))


@pytest.fixture(scope="session", autouse=True)
def _quiet_home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Prepared stores and tracking of tests stay out of the user's own places; one torch thread; Ctrl-C is heard."""
    import torch

    # A shell that starts the tests in the background has SIGINT ignored, in them and in whatever they start.
    signal.signal(signal.SIGINT, signal.default_int_handler)

    torch.set_num_threads(1)
    before = dict(os.environ)
    os.environ["METADIST_CACHE"] = str(tmp_path_factory.mktemp("cache"))
    os.environ.pop("MLFLOW_TRACKING_URI", None)
    yield
    os.environ.clear()
    os.environ.update(before)


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of public data sets, where there is one."""
    folder = Path(os.environ.get("METADIST_TEST_DATA", REPOSITORY.parent / "shared" / "data"))
    if not (folder / "omniglot.zip").exists():
        pytest.skip(f"no public data sets in {folder}; METADIST_TEST_DATA names another folder")
    return folder


@pytest.fixture(scope="session")
def ray() -> Iterator[object]:
    """The one embedded Ray session of the whole suite: four CPUs of its own counting, two GPUs that Ray is told of."""
    import metadist.distributed  # noqa: F401  sets Ray's environment before it is imported

    os.environ.update(RAY_metrics_report_interval_ms="1000")  # the least; 10 s is the default
    from metadist.distributed.session import ray_session

    with ray_session(None, cpus=4, pretend_gpus=2):
        import ray

        yield ray


@pytest.fixture(scope="session")
def empty_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An MLflow database without a run, to be copied: MLflow takes seconds to make its tables."""
    from metadist.tracking.client import open_client

    database = tmp_path_factory.mktemp("empty") / "mlflow.db"
    open_client(f"sqlite:///{database}").search_experiments()
    return database


@dataclass(frozen=True)
class Outcome:
    """What a command ended with."""

    code: int
    out: str
    err: str

    @property
    def result(self) -> dict[str, Any]:
        """The JSON object that is the last line of stdout."""
        found: dict[str, Any] = json.loads(self.out.splitlines()[-1])
        return found


def metadist(*arguments: str) -> Outcome:
    """Run the command line in this process."""
    from metadist.cli.main import main

    out, err = io.StringIO(), io.StringIO()
    with (
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
        mock.patch.object(sys, "argv", ["metadist", *arguments]),
        pytest.raises(SystemExit) as ended,
    ):
        main()
    return Outcome(int(ended.value.code or 0), out.getvalue(), err.getvalue())


@pytest.fixture(scope="session", name="metadist")
def _metadist() -> Callable[..., Outcome]:
    """The command line, run in this process."""
    return metadist
