"""The one training loop, for every runtime.

    published = server.start(…)            # version 0, or a checkpoint's
    strategy  = a worker checks the rule's choice
    for the next barrier:                  # validation, checkpoint, stop
        take steps up to it                # chained, see Stepper
        validate, decide, save
    test the best version

A decision belongs to a version: no work for a later version is given out before it is taken.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch

from metadist.errors import UserError
from metadist.outer import Experiment, StrategyCheck
from metadist.training.dispatch import Dispatcher, Interrupted
from metadist.training.evaluation import Evaluation, EvaluationPlan, evaluate
from metadist.training.free_stepper import FreeStepper
from metadist.training.judged import JudgedTasks
from metadist.training.run_folder import RunFolder, checkpoint_name, checkpoint_version
from metadist.training.seams import ParameterServer, Ref, WorkerPool
from metadist.training.stepper import Diverged, Stepper, StepRecord, Steps
from metadist.training.work import CheckWork


@dataclass(frozen=True)
class TrainPlan:
    """What to do when.

    Attributes:
        steps: outer steps of the whole run.
        stop_after: end early at this version, with a checkpoint.
        validate: the fixed validation tasks, every so many steps; `None` does not validate.
        patience: end after so many validations without a better one.
        tests: final evaluations by name, of the best version on validation.
        checkpoint_every: steps between checkpoints.
        keep: how many of the newest checkpoints to keep, besides the best.
        identity: sha of the job's identity, written into every checkpoint.
        deadline: seconds within which something must happen.
        least: workers below which training waits.
    """

    steps: int
    validate: EvaluationPlan | None
    validate_every: int
    tests: dict[str, EvaluationPlan]
    checkpoint_every: int
    keep: int
    identity: str
    deadline: float
    least: int = 1
    stop_after: int | None = None
    patience: int | None = None


class Observer(Protocol):
    """Told what happens, on the driver; returns at once."""

    def say(self, text: str) -> None:
        """Something that the user should know, in a sentence."""

    def ready(self, check: StrategyCheck, version: int, fingerprint: dict[str, str]) -> None:
        """The first worker is there and the strategy was checked; training starts at `version`."""

    def stepped(self, record: StepRecord, workers: int, losses: int) -> None:
        """A step was committed."""

    def validated(self, version: int, evaluation: Evaluation, best: bool) -> None:
        """A version was validated."""

    def saved(self, version: int, name: str) -> None:
        """A checkpoint was written."""

    def testing(self, share: float) -> None:
        """So much of a test is done, from 0 to 1."""


@dataclass(frozen=True)
class TrainResult:
    """How a run ended.

    Attributes:
        step: the version at the end.
        outcome: `finished`, `stopped` (resumable, before its last step) or `early` (patience).
        tested: which version the tests judged.
        tested_as: `best on validation` or `last`, and of which versions the mean was taken.
        tasks_per_second: training tasks over the time spent in steps.
        compute_seconds: processor time of the meta-gradients, of all workers together.
        refused: answers that were too old, where steps do not wait for each other.
        workers: of each worker that is there, the training tasks per second since it joined, and the share of that
            time in which it computed none.
    """

    step: int
    outcome: str
    params_sha256: str
    tasks_per_second: float
    train_seconds: float
    compute_seconds: float
    strategy: StrategyCheck
    worker_losses: int
    server_losses: int
    chunks_redone: int
    chunks_doubled: int
    skipped: int = 0
    refused: int = 0
    workers: dict[int, dict[str, float]] = field(default_factory=dict)
    tested: int | None = None
    tested_as: str | None = None
    valid: Evaluation | None = None
    tests: dict[str, Evaluation] = field(default_factory=dict)


@dataclass
class _Progress:
    """What the driver remembers between checkpoints, as plain JSON in each of them."""

    best_version: int | None = None
    best_score: float | None = None
    since_best: int = 0
    seconds: float = 0.0
    compute_seconds: float = 0.0
    ended_early: bool = False
    #: the version that was validated last: a run may be stopped between a step and its validation
    validated: int = 0


def _progress(content: dict[str, Any], where: str) -> _Progress:
    known = vars(_Progress())
    numbers = all(isinstance(value, int | float) or known.get(key, 0) is value for key, value in content.items())
    if not numbers or not content.keys() <= known.keys():
        raise UserError(where, content, f"a checkpoint whose progress is numbers: {', '.join(known)}")
    return _Progress(**content)


def train(
    experiment: Experiment,
    plan: TrainPlan,
    pool: WorkerPool,
    server: ParameterServer,
    folder: RunFolder,
    observer: Observer,
    stop: Callable[[], bool] = lambda: False,
    resume: str | None = None,
    progress: dict[str, Any] | None = None,
) -> TrainResult:
    """Run a job from its start, or from checkpoint `resume`, to its end or to where it is stopped.

    Args:
        stop: asked after every step; true ends the run with a checkpoint.
        progress: the checkpoint's own, with `resume`.
    """
    return _Run(experiment, plan, pool, server, folder, observer, stop).train(resume, progress or {})


class _Run:
    def __init__(
        self,
        experiment: Experiment,
        plan: TrainPlan,
        pool: WorkerPool,
        server: ParameterServer,
        folder: RunFolder,
        observer: Observer,
        stop: Callable[[], bool],
    ) -> None:
        self.experiment, self.plan, self.server = experiment, plan, server
        self.folder, self.observer, self.stop = folder, observer, stop
        self.dispatcher = Dispatcher(pool, plan.deadline, observer.say, plan.least)
        self.progress = _Progress()
        self.saved: int | None = None
        self.sha = ""
        self.steps_done = 0
        self.seconds = 0.0
        self.valid: Evaluation | None = None

    def train(self, resume: str | None, progress: dict[str, Any]) -> TrainResult:
        self.progress = _progress(progress, f"{self.folder.location}/{resume}")
        published = self.server.start(self.folder if resume else None, resume)
        version = checkpoint_version(resume) if resume else 0
        self.dispatcher.resumed = resume is not None
        self.check = self._check(published)
        self.observer.ready(self.check, version, self.dispatcher.fingerprint)
        kind = Stepper if self.experiment.rule.mode == "sync" else FreeStepper
        self.stepper: Steps = kind(
            self.dispatcher,
            self.server,
            self.experiment.rule,
            self.check.strategy,
            self.experiment.distribution.classifies,
            version,
            published,
            self.observer.say,
        )
        last = min(self.plan.steps, self.plan.stop_after or self.plan.steps)
        stopped = False
        self.dispatcher.stop = self.stop
        try:
            self._barrier(resumed=True)  # of the version that a stopped run goes on from
            while self.stepper.version < last and not stopped and not self.progress.ended_early:
                stopped = self._steps(self._next_barrier(last))
                self._barrier()
        except Interrupted:
            stopped = True
        finally:
            # The last good version, also when the run was stopped between barriers or went wrong.
            self._save()
        ended = self.stepper.version >= self.plan.steps or self.progress.ended_early
        if ended and not stopped:
            with contextlib.suppress(Interrupted):
                return self._test("early" if self.progress.ended_early else "finished")
        return self._result("stopped", valid=self.valid)

    def _check(self, published: Ref) -> StrategyCheck:
        work = CheckWork("train", self.experiment.seed, self.experiment.episode)
        (report,) = self.dispatcher.run_all([work], published)
        assert isinstance(report, StrategyCheck)
        return report

    def _next_barrier(self, last: int) -> int:
        version = self.stepper.version
        everies = [self.plan.checkpoint_every]
        if self.plan.validate is not None:
            everies.append(self.plan.validate_every)
        return min(last, *((version // every + 1) * every for every in everies))

    def _steps(self, until: int) -> bool:
        """Take steps up to a barrier; returns whether the user stopped the run on the way."""
        for record in self._advance(until):
            self.steps_done += 1
            self.seconds += record.seconds
            self.progress.seconds += record.seconds
            self.progress.compute_seconds += record.compute_seconds
            self.observer.stepped(record, len(self.dispatcher.alive), self.dispatcher.losses)
            if self.stop():
                # What was given out for later steps is void: stopping loses no committed step.
                return True
        return False

    def _advance(self, until: int) -> Iterator[StepRecord]:
        try:
            yield from self.stepper.advance(until)
        except Diverged as error:
            if not error.tasks:
                raise
            addresses = [f"train/{self.experiment.seed}/{task}" for task in error.tasks]
            self.folder.write_json("diverged.json", {"step": self.stepper.version + 1, "tasks": addresses})
            show = f"`metadist task show {self.folder.location} {addresses[0]}` shows the first"
            hint = "lower learner.inner_lr or optimizer.lr, or set server.on_non_finite: skip"
            raise Diverged(
                f"{error}; {show}, diverged.json in that folder names all. If they are well, {hint}"
            ) from error

    def _barrier(self, resumed: bool = False) -> None:
        version = self.stepper.version
        plan, progress = self.plan, self.progress
        due = plan.validate is not None and (version % plan.validate_every == 0 or version == plan.steps)
        if due and version != progress.validated:
            self._validate(version)
        elif resumed:
            return  # its checkpoint says it all
        if version and (version % plan.checkpoint_every == 0 or version == progress.best_version):
            self._save()

    def _validate(self, version: int) -> None:
        assert self.plan.validate is not None
        result = evaluate(self.dispatcher, self.plan.validate, self.check.strategy, self._judged(), last_only=True)
        self.valid, self.progress.validated = result, version
        best = self.progress.best_score is None or result.score > self.progress.best_score
        if best:
            self.progress.best_version, self.progress.best_score = version, result.score
            self.progress.since_best = 0
        else:
            self.progress.since_best += 1
        patience = self.plan.patience
        self.progress.ended_early = patience is not None and self.progress.since_best >= patience
        self.observer.validated(version, result, best)

    def _tested_as(self, version: int) -> str:
        name = "last" if self.progress.best_version is None else "best on validation"
        first = self.experiment.rule.average_after + 1
        return f"{name}, mean of versions {first} to {version}" if version >= first else name

    def _judged(self) -> Ref:
        averages = self.stepper.version > self.experiment.rule.average_after
        return self.server.judged(self.stepper.version) if averages else self.stepper.published

    def _save(self) -> None:
        version = self.stepper.version
        if version == self.saved:
            return
        self.experiment.distribution.check_unchanged()
        self.sha = self.server.save(self.folder, version, self.plan.identity, vars(self.progress))
        self.saved = version
        best = self.progress.best_version
        self.folder.prune(self.plan.keep, set() if best is None else {checkpoint_name(best)})
        self.folder.renew()
        self.observer.saved(version, checkpoint_name(version))

    def _test(self, outcome: str) -> TrainResult:
        """Judge the best version on the plan's tests."""
        if not self.plan.tests:
            return self._result(outcome, valid=self.valid)
        best = self.progress.best_version
        tested = self.stepper.version if best is None else best
        current = tested == self.stepper.version
        version = self._judged() if current else self.server.read(self.folder, checkpoint_name(tested))
        strategy, valid, judged = self.check.strategy, None, JudgedTasks(self.folder, tested, self.plan.identity)
        if self.plan.validate is not None:
            valid = evaluate(self.dispatcher, self.plan.validate, strategy, version, with_scratch=True, judged=judged)
        tests = {}
        for name, plan in self.plan.tests.items():
            self.observer.say(f"testing version {tested} on {plan.name}")
            beside = self.experiment.learner.beside()
            told = self.observer.testing
            tests[name] = evaluate(
                self.dispatcher, plan, strategy, version, True, True, beside=beside, progress=told, judged=judged
            )
        return self._result(outcome, tested=tested, tested_as=self._tested_as(tested), valid=valid, tests=tests)

    def _shares(self) -> dict[int, dict[str, float]]:
        now, found = self.dispatcher.clock(), {}
        for worker, share in self.dispatcher.shares.items():
            seconds = max(now - share.joined, 1e-9)
            busy = share.seconds / seconds / torch.get_num_threads()
            found[worker] = {"tasks_per_second": share.tasks / seconds, "idle": max(0.0, 1 - busy)}
        return found

    def _result(self, outcome: str, **tests: Any) -> TrainResult:
        rate = self.steps_done * self.experiment.rule.tasks / self.seconds if self.seconds else 0.0
        return TrainResult(
            step=self.stepper.version,
            outcome=outcome,
            params_sha256=self.sha,
            tasks_per_second=rate,
            train_seconds=self.progress.seconds,
            compute_seconds=self.progress.compute_seconds,
            strategy=self.check,
            worker_losses=self.dispatcher.losses,
            server_losses=self.stepper.server_losses,
            chunks_redone=self.stepper.redone,
            chunks_doubled=self.dispatcher.doubled,
            skipped=self.stepper.skipped,
            refused=self.stepper.refused,
            workers=self._shares(),
            **tests,
        )
