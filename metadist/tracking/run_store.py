"""One run in an MLflow store, spoken to synchronously: every call may block, fail or be repeated."""

from __future__ import annotations

import functools
import getpass
import json
import math
import os
import re
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeVar

from metadist.tracking.client import open_client
from metadist.tracking.masking import mask_passwords
from metadist.tracking.sqlite_place import (
    DatabaseWatch,
    StoreUnusable,
    artifact_location,
    database_path,
    prepare_folder,
)

# MLflow's limits: entries of one batch, and lengths of names and values.
_PARAMS_PER_BATCH = 100
_NAME_LENGTH = 250
_PARAM_LENGTH = 6000
_TAG_LENGTH = 5000

_ATTEMPT_TAG = "metadist.start"
_CHANGED_TAG = "metadist.changed_on_resume"

_T = TypeVar("_T")


class MetricEntry(NamedTuple):
    """One metric value, as MLflow stores it."""

    key: str
    value: float
    milliseconds: int
    step: int


@dataclass(frozen=True)
class RunRequest:
    """Which run to open, and what describes it."""

    #: The run's name.
    name: str
    #: Flattened resolved job.
    params: Mapping[str, object]
    #: Further marks.
    tags: Mapping[str, str]
    #: The run to go on with, if any.
    run_id: str | None
    #: Names the run for good, where its maker may be killed before it has written down the run's id.
    mark: str | None = None
    #: Marks the run that this request made, so that a repeated request finds it again when the store
    #: made it but the answer was lost.
    attempt: str = field(default_factory=lambda: uuid.uuid4().hex)

    @property
    def start(self) -> str:
        """What the run's start tag says."""
        return self.mark or self.attempt


@functools.lru_cache(maxsize=4096)
def clean_name(name: str) -> str:
    """`name` as MLflow accepts it: letters, digits and `_ - . / : space`, not like a path upwards."""
    cleaned = re.sub(r"[^\w\-. :/]", "_", name)[:_NAME_LENGTH].strip("/ ") or "_"
    if os.path.normpath(cleaned) != cleaned or cleaned.startswith(".."):
        cleaned = cleaned.replace("/", "_")
    return "_" if cleaned in (".", "..") else cleaned


#: MLflow's pages open such an experiment as one of model training, not of language models.
EXPERIMENT_TAGS = {"mlflow.experimentKind": "custom_model_development"}


class RunStore:
    """Opens a run and sends to it.

    Args:
        uri: the store's resolved address.
        experiment: the experiment's name.
        note: told what the user should know although nothing is wrong.
    """

    def __init__(self, uri: str, experiment: str, note: Callable[[str], None]) -> None:
        self._uri, self._experiment, self._note = uri, experiment, note
        self._client: Any = None
        self._watch: DatabaseWatch | None = None
        self._tries = 0
        self._last_steps: dict[str, int] = {}
        self._reopened = False
        self.run_id: str | None = None

    def open(self, request: RunRequest) -> str:
        """Make or reopen the run and describe it; may be called again after it failed."""
        self._connect()
        self._tries += 1
        if self.run_id is None:
            known = request.run_id or self._marked(request)
            reopened = self._reopen(known) if known else None
            self._reopened = reopened is not None
            self.run_id = reopened or self._make(request)
        self._describe(self.run_id, request)
        return self.run_id

    def send_metrics(self, entries: Sequence[MetricEntry]) -> int:
        """Store `entries` (at most 1000) and return how many were not stored already.

        Sending the same entries again is harmless: a store keeps one of equal values.
        """
        from mlflow.entities import Metric

        self._check()
        new = [entry for entry in entries if entry.step > self._last_steps.get(entry.key, -1)]
        # An infinity would be stored as the greatest float, which no plot survives; as a number that is
        # none it is stored and shown for what it is.
        metrics = [Metric(e.key, e.value if math.isfinite(e.value) else math.nan, e.milliseconds, e.step) for e in new]
        if metrics:
            self._client.log_batch(self.run_id, metrics=metrics)
        return len(new)

    def send_file(self, path: str, folder: str) -> None:
        """Upload a local file."""
        self._check()
        if not os.path.isfile(path):
            raise StoreUnusable(f"the file {path} to upload does not exist")
        self._client.log_artifact(self.run_id, path, folder or None)

    def send_text(self, name: str, content: str) -> None:
        """Upload a text as a file."""
        self._check()
        self._client.log_text(self.run_id, content, name)

    def close(self, status: str) -> None:
        """Mark the run as ended."""
        self._check()
        self._client.set_terminated(self.run_id, status)

    def _check(self) -> None:
        if self._watch is not None:
            self._watch.check()

    def _connect(self) -> None:
        if self._client is not None:
            self._check()
            return
        database = database_path(self._uri)
        if database is not None:
            prepare_folder(database)
        client = open_client(self._uri)
        if database is not None and not database.exists():
            # A store of this process that was opened before still holds the removed file.
            raise StoreUnusable(f"the database {database} was removed while this process had it open")
        self._client, self._watch = client, DatabaseWatch(database)

    def _experiment_id(self) -> str:
        from mlflow.exceptions import MlflowException

        found = self._client.get_experiment_by_name(self._experiment)
        if found is None:
            database = database_path(self._uri)
            location = None if database is None else artifact_location(database, self._experiment)
            try:
                made = self._client.create_experiment(self._experiment, location, tags=EXPERIMENT_TAGS)
                return str(made)
            except MlflowException as error:
                if error.error_code != "RESOURCE_ALREADY_EXISTS":
                    raise
                # Another run made it in this very moment.
                found = self._client.get_experiment_by_name(self._experiment)
        if found.lifecycle_stage == "deleted":
            self._client.restore_experiment(found.experiment_id)
            self._note(f"The MLflow experiment {self._experiment!r} was deleted; it is restored.")
        return str(found.experiment_id)

    def _reopen(self, run_id: str) -> str | None:
        from mlflow.exceptions import MlflowException

        try:
            run = self._client.get_run(run_id)
        except MlflowException as error:
            if error.error_code not in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
                raise
            if self._tries == 1:
                self._note(f"MLflow has no run {run_id} any more; a new run is made.")
            return None
        if run.info.lifecycle_stage == "deleted":
            self._client.restore_run(run_id)
        self._client.update_run(run_id, status="RUNNING")
        self._last_steps = self._stored_steps(run)
        return run_id

    def _stored_steps(self, run: Any) -> dict[str, int]:
        latest = getattr(run.data, "_metric_objs", None)
        if latest is not None:
            return {metric.key: int(metric.step) for metric in latest}
        # The public way, should MLflow stop to carry the steps with the run: whole histories.
        steps: dict[str, int] = {}
        for key in run.data.metrics:
            history = self._client.get_metric_history(run.info.run_id, key)
            steps[key] = max((int(metric.step) for metric in history), default=-1)
        return steps

    def _make(self, request: RunRequest) -> str:
        experiment_id = self._experiment_id()
        if self._tries > 1 and request.mark is None and (made := self._search(experiment_id, request)):
            return made
        tags = {
            "mlflow.user": _user(),
            "mlflow.source.name": "metadist",
            "mlflow.source.type": "LOCAL",
            _ATTEMPT_TAG: request.start,
        }
        return str(self._client.create_run(experiment_id, tags=tags, run_name=request.name).info.run_id)

    def _marked(self, request: RunRequest) -> str | None:
        return None if request.mark is None else self._search(self._experiment_id(), request)

    def _search(self, experiment_id: str, request: RunRequest) -> str | None:
        query = f"tags.`{_ATTEMPT_TAG}` = '{request.start}'"
        made = self._client.search_runs([experiment_id], filter_string=query, max_results=1)
        return str(made[0].info.run_id) if made else None

    def _describe(self, run_id: str, request: RunRequest) -> None:
        from mlflow.entities import Param, RunTag

        params = {clean_name(k): mask_passwords(str(v))[:_PARAM_LENGTH] for k, v in request.params.items()}
        tags = {clean_name(k): mask_passwords(str(v)) for k, v in request.tags.items()}
        stored: dict[str, str] = {}
        if self._reopened or self._tries > 1:
            stored = dict(self._client.get_run(run_id).data.params)
        # MLflow never lets a parameter change; what a resumed job sets otherwise goes into a tag.
        changed = {k: v for k, v in params.items() if k in stored and stored[k] != v}
        if changed:
            tags[_CHANGED_TAG] = json.dumps(changed, ensure_ascii=False)
        new = [Param(k, v) for k, v in params.items() if k not in stored]
        marks = [RunTag(k, v[:_TAG_LENGTH]) for k, v in tags.items()]
        for part in _parts(new, _PARAMS_PER_BATCH):
            self._describe_part(run_id, params=part)
        for part in _parts(marks, _PARAMS_PER_BATCH):
            self._describe_part(run_id, tags=part)

    def _describe_part(self, run_id: str, **part: object) -> None:
        try:
            self._client.log_batch(run_id, **part)
        except Exception as error:
            if not is_lasting(error):
                raise
            # The metrics are worth more than a complete description.
            self._note(f"MLflow did not take some of the run's {next(iter(part))}: {describe_error(error)}.")


def is_lasting(error: BaseException) -> bool:
    """Whether trying again after `error` is pointless."""
    if isinstance(error, StoreUnusable | ModuleNotFoundError):
        return True
    code = getattr(error, "error_code", None)  # MLflow's own errors have one.
    return code in (
        "INVALID_PARAMETER_VALUE",
        "RESOURCE_DOES_NOT_EXIST",
        "PERMISSION_DENIED",
        "UNAUTHENTICATED",
        "FEATURE_DISABLED",
        "ENDPOINT_NOT_FOUND",
    )


def describe_error(error: BaseException) -> str:
    """`error` as a short clause without passwords: HTTP libraries wrap theirs five deep."""
    names, seen = set(), error
    for _ in range(8):
        names.add(type(seen).__name__)
        following = seen.__cause__ or seen.__context__
        if following is None:
            break
        seen = following
    text = str(error)
    if "ReadTimeout" in names or "ConnectTimeout" in names or "timed out" in text.lower():
        return "does not answer"
    if "ConnectionRefusedError" in names or "Connection refused" in text:
        return "refuses the connection"
    if "NameResolutionError" in names or "Failed to resolve" in text:
        return "has an unknown host name"
    line = next((part.strip() for part in text.splitlines() if part.strip()), "")
    line = line.removeprefix("(raised as a result of Query-invoked autoflush; ").strip()
    clause = f"failed ({type(error).__name__}: {line})" if line else f"failed ({type(error).__name__})"
    if isinstance(error, StoreUnusable):
        clause = f"failed ({line})"
    masked = mask_passwords(clause)
    return masked if len(masked) <= 300 else masked[:298] + "…)"


def _parts(items: Sequence[_T], size: int) -> Iterator[Sequence[_T]]:
    for start in range(0, len(items), size):
        yield items[start : start + size]


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError, ImportError):  # No such user in this container.
        return "unknown"
