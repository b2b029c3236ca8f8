"""Peak memory of one meta-gradient by the number of inner steps, each in a process of its own.

Measured is the process's resident memory as Linux counts it (`VmHWM` and `VmRSS` of `/proc/self/status`): all that
torch, its libraries and Python hold, on the CPU. The baseline is what the process holds once the net and the tasks are
there and one task was adapted to in one step, so that libraries are loaded and have made their own buffers.
"""

from __future__ import annotations

import ctypes
import gc
import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from metadist.bench.cases import CASES, JOB_CHUNK, Case, build_setting
from metadist.bench.engine import implementations
from metadist.bench.peers import absent_peers
from metadist.errors import UserError
from metadist.training.machine import set_threads

CPU = torch.device("cpu")

#: seconds that one measurement may take
TIMEOUT = 600.0

STATUS = Path("/proc/self/status")


@dataclass(frozen=True)
class Peak:
    """Peak memory of one implementation.

    Attributes:
        steps: inner steps.
        tasks: tasks of the chunk that was computed.
        peak_mb: most resident memory above the baseline, in units of 10^6 bytes.
        baseline_mb: resident memory before.
    """

    implementation: str
    steps: int
    tasks: int
    peak_mb: float
    baseline_mb: float


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
    _, runs = implementations(build_setting(_chunk(case, 1, 1), CPU), (JOB_CHUNK,), absent)
    peaks = []
    for number in steps:
        for name in runs:
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
    _run(case, 1, 1, name)()
    run = _run(case, steps, JOB_CHUNK, name)
    _give_back()
    baseline = _resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # starts the high-water mark anew
    run()
    return Peak(name, steps, JOB_CHUNK, (_resident("VmHWM") - baseline) / 1e6, baseline / 1e6)


def _give_back() -> None:
    """Free memory goes back to the system, or what is taken next might not show."""
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc has it
    if trim is not None:
        trim(0)


def _run(case: Case, steps: int, tasks: int, name: str) -> Callable[[], object]:
    setting = build_setting(_chunk(case, steps, tasks), CPU)
    return implementations(setting, (JOB_CHUNK,), absent_peers())[1][name]


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
