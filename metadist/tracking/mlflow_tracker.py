"""The MLflow tracker: a queue that the training fills and a thread that empties it into the store."""

from __future__ import annotations

import itertools
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass

from metadist.tracking.environment import QuietHttp
from metadist.tracking.masking import mask_passwords
from metadist.tracking.run_store import (
    MetricEntry,
    RunRequest,
    RunStore,
    clean_name,
    describe_error,
    is_lasting,
)
from metadist.tracking.tracker import RunEnd, Tracker, TrackingReport

_BATCH = 500  # Metric values sent at once; MLflow takes at most 1000.
_INTERVAL = 1.0  # Seconds between two batches that are not full.
_MOST_METRICS = 50_000  # Values kept for a store that does not answer; later ones are dropped.
_MOST_FILES = 1_000
_FIRST_PAUSE, _LONGEST_PAUSE = 1.0, 30.0  # Seconds until a failed call is tried again; doubled each time.
_PATIENCE = 30.0  # Seconds after which a call that has not returned is called a problem.
_UPLOAD_SHARE = 0.9  # Part of `finish`'s time after which no further upload begins.
_LAST_TRIES = 2  # Failures in a row that `finish` puts up with.


@dataclass(frozen=True)
class _File:
    """A queued upload: of the file `name`, or of `content` under that name."""

    name: str
    folder: str = ""
    content: str | None = None


class MlflowTracker(Tracker):
    """Records a run with MLflow.

    All contact with MLflow, its import included, is made by one daemon thread. While the store fails,
    the thread tries again at growing intervals and the queue fills up to its bound; what does not fit
    is dropped and counted. Nothing is lost by that for good: the run's folder keeps every value.

    Args:
        uri: the store's resolved address.
        experiment: the experiment's name.
        say: tells the user one line; called from the thread.
        mark: names the run for good; a run that has it already is gone on with.
    """

    def __init__(self, uri: str, experiment: str, say: Callable[[str], None], mark: str | None = None) -> None:
        self._mark = mark
        self._shown_uri, self._say = mask_passwords(uri), say
        self._store = RunStore(uri, experiment, self._tell)
        self._request: RunRequest | None = None
        # One condition guards everything below; it is never held while MLflow is called.
        self._changed = threading.Condition()
        self._metrics: deque[MetricEntry] = deque()
        self._files: deque[_File] = deque()
        self._run_id: str | None = None
        self._problem: str | None = None
        self._sent = self._lost = self._lost_files = 0
        self._calling_since: float | None = None
        self._end: RunEnd | None = None
        self._deadline = float("inf")
        self._over = False  # Nothing more is sent: the run is ended or given up.
        self._report: TrackingReport | None = None
        self._thread = threading.Thread(target=self._work, name="metadist-tracking", daemon=True)

    def start(
        self,
        name: str,
        params: Mapping[str, object],
        tags: Mapping[str, str],
        run_id: str | None = None,
        lazy: bool = False,
    ) -> None:
        """Begin to record (see `Tracker.start`); returns before the store is contacted."""
        if self._request is not None:
            raise RuntimeError("the tracker was started already")
        self._request = RunRequest(name, dict(params), dict(tags), run_id, self._mark)
        if not lazy:
            self._begin()

    @property
    def run_id(self) -> str | None:
        """The run's id, once the store has given one."""
        return self._run_id

    def wait_for_run_id(self, timeout: float) -> str | None:
        """The run's id, waiting at most `timeout` seconds; at once None after the store was given up."""
        self._begin()
        with self._changed:
            self._changed.wait_for(lambda: self._run_id is not None or self._over, timeout)
            return self._run_id

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        """Queue `values`; drops and counts them when the queue is full or the store was given up."""
        self._begin()
        now = int(time.time() * 1000)
        entries, unusable = [], 0
        for key, value in values.items():
            try:
                entries.append(MetricEntry(clean_name(key), float(value), now, int(step)))
            except (TypeError, ValueError):
                unusable += 1
        with self._changed:
            room = 0 if self._over else max(0, _MOST_METRICS - len(self._metrics))
            self._metrics.extend(entries[:room])
            self._lost += len(entries[room:]) + unusable
            if len(self._metrics) >= _BATCH:
                self._changed.notify_all()
            since = self._calling_since
        if since is not None and self._problem is None and time.monotonic() - since > _PATIENCE:
            # The thread hangs in a call that knows no time limit of its own.
            self._trouble("does not answer")

    def artifact(self, path: str, folder: str = "") -> None:
        """Queue an upload (see `Tracker.artifact`)."""
        self._queue_file(_File(path, folder))

    def text(self, name: str, content: str) -> None:
        """Queue the upload of a text (see `Tracker.text`)."""
        self._queue_file(_File(name, content=mask_passwords(content)))

    def finish(self, status: RunEnd, timeout: float = 60.0) -> TrackingReport:
        """Send what is queued, end the run and report, all within `timeout` seconds."""
        if self._report is not None:
            return self._report
        with self._changed:
            self._end, self._deadline = status, time.monotonic() + _UPLOAD_SHARE * timeout
            self._changed.notify_all()
        self._begin()
        if self._request is not None:
            self._thread.join(timeout)
        late = self._thread.is_alive()
        with self._changed:
            unsent = len(self._metrics) + len(self._files)
            self._give_up()
        if late:
            self._trouble(f"did not take everything within {timeout:g} s ({unsent} entries left)")
        self._report = TrackingReport(
            self._run_id, self._shown_uri, self._sent, self._lost, self._problem, self._lost_files
        )
        return self._report

    @property
    def problem(self) -> str | None:
        """What went wrong first, in one line."""
        return self._problem

    def _begin(self) -> None:
        with self._changed:
            if self._request is not None and self._thread.ident is None:
                self._thread.start()

    def _queue_file(self, file: _File) -> None:
        with self._changed:
            if self._over or len(self._files) >= _MOST_FILES:
                self._lost_files += 1
                return
            self._files.append(file)
            self._changed.notify_all()

    def _tell(self, line: str) -> None:
        # The user's console must not be able to end the thread.
        with suppress(Exception):
            self._say(mask_passwords(line))

    def _trouble(self, clause: str) -> None:
        with self._changed:
            if self._problem is not None or self._report is not None:
                return
            self._problem = f"MLflow at {self._shown_uri} {clause}"
        self._tell(f"{self._problem}. The run goes on; its metrics are kept in the run's folder.")

    def _give_up(self) -> None:
        """Drop and count what is queued; the condition is held."""
        self._over = True
        self._lost += len(self._metrics)
        self._lost_files += len(self._files)
        self._metrics.clear()
        self._files.clear()
        self._changed.notify_all()

    # What follows runs in the thread.

    def _work(self) -> None:
        with QuietHttp():
            failures = 0
            while not self._over:
                try:
                    self._send_round()
                    failures = 0
                    if self._ended():
                        return
                except Exception as error:  # Whatever MLflow raises must stay here.
                    # An error that lasts is about what was asked for: the store itself does answer.
                    failures = 0 if is_lasting(error) else failures + 1
                    self._failed(error, failures)
                if not self._over:
                    self._pause(failures)
            if self._run_id is None or failures:
                return
            # Given up, or late for `finish`: at least the run should not look as if it went on.
            with self._changed:
                self._changed.wait_for(lambda: self._end is not None)
            with suppress(Exception):
                self._store.close(self._end or "FAILED")

    def _send_round(self) -> None:
        assert self._request is not None
        if self._run_id is None:
            with self._timed():
                run_id = self._store.open(self._request)
            with self._changed:
                self._run_id = run_id
                self._changed.notify_all()
        while self._metrics and not self._over:
            with self._changed:
                batch = list(itertools.islice(self._metrics, _BATCH))
            with self._timed():
                new = self._store.send_metrics(batch)
            with self._changed:
                if self._over:  # `finish` has counted these as lost meanwhile, and reported.
                    return
                for _ in batch:
                    self._metrics.popleft()
                self._sent += new
        self._upload()

    def _upload(self) -> None:
        while self._files and not self._over:
            if time.monotonic() > self._deadline:
                # The rest of the time is for ending the run, lest it look as if it went on.
                with self._changed:
                    self._lost_files += len(self._files)
                    self._files.clear()
                self._trouble("took too long over the files; some are not uploaded")
                return
            file, taken = self._files[0], True
            try:
                # Not timed as a call: a great file takes its time.
                if file.content is None:
                    self._store.send_file(file.name, file.folder)
                else:
                    self._store.send_text(file.name, file.content)
            except Exception as error:
                if not is_lasting(error):
                    raise
                taken = False
                self._trouble(describe_error(error))
            with self._changed:
                if self._files:
                    self._files.popleft()
                    self._lost_files += not taken

    def _ended(self) -> bool:
        """End the run if everything is sent; says whether it did."""
        with self._changed:
            if self._metrics or self._files or self._end is None:
                return False
        self._store.close(self._end)
        with self._changed:
            self._over = True
        return True

    @contextmanager
    def _timed(self) -> Iterator[None]:
        self._calling_since = time.monotonic()
        try:
            yield
        finally:
            self._calling_since = None

    def _failed(self, error: Exception, failures: int) -> None:
        self._trouble(describe_error(error))
        with self._changed:
            if is_lasting(error) or (self._end is not None and failures >= _LAST_TRIES):
                self._give_up()

    def _pause(self, failures: int) -> None:
        """Wait until there is something to do, or, after a failure, until it may be tried again."""
        with self._changed:
            if failures:
                seconds = min(_FIRST_PAUSE * 2 ** (failures - 1), _LONGEST_PAUSE)
                if self._end is None:
                    self._changed.wait_for(lambda: self._end is not None, seconds)
                else:
                    self._changed.wait_for(lambda: self._over, min(seconds, _FIRST_PAUSE))
                return
            self._changed.wait_for(
                lambda: self._end is not None or bool(self._files) or len(self._metrics) >= _BATCH,
                _INTERVAL,
            )
