"""What of a machine can change bits: threads, hardware, library versions."""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import os
import platform
import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any

import numpy as np
import torch


def set_threads(threads: int) -> None:
    """Fix torch's threads. Call it before torch is used: one thread against two changes bits."""
    torch.set_num_threads(threads)


def keep_freed_memory() -> bool:
    """Have the C library keep freed memory for the next tensors instead of giving it back; whether it does.

    glibc returns large blocks to the system as soon as they are free, and a chunk frees and takes the same blocks
    thousands of times: up to two thirds of a vectorised chunk's time went to page faults. What a process once needed
    it now holds. Nothing where the C library is another one.
    """
    trim_threshold, top_pad, mmap_threshold = -1, -2, -3  # names of mallopt(3)
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError):
        return False
    settings = {mmap_threshold: 2**30, trim_threshold: 2**31 - 1, top_pad: 2**26}
    taken = [mallopt(name, value) for name, value in settings.items()]
    return all(taken)


class _Later:
    """Stands for a module that is not imported before something of it is wanted, but for what is given here."""

    def __init__(self, load: Callable[[], ModuleType], **given: object) -> None:
        self.__dict__.update(given, _load=load)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._load(), name)


def leave_compiler_out() -> None:
    """Keep `torch.func.grad` from importing torch's compiler, 900 modules in 1.6 s, of which it needs nothing.

    It only keeps compiled autograd away, which is off as long as nobody has imported the compiler. `import
    torch._dynamo`, by `torch.compile` for one, puts the compiler in its place.
    """
    if "torch._dynamo" not in sys.modules:
        autograd = _Later(
            lambda: importlib.import_module("torch._dynamo.compiled_autograd"), _disable=contextlib.nullcontext
        )
        compiler = _Later(lambda: importlib.import_module("torch._dynamo"), compiled_autograd=autograd)
        torch._dynamo = compiler  # type: ignore[assignment]


def make_deterministic(device: torch.device) -> None:
    """On CUDA: deterministic algorithms, fixed cuBLAS workspace, no TF32."""
    if device.type == "cuda":
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True)
        torch.backends.cuda.matmul.allow_tf32 = False
        torch.backends.cudnn.allow_tf32 = False
        torch.backends.cudnn.benchmark = False


def pick_device(gpus: float) -> torch.device:
    """The device that a worker adapts on: the first GPU it was given, or the CPU."""
    return torch.device("cuda" if gpus and torch.cuda.is_available() else "cpu")


def fingerprint(device: torch.device) -> dict[str, str]:
    """What must be equal on every worker of a run for its bits to be the same."""
    return {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else cpu_name(),
        "capability": torch.backends.cpu.get_cpu_capability(),
        "threads": str(torch.get_num_threads()),
        "mkl_cbwr": os.environ.get("MKL_CBWR", ""),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
    }


def cpu_name() -> str:
    """The processor's model, as the system names it."""
    try:
        with open("/proc/cpuinfo") as info:
            for line in info:
                if line.startswith("model name"):
                    return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
