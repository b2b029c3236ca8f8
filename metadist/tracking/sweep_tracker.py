"""A sweep in MLflow: a parent run, and below it one run for each trial, all written by the sweep's driver."""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from metadist.tracking.config import TrackingConfig, resolve_uri
from metadist.tracking.tracker import NullTracker, RunEnd, Tracker

History = Sequence[tuple[int, Mapping[str, float]]]

#: The tag by which MLflow's pages show a run below another.
PARENT_TAG = "mlflow.parentRunId"
_PARENT_SECONDS = 15.0  # Seconds to wait for the parent's id before the first trial.
_END_SECONDS = 30.0  # Seconds that the end of a trial's run may take.
_ENDING_AT_ONCE = 4


@dataclass
class _Child:
    name: str
    params: Mapping[str, object]
    tags: Mapping[str, str]
    run_id: str | None
    #: None until the parent's id is known
    tracker: Tracker | None = None
    #: the last step of each metric that was passed on
    passed: dict[str, int] = field(default_factory=dict)


class SweepTracker:
    """Records a sweep. Whatever goes wrong with the store never ends the sweep.

    Runs are found again by a mark made of the sweep's id and the trial's name, also when the driver was killed
    before it had written their ids down, so none is made twice. Each (metric, step) is passed on once.

    Args:
        config: where to record.
        say: tells the user one line; may be called from another thread.
        sweep: the sweep's id.
    """

    def __init__(self, config: TrackingConfig, say: Callable[[str], None], sweep: str) -> None:
        self._config, self._say, self._sweep = config, say, sweep
        self._said: set[str] = set()
        self._lock = threading.Lock()
        self._children: dict[str, _Child] = {}
        self._ended: set[str] = set()
        self._parent = self._open(sweep)
        self._ending = ThreadPoolExecutor(_ENDING_AT_ONCE, thread_name_prefix="metadist-sweep")

    def start(
        self, name: str, params: Mapping[str, object], tags: Mapping[str, str], run_id: str | None = None
    ) -> str | None:
        """Begin the parent run (see `Tracker.start`); its id, or None when the store does not answer by now."""
        self._parent.start(name, params, tags, run_id)
        deadline = time.monotonic() + (0.0 if isinstance(self._parent, NullTracker) else _PARENT_SECONDS)
        while time.monotonic() < deadline and self._parent.problem is None:
            if (found := self._parent.wait_for_run_id(_PARENT_SECONDS / 30)) is not None:
                return found
        return None

    @property
    def parent(self) -> Tracker:
        """The parent run's tracker."""
        return self._parent

    def begin(
        self,
        key: str,
        name: str,
        params: Mapping[str, object],
        tags: Mapping[str, str],
        run_id: str | None = None,
    ) -> None:
        """Begin, or go on with, the run of the trial `key`; does nothing for one that is open.

        One that this driver has ended is not opened again: two would write to it.
        """
        if key in self._ended:
            return
        if key not in self._children:
            self._children[key] = _Child(name, params, tags, run_id)
        self._tracker(key)

    def run_id(self, key: str) -> str | None:
        """The id of a trial's run, once the store has given one."""
        child = self._children.get(key)
        return child.tracker.run_id if child is not None and child.tracker is not None else None

    def feed(self, key: str, history: History) -> None:
        """Pass on what is new in a trial's metrics."""
        tracker = self._tracker(key)
        if tracker is None:
            return
        passed = self._children[key].passed
        for step, values in history:
            new = {name: value for name, value in values.items() if step > passed.get(name, -1)}
            if new:
                passed.update(dict.fromkeys(new, step))
                tracker.metrics(step, new)

    def artifact(self, key: str, path: str, folder: str = "") -> None:
        """Upload a file into a trial's run; it must stay until the run has ended."""
        if (tracker := self._tracker(key)) is not None:
            tracker.artifact(path, folder)

    def text(self, key: str, name: str, content: str) -> None:
        """Upload a text into a trial's run."""
        if (tracker := self._tracker(key)) is not None:
            tracker.text(name, content)

    def end(self, key: str, status: RunEnd, done: Callable[[str | None, bool], None]) -> None:
        """End a trial's run, in the background.

        Args:
            done: called, from another thread, with the run's id and whether the run has everything.
        """
        if (tracker := self._tracker(key)) is None:
            return
        del self._children[key]
        self._ended.add(key)

        def finish() -> None:
            report = tracker.finish(status, _END_SECONDS)
            done(report.run_id, report.problem is None and not report.lost and not report.lost_files)

        self._ending.submit(finish)

    def ended(self, key: str) -> bool:
        """Whether a trial's run was ended by this driver; it may still be on its way."""
        return key in self._ended

    def wait(self) -> None:
        """Wait until the runs that are ending have ended."""
        self._ending.shutdown(wait=True)

    def _open(self, mark: str) -> Tracker:
        uri = resolve_uri(self._config)
        if uri is None:
            return NullTracker()
        # Imported here since the module is of no use when tracking is off.
        from metadist.tracking.mlflow_tracker import MlflowTracker

        # Hashed, for a name may hold what a query cannot.
        return MlflowTracker(uri, self._config.experiment, self._once, hashlib.sha256(mark.encode()).hexdigest()[:32])

    def _tracker(self, key: str) -> Tracker | None:
        child = self._children.get(key)
        if child is None:
            return None
        parent = self._parent.run_id
        if child.tracker is None and (parent is not None or isinstance(self._parent, NullTracker)):
            child.tracker = self._open(f"{self._sweep}/{key}")
            tags = dict(child.tags) | ({} if parent is None else {PARENT_TAG: parent})
            child.tracker.start(child.name, child.params, tags, child.run_id)
        return child.tracker

    def _once(self, line: str) -> None:
        """Each of many runs would tell of the same trouble."""
        with self._lock:
            if line in self._said:
                return
            self._said.add(line)
        self._say(line)
