"""What a run shows where stderr is no terminal."""

from __future__ import annotations

import pytest

from metadist.cli import display
from metadist.cli.display import Display


def test_tests_tell_how_far_they_are(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Every five seconds, and afresh in a second test."""
    now = 100.0
    monkeypatch.setattr(display.time, "monotonic", lambda: now)
    with Display(10, 4) as shown:
        for number in range(10):
            now += 2.0
            shown.testing((number + 1) / 10)
        now += 90.0
        for share in (0.5, 1.0):
            now += 6.0
            shown.testing(share)
    assert capsys.readouterr().err.splitlines() == [
        "testing 40%  left 0:09",
        "testing 70%  left 0:05",
        "testing 100%  left 0:00",
        "testing 100%  left 0:00",
    ]
