"""Takes outer steps: chunks to workers, payloads to the server, the next version to the workers.

The parts of a step are chained by refs: as soon as every chunk of step t has a worker, the server is told
which payloads make step t, and workers that get free are given chunks of step t + 1 at a version that does not
exist yet. Nobody waits for the driver. Phases of one step follow each other in the same way.

A chunk that takes far longer than usual is given to an idle worker too. The first answer counts; that of the other
must be the same to the bit.
"""

from __future__ import annotations

import math
import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from metadist.outer import ChunkKey, ChunkReport, OuterRule, Strategy, Update, Verdict
from metadist.training.dispatch import Dispatcher
from metadist.training.pace import Pace
from metadist.training.seams import ParameterServer, PayloadLost, Ref, ServerLost
from metadist.training.work import Culprits, CulpritsWork, GradientWork


class Diverged(RuntimeError):
    """A meta-gradient is not finite; it was not applied.

    Attributes:
        tasks: indices of the training tasks that it comes from, where these are known.
    """

    def __init__(self, text: str, tasks: Sequence[int] = ()) -> None:
        super().__init__(text)
        self.tasks = list(tasks)


@dataclass(frozen=True)
class StepRecord:
    """A committed step: `version` is the one after it; sums over the meta-batch; `seconds` since the last.

    `compute_seconds` are processor seconds of the workers. Of a step with phases, the figures are the last one's. The
    gradient norm and rate of a step that was skipped are NaN. Where steps do not wait for each other, `age` is that of
    the answer and `refused` the number of answers up to here that were too old.
    """

    version: int
    loss: float
    accuracy: float | None
    gradient_norm: float
    lr: float
    compute_seconds: float
    seconds: float
    age: int | None = None
    refused: int | None = None


@dataclass(eq=False)
class _Step:
    """A step, or one of its phases.

    Attributes:
        payloads: of each chunk, by the worker that is expected to be the first with it.
    """

    version: int
    phase: int
    published: Ref
    pending: deque[int]
    payloads: dict[int, Ref] = field(default_factory=dict)
    reports: dict[int, ChunkReport] = field(default_factory=dict)
    following: Ref = None
    ordered: bool = False
    #: no work is given out for the steps after: a later one found that this one's outcome does not exist, or some of
    #: its chunks are late and were given to others too, who may be the first with a payload
    doubtful: bool = False
    #: chunks whose results were not finite and are computed again
    retried: list[int] = field(default_factory=list)


class Steps(ABC):
    """The state of a run between driver, workers and server.

    Args:
        classifies: whether query rows have classes, so that there is an accuracy.
        version: the version that the server holds, published as `published`.
        say: told of a lost server, in a sentence.

    Attributes:
        redone: chunks that were computed again.
        skipped: steps that were given up because they were not finite.
        refused: answers that were too old.
    """

    def __init__(
        self,
        dispatcher: Dispatcher,
        server: ParameterServer,
        rule: OuterRule,
        strategy: Strategy,
        classifies: bool,
        version: int,
        published: Ref,
        say: Callable[[str], None],
    ) -> None:
        self.dispatcher, self.server, self.rule, self.strategy = dispatcher, server, rule, strategy
        self.classifies = classifies
        self.version, self.published, self._say = version, published, say
        self.server_losses = self.redone = self.skipped = self.refused = 0
        self._last = time.perf_counter()
        self._begin()

    @abstractmethod
    def _begin(self) -> None:
        """What a kind of steps remembers besides."""

    @abstractmethod
    def advance(self, until: int) -> Iterator[StepRecord]:
        """Commit steps until the server is at version `until`; no work for later steps is given out.

        Raises:
            Diverged: a meta-gradient is not finite. The server stays at the version before.
        """


class Stepper(Steps):
    """Takes steps that wait for all of their chunks."""

    def _begin(self) -> None:
        self._phase = 0
        self._compute_seconds = 0.0  # of the phases before
        self._steps: deque[_Step] = deque()
        #: step, chunk and payload of the work that was given out; also of late work whose chunk another one had first
        self._tickets: dict[int, tuple[_Step, int, Ref]] = {}
        self._pace, self._patience = Pace(), math.inf
        #: since when the current step's chunks can be computed
        self._since = self.dispatcher.clock()

    def advance(self, until: int) -> Iterator[StepRecord]:
        self._last = time.perf_counter()
        while self.version < until:
            self._feed(until)
            # No step is open while every worker still holds work that a loss has made void.
            if not self._steps or len(self._steps[0].reports) < self.rule.chunks:
                self._collect()
                continue
            step = self._steps[0]
            unfit = [chunk for chunk, report in step.reports.items() if not report.finite]
            if unfit and not step.retried:
                step.retried = unfit
                self._say(f"step {step.version + 1}: {_chunks(unfit)} not finite; computed again")
                self._redo(step, unfit)
                continue
            if unfit:
                self._give_up(step, unfit)
            self._order(step)
            try:
                update = self.server.outcome(step.version, step.phase)
            except ServerLost as error:
                self._recover(str(error))
                continue
            except PayloadLost as error:
                self._say(f"a result of step {step.version + 1} was lost ({error}); it is computed again")
                self._redo(step, list(range(self.rule.chunks)))
                continue
            # A duplicate is a step that was taken before its chunks were thought lost and computed again.
            if update.verdict is Verdict.NON_FINITE:  # each chunk is finite, but their sum is not
                self._give_up(step, [])
                update = self.server.outcome(step.version, step.phase)
            reached, _ = self.rule.after(step.version, step.phase)
            taken = update.verdict in (Verdict.ACCEPTED, Verdict.DUPLICATE) and update.version == reached
            if not taken and update.verdict is not Verdict.SKIPPED:
                raise Diverged(f"step {step.version + 1}: the server refused the update as {update.verdict}")
            record = self._commit(step, update)
            self._since = self.dispatcher.clock()
            if self._phase == 0:
                yield record

    def _commit(self, step: _Step, update: Update) -> StepRecord:
        self._steps.popleft()
        self.version, self._phase = self.rule.after(step.version, step.phase)
        if update.verdict is Verdict.SKIPPED:
            self.version, self._phase = update.version, 0
            self.skipped += 1
        self.published = step.following
        reports = [step.reports[chunk] for chunk in range(self.rule.chunks)]
        self._compute_seconds += sum(report.seconds for report in reports)
        now = time.perf_counter()
        rows = sum(report.rows for report in reports)
        record = StepRecord(
            version=self.version,
            loss=sum(report.loss for report in reports) / self.rule.tasks,
            accuracy=sum(report.correct for report in reports) / rows if self.classifies else None,
            gradient_norm=update.gradient_norm,
            lr=update.lr,
            compute_seconds=self._compute_seconds,
            seconds=now - self._last,
        )
        if self._phase == 0:
            self._compute_seconds, self._last = 0.0, now
        return record

    def _feed(self, until: int) -> None:
        """Give out chunks while workers are free: of the current step, then of the one after it."""
        while (worker := self.dispatcher.free()) is not None:
            step = self._open_step(until)
            if step is None:
                return
            chunk = step.pending.popleft()
            key = ChunkKey(self.rule.run, step.version, step.phase, chunk)
            work = GradientWork(key, self.strategy)
            ticket, step.payloads[chunk] = self.dispatcher.submit(worker, work, step.published)
            self._tickets[ticket] = (step, chunk, step.payloads[chunk])
            self._order(step)

    def _order(self, step: _Step) -> None:
        """Tell the server which payloads make the step, once every chunk has a worker; again where they change."""
        if not step.pending and not step.ordered:
            payloads = [step.payloads[chunk] for chunk in range(self.rule.chunks)]
            step.following, step.ordered = self.server.apply(step.version, payloads, step.phase), True

    def _open_step(self, until: int) -> _Step | None:
        for step in self._steps:
            if step.pending:
                return step
        at, published = (self.version, self._phase), self.published
        if self._steps:
            last = self._steps[-1]
            at, published = self.rule.after(last.version, last.phase), last.following
            if len(self._steps) == 2 or at[0] >= until or last.doubtful:
                return None
        step = _Step(*at, published, deque(range(self.rule.chunks)))
        self._steps.append(step)
        return step

    def _collect(self) -> None:
        polled = self.dispatcher.poll(self._patience)
        for ticket, report in polled.done:
            if ticket in self._tickets:
                step, chunk, payload = self._tickets.pop(ticket)
                assert isinstance(report, ChunkReport)
                if ticket in polled.began:
                    self._pace.took(self.dispatcher.clock() - max(self._since, polled.began[ticket]))
                self._answered(step, chunk, payload, report)
        for ticket in polled.lost:
            if ticket in self._tickets:
                step, chunk, _ = self._tickets.pop(ticket)
                if chunk not in step.reports and not self._holders(step, chunk):
                    self._redo(step, [chunk])
        for ticket in polled.voided:
            if ticket in self._tickets:
                step, chunk, _ = self._tickets[ticket]
                if chunk not in step.reports:
                    self._void(step)
        self._relieve()

    def _answered(self, step: _Step, chunk: int, payload: Ref, report: ChunkReport) -> None:
        """A worker has computed a chunk: it is the first, or must have computed the same as the first."""
        first = step.reports.setdefault(chunk, report)
        if first.digest != report.digest:
            raise RuntimeError(
                f"step {step.version + 1}: two workers computed chunk {chunk}, and their meta-gradients differ "
                f"({first.digest[:12]} and {report.digest[:12]}): the bits of this run would depend on which worker "
                "did what. Look for randomness of its own in the job's model, learner or tasks, and for workers on "
                "unlike hardware."
            )
        if first is report and step.payloads[chunk] is not payload:
            step.payloads[chunk] = payload
            if step.ordered:
                step.ordered = False
                self._hold_back(step)

    def _holders(self, step: _Step, chunk: int) -> list[int]:
        """Tickets of a chunk that workers still hold."""
        return [ticket for ticket, (of, number, _) in self._tickets.items() if of is step and number == chunk]

    def _relieve(self) -> None:
        """Give chunks that workers take too long for to idle workers too, when nothing else of the step is left."""
        self._patience = math.inf
        if not self._steps or self._steps[0].pending:
            return
        step = self._steps[0]
        open_ones = {t: c for t, (s, c, _) in self._tickets.items() if s is step and c not in step.reports}
        late, self._patience = self.dispatcher.late(open_ones, self._pace, self._since)
        if not late:
            return
        ahead = self._ahead(step)
        idle = [worker for worker, held in self.dispatcher.alive.items() if ahead.issuperset(held)]
        if not idle:
            return
        self._hold_back(step)
        step.doubtful = True
        for ticket, helper in zip(late, idle, strict=False):
            double, payload = self.dispatcher.double(ticket, helper, step.published)
            self._tickets[double] = (step, open_ones[ticket], payload)
        self._patience = min(self._patience, self._pace.limit)  # a helper may be late, too

    def _ahead(self, step: _Step) -> set[int]:
        """Tickets of work for the steps after one."""
        return {ticket for ticket, (of, _, _) in self._tickets.items() if of is not step and of in self._steps}

    def _hold_back(self, step: _Step) -> None:
        """Take back the work for the steps after one: it waits for an outcome that may never be."""
        for ticket in self._ahead(step):
            self.dispatcher.withdraw(ticket)
        self._drop_after(step)

    def _void(self, step: _Step) -> None:
        """The version that a step was to be computed at does not exist."""
        if step is self._steps[0]:
            self._recover("its published version is gone")
            self._redo(step, [chunk for chunk in range(self.rule.chunks) if chunk not in step.reports])
        else:
            before = self._steps[self._steps.index(step) - 1]
            before.doubtful = True
            self._drop_after(before)

    def _redo(self, step: _Step, chunks: list[int]) -> None:
        """Compute chunks of a step again; whatever was built on its outcome is void."""
        self._tickets = {t: of for t, of in self._tickets.items() if of[0] is not step or of[1] not in chunks}
        for chunk in chunks:
            step.reports.pop(chunk, None)
            step.payloads.pop(chunk, None)
        step.pending = deque(sorted({*step.pending, *chunks}))
        step.ordered = step.doubtful = False
        self.redone += len(chunks)
        self._drop_after(step)

    def _give_up(self, step: _Step, chunks: list[int]) -> None:
        """Skip a step that is not finite, or end the run; what was built on it is void."""
        what = _chunks(chunks) if chunks else "the meta-gradient is"
        if self.rule.on_non_finite == "stop":
            keys = [ChunkKey(self.rule.run, step.version, step.phase, chunk) for chunk in chunks]
            tasks = culprits(self.dispatcher, keys, step.published)
            named = f", from the training tasks {', '.join(map(str, tasks))}" if tasks else ""
            raise Diverged(f"step {step.version + 1}: {what} not finite{named}", tasks)
        self._say(f"step {step.version + 1} is skipped: {what} not finite")
        self._drop_after(step)
        step.following = self.server.apply(step.version, [], step.phase)

    def _drop_after(self, step: _Step) -> None:
        while self._steps[-1] is not step:
            gone = self._steps.pop()
            self._tickets = {t: of for t, of in self._tickets.items() if of[0] is not gone}

    def _recover(self, reason: str) -> None:
        """A new server at the current version; the current step's payloads are given to it again."""
        self._say(f"the parameter server was lost ({reason}); a new one goes on from version {self.version}")
        self.server_losses += 1
        step = self._steps[0]
        self.published = step.published = self.server.recover()
        self._since = self.dispatcher.clock()
        self._drop_after(step)
        step.ordered = step.doubtful = False
        self._order(step)


def culprits(dispatcher: Dispatcher, keys: Sequence[ChunkKey], published: Ref) -> list[int]:
    """The tasks of some chunks whose own meta-gradients are not finite at a published version."""
    found = dispatcher.run_all([CulpritsWork(key) for key in keys], published)
    return [task for report in found if isinstance(report, Culprits) for task in report.tasks]


def _chunks(chunks: list[int]) -> str:
    """Chunks as the subject of a sentence."""
    numbers = ", ".join(map(str, sorted(chunks)))
    return (
        f"the meta-gradient of chunk {numbers} is"
        if len(chunks) == 1
        else f"the meta-gradients of chunks {numbers} are"
    )
