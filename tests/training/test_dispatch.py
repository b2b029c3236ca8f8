"""Who is given work next."""

from __future__ import annotations

from typing import Any

from metadist.training.dispatch import DEPTH, Dispatcher
from metadist.training.seams import Done, Event, Joined, Lost, Ref, WorkerPool
from metadist.training.work import Work


class Scripted(WorkerPool):
    """Tells what it was told to tell."""

    def __init__(self) -> None:
        self.events: list[Event] = []

    def submit(self, worker: int, ticket: int, work: Work, version: Ref) -> Ref:
        return None

    def wait(self, timeout: float) -> list[Event]:
        events, self.events = self.events, []
        return events

    def withdraw(self, worker: int, ticket: int) -> None:
        pass

    def close(self) -> None:
        pass


def test_the_worker_with_the_least_work_the_first_of_equals() -> None:
    pool = Scripted()
    dispatcher = Dispatcher(pool, 1.0, lambda text: None)
    work: Any = "work"
    tickets: dict[int, list[int]] = {0: [], 1: [], 2: []}

    def hear(*events: Event) -> None:
        pool.events = list(events)
        dispatcher.poll()

    def give(times: int) -> list[int]:
        given = []
        for _ in range(times):
            worker = dispatcher.free()
            assert worker is not None
            tickets[worker].append(dispatcher.submit(worker, work, None)[0])
            given.append(worker)
        return given

    assert dispatcher.free() is None
    hear(*(Joined(name, {}) for name in (2, 0, 1)))
    assert give(3 * DEPTH) == [0, 1, 2] * DEPTH
    assert dispatcher.free() is None
    report: Any = "report"
    hear(Done(1, tickets[1][0], report), Done(2, tickets[2][0], report), Done(2, tickets[2][1], report))
    assert give(3) == [2, 1, 2]
    assert dispatcher.free() is None
    hear(Lost(0, tuple(tickets[0]), "gone"), Joined(3, {}))
    tickets[3] = []
    assert give(DEPTH) == [3] * DEPTH
    hear(Done(1, tickets[1][1], report), Lost(1, (tickets[1][2],), "gone"))
    assert dispatcher.free() is None
