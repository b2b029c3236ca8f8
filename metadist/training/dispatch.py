"""Gives work to workers as they get free, and gives it again when a worker is lost."""

from __future__ import annotations

import heapq
from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from metadist.training.seams import Done, Joined, Lost, PoolError, Ref, Voided, WorkerPool
from metadist.training.work import Report, Work

#: pieces of work that a worker holds: one in hand and one waiting, so that it never waits for the driver
DEPTH = 2
#: a piece of work that was in hand when this many workers died in a row ends the run
LIVES = 3


class Interrupted(Exception):
    """The user wants to stop, in the middle of an evaluation."""


@dataclass
class Polled:
    """What came back: finished tickets with their reports, tickets to do again, and voided ones."""

    done: list[tuple[int, Report]] = field(default_factory=list)
    lost: list[int] = field(default_factory=list)
    voided: list[int] = field(default_factory=list)


class Dispatcher:
    """The driver's view of a pool.

    Args:
        deadline: seconds within which some worker must finish something.
        say: told of lost workers, in a sentence.
        least: workers below which no work is given out.

    Attributes:
        stop: asked by `run_all` whether the user wants to stop; may be set.
    """

    def __init__(self, pool: WorkerPool, deadline: float, say: Callable[[str], None], least: int = 1) -> None:
        self.pool, self.deadline, self.least, self._say = pool, deadline, least, say
        self.stop: Callable[[], bool] = lambda: False
        self.alive: dict[int, deque[int]] = {}
        self.losses = 0
        self.fingerprint: dict[str, str] = {}
        self._work: dict[int, Work] = {}
        self._deaths: Counter[Work] = Counter()
        self._next_ticket = 0
        # (pieces of work held, worker), the least first; what has changed since is passed over.
        self._free: list[tuple[int, int]] = []

    def free(self) -> int | None:
        """The worker with the least work, if it can take more and there are enough workers."""
        if len(self.alive) < self.least:
            return None
        while self._free:
            held, worker = self._free[0]
            if worker in self.alive and len(self.alive[worker]) == held:
                return worker
            heapq.heappop(self._free)
        return None

    def _changed(self, worker: int) -> None:
        """A worker holds more work than before, or less."""
        if (held := len(self.alive[worker])) < DEPTH:
            heapq.heappush(self._free, (held, worker))

    def submit(self, worker: int, work: Work, version: Ref) -> tuple[int, Ref]:
        """Give work to a worker; returns its ticket and the ref of its payload."""
        ticket = self._next_ticket
        self._next_ticket += 1
        self._work[ticket] = work
        self.alive[worker].append(ticket)
        self._changed(worker)
        return ticket, self.pool.submit(worker, ticket, work, version)

    def poll(self) -> Polled:
        """Wait for events and sort them.

        Raises:
            TimeoutError: nothing happened within the deadline.
            PoolError: the pool cannot go on, or one piece of work keeps killing workers.
        """
        polled = Polled()
        for event in self.pool.wait(self.deadline):
            if isinstance(event, Joined):
                self.fingerprint = self.fingerprint or event.fingerprint
                if event.fingerprint != self.fingerprint:
                    raise PoolError(
                        f"Worker {event.worker} runs on other hardware or software than the first: "
                        f"{event.fingerprint} against {self.fingerprint}. The bits of a run would depend on "
                        "which worker did what; use nodes of one kind."
                    )
                self.alive[event.worker] = deque()
                self._changed(event.worker)
            elif isinstance(event, Lost):
                self._bury(event, polled)
            else:
                self.alive[event.worker].remove(event.ticket)
                self._changed(event.worker)
                work = self._work.pop(event.ticket)
                if isinstance(event, Done):
                    self._deaths.pop(work, None)
                    polled.done.append((event.ticket, event.report))
                else:
                    assert isinstance(event, Voided)
                    polled.voided.append(event.ticket)
        return polled

    def _bury(self, event: Lost, polled: Polled) -> None:
        held = self.alive.pop(event.worker, deque())
        self.losses += 1
        short = f"; going on with at least {self.least} workers" if len(self.alive) < self.least > 1 else ""
        self._say(f"worker {event.worker} was lost ({event.reason}); its work is done again elsewhere{short}")
        if held:
            in_hand = self._work[held[0]]
            self._deaths[in_hand] += 1
            if self._deaths[in_hand] >= LIVES:
                raise PoolError(f"{LIVES} workers in a row died of the same piece of work: {in_hand}")
        for ticket in held:
            del self._work[ticket]
            polled.lost.append(ticket)

    def run_all(self, works: Sequence[Work], version: Ref) -> list[Report]:
        """Do all of `works` at one version; returns their reports in the same order.

        Raises:
            Interrupted: the user wants to stop. What was given out is done for nothing.
        """
        waiting = deque(range(len(works)))
        number: dict[int, int] = {}
        reports: dict[int, Report] = {}
        while len(reports) < len(works):
            while waiting and (worker := self.free()) is not None:
                index = waiting.popleft()
                ticket, _ = self.submit(worker, works[index], version)
                number[ticket] = index
            polled = self.poll()
            if self.stop():
                raise Interrupted
            for ticket, report in polled.done:
                if ticket in number:
                    reports[number.pop(ticket)] = report
            waiting.extendleft(number.pop(t) for t in polled.lost + polled.voided if t in number)
        return [reports[index] for index in range(len(works))]
