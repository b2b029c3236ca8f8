"""The runs that are in a tracking store already: read only, and within bounded time."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from metadist.tracking.client import open_client
from metadist.tracking.config import VERSION_TAG
from metadist.tracking.environment import QuietHttp
from metadist.tracking.masking import mask_passwords
from metadist.tracking.run_store import describe_error
from metadist.tracking.sqlite_place import StoreUnusable, database_path

_T = TypeVar("_T")


@dataclass(frozen=True)
class StoredRun:
    """One run as the store knows it.

    Attributes:
        status: MLflow's own: RUNNING, FINISHED, FAILED or KILLED. A driver that was killed leaves RUNNING behind.
        started: seconds since 1970.
        step: the last step of any metric.
        metrics: the last value of each.
        histories: of the metrics that were asked for, (step, value) in order.
    """

    run_id: str
    name: str
    experiment: str
    status: str
    started: float
    step: int | None
    params: dict[str, str]
    metrics: dict[str, float]
    histories: dict[str, list[tuple[int, float]]]


class RunIndex:
    """The runs in one store.

    Args:
        uri: the store's resolved address.
        seconds: within which any call returns.
    """

    def __init__(self, uri: str, seconds: float = 20.0) -> None:
        self._uri, self._seconds = uri, seconds
        self._client: Any = None
        self.shown_uri = mask_passwords(uri)

    def check(self) -> int:
        """The number of experiments, after asking the store.

        Raises:
            StoreUnusable: it does not answer, or not as a store does; says which in a clause.
        """
        return self._within(lambda: len(self._connect().search_experiments()))

    def runs(self, histories: tuple[str, ...] = (), limit: int = 200) -> list[StoredRun]:
        """The newest runs that metadist made, newest first; none when the store was never made.

        Args:
            histories: metrics of which every value is wanted.

        Raises:
            StoreUnusable: as for `check`.
        """
        database = database_path(self._uri)
        if database is not None and not database.exists():
            return []
        return self._within(lambda: self._runs(histories, limit))

    def _runs(self, histories: tuple[str, ...], limit: int) -> list[StoredRun]:
        client = self._connect()
        experiments = {str(e.experiment_id): str(e.name) for e in client.search_experiments()}
        if not experiments:
            return []
        found = client.search_runs(
            list(experiments),
            filter_string=f"tags.`{VERSION_TAG}` LIKE '%'",
            max_results=limit,
            order_by=["attributes.start_time DESC"],
        )
        return [self._stored(run, experiments[run.info.experiment_id], histories) for run in found]

    def _stored(self, run: Any, experiment: str, wanted: tuple[str, ...]) -> StoredRun:
        metrics = {key: float(value) for key, value in run.data.metrics.items()}
        histories = {}
        for key in wanted:
            if key in metrics:
                points = self._client.get_metric_history(run.info.run_id, key)
                histories[key] = sorted({int(p.step): float(p.value) for p in points}.items())
        steps = [int(metric.step) for metric in getattr(run.data, "_metric_objs", None) or ()]
        return StoredRun(
            run_id=str(run.info.run_id),
            name=str(run.info.run_name or ""),
            experiment=experiment,
            status=str(run.info.status),
            started=run.info.start_time / 1000,
            step=max(steps, default=None),
            params=dict(run.data.params),
            metrics=metrics,
            histories=histories,
        )

    def _connect(self) -> Any:
        if self._client is None:
            database = database_path(self._uri)
            if database is not None and not database.exists():  # MLflow would make it
                raise StoreUnusable(f"there is no database {database}")
            self._client = open_client(self._uri)
        return self._client

    def _within(self, call: Callable[[], _T]) -> _T:
        """What `call` returns: in a thread, because a store may hang in a call that knows no time limit."""
        result: list[_T] = []
        errors: list[Exception] = []

        def work() -> None:
            with QuietHttp():
                try:
                    result.append(call())
                except Exception as error:  # whatever MLflow raises
                    errors.append(error)

        thread = threading.Thread(target=work, name="metadist-run-index", daemon=True)
        thread.start()
        thread.join(self._seconds)
        if errors:
            raise StoreUnusable(f"{self.shown_uri} {describe_error(errors[0])}") from errors[0]
        if not result:
            raise StoreUnusable(f"{self.shown_uri} does not answer within {self._seconds:g} s")
        return result[0]
