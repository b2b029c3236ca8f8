"""Takes outer steps without waiting: each chunk is a step of its own, taken in the order in which workers answer.

A worker that gets free is given the next chunk at the newest version there is. When its answer comes, the server has
taken other steps meanwhile: so many is the answer's age. What becomes of old answers is the server's rule
(`server.mode`); the bits of such a run depend on who was faster.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator

from metadist.outer import ChunkKey, ChunkReport, Verdict
from metadist.training.seams import PayloadLost, Ref, ServerLost
from metadist.training.stepper import Diverged, StepRecord, Steps, culprits
from metadist.training.work import GradientWork


class FreeStepper(Steps):
    """Takes steps of one chunk each, which do not wait."""

    def _begin(self) -> None:
        #: number of the chunk that is given out next: its tasks' address, which no other chunk of the run has
        self._next = self.version
        self._again: deque[int] = deque()
        #: of the work that was given out: number of the chunk, the version that it is computed at, and its payload
        self._out: dict[int, tuple[int, Ref, Ref]] = {}

    def advance(self, until: int) -> Iterator[StepRecord]:
        self._last = time.perf_counter()
        while self.version < until:
            self._feed(until)
            polled = self.dispatcher.poll()
            for ticket in [*polled.lost, *polled.voided]:
                if ticket in self._out:
                    self._do_again(self._out.pop(ticket)[0])
            for ticket, report in polled.done:
                if ticket in self._out:
                    assert isinstance(report, ChunkReport)
                    record = self._take(*self._out.pop(ticket), report)
                    if record is not None:
                        yield record

    def _feed(self, until: int) -> None:
        """Give every idle worker a chunk, but no more of them than there are steps to take."""
        while self.version + len(self._out) < until:
            worker = self.dispatcher.free()
            if worker is None or self.dispatcher.alive[worker]:
                return
            number = self._again.popleft() if self._again else self._next
            self._next = max(self._next, number + 1)
            work = GradientWork(ChunkKey(self.rule.run, number, 0, 0), self.strategy)
            ticket, payload = self.dispatcher.submit(worker, work, self.published)
            self._out[ticket] = number, self.published, payload

    def _do_again(self, number: int) -> None:
        self._again.append(number)
        self.redone += 1

    def _take(self, number: int, published: Ref, payload: Ref, report: ChunkReport) -> StepRecord | None:
        """Give an answer to the server; `None` where no step came of it."""
        if not report.finite:
            self._give_up(number, published)
            return None
        while True:
            following = self.server.apply(self.version, [payload])
            try:
                update = self.server.outcome(self.version)
                break
            except ServerLost as error:
                self._say(f"the parameter server was lost ({error}); a new one goes on from version {self.version}")
                self.server_losses += 1
                self.published = self.server.recover()
            except PayloadLost:
                self._do_again(number)
                return None
        if update.verdict is Verdict.STALE:
            self.refused += 1
            return None
        if update.verdict is Verdict.NON_FINITE:
            self._give_up(number, published)
            return None
        if update.verdict is not Verdict.ACCEPTED:
            raise Diverged(f"step {self.version + 1}: the server refused the update as {update.verdict}")
        self.version, self.published = update.version, following
        now = time.perf_counter()
        record = StepRecord(
            version=self.version,
            loss=report.loss / report.tasks,
            accuracy=report.correct / report.rows if self.classifies else None,
            gradient_norm=update.gradient_norm,
            lr=update.lr,
            compute_seconds=report.seconds,
            seconds=now - self._last,
            age=update.age,
            refused=self.refused,
        )
        self._last = now
        return record

    def _give_up(self, number: int, published: Ref) -> None:
        """Leave an answer that is not finite, or end the run."""
        what = f"step {self.version + 1}: the meta-gradient of the tasks of chunk {number} is not finite"
        if self.rule.on_non_finite == "stop":
            tasks = culprits(self.dispatcher, [ChunkKey(self.rule.run, number, 0, 0)], published)
            named = f", from the training tasks {', '.join(map(str, tasks))}" if tasks else ""
            raise Diverged(f"{what}{named}", tasks)
        self._say(f"{what}; it is left out")
        self.skipped += 1
