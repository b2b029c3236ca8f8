"""What a process loads before it works."""

from __future__ import annotations

import subprocess
import sys

SCRIPT = """
import sys
import torch
from metadist.outer import OptimizerConfig
from metadist.outer.optimizer import optimizer_step
from metadist.training.machine import load_torch_extras

load_torch_extras()
before = set(sys.modules)
torch.func.vmap(torch.func.grad(lambda w: (w * w).sum()))(torch.ones(2, 3))
weights = {"w": torch.ones(3)}
optimizer_step(OptimizerConfig(), 1, 0, weights, weights, {})
print(len(set(sys.modules) - before))
"""


def test_warming_up_leaves_hardly_anything_to_load_for_the_first_step() -> None:
    command = [sys.executable, "-c", SCRIPT]
    left = int(subprocess.run(command, check=True, capture_output=True, text=True, timeout=120).stdout)
    assert left < 20  # without it some 900
