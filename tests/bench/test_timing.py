"""Rates, with a clock that is told what time it is."""

from __future__ import annotations

import pytest
import torch

from metadist.bench import timing
from metadist.bench.timing import Rate, alternate, ratio


def test_runs_take_turns_and_each_is_repeated_for_its_time(monkeypatch: pytest.MonkeyPatch) -> None:
    now, calls = [0.0], []

    def run(name: str, seconds: float) -> None:
        calls.append(name)
        now[0] += seconds

    monkeypatch.setattr(timing, "clock", lambda device: now[0])
    runs = {"quick": lambda: run("quick", 0.25), "slow": lambda: run("slow", 2.0)}
    rates = alternate(runs, units=3, seconds=0.5, repeats=2, device=torch.device("cpu"))
    assert calls == ["quick", "slow", *["quick", "quick", "slow"] * 2]  # one of each does not count
    assert rates == {"quick": [12.0, 12.0], "slow": [1.5, 1.5]}


def test_figures_are_medians() -> None:
    assert Rate.of([3.0, 1.0, 9.0]) == Rate(3.0, 1.0, 9.0)
    assert ratio([2.0, 30.0, 8.0], [1.0, 10.0, 8.0]) == 2.0  # round by round: 2, 3, 1
