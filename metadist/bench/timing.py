"""Rates of several ways to do the same work, taken in turns so that a machine's moods meet all alike."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from metadist.errors import UserError
from metadist.training.machine import cpu_name

#: how long each way is measured in a round, and how many rounds there are, where nobody says otherwise
SECONDS, REPEATS = 1.0, 5


@dataclass(frozen=True)
class Rate:
    """Units of work per second over the rounds: median, least and most."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, rates: Sequence[float]) -> Rate:
        """The summary of one rate per round."""
        return cls(statistics.median(rates), min(rates), max(rates))


def check_rounds(seconds: float, repeats: int) -> None:
    """Raise `UserError` unless there is something to measure."""
    if not 0 < seconds < float("inf"):
        raise UserError("--seconds", seconds, "a number above 0")
    if repeats < 1:
        raise UserError("--repeats", repeats, "a whole number of at least 1")


def conditions(device: torch.device, seconds: float, repeats: int) -> dict[str, Any]:
    """What the figures depend on."""
    hardware = cpu_name() if device.type == "cpu" else torch.cuda.get_device_name(device)
    return {
        "torch": torch.__version__,
        "device": device.type,
        "hardware": hardware,
        "threads": torch.get_num_threads(),
        "seconds": seconds,
        "repeats": repeats,
    }


def alternate(
    runs: Mapping[str, Callable[[], object]], units: int, seconds: float, repeats: int, device: torch.device
) -> dict[str, list[float]]:
    """Units of work per second of each run in each round, after one run of each that is not counted.

    On a CPU these are seconds of this process's processor time, in which waiting for a core that others use does
    not count; on an accelerator, of time.

    Args:
        runs: each does `units` units of work when called.
        seconds: how long each is repeated in a round, at least once.
        repeats: number of rounds; in each, all take their turn.
    """
    rates: dict[str, list[float]] = {name: [] for name in runs}
    for run in runs.values():
        run()
    for _ in range(repeats):
        for name, run in runs.items():
            done, start = 0, clock(device)
            while (took := clock(device) - start) < seconds or not done:
                run()
                done += units
            rates[name].append(done / took)
    return rates


def clock(device: torch.device) -> float:
    """Seconds from some start: processor time for a CPU; time, once all queued work is done, for an accelerator."""
    if device.type == "cpu":
        return time.process_time()
    torch.cuda.synchronize(device)
    return time.perf_counter()


def ratio(rates: Sequence[float], reference: Sequence[float]) -> float:
    """Median of the ratios of two runs' rates, round by round."""
    return statistics.median(a / b for a, b in zip(rates, reference, strict=True))


@dataclass(frozen=True)
class Milliseconds:
    """Times of one thing that was done again and again: median, least and most."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, seconds: Sequence[float]) -> Milliseconds:
        """The summary of some times in seconds."""
        return cls(1e3 * statistics.median(seconds), 1e3 * min(seconds), 1e3 * max(seconds))
