"""The runtime without Ray: one worker and the server in this process. The oracle for every other runtime."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from metadist.errors import UserError
from metadist.outer import Experiment, Update
from metadist.training.machine import fingerprint
from metadist.training.run_folder import RunFolder
from metadist.training.seams import Done, Event, Exhausted, Joined, ParameterServer, PoolError, Ref, Voided, WorkerPool
from metadist.training.server import Server
from metadist.training.work import OutOfMemory, Work, Worker


@dataclass
class Box:
    """A ref of this runtime: empty until its value exists."""

    value: Any = None


class InProcessPool(WorkerPool):
    """Does work when the loop waits for it.

    Args:
        workers: how many there seem to be; they take turns.
    """

    def __init__(self, experiment: Experiment, device: torch.device, workers: int = 1) -> None:
        self._worker = Worker(experiment, device)
        self._queue: deque[tuple[int, int, Work, Box, Box]] = deque()
        self._joined: list[Event] = [Joined(number, fingerprint(device)) for number in range(workers)]

    def submit(self, worker: int, ticket: int, work: Work, version: Ref) -> Ref:
        payload = Box()
        self._queue.append((worker, ticket, work, version, payload))
        return payload

    def withdraw(self, worker: int, ticket: int) -> None:
        self._queue = deque(order for order in self._queue if order[1] != ticket)

    def wait(self, timeout: float) -> list[Event]:
        if self._joined:
            joined, self._joined = self._joined, []
            return joined
        if not self._queue:
            raise TimeoutError("no worker has any work")
        worker, ticket, work, version, payload = self._queue.popleft()
        if version.value is None:  # of a step that was not taken
            return [Voided(worker, ticket)]
        try:
            payload.value, report = self._worker.run(work, version.value)
        except OutOfMemory as error:
            return [Exhausted(worker, ticket, str(error))]
        except UserError:  # found by the check before the first step
            raise
        except Exception as error:
            raise PoolError(f"worker {worker} failed: {error!r}") from error
        return [Done(worker, ticket, report)]

    def close(self) -> None:
        self._queue.clear()


class InProcessServer(ParameterServer):
    """The server in this process; a step is taken when its outcome is asked for."""

    def __init__(self, experiment: Experiment) -> None:
        self._server = Server(experiment)
        self._ordered: dict[tuple[int, int], tuple[Sequence[Box], Box]] = {}

    def start(self, folder: RunFolder | None, checkpoint: str | None) -> Ref:
        return Box(self._server.start(folder, checkpoint)[0])

    def apply(self, version: int, payloads: Sequence[Ref], phase: int = 0) -> Ref:
        following = Box()
        self._ordered[version, phase] = (payloads, following)
        return following

    def outcome(self, version: int, phase: int = 0) -> Update:
        payloads, following = self._ordered.pop((version, phase))
        following.value, update, _ = self._server.apply(version, [box.value for box in payloads], phase)
        return update

    def recover(self) -> Ref:
        return Box(self._server.restore(self._server.state))

    def save(self, folder: RunFolder, version: int, identity: str, progress: dict[str, Any]) -> str:
        return self._server.save(folder, version, identity, progress)

    def read(self, folder: RunFolder, checkpoint: str) -> Ref:
        return Box(self._server.read(folder, checkpoint))

    def judged(self, version: int) -> Ref:
        return Box(self._server.judged(version))

    def close(self) -> None:
        self._ordered.clear()
