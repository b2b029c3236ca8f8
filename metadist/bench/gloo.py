"""The same step without metadist and Ray: plain processes, an all-reduce of the gradient, an outer step in each."""

from __future__ import annotations

import datetime
import math
import multiprocessing
import os
import tempfile
import time
from pathlib import Path

import torch

#: seconds within which the processes must have found each other, and any all-reduce must end
DEADLINE = 120.0
#: steps that do not count
WARM = 5


def measure_gloo(values: int, workers: int, steps: int) -> list[float]:
    """Seconds of each of so many steps: `torch.distributed` with gloo over one flat gradient, then torch's Adam.

    Raises:
        RuntimeError: a process failed, or took too long.
    """
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    with tempfile.TemporaryDirectory(prefix="metadist-bench-") as folder:
        members = [
            context.Process(target=_member, args=(rank, workers, str(Path(folder) / "meet"), values, steps, sender))
            for rank in range(workers)
        ]
        try:
            for member in members:
                member.start()
            if not receiver.poll(2 * DEADLINE):
                raise RuntimeError(f"gloo: {workers} processes took more than {2 * DEADLINE:g} s")
            seconds: list[float] = receiver.recv()
            for member in members:
                member.join(DEADLINE)
        finally:
            for member in members:
                if member.is_alive():
                    member.kill()
    if not seconds:
        raise RuntimeError("gloo: a process failed; what it said is above")
    return seconds


def _member(rank: int, workers: int, meeting: str, values: int, steps: int, sender: object) -> None:
    """One of the processes; the first sends its times, and every one that fails sends none."""
    seconds: list[float] = []
    try:
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
        torch.set_num_threads(1)
        timeout = datetime.timedelta(seconds=DEADLINE)
        torch.distributed.init_process_group(
            "gloo", init_method=f"file://{meeting}", rank=rank, world_size=workers, timeout=timeout
        )
        parameters = torch.zeros(values, requires_grad=True)
        optimizer = torch.optim.Adam([parameters], lr=1e-3)
        for _ in range(WARM + steps):
            began = time.perf_counter()
            parameters.grad = torch.full((values,), 1e-3) if parameters.grad is None else parameters.grad
            torch.distributed.all_reduce(parameters.grad)
            optimizer.step()
            seconds.append(time.perf_counter() - began)
        torch.distributed.destroy_process_group()
    except BaseException:
        sender.send([])  # type: ignore[attr-defined]
        raise
    assert all(math.isfinite(value) for value in seconds)
    if rank == 0:
        sender.send(seconds[WARM:])  # type: ignore[attr-defined]
