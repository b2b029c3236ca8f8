"""Which operations the layers are made of: it depends on who differentiates them, and over how many tasks.

The results are the same up to rounding.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Literal

import torch
from torch import Tensor

#: `torch`: torch's own layers, for plain autograd; `plain`: elementary operations, whose second derivatives
#: `torch.func.vmap` gets right; `folded`: many tasks as one, see `fold`
Operations = Literal["torch", "plain", "folded"]

_operations: ContextVar[Operations] = ContextVar("operations", default="torch")


def operations() -> Operations:
    """The operations to use here."""
    return _operations.get()


@contextmanager
def using_operations(which: Operations) -> Iterator[None]:
    """Within, layers use these operations."""
    token = _operations.set(which)
    try:
        yield
    finally:
        _operations.reset(token)


def autocast(*tensors: Tensor) -> tuple[Tensor, ...]:
    """Tensors in the precision that `torch.autocast` has for them here, which our own operations have to ask for."""
    kind = tensors[0].device.type
    if not torch.is_autocast_enabled(kind):
        return tensors
    lower = torch.get_autocast_dtype(kind)
    return tuple(value if value.dtype == torch.float64 else value.to(lower) for value in tensors)


def fold(x: Tensor, axis: int | None, tasks: int) -> Tensor:
    """[rows, channels, …] of T tasks at dimension `axis` (`None`: the same for all) as [rows, T · channels, …].

    Where memory goes channels last, so that the tasks' channels lie side by side, nothing is copied.
    """
    batched = x.expand(tasks, *x.shape) if axis is None else x.movedim(axis, 0)
    return batched.transpose(0, 1).flatten(1, 2)


def stack(x: Tensor, axis: int | None, tasks: int) -> Tensor:
    """[channels, …] of `tasks` tasks at dimension `axis` (`None`: the same for all) as [tasks · channels, …]."""
    batched = x.expand(tasks, *x.shape) if axis is None else x.movedim(axis, 0)
    return batched.flatten(0, 1)
