"""Checks are findings whatever becomes of them, and in bounded time."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

from metadist.distributed.diagnosis import Finding, examine
from metadist.errors import UserError

WELL = Finding("well", "ok", "as it should be")


def several() -> Iterator[Finding]:
    yield WELL
    yield Finding("so so", "warning", "less", "more")


def broken() -> Finding:
    raise RuntimeError("first line\nsecond line")


def mistaken() -> Iterator[Finding]:
    yield WELL
    raise UserError("storage", "/x", "a place", "Name another.")


def test_findings_come_in_order_and_failures_are_findings() -> None:
    checks = [("one", lambda: WELL), ("two", several), ("three", broken), ("four", mistaken)]
    assert list(examine(checks)) == [
        WELL,
        WELL,
        Finding("so so", "warning", "less", "more"),
        Finding("three", "problem", "RuntimeError: first line", "The check itself failed."),
        WELL,
        Finding("four", "problem", "storage: /x", "Expected a place. Name another."),
    ]


def test_a_check_that_hangs_is_given_up() -> None:
    never, begun = threading.Event(), threading.Event()

    def hang() -> Finding:
        begun.set()
        never.wait(60)
        return WELL

    start = time.monotonic()
    found = list(examine([("stuck", hang), ("next", lambda: WELL)], each=0.2))
    assert time.monotonic() - start < 10
    assert begun.is_set()
    assert [(one.name, one.state) for one in found] == [("stuck", "problem"), ("well", "ok")]
    found = list(examine([("stuck", hang), ("next", lambda: WELL)], each=5, total=0.2))
    assert [(one.name, one.state) for one in found] == [("stuck", "problem"), ("next", "problem")]
    assert found[1].found.startswith("not looked at")
    never.set()
