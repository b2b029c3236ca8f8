"""One trial: the whole distributed trainer in a Tune actor, its worker and server actors in the trial's own placement.

The trial's state is its run folder, so Tune's checkpoints are not used: a trial that is started again, by Tune or in
a resumed sweep, goes on from the folder, and one that had finished only says so.
"""

from __future__ import annotations

import contextlib
import math
import queue
import re
import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from ray import tune

from metadist.config import Job
from metadist.distributed.run import RunOptions, train_job
from metadist.distributed.store_place import Parcel, StorePlace
from metadist.errors import UserError
from metadist.outer import StrategyCheck
from metadist.tracking import TrackingConfig
from metadist.training.evaluation import Evaluation
from metadist.training.loop import Observer
from metadist.training.recorder import scores
from metadist.training.run_folder import LEASE_SECONDS, RunFolder, checkpoint_version
from metadist.training.stepper import Diverged, StepRecord
from metadist.tuning.record import TrialRecord, read_history
from metadist.tuning.space import trial_job

#: tells trials that the sweep ends; written by its driver
STOP_FILE = "stop.json"
#: seconds between two looks at it
STOP_EVERY = 1.0
#: seconds that a stopped trial may take to end its actors
CLEANUP_SECONDS = 30.0

Result = dict[str, Any]


@dataclass(frozen=True)
class TrialPlan:
    """What all trials of a sweep have in common.

    Attributes:
        job: the sweep's job.
        location: of the sweep's folder.
        session: the epoch of the driver's lease.
        metric: key of the validation's figure that is reported.
        store, parcel: where a trial's node finds the job's data, and the data itself where there are other nodes
            than the driver's.
    """

    job: Job
    location: str
    session: int
    metric: str
    store: StorePlace | None = None
    parcel: Parcel | None = None

    def placed(self) -> Job:
        """The job with its data where this process's node has it."""
        if self.store is None or self.parcel is None:
            return self.job
        self.store.unpack(self.parcel)
        return replace(self.job, data=replace(self.job.data, source=str(self.store.here())))


class Halted(Exception):
    """The scheduler stopped the trial."""


def placement(job: Job) -> tune.PlacementGroupFactory:
    """What a trial's job reserves: a bundle for each worker; the trial itself and its server take no CPU."""
    r = job.resources
    bundle = {"CPU": r.cpus_per_worker} | ({"GPU": r.gpus_per_worker} if r.gpus_per_worker else {})
    if job.runtime == "inprocess":
        return tune.PlacementGroupFactory([bundle])
    return tune.PlacementGroupFactory([{}, *[bundle] * r.most], strategy="PACK")


class Trial(tune.Trainable):  # type: ignore[misc]
    """Tune's view of a trial: each `step` goes on to the next validation and returns it.

    The training runs in a thread that waits at each validation for Tune's decision. The process is used for one
    trial after another.
    """

    def setup(self, config: dict[str, Any], plan: TrialPlan | None = None) -> None:
        """Start the thread, which waits for the first `step`."""
        if plan is not None:
            self._plan: TrialPlan = plan
        self._results: queue.Queue[Result] = queue.Queue()
        self._go = threading.Semaphore(0)
        self._halt = threading.Event()
        trial = TrialRecord(config["trial"], config["values"])
        self._thread = threading.Thread(target=self._work, args=(trial,), name=trial.folder, daemon=True)
        self._thread.start()

    def step(self) -> Result:
        """Go on to the next validation, or to the trial's end."""
        self._go.release()
        while True:
            with contextlib.suppress(queue.Empty):
                return self._results.get(timeout=1.0)
            if not self._thread.is_alive() and self._results.empty():
                raise RuntimeError("the trial's thread ended without a result")

    def cleanup(self) -> None:
        """End the training, wherever it is, and its actors."""
        self._halt.set()
        self._go.release()
        self._thread.join(CLEANUP_SECONDS)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Go on to another trial in this process."""
        self.cleanup()
        if self._thread.is_alive():
            return False
        self.setup(new_config)
        return True

    def _work(self, trial: TrialRecord) -> None:
        try:
            self._wait()
            self._results.put(run_trial(self._plan, trial, self._hand_over))
        except Halted:
            pass

    def _hand_over(self, result: Result) -> None:
        self._results.put(result)
        self._wait()

    def _wait(self) -> None:
        self._go.acquire()
        if self._halt.is_set():
            raise Halted


def run_trial(plan: TrialPlan, trial: TrialRecord, hand_over: Callable[[Result], None]) -> Result:
    """Run a trial from its start or from its run folder to its end.

    Args:
        hand_over: given each validation; raises `Halted` to end the trial there.

    Returns:
        The last result, with the trial's state.
    """
    job = trial_job(plan.placed(), trial.values)
    # Only the sweep's driver writes to MLflow, from the metrics in the run folders.
    job = replace(job, name=trial.folder, storage=plan.location, tracking=TrackingConfig(uri="none"))
    folder = RunFolder(f"{plan.location}/{trial.folder}")
    reporter = Reporter(plan, job.steps, hand_over)
    if reporter.stopping():
        return reporter.last("unfinished")
    if folder.exists("summary.json"):
        summary = folder.read_json("summary.json")
        if summary.get("outcome") in ("finished", "early"):
            reporter.tell_again(folder, summary["step"])
            return reporter.last("finished")
    names = folder.checkpoints() if folder.exists("checkpoints") else []
    if names:
        reporter.tell_again(folder, checkpoint_version(names[-1]))
    try:
        _await_lease(folder)
        summary = train_job(job, reporter, RunOptions(stop=reporter.stopping, run=trial.folder, test=False))
    except Diverged as error:
        return reporter.last("diverged", str(error)) | {plan.metric: math.nan}
    except Halted:
        raise
    except Exception as error:  # the other trials may do better; what Tune tries again is a process that died
        with contextlib.suppress(Exception):
            folder.write("error.txt", traceback.format_exc().encode())
        return reporter.last("failed", _in_one_line(error)) | {plan.metric: math.nan}
    reporter.version = summary["step"]
    return reporter.last("unfinished" if summary["outcome"] == "stopped" else "finished")


def _in_one_line(error: Exception) -> str:
    plain = re.sub(r"\x1b\[[0-9;]*m", "", str(error))  # Ray colours what it quotes
    lines = [line.strip() for line in plain.splitlines() if line.strip()] or [""]
    # Of a quoted traceback the last line says what was wrong.
    text = lines[0][:250] + (f" … {lines[-1][:250]}" if len(lines) > 1 else "")
    return text if isinstance(error, UserError) else f"{type(error).__name__}: {text}"


def _await_lease(folder: RunFolder) -> None:
    """Wait until a driver that was killed a moment ago, maybe on another host, no longer holds the folder."""
    deadline = time.monotonic() + LEASE_SECONDS + 10
    while True:
        try:
            folder.check_free()
            return
        except UserError:
            if time.monotonic() > deadline:
                raise
        time.sleep(1.0)


class Reporter(Observer):
    """Hands each validation over, once the checkpoint that goes with it is written.

    Args:
        steps: outer steps of the trial; the validation after the last one is part of the trial's last result.
    """

    def __init__(self, plan: TrialPlan, steps: int, hand_over: Callable[[Result], None]) -> None:
        self._plan, self._steps, self._hand_over = plan, steps, hand_over
        self._metric = plan.metric
        self._pending: Result | None = None
        self._value = math.nan
        self._said: list[str] = []
        self._looked = -math.inf
        self._stop = False
        self.version = 0

    def stopping(self) -> bool:
        """Whether the sweep's driver asked its trials to end."""
        if not self._stop and time.monotonic() - self._looked >= STOP_EVERY:
            self._looked = time.monotonic()
            folder = RunFolder(self._plan.location)
            if folder.exists(STOP_FILE):
                self._stop = folder.read_json(STOP_FILE)["session"] >= self._plan.session
        return self._stop

    def tell_again(self, folder: RunFolder, version: int) -> None:
        """Hand over the validations of an earlier session, up to a version."""
        self.version = version
        for step, values in read_history(folder):
            if step <= version and self._metric in values:
                self._value = values[self._metric]
                if step < self._steps:
                    self._hand_over(self._result(step) | {"again": True})

    def last(self, state: str, reason: str | None = None) -> Result:
        """The trial's last result."""
        return self._result(self.version) | {"state": state, "reason": reason, "done": True}

    def _result(self, step: int) -> Result:
        said, self._said = self._said, []
        return {"step": step, self._metric: self._value, "state": "running", "said": said}

    def say(self, text: str) -> None:
        self._said.append(text)

    def ready(self, check: StrategyCheck, version: int, fingerprint: dict[str, str]) -> None:
        self.version = version

    def stepped(self, record: StepRecord, workers: int, losses: int) -> None:
        self.version = record.version

    def validated(self, version: int, evaluation: Evaluation, best: bool) -> None:
        self._value = scores(evaluation, "valid")[self._metric]
        if not math.isfinite(self._value):
            raise Diverged(f"step {version}: {self._metric} is {self._value}")
        if version >= self._steps:
            return
        if best:
            self._pending = self._result(version)  # its checkpoint comes next
        else:
            self._hand_over(self._result(version))

    def saved(self, version: int, name: str) -> None:
        if self._pending is not None:
            pending, self._pending = self._pending, None
            self._hand_over(pending)

    def testing(self, share: float) -> None:
        pass
