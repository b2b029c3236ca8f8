"""Follows a sweep: what Tune tells goes into the record, to MLflow and to the user."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ray.tune import Callback, Stopper

from metadist import config
from metadist.config import Job
from metadist.distributed.logs import RunLogs
from metadist.distributed.run import flat_params, run_tags
from metadist.errors import UserError
from metadist.tracking import RunEnd, plots
from metadist.tracking.sweep_tracker import SweepTracker
from metadist.training.run_folder import RunFolder
from metadist.tuning.record import SweepRecord, TrialRecord, read_history
from metadist.tuning.search import Proposer
from metadist.tuning.space import trial_job
from metadist.tuning.trial import STOP_FILE

Say = Callable[[str], None]

#: seconds between two signs of life in the folder's lease
RENEW_SECONDS = 10.0
#: seconds that trials have to reach their next step and save once the sweep is told to end
GRACE_SECONDS = 60.0

#: how a trial's run ends in MLflow
STATUS: dict[str, RunEnd] = {"finished": "FINISHED", "diverged": "FAILED", "failed": "FAILED"}


class Ending(Stopper):  # type: ignore[misc]
    """When a sweep ends before its trials do: the user asked, or its time is over.

    Trials are told by a file in the sweep's folder, and end with a checkpoint at their next step. Only those that
    take too long for that are ended by force.

    Args:
        stop: true when the user asked.
        budget: seconds that the sweep may take.
    """

    def __init__(self, folder: RunFolder, stop: Callable[[], bool], budget: float | None, say: Say) -> None:
        self._folder, self._stop, self._budget, self._say = folder, stop, budget, say
        self._start = time.monotonic()
        self._since: float | None = None
        self.reason: str | None = None

    def __getstate__(self) -> dict[str, Any]:
        """Nothing: Tune pickles it into a snapshot that is never read."""
        return {}

    def closing(self) -> bool:
        """Whether the sweep is to end; tells the trials when it first is."""
        if self.reason is None:
            if self._stop():
                self.reason = "interrupted"
            elif self._budget is not None and time.monotonic() - self._start > self._budget:
                self.reason = "out of time"
                self._say(f"the time budget of {self._budget:g} s is used up; trials end with a checkpoint")
            else:
                return False
            self._since = time.monotonic()
            self._folder.write_json(STOP_FILE, {"session": self._folder.epoch})
        return True

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        return False

    def stop_all(self) -> bool:
        """Whether trials are ended by force."""
        return self.closing() and time.monotonic() - (self._since or 0.0) > GRACE_SECONDS


class Follower(Callback):  # type: ignore[misc]
    """Told by Tune what happens to its trials."""

    def __init__(
        self,
        job: Job,
        folder: RunFolder,
        record: SweepRecord,
        tracker: SweepTracker,
        proposer: Proposer,
        scratch: Path,
        say: Say,
    ) -> None:
        self._job, self._folder, self._record = job, folder, record
        self._tracker, self._proposer, self._scratch, self._say = tracker, proposer, scratch, say
        self._renewed = time.monotonic()
        self._logs: dict[str, contextlib.ExitStack] = {}

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        found = self._of(trial)
        verb = "starts" if found.state == "waiting" else "goes on"
        found.state, found.reason = "running", None
        self._say(f"{found.folder} {verb}: {in_words(found.values)}")
        self.open_run(found)
        # Ray streams what a trial's actors print to the sweep's driver, not to the trial.
        self._logs[found.folder] = contextlib.ExitStack()
        self._logs[found.folder].enter_context(RunLogs(found.folder)).keep_in(self._run_folder(found))
        self._save()

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        found, step = self._of(trial), int(result["step"])
        for text in result["said"]:
            self._say(f"{found.folder}: {text}")
        value = float(result[self._record.metric])
        best = found.observe(step, value, self._record.mode)
        if result["state"] != "running":
            found.state, found.reason = result["state"], result["reason"]
        elif "again" not in result:
            mark = ", its best so far" if best else ""
            self._say(f"{found.folder} step {step}: {self.figure(value)}{mark}")
        self._tracker.feed(found.folder, self._history(found))
        self._save()

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        found = self._of(trial)
        if found.state == "running":
            found.state = "stopped"
        self._end(found)

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        found = self._of(trial)
        found.state, found.reason = "failed", f"its process died {trial.num_failures} times"
        self._end(found)

    def on_step_end(self, iteration: int, trials: list[Any], **info: Any) -> None:
        if time.monotonic() - self._renewed > RENEW_SECONDS:
            self._renewed = time.monotonic()
            self._folder.renew()
            self._save()

    def figure(self, value: float | None) -> str:
        """A value of the metric in words."""
        name = self._record.metric.replace("valid/", "validation ")
        if value is None:
            return f"no {name}"
        return f"{name} {value:.5g}" if self._record.metric == "valid/loss" else f"{name} {100 * value:.2f} %"

    def open_run(self, found: TrialRecord) -> None:
        """Begin a trial's run in MLflow, or go on with it."""
        job = trial_job(self._job, found.values)
        tags = run_tags() | {"metadist.sweep": self._record.sweep, "metadist.trial": str(found.trial)}
        params = flat_params(config.job_dict(job)) | {"trial": found.trial}
        name = ", ".join(f"{path.rpartition('.')[2]} {value}" for path, value in found.values.items())
        self._tracker.begin(found.folder, f"{found.folder} ({name})", params, tags, found.mlflow_run_id)
        self._tracker.text(found.folder, "job.yaml", config.dump_job(job))

    def close_run(self, found: TrialRecord) -> None:
        """Bring a trial's run in MLflow up to date and end it."""
        history = self._history(found)
        self._tracker.feed(found.folder, history)
        if history:
            picture = self._scratch / found.folder / "training.png"
            plots.training_curves(history, picture)
            self._tracker.artifact(found.folder, str(picture), "plots")
        state = f"{found.state}: {found.reason}" if found.reason else found.state
        self._tracker.text(found.folder, "state.txt", f"{state}\n")

        def done(run_id: str | None, complete: bool) -> None:
            found.mlflow_run_id, found.tracked = run_id or found.mlflow_run_id, complete

        self._tracker.end(found.folder, STATUS.get(found.state, "KILLED"), done)

    def _end(self, found: TrialRecord) -> None:
        best = f": {self.figure(found.best)} at step {found.best_step}" if found.best is not None else ""
        how = {
            "finished": f"finished at step {found.step}",
            "stopped": f"stopped by {self._job.tune.scheduler} at step {found.step}",
            "diverged": f"diverged ({found.reason})",
            "failed": f"failed ({found.reason})",
            "unfinished": f"saved at step {found.step}, unfinished",
        }[found.state]
        self._say(f"{found.folder} {how}{best}")
        self._logs.pop(found.folder).close()
        if found.state != "unfinished":
            self._proposer.learn(found)
        chosen = self._record.choose()
        ended = sum(trial.state not in ("waiting", "running", "unfinished") for trial in self._record.trials)
        if chosen is not None and chosen.best is not None:
            self._tracker.parent.metrics(ended, {f"best/{self._record.metric}": chosen.best})
        self.close_run(found)
        self._save()

    def _save(self) -> None:
        for trial in self._record.trials:
            trial.mlflow_run_id = self._tracker.run_id(trial.folder) or trial.mlflow_run_id
        self._record.save(self._folder)

    def _of(self, trial: Any) -> TrialRecord:
        return self._record.trials[int(trial.config["trial"])]

    def _run_folder(self, found: TrialRecord) -> RunFolder:
        return RunFolder(f"{self._folder.location}/{found.folder}")

    def _history(self, found: TrialRecord) -> list[tuple[int, dict[str, float]]]:
        try:
            return read_history(self._run_folder(found))
        except (OSError, UserError):
            return []  # being exchanged; there is a next time


def in_words(values: dict[str, Any]) -> str:
    """Swept values for people."""
    return ", ".join(f"{path} {value}" for path, value in values.items())
