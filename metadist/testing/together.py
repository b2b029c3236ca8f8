"""Processes that add their tensors up, as threads of this one: the oracle for data-parallel work."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from metadist.training.pretraining import Share

#: seconds that one waits for the other
PATIENCE = 60.0


class Pair:
    """Two of them. A sum of two numbers is the same in either order, so that the bits are those of any all-reduce."""

    def __init__(self) -> None:
        self._barrier = threading.Barrier(2, timeout=PATIENCE)
        self._given: list[Tensor] = []

    def _add_up(self, tensor: Tensor) -> None:
        self._given.append(tensor.clone())
        self._barrier.wait()
        total = self._given[0] + self._given[1]
        if self._barrier.wait() == 0:
            self._given.clear()
        self._barrier.wait()
        tensor.copy_(total)

    def run(self, work: Callable[[Share], Any]) -> list[Any]:
        """What `work` returns for the first and for the second of them; it must build modules of its own for each."""
        found: list[Any] = [None, None]

        def one(rank: int) -> None:
            torch.set_num_threads(1)
            found[rank] = work(Share(rank, 2, self._add_up))

        threads = [threading.Thread(target=one, args=(rank,), daemon=True) for rank in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(PATIENCE)
        return found
