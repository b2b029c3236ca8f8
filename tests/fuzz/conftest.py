"""How many cases are tried, each watched lest it hang; and a small job."""

from __future__ import annotations

import contextlib
import resource
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis.strategies import SearchStrategy

from metadist.data import prepare

#: cases of each property, in `make test` and in `make test-all`
CASES = [60, pytest.param(1500, marks=pytest.mark.slow)]
#: seconds of processor time, and of any time, after which a case counts as hanging
COMPUTES, WAITS = 20, 300
#: bytes that a case may take beside what the process has: what asks for more is refused, as on a smaller machine
MEMORY = 4 << 30

SPLIT = {"train": [0, 1, 2, 3], "valid": [4, 5], "test": [6, 7, 8, 9], "seed": 0}
TASKS = {"kind": "images", "ways": 2, "shots": 1, "query": 2, "batch": 4, "chunk": 2}


class Hanging(BaseException):
    """Raised where a case takes too long; nothing in the product catches it."""


@contextlib.contextmanager
def watched() -> Iterator[None]:
    def end(number: int, frame: FrameType | None) -> None:
        raise Hanging(f"more than {COMPUTES} s of computing, or {WAITS} s of waiting")

    timers = {signal.SIGPROF: (signal.ITIMER_PROF, COMPUTES), signal.SIGALRM: (signal.ITIMER_REAL, WAITS)}
    before = {number: signal.signal(number, end) for number in timers}
    limits = resource.getrlimit(resource.RLIMIT_AS)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, limits[1]))
    for timer, seconds in timers.values():
        signal.setitimer(timer, seconds)
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, limits)
        for number, (timer, _) in timers.items():
            signal.setitimer(timer, 0)
            signal.signal(number, before[number])


@pytest.fixture(params=CASES)
def search(request: pytest.FixtureRequest) -> Callable[..., None]:
    """Try a property on cases that are always the same."""

    def run(cases: SearchStrategy[Any], holds: Callable[[Any], None]) -> None:
        @settings(
            max_examples=request.param,
            deadline=None,
            derandomize=True,
            database=None,
            suppress_health_check=list(HealthCheck),
        )
        @given(cases)
        def tried(case: Any) -> None:
            with watched():
                holds(case)

        tried()

    return run


@pytest.fixture(scope="session")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store of handwritten digits."""
    store = tmp_path_factory.mktemp("fuzz") / "store"
    prepare("sklearn:digits", store)
    return store


@pytest.fixture(scope="session")
def small(digits: Path) -> dict[str, Any]:
    """The content of a job on it that takes a second."""
    return {
        "name": "small",
        "steps": 2,
        "runtime": "inprocess",
        "data": {"source": str(digits), "split": SPLIT},
        "tasks": TASKS,
        "model": {"kind": "conv4", "width": 4, "layers": 2, "pool": False},
        "learner": {"kind": "maml", "inner_lr": 0.1, "inner_steps": 1, "eval_steps": 1},
        "evaluation": {"every": 1, "tasks": 4, "test_tasks": 4, "query": 2},
        "checkpoint": {"every": 1},
        "tracking": {"uri": "none"},
    }


@pytest.fixture(scope="session")
def whole(small: dict[str, Any], metadist: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of two steps."""
    folder = tmp_path_factory.mktemp("whole")
    (folder / "job.yaml").write_text(yaml.safe_dump(small))
    ended = metadist("train", str(folder / "job.yaml"), "--storage", str(folder), "--run", "run")
    assert ended.code == 0, ended.err
    return folder / "run"
