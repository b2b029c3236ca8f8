"""Peak memory of one meta-gradient by the number of inner steps, each in a process of its own.

Measured is the process's resident memory as Linux counts it (`VmHWM` and `VmRSS` of `/proc/self/status`): all that
torch, its libraries and Python hold, on the CPU. The baseline is what the process holds once the net and the tasks are
there and one task was adapted to in one step, so that libraries are loaded and have made their own buffers.
"""

from __future__ import annotations

import copy
import ctypes
import gc
import json
import statistics
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, get_args

import torch

from metadist.bench.cases import CASES, JOB_CHUNK, Case, build_setting
from metadist.bench.engine import implementations, our_run, ours_name
from metadist.bench.peers import absent_peers
from metadist.bench.timing import alternate
from metadist.errors import UserError
from metadist.outer import Strategy
from metadist.training.machine import keep_freed_memory, set_threads

CPU = torch.device("cpu")

#: how often the time is taken
TIMES = 3

#: seconds that one measurement may take
TIMEOUT = 600.0

#: strategies that take steps again
REMAT: tuple[Strategy, ...] = get_args(Strategy)

STATUS = Path("/proc/self/status")


@dataclass(frozen=True)
class Peak:
    """Peak memory of one implementation.

    Attributes:
        steps: inner steps.
        tasks: tasks of the chunk that was computed.
        peak_mb: most resident memory above the baseline, in units of 10^6 bytes.
        baseline_mb: resident memory before.
        seconds: processor time of the chunk, once more: the median of `TIMES`.
    """

    implementation: str
    steps: int
    tasks: int
    peak_mb: float
    baseline_mb: float
    seconds: float


def measure_memory(case: Case, steps: Sequence[int], show: Callable[[Peak], None]) -> dict[str, Any]:
    """Measure every implementation at each number of inner steps, on one chunk of the job's size.

    Args:
        show: called with each peak as soon as it is there.

    Raises:
        UserError: this system does not count as Linux does, or a number of steps is below 1.
    """
    if not STATUS.exists():
        raise UserError("metadist bench memory", sys.platform, f"a system with {STATUS} (Linux)")
    for number in steps:
        if number < 1:
            raise UserError("--steps", number, "whole numbers of at least 1")
    absent = absent_peers()
    names = list(_runs(case, 1, 1))
    peaks = []
    for number in steps:
        for name in names:
            peak = _in_new_process(case, number, name)
            show(peak)
            peaks.append(asdict(peak))
    about = {"case": case.name, "torch": torch.__version__, "measure": "VmHWM above VmRSS before, 10^6 bytes"}
    return about | {"peaks": peaks, "absent": absent}


def _in_new_process(case: Case, steps: int, name: str) -> Peak:
    command = [sys.executable, "-m", "metadist.bench.memory", case.name, str(steps), name]
    done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT)
    if done.returncode:
        raise RuntimeError(f"measuring {name} with {steps} steps failed:\n{done.stderr[-2000:]}")
    return Peak(**json.loads(done.stdout.splitlines()[-1]))


def measure_peak(case: Case, steps: int, name: str) -> Peak:
    """The peak of one implementation in this process, which must not have computed anything before."""
    set_threads(1)
    _runs(case, 1, 1)[name]()
    run = _runs(case, steps, JOB_CHUNK)[name]
    _give_back()
    baseline = _resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # starts the high-water mark anew
    run()
    peak = (_resident("VmHWM") - baseline) / 1e6
    keep_freed_memory()  # as in training; it would hide the peak
    rates = alternate({name: run}, units=1, seconds=0.0, repeats=TIMES, device=CPU)[name]
    return Peak(name, steps, JOB_CHUNK, peak, baseline / 1e6, 1 / statistics.median(rates))


def _give_back() -> None:
    """Free memory goes back to the system, or what is taken next might not show."""
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc has it
    if trim is not None:
        trim(0)


def _runs(case: Case, steps: int, tasks: int) -> dict[str, Callable[[], object]]:
    """All implementations by name, ours with inner steps that are taken again (`learner.remat`) among them."""
    setting = build_setting(_chunk(case, steps, tasks), CPU)
    ours, runs = implementations(setting, (JOB_CHUNK,), absent_peers())
    again = setting._replace(learner=copy.copy(setting.learner))
    again.learner.remat = True
    taken: dict[str, Callable[[], object]] = {
        f"{ours_name(strategy, JOB_CHUNK)}, remat": our_run(again, strategy, JOB_CHUNK) for strategy in REMAT
    }
    return {name: runs[name] for name in ours} | taken | {name: runs[name] for name in runs if name not in ours}


def _chunk(case: Case, steps: int, tasks: int) -> Case:
    return replace(case, learner=replace(case.learner, inner_steps=steps), tasks=tasks)


def _resident(field: str) -> int:
    """A field of the process's status, in bytes."""
    for line in STATUS.read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"{STATUS} has no {field}")


if __name__ == "__main__":
    given = next(case for case in CASES if case.name == sys.argv[1])
    sys.stdout.write(json.dumps(asdict(measure_peak(given, int(sys.argv[2]), sys.argv[3]))) + "\n")
