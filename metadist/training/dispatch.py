"""Gives work to workers as they get free, and gives it again when a worker is lost."""

from __future__ import annotations

import heapq
import math
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from metadist.outer import ChunkReport
from metadist.training.pace import Pace
from metadist.training.seams import Done, Exhausted, Joined, Lost, PoolError, Ref, Voided, WorkerPool
from metadist.training.work import Report, Work

#: pieces of work that a worker holds: one in hand and one waiting, so that it never waits for the driver
DEPTH = 2
#: a piece of work that was in hand when this many workers died in a row ends the run; the second number where something
#: else kills, too: workers died of other work, or the run was ended before. Who is killed soon after its start has its
#: first piece in hand, more often than not
LIVES, MOST_LIVES = 10, 30
#: seconds that are not waited for
MOMENT = 1e-3


class Interrupted(Exception):
    """The user wants to stop, in the middle of an evaluation."""


@dataclass
class Share:
    """What one worker has done for training.

    Attributes:
        tasks: tasks of its chunks.
        seconds: processor time that it took for them.
        joined: when it joined, by the dispatcher's clock.
    """

    joined: float
    tasks: int = 0
    seconds: float = 0.0


@dataclass
class Polled:
    """What came back: finished tickets with their reports, tickets to do again, and voided ones.

    Attributes:
        began: since when the finished ones were in hand.
    """

    done: list[tuple[int, Report]] = field(default_factory=list)
    began: dict[int, float] = field(default_factory=dict)
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
        resumed: whether the run was ended before; may be set.
        alive: tickets of the work that each worker holds, the one in hand first.
        losses: workers that were lost.
        doubled: pieces of work that were given to another worker too.
        shares: what the workers that there are have done.
    """

    def __init__(self, pool: WorkerPool, deadline: float, say: Callable[[str], None], least: int = 1) -> None:
        self.pool, self.deadline, self.least, self._say = pool, deadline, least, say
        self.clock = pool.clock
        self.stop: Callable[[], bool] = lambda: False
        self.resumed = False
        self.alive: dict[int, deque[int]] = {}
        self.losses = 0
        self.doubled = 0
        self.shares: dict[int, Share] = {}
        self.fingerprint: dict[str, str] = {}
        self._work: dict[int, Work] = {}
        self._deaths: Counter[Work] = Counter()
        #: work that a worker had not enough memory for
        self._exhausted: set[Work] = set()
        #: since when each worker has its work in hand
        self._since: dict[int, float] = {}
        #: workers whose work was given to others too: they get no more until they are through with it
        self._late: set[int] = set()
        self._named: set[int] = set()
        #: seconds without any event
        self._quiet = 0.0
        self._next_ticket = 0
        # (pieces of work held, worker), the least first; what has changed since is passed over.
        self._free: list[tuple[int, int]] = []

    def free(self) -> int | None:
        """The worker with the least work, if it can take more and there are enough workers."""
        if len(self.alive) < self.least:
            return None
        while self._free:
            held, worker = self._free[0]
            if worker in self.alive and len(self.alive[worker]) == held and worker not in self._late:
                return worker
            heapq.heappop(self._free)
        return None

    def _changed(self, worker: int) -> None:
        """A worker holds more work than before, or less."""
        if (held := len(self.alive[worker])) < DEPTH and worker not in self._late:
            heapq.heappush(self._free, (held, worker))

    def submit(self, worker: int, work: Work, version: Ref) -> tuple[int, Ref]:
        """Give work to a worker; returns its ticket and the ref of its payload."""
        ticket = self._next_ticket
        self._next_ticket += 1
        self._work[ticket] = work
        if not self.alive[worker]:
            self._since[worker] = self.clock()
        self.alive[worker].append(ticket)
        self._changed(worker)
        return ticket, self.pool.submit(worker, ticket, work, version)

    def withdraw(self, ticket: int) -> None:
        """Take back work whose version is not there yet."""
        worker = next(worker for worker, held in self.alive.items() if ticket in held)
        self.alive[worker].remove(ticket)
        if not self.alive[worker]:
            self._late.discard(worker)
        self._changed(worker)
        del self._work[ticket]
        self.pool.withdraw(worker, ticket)

    def late(self, pieces: Mapping[int, int], pace: Pace, since: float) -> tuple[list[int], float]:
        """Which pieces of work are held by nobody but workers that take far longer than usual.

        Args:
            pieces: the piece of work behind each ticket; several workers may hold the same.
            since: when they could be begun.

        Returns:
            One ticket of each such piece, and the seconds until there may be more.
        """
        late, well, now, limit, soonest = dict[int, int](), set[int](), self.clock(), pace.limit, math.inf
        for worker, held in self.alive.items():
            left = max(since, self._since.get(worker, since)) + limit - now
            mine = {pieces[ticket]: ticket for ticket in held if ticket in pieces}
            if mine and left < MOMENT:
                late |= mine
            elif mine:
                well |= mine.keys()
                soonest = min(soonest, left)
        return [ticket for piece, ticket in late.items() if piece not in well], soonest

    def double(self, ticket: int, helper: int, version: Ref) -> tuple[int, Ref]:
        """Give a late piece of work to another worker too; who has it gets no more until it is through."""
        work = self._work[ticket]
        for worker, held in self.alive.items():
            if any(self._work[one] == work for one in held):
                self._late.add(worker)
                if worker not in self._named:
                    self._named.add(worker)
                    self._say(f"worker {worker} takes far longer than the others; what it has is done elsewhere too")
        self.doubled += 1
        return self.submit(helper, work, version)

    def poll(self, patience: float = math.inf) -> Polled:
        """Wait for events and sort them.

        Args:
            patience: seconds after which it is no mistake that there are none.

        Raises:
            TimeoutError: nothing happened within the deadline.
            PoolError: the pool cannot go on, or one piece of work keeps killing workers.
        """
        polled = Polled()
        try:
            events = self.pool.wait(min(self.deadline - self._quiet, patience))
        except TimeoutError:
            self._quiet += patience
            if self._quiet < self.deadline:
                return polled
            raise
        self._quiet, now = 0.0, self.clock()
        for event in events:
            if isinstance(event, Joined):
                self.fingerprint = self.fingerprint or event.fingerprint
                if event.fingerprint != self.fingerprint:
                    raise PoolError(
                        f"Worker {event.worker} runs on other hardware or software than the first: "
                        f"{event.fingerprint} against {self.fingerprint}. The bits of a run would depend on "
                        "which worker did what; use nodes of one kind."
                    )
                self.alive[event.worker] = deque()
                self.shares[event.worker] = Share(now)
                self._changed(event.worker)
            elif isinstance(event, Lost):
                self._bury(event, polled)
            else:
                held = self.alive[event.worker]
                if event.ticket == held[0]:
                    polled.began[event.ticket] = self._since[event.worker]
                    self._since[event.worker] = now
                held.remove(event.ticket)
                if not held:
                    self._late.discard(event.worker)
                self._changed(event.worker)
                work = self._work.pop(event.ticket)
                if isinstance(event, Done):
                    self._deaths.pop(work, None)
                    if isinstance(event.report, ChunkReport):
                        self.shares[event.worker].tasks += event.report.tasks
                        self.shares[event.worker].seconds += event.report.seconds
                    polled.done.append((event.ticket, event.report))
                elif isinstance(event, Exhausted):
                    self._retry(event, work)
                    polled.lost.append(event.ticket)
                else:
                    assert isinstance(event, Voided)
                    polled.voided.append(event.ticket)
        return polled

    def _retry(self, event: Exhausted, work: Work) -> None:
        """Work that a worker had not enough memory for is done once more, by whoever is free first."""
        if work in self._exhausted:
            raise PoolError(
                f"there was not enough memory, twice, for {event.reason}: lower tasks.chunk (evaluation.chunk for "
                "evaluation tasks), set learner.remat: true where the learner has it, or take fewer workers per device"
            )
        self._exhausted.add(work)
        self._say(f"worker {event.worker} had not enough memory for {event.reason}; it is done once more")

    def _bury(self, event: Lost, polled: Polled) -> None:
        held = self.alive.pop(event.worker, deque())
        self._late.discard(event.worker)
        self.shares.pop(event.worker, None)
        self.losses += 1
        short = f"; going on with at least {self.least} workers" if len(self.alive) < self.least > 1 else ""
        self._say(f"worker {event.worker} was lost ({event.reason}); its work is done again elsewhere{short}")
        if held:
            in_hand = self._work[held[0]]
            self._deaths[in_hand] += 1
            deaths = self._deaths[in_hand]
            if deaths >= (MOST_LIVES if self.resumed or self.losses > deaths else LIVES):
                raise PoolError(f"{deaths} workers in a row died of the same piece of work: {in_hand}")
        for ticket in held:
            del self._work[ticket]
            polled.lost.append(ticket)

    def run_all(
        self,
        works: Sequence[Work],
        version: Ref,
        done: Callable[[Work, Report], None] = lambda work, report: None,
    ) -> list[Report]:
        """Do all of `works` at one version; returns their reports in the same order.

        Args:
            done: told of each piece of work and its report, as it comes.

        Raises:
            Interrupted: the user wants to stop. What was given out is done for nothing.
        """
        waiting = deque(range(len(works)))
        number: dict[int, int] = {}
        reports: dict[int, Report] = {}
        pace, began, patience = Pace(), self.clock(), math.inf
        while len(reports) < len(works):
            while waiting and (worker := self.free()) is not None:
                index = waiting.popleft()
                ticket, _ = self.submit(worker, works[index], version)
                number[ticket] = index
            polled = self.poll(patience)
            if self.stop():
                raise Interrupted
            for ticket, report in polled.done:
                if ticket in number:
                    index = number.pop(ticket)
                    if index not in reports:
                        done(works[index], report)
                    reports[index] = report
                    pace.took(self.clock() - max(began, polled.began.get(ticket, began)))
            again = [number.pop(ticket) for ticket in polled.lost + polled.voided if ticket in number]
            waiting.extendleft(index for index in again if index not in number.values())
            number = {ticket: index for ticket, index in number.items() if index not in reports}
            patience = math.inf if waiting else self._help(number, pace, began, version)
        return [reports[index] for index in range(len(works))]

    def _help(self, number: dict[int, int], pace: Pace, began: float, version: Ref) -> float:
        """Give late pieces of work to idle workers too; returns the seconds until there may be more."""
        late, soonest = self.late(number, pace, began)
        idle = [worker for worker, held in self.alive.items() if not held]
        for ticket, helper in zip(late, idle, strict=False):
            double, _ = self.double(ticket, helper, version)
            number[double] = number[ticket]
            soonest = min(soonest, pace.limit)  # the helper may be late, too
        return soonest
