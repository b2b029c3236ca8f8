"""The benches of sampling and of memory."""

from __future__ import annotations

import mmap
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from metadist.bench import memory, sampling
from metadist.bench.cases import Case, find_cases
from metadist.bench.engine import implementations
from metadist.tasks import ImageTasks


def test_sampling_is_measured_on_a_store(metadist: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sampling, "CLASSES", 6)
    monkeypatch.setattr(sampling, "IMAGES", 3)
    drawn: list[list[int]] = []
    batch = ImageTasks.batch

    def seen(self: ImageTasks, split: Any, seed: int, indices: range, episode: Any, device: Any) -> Any:
        assert len(self.store.pixels) == 18
        drawn.append(list(indices))
        return batch(self, split, seed, indices, episode, device)

    monkeypatch.setattr(ImageTasks, "batch", seen)
    done = metadist("bench", "sampling", "--seconds", "0.01", "--repeats", "1", "--json")
    assert done.code == 0, done.err
    found = done.result
    assert found["ratio"] == pytest.approx(found["sampled"]["median"] / found["presampled"]["median"])
    # Eight chunks before; then the sampled run draws its own, the first of them not counted.
    assert drawn[:8] == [list(range(8 * chunk, 8 * chunk + 8)) for chunk in range(8)]
    assert len(drawn) >= 10
    assert drawn[8] == drawn[0]


def test_memory_is_measured_in_processes_of_their_own(
    metadist: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def only_the_loop(*arguments: Any) -> Any:  # a process is slow to start
        ours, runs = implementations(*arguments)
        return ours[:1], {ours[0]: runs[ours[0]]}

    monkeypatch.setattr(memory, "implementations", only_the_loop)
    monkeypatch.setattr(memory, "REMAT", ("loop",))
    monkeypatch.setattr(memory, "absent_peers", lambda: {"torchopt": "not here", "higher": "not here"})
    done = metadist("bench", "memory", "--case", "E5", "--steps", "2", "--json")
    assert done.code == 0, done.err
    peaks = done.result["peaks"]
    assert [peak["implementation"] for peak in peaks] == ["loop, chunk 8", "loop, chunk 8, remat"]
    for peak in peaks:
        assert (peak["steps"], peak["tasks"]) == (2, 8)
        assert peak["seconds"] > 0
        assert 0 <= peak["peak_mb"] < 200 < peak["baseline_mb"]
    assert "torchopt is absent: not here" in done.err


def test_a_peak_is_the_most_that_was_held(monkeypatch: pytest.MonkeyPatch) -> None:
    def hold(case: Case, steps: int, tasks: int) -> dict[str, Callable[[], object]]:
        def run() -> None:
            for millions in (steps * 8, 8):
                held = mmap.mmap(-1, millions * 4_000_000)  # what malloc holds depends on what it held before
                for _ in range(millions * 4):
                    held.write(b"1" * 1_000_000)
                held.close()

        return {"any": run}

    monkeypatch.setattr(memory, "_runs", hold)
    peak = memory.measure_peak(find_cases("B")[0], 3, "any")
    assert peak.peak_mb == pytest.approx(96, abs=8)


def test_a_failed_measurement_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\necho no memory for $4 >&2\nexit 1\n")
    python.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(python))
    with pytest.raises(RuntimeError, match=r"measuring loop with 5 steps failed:\nno memory for 5"):
        memory._in_new_process(find_cases("B")[0], 5, "loop")
