"""What the training needs of an experiment tracker, and the choice of one."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

from metadist.tracking.config import TrackingConfig, resolve_uri

#: How a run ended.
RunEnd = Literal["FINISHED", "FAILED", "KILLED"]


@dataclass(frozen=True)
class TrackingReport:
    """What became of everything that was handed to a tracker."""

    #: The run's id in the store; None when no run came about.
    run_id: str | None
    #: The store's address without passwords; None when tracking is off.
    uri: str | None
    #: Metric values that the store has taken.
    sent: int
    #: Metric values that never reached the store.
    lost: int
    #: What went wrong first, in one line; None when nothing did.
    problem: str | None
    #: Files and texts that never reached the store.
    lost_files: int = 0


class Tracker(ABC):
    """Records one run. No call but `finish` and `wait_for_run_id` waits for anything.

    A tracker must never stall or end the training: whatever goes wrong with the store is kept in
    `problem` and told to the user once.
    """

    @abstractmethod
    def start(
        self,
        name: str,
        params: Mapping[str, object],
        tags: Mapping[str, str],
        run_id: str | None = None,
        lazy: bool = False,
    ) -> None:
        """Begin to record.

        Args:
            name: the run's name.
            params: the flattened resolved job (dotted keys); passwords in addresses are masked.
            tags: further marks of the run.
            run_id: a run to go on with; a new one is made if the store no longer has it.
            lazy: contact the store with the first metrics, or when somebody waits for it: until then a run's
                actors start, which need the cores that MLflow's import would take for seconds.
        """

    @property
    @abstractmethod
    def run_id(self) -> str | None:
        """The run's id, once the store has given one."""

    @abstractmethod
    def wait_for_run_id(self, timeout: float) -> str | None:
        """The run's id, waiting at most `timeout` seconds for the store to give it."""

    @abstractmethod
    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        """Record `values` at `step`; the caller passes each (key, step) once."""

    @abstractmethod
    def artifact(self, path: str, folder: str = "") -> None:
        """Upload the file `path` into the run's `folder`; the file must stay until `finish`."""

    @abstractmethod
    def text(self, name: str, content: str) -> None:
        """Upload `content` as the file `name`; passwords in addresses are masked."""

    @abstractmethod
    def finish(self, status: RunEnd, timeout: float = 60.0) -> TrackingReport:
        """End the run: wait at most `timeout` seconds for what is queued, and report."""

    @property
    @abstractmethod
    def problem(self) -> str | None:
        """What went wrong first, in one line."""


class NullTracker(Tracker):
    """Records nothing: tracking is switched off."""

    def start(
        self,
        name: str,
        params: Mapping[str, object],
        tags: Mapping[str, str],
        run_id: str | None = None,
        lazy: bool = False,
    ) -> None:
        """Nothing to begin."""

    @property
    def run_id(self) -> str | None:
        """There is no run."""
        return None

    def wait_for_run_id(self, timeout: float) -> str | None:
        """There is no run to wait for."""
        return None

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        """Nothing is recorded."""

    def artifact(self, path: str, folder: str = "") -> None:
        """Nothing is uploaded."""

    def text(self, name: str, content: str) -> None:
        """Nothing is uploaded."""

    def finish(self, status: RunEnd, timeout: float = 60.0) -> TrackingReport:
        """An empty report."""
        return TrackingReport(run_id=None, uri=None, sent=0, lost=0, problem=None)

    @property
    def problem(self) -> str | None:
        """Nothing can go wrong."""
        return None


def open_tracker(config: TrackingConfig, say: Callable[[str], None]) -> Tracker:
    """The tracker that `config` asks for. Nothing is contacted before `start`.

    Args:
        config: where to record.
        say: tells the user one line; it may be called from another thread.

    Raises:
        UserError: `config.uri` (or `MLFLOW_TRACKING_URI`) is no address MLflow could use.
    """
    uri = resolve_uri(config)
    if uri is None:
        return NullTracker()
    # Imported here since the module is of no use when tracking is off.
    from metadist.tracking.mlflow_tracker import MlflowTracker

    return MlflowTracker(uri, config.experiment, say)
