"""No learner keeps anything of the steps that it has taken."""

from __future__ import annotations

import ctypes
import gc
from typing import Any

import pytest
import torch
from torch import Tensor

from metadist.bench.line import new_dispatcher, start_line
from metadist.learners import Maml
from metadist.outer import Experiment, Strategy, choose_strategy
from metadist.training.inprocess import InProcessPool, InProcessServer
from tests.training.test_every_learner import TRAINED, content, experiment

CPU = torch.device("cpu")
ARENA = "arena ordblks smblks hblks hblkhd usmblks fsmblks uordblks fordblks keepcost"
mallinfo = getattr(ctypes.CDLL(None), "mallinfo2", None)
#: steps after which everything is there that stays, and steps after those
WARM, STEPS = 60, 200
#: bytes that 200 steps may leave behind: the learners leave a few thousand, and kept graphs would be megabytes
ROOM = 200_000

pytestmark = pytest.mark.skipif(
    mallinfo is None, reason="this C library does not count what is allocated as glibc does"
)


class Mallinfo(ctypes.Structure):
    """mallinfo2(3)"""

    _fields_ = [(name, ctypes.c_size_t) for name in ARENA.split()]


def in_use() -> int:
    """Bytes that are allocated, of the heap and outside it: not those that are free, and that a process keeps."""
    gc.collect()
    mallinfo.restype = Mallinfo
    found = mallinfo()
    return int(found.uordblks + found.hblkhd)


def tensors() -> int:
    return sum(issubclass(type(each), Tensor) for each in gc.get_objects())


def growth(made: Experiment, strategy: Strategy) -> tuple[int, int]:
    """Bytes and tensors that there are more of after 200 steps.

    What is allocated once, a table of Python's that doubles, say, is no step's: too much is looked at again.
    """
    line = start_line(made, new_dispatcher(InProcessPool(made, CPU)), InProcessServer(made), 1, strategy)
    line.take(WARM)
    for _ in range(2):
        bytes_before, tensors_before = in_use(), tensors()
        assert len(line.take(STEPS)) == STEPS
        found = in_use() - bytes_before, tensors() - tensors_before
        if found[0] < ROOM:
            break
    return found


def small(kind: str) -> Experiment:
    tasks = content(kind)["tasks"] | {"query": 2, "batch": 2, "chunk": 2}
    steps = 2 * (WARM + STEPS)  # more than are taken: versions after a run's last step would be averaged
    return experiment(kind, steps=steps, tasks=tasks)


@pytest.mark.parametrize("kind", TRAINED)
def test_memory_is_flat_over_200_steps(kind: str) -> None:
    made = small(kind)
    more, held = growth(made, choose_strategy(made.learner, CPU)[0])
    assert more < ROOM
    assert held == 0


def test_graphs_that_are_kept_are_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    kept: list[Tensor] = []
    plain = Maml.task_loss

    def keeping(self: Maml, meta: Any, task: Any) -> Any:
        outcome = plain(self, meta, task)
        kept.append(outcome.loss)
        return outcome

    monkeypatch.setattr(Maml, "task_loss", keeping)
    more, held = growth(small("maml"), "loop")
    assert more > 10 * ROOM
    assert held >= 200
