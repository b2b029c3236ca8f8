"""A pool and a server in one process that go wrong on purpose, at a named chunk of a named step.

They behave as actors do: workers finish in an order of their own, and the server takes a step by itself as soon as
its payloads are there. Nothing depends on time: the order follows from a seed.
"""

from __future__ import annotations

import math
import random
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
import torch

from metadist.outer import ChunkReport, Experiment, OuterState, Payload, Published, Update
from metadist.training.machine import fingerprint
from metadist.training.run_folder import RunFolder
from metadist.training.seams import (
    Done,
    Event,
    Exhausted,
    Joined,
    Lost,
    ParameterServer,
    PayloadLost,
    PoolError,
    Ref,
    ServerLost,
    Voided,
    WorkerPool,
)
from metadist.training.server import Server
from metadist.training.work import GradientWork, Work, Worker

CPU = torch.device("cpu")


@dataclass
class Fault:
    """What goes wrong, and where.

    Attributes:
        kind: `kill`: the worker that takes up the chunk dies; `kill_after`: it dies when its payload was sent and its
            report was not; `void`: the chunk's version is gone; `lose_payload`: the chunk's payload is gone;
            `nan`: the chunk's sums are NaN; `drift`: they are not quite what they should be; `stall`: no worker does
            anything any more; `hang`: the worker that takes up the chunk does nothing for `lasts`; `exhaust`: it has
            not enough memory for the chunk; `lose_server`: the server is gone when the outcome of the step is asked
            for.
        version: version that the step starts from.
        times: strikes that are left.
        struck: strikes that have happened.
        lasts: how long a worker hangs; a piece of work takes 1.
    """

    kind: Literal[
        "kill", "kill_after", "void", "lose_payload", "nan", "drift", "stall", "hang", "exhaust", "lose_server"
    ]
    version: int
    chunk: int = 0
    times: int = 1
    struck: int = 0
    lasts: float = math.inf


@dataclass(eq=False)
class FakeRef:
    """A value that is still to come, is there, or will never be."""

    value: Any = None
    state: Literal["pending", "there", "gone"] = "pending"

    def fill(self, value: Any) -> None:
        """The value has come."""
        self.value, self.state = value, "there"


def there(value: Any) -> FakeRef:
    """A ref whose value is there."""
    return FakeRef(value, "there")


@dataclass(eq=False)
class _Step:
    at: tuple[int, int]
    payloads: Sequence[FakeRef]
    following: FakeRef = field(default_factory=FakeRef)
    update: Update | None = None
    after: OuterState | None = None


class FakeServer(ParameterServer):
    """The parameter server.

    Attributes:
        recoveries: how often a new one was asked for.
    """

    def __init__(self, experiment: Experiment, faults: Sequence[Fault] = ()) -> None:
        self._experiment, self._faults = experiment, faults
        self._server = Server(experiment)
        self._committed: OuterState | None = None
        self._ordered: list[_Step] = []
        self.recoveries = 0

    def settle(self) -> None:
        """Take the ordered steps whose payloads are there, in their order."""
        for number, step in enumerate(self._ordered):
            if step.update is not None or step.following.state == "gone":
                continue
            if any(later.at < step.at for later in self._ordered[number + 1 :]):  # it is taken again: this is void
                step.following.state = "gone"
                continue
            states = {payload.state for payload in step.payloads}
            if "gone" in states:
                step.following.state = "gone"
            elif "pending" in states:
                return
            else:
                payloads: list[Payload] = [payload.value for payload in step.payloads]
                version, phase = step.at
                published, step.update, step.after = self._server.apply(version, payloads, phase)
                step.following.fill(published)

    def start(self, folder: RunFolder | None, checkpoint: str | None) -> Ref:
        published, self._committed = self._server.start(folder, checkpoint)
        return there(published)

    def apply(self, version: int, payloads: Sequence[Ref], phase: int = 0) -> Ref:
        step = _Step((version, phase), list(payloads))
        for replaced in [old for old in self._ordered if old.at == step.at and old.update is None]:
            replaced.following.state = "gone"
            self._ordered.remove(replaced)
        self._ordered.append(step)
        return step.following

    def outcome(self, version: int, phase: int = 0) -> Update:
        for fault in self._faults:
            if fault.kind == "lose_server" and fault.version == version and fault.times:
                fault.times, fault.struck = fault.times - 1, fault.struck + 1
                self._forget()
                raise ServerLost("the server is gone")
        self.settle()
        (*_, step) = (step for step in self._ordered if step.at == (version, phase))
        self._ordered.remove(step)
        if step.following.state == "gone":
            raise PayloadLost("a payload is gone")
        assert step.update is not None, "the outcome of a step was asked for before its chunks were there"
        self._committed = step.after
        return step.update

    def recover(self) -> Ref:
        assert self._committed is not None
        self.recoveries += 1
        self._forget()
        self._server = Server(self._experiment)
        return there(self._server.restore(self._committed))

    def _forget(self) -> None:
        for step in self._ordered:
            if step.following.state == "pending":
                step.following.state = "gone"
        self._ordered.clear()

    def save(self, folder: RunFolder, version: int, identity: str, progress: dict[str, Any]) -> str:
        return self._committed_server().save(folder, version, identity, progress)

    def read(self, folder: RunFolder, checkpoint: str) -> Ref:
        return there(self._server.read(folder, checkpoint))

    def judged(self, version: int) -> Ref:
        return there(self._committed_server().judged(version))

    def _committed_server(self) -> Server:
        assert self._committed is not None
        server = Server(self._experiment)
        server.restore(self._committed)
        return server

    def close(self) -> None:
        self._forget()


@dataclass(eq=False)
class _Order:
    ticket: int
    work: Work
    version: FakeRef
    payload: FakeRef


class FakePool(WorkerPool):
    """Workers, which finish in a random order.

    Args:
        server: what the workers' payloads go to.
        workers: how many; a lost one is replaced.
        seed: of the order.
    """

    def __init__(
        self, experiment: Experiment, server: FakeServer, faults: Sequence[Fault] = (), workers: int = 3, seed: int = 0
    ) -> None:
        self._experiment, self._server, self._faults = experiment, server, faults
        self._random = random.Random(seed)
        self._orders: dict[int, deque[_Order]] = {}
        self._workers: dict[int, Worker] = {}
        self._news: list[Event] = []
        #: the time, in pieces of work
        self.now = 0.0
        self._hangs: dict[int, float] = {}
        self._next = 0
        for _ in range(workers):
            self._start()

    def _start(self) -> None:
        self._workers[self._next] = Worker(self._experiment, CPU)
        self._orders[self._next] = deque()
        self._news.append(Joined(self._next, fingerprint(CPU)))
        self._next += 1

    def submit(self, worker: int, ticket: int, work: Work, version: Ref) -> Ref:
        order = _Order(ticket, work, version, FakeRef())
        self._orders[worker].append(order)
        return order.payload

    def clock(self) -> float:
        return self.now

    def withdraw(self, worker: int, ticket: int) -> None:
        orders = self._orders[worker]
        self._orders[worker] = deque(order for order in orders if order.ticket != ticket)

    def wait(self, timeout: float) -> list[Event]:
        events, self._news = self._news, []
        until = self.now + timeout
        while not events or self._random.random() < 0.5:
            self._server.settle()
            begun = [name for name, held in self._orders.items() if held and held[0].version.state != "pending"]
            ready = [name for name in begun if self._hangs.get(name, 0) <= self.now]
            if not ready:
                back = min((self._hangs[name] for name in begun), default=until)
                if events or back >= until:
                    break
                self.now = back
                continue
            event = self._take_up(self._random.choice(ready))
            if event is not None:
                events.append(event)
                self.now += 1.0
        if not events:
            self.now = until
            raise TimeoutError(f"no worker finished anything within {timeout:g} s")
        return events

    def _take_up(self, worker: int) -> Event | None:
        order = self._orders[worker].popleft()
        fault = self._strike(order.work)
        kind = fault and fault.kind
        if kind == "stall":
            raise TimeoutError("no worker finished anything")
        if fault is not None and kind == "hang":
            self._hangs[worker] = self.now + fault.lasts
            self._orders[worker].appendleft(order)
            return None
        if kind == "kill":
            order.payload.state = "gone"
            return self._lose(worker, order)
        if kind == "exhaust":
            order.payload.state = "gone"
            return Exhausted(worker, order.ticket, "the fault")
        if kind == "void" or order.version.state == "gone":
            order.payload.state = "gone"
            return Voided(worker, order.ticket)
        published: Published = order.version.value
        try:
            payload, report = self._workers[worker].run(order.work, published)
        except Exception as error:
            raise PoolError(f"worker {worker} failed: {error!r}") from error
        if kind == "nan":
            assert payload is not None
            assert isinstance(report, ChunkReport)
            payload = replace(payload, gradient={n: np.full_like(a, np.nan) for n, a in payload.gradient.items()})
            report = replace(report, finite=False)
        if kind == "drift":
            assert payload is not None
            assert isinstance(report, ChunkReport)
            payload = replace(payload, gradient={n: np.nextafter(a, 1) for n, a in payload.gradient.items()})
            report = replace(report, digest=payload.digest)
        order.payload.fill(payload)
        if kind == "lose_payload":
            order.payload.state = "gone"
        if kind == "kill_after":
            return self._lose(worker, order)
        return Done(worker, order.ticket, report)

    def _lose(self, worker: int, first: _Order) -> Lost:
        waiting = self._orders.pop(worker)
        for order in waiting:
            order.payload.state = "gone"
        del self._workers[worker]
        self._start()
        return Lost(worker, (first.ticket, *(order.ticket for order in waiting)), "killed by a fault")

    def _strike(self, work: Work) -> Fault | None:
        if isinstance(work, GradientWork):
            for fault in self._faults:
                place = (fault.version, fault.chunk)
                if fault.kind != "lose_server" and fault.times and place == (work.key.version, work.key.chunk):
                    fault.times, fault.struck = fault.times - 1, fault.struck + 1
                    return fault
        return None

    def close(self) -> None:
        self._orders.clear()
