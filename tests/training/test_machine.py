"""What a process loads before it works."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

SCRIPT = """
import sys
import torch
from metadist.outer import OptimizerConfig
from metadist.outer.optimizer import optimizer_step
from metadist.training.machine import leave_compiler_out

leave_compiler_out()
before = set(sys.modules)
torch.func.vmap(torch.func.grad(lambda w: (w * w).sum()))(torch.ones(2, 3))
weights = {"w": torch.ones(3)}
optimizer_step(OptimizerConfig(), 1, 0, weights, weights, {})
print(len(set(sys.modules) - before))
"""

COMPILER = """
import torch
from metadist.training.machine import leave_compiler_out

leave_compiler_out()
{asked}
assert torch.compile(lambda x: x + 1, backend="eager")(torch.ones(1)).item() == 2
import torch._dynamo
leave_compiler_out()
assert torch._dynamo is __import__("sys").modules["torch._dynamo"]
assert torch.func.grad(lambda w: w * w)(torch.tensor(3.0)).item() == 6
"""

FAULTS = """
import resource
import sys
import torch
from metadist.training.machine import keep_freed_memory

kept = keep_freed_memory() if sys.argv[1] == "kept" else None
for _ in range(20):
    torch.ones(2**24)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(20):
    torch.ones(2**24)
print(kept, resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def test_freed_memory_is_used_again_without_page_faults() -> None:
    """Twenty tensors of 64 MB, one after the other: 4 kB a page, or 2 MB where the system gives huge ones."""
    if platform.libc_ver()[0] != "glibc":
        pytest.skip("the C library is not glibc")

    def faults(how: str) -> tuple[str, int]:
        command = [sys.executable, "-c", FAULTS, how]
        kept, count = subprocess.run(command, check=True, capture_output=True, text=True, timeout=120).stdout.split()
        return kept, int(count)

    assert faults("given back")[1] >= 20 * 32
    kept, count = faults("kept")
    assert kept == "True"
    assert count < 5 * 32


def run(script: str) -> str:
    command = [sys.executable, "-c", script]
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=120).stdout


def test_the_first_step_imports_hardly_anything() -> None:
    assert int(run(SCRIPT)) < 20  # with torch's compiler some 900


@pytest.mark.parametrize(
    "asked",
    [
        "",
        "assert torch._dynamo.is_compiling() is False",
        "assert torch._dynamo.compiled_autograd.in_compiled_autograd_region is False",
    ],
)
def test_the_compiler_is_there_for_who_asks(asked: str) -> None:
    run(COMPILER.format(asked=asked))
