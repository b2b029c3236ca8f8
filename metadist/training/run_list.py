"""Which runs there are: from their folders and from tracking stores, one row a run.

Where both know a run its folder is believed: a driver that was killed leaves a run in the store that seems to go on.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any

from metadist.errors import UserError
from metadist.reading import parse_json
from metadist.reading_yaml import MOST_YAML, parse_yaml
from metadist.tracking import MetricsFile
from metadist.tracking.run_index import StoredRun
from metadist.training.run_folder import RunFolder, checkpoint_version, subfolders

#: MLflow's words for how a run ended, in this project's
STATUS = {"RUNNING": "running", "FINISHED": "finished", "KILLED": "stopped", "FAILED": "failed"}
#: metrics that judge a version, with whether more is better; the first that a run has counts
VALIDATIONS = (("valid/accuracy", True), ("valid/loss", False))


#: the end of the year 9998, in seconds since 1970
LAST_TIME = 253370764800


@dataclass(frozen=True)
class RunRow:
    """One run in a list.

    Attributes:
        found: where: "folder", "mlflow" or both.
        location: path or URI of the folder, if it was found.
        started: seconds since 1970.
        state: "running", "finished", "stopped" (resumable), "killed" (its driver is gone; resumable from the last
            checkpoint, if any), "failed", or for a folder that is none of a run "foreign" or "unreadable".
        step: the last step known, of `steps`.
        valid, measure: the best validation figure so far, and what it measures ("accuracy" or "loss").
        test, test_ci95: the final figure of the same measure, with its 95 % interval.
        problem: what is wrong with the folder, in a sentence.
    """

    name: str
    found: tuple[str, ...]
    location: str | None = None
    started: float | None = None
    state: str = "unreadable"
    step: int | None = None
    steps: int | None = None
    measure: str | None = None
    valid: float | None = None
    test: float | None = None
    test_ci95: float | None = None
    mlflow_run_id: str | None = None
    tracking_uri: str | None = None
    problem: str = ""


@dataclass(frozen=True)
class RunFiles:
    """What is read of a run's folder; a file that is not there yet is empty.

    Attributes:
        about: `run.json`.
        summary: `summary.json`.
        metrics: (step, values) of `metrics.jsonl`, in order.
        checkpoints: names of the complete ones, oldest first.
        lease: see `RunFolder.lease_state`.
    """

    folder: RunFolder
    about: dict[str, Any]
    summary: dict[str, Any]
    metrics: list[tuple[int, dict[str, float]]]
    checkpoints: list[str]
    lease: str
    tracking_uri: str | None


def read_files(folder: RunFolder) -> RunFiles:
    """Read a run's folder.

    Raises:
        UserError: it is none, or a file in it cannot be understood.
    """
    if not folder.exists("job.yaml") and not folder.exists("run.json"):
        raise UserError(folder.location, "no run", "a run folder (with job.yaml and run.json)")
    return RunFiles(
        folder,
        _object(folder, "run.json"),
        _object(folder, "summary.json"),
        _metrics(folder),
        folder.checkpoints(),
        folder.lease_state(),
        _tracking_uri(folder),
    )


def _object(folder: RunFolder, name: str) -> dict[str, Any]:
    found = folder.read_json(name) if folder.exists(name) else {}
    if not isinstance(found, dict):
        raise UserError(f"{folder.location}/{name}", "something else", "a JSON object", "The file was changed.")
    return found


def _metrics(folder: RunFolder) -> list[tuple[int, dict[str, float]]]:
    if folder.local is not None:
        return MetricsFile.read(f"{folder.local}/metrics.jsonl")
    if not folder.exists("metrics.jsonl"):
        return []
    with tempfile.NamedTemporaryFile(prefix="metadist-") as copy:
        copy.write(folder.read("metrics.jsonl"))
        copy.flush()
        return MetricsFile.read(copy.name)


def _tracking_uri(folder: RunFolder) -> str | None:
    try:
        uri = parse_yaml(folder.read("job.yaml", MOST_YAML), folder.location)["tracking"]["uri"]
    except (ValueError, LookupError, TypeError):
        return None
    return uri if isinstance(uri, str) else None


def row_of(files: RunFiles) -> RunRow:
    """A run's row, from its folder alone."""
    about, summary = files.about, files.summary
    measure, valid = best_validation(files.metrics)
    test, interval = _test(summary.get("test"), measure)
    step = max((step for step, _ in files.metrics), default=None)
    newest = checkpoint_version(files.checkpoints[-1]) if files.checkpoints else None
    step = max((value for value in (step, newest) if value is not None), default=None)
    return RunRow(
        name=str(about.get("run") or PurePosixPath(files.folder.location).name),
        found=("folder",),
        location=files.folder.location,
        started=_time(about.get("started")) or _first_time(files.folder),
        state=_state(files, step),
        step=step,
        steps=_whole(_mapping(about.get("identity")).get("steps")),
        measure=measure,
        valid=valid,
        test=test,
        test_ci95=interval,
        mlflow_run_id=_text(about.get("mlflow_run_id")) or _text(summary.get("mlflow_run_id")),
        tracking_uri=files.tracking_uri,
    )


def _state(files: RunFiles, step: int | None) -> str:
    if files.lease == "held":
        return "running"
    ended = {"finished": "finished", "early": "finished", "stopped": "stopped"}.get(str(files.summary.get("outcome")))
    if ended is not None and files.summary.get("step") == step:
        return ended
    # The summary, if any, is of an earlier start of the same run.
    return "killed" if files.lease == "abandoned" else "failed"


def is_finished(folder: RunFolder) -> bool:
    """Whether a run took all its steps and was tested after them; a pre-training has no tests."""
    summary = _object(folder, "summary.json")
    if summary.get("outcome") not in ("finished", "early"):
        return False
    return summary.get("test") is not None or _object(folder, "run.json").get("kind") == "pretrain"


def best_validation(metrics: Iterable[tuple[int, dict[str, float]]]) -> tuple[str | None, float | None]:
    """What was measured on validation ("accuracy" or "loss"), and its best value."""
    points = list(metrics)
    for key, more in VALIDATIONS:
        values = [values[key] for _, values in points if key in values and math.isfinite(values[key])]
        if values:
            return key.removeprefix("valid/"), max(values) if more else min(values)
    return None, None


def _test(test: object, measure: str | None) -> tuple[float | None, float | None]:
    found = _mapping(test)
    key = measure or ("accuracy" if found.get("accuracy") is not None else "loss")
    return _number(found.get(key)), _number(found.get("ci95"))


def by_step(test: object) -> list[dict[str, float]]:
    """A test's figures after each inner step; none where a file has something else there."""
    points = _mapping(test).get("per_step")
    if not isinstance(points, list) or not all(isinstance(point, dict) and "step" in point for point in points):
        return []
    whole = all(_number(value) is not None for point in points for value in point.values())
    return points if whole else []


def _first_time(folder: RunFolder) -> float | None:
    """When the first metric was written, for runs that did not note their start."""
    if not folder.exists("metrics.jsonl"):
        return None
    try:
        return _time(parse_json(folder.read("metrics.jsonl").split(b"\n", 1)[0])["time"])
    except (ValueError, LookupError, TypeError):
        return None


def stored_row(run: StoredRun, uri: str) -> RunRow:
    """A run's row, from a tracking store alone."""
    points = [(step, {key: value}) for key, history in run.histories.items() for step, value in history]
    measure, valid = best_validation(points)
    steps = run.params.get("steps", "")
    return RunRow(
        name=run.name,
        found=("mlflow",),
        started=run.started,
        state=STATUS.get(run.status, run.status.lower()),
        step=run.step,
        steps=int(steps) if steps.isdigit() else None,
        measure=measure,
        valid=valid,
        test=run.metrics.get(f"test/{measure or 'accuracy'}"),
        test_ci95=run.metrics.get("test/ci95"),
        mlflow_run_id=run.run_id,
        tracking_uri=uri,
    )


def folder_rows(storage: str) -> list[RunRow]:
    """A row for every folder right below a path or URI, also for those that are no runs."""
    return [folder_row(location) for location in subfolders(storage)]


def folder_row(location: str) -> RunRow:
    """A folder's row; what cannot be read is a row that says so."""
    folder = RunFolder(location)
    name = PurePosixPath(location).name
    try:
        if not folder.exists("job.yaml") and not folder.exists("run.json"):
            return RunRow(name, ("folder",), location, state="foreign", problem="not a run folder")
        return row_of(read_files(folder))
    except (UserError, OSError, ValueError, LookupError, TypeError) as error:
        return RunRow(name, ("folder",), location, problem=str(error).splitlines()[0][:300])


def merged(folders: Iterable[RunRow], stored: Iterable[RunRow]) -> list[RunRow]:
    """One row a run (and for a copied folder one each), newest first; what has no start last."""
    rows = list(folders)
    own = len(rows)
    for run in stored:
        same = [
            index
            for index, row in enumerate(rows[:own])
            if row.mlflow_run_id == run.mlflow_run_id or (row.mlflow_run_id is None and row.name == run.name)
        ]
        for index in same:
            rows[index] = replace(
                rows[index],
                found=("folder", "mlflow"),
                started=rows[index].started or run.started,
                mlflow_run_id=run.mlflow_run_id,
                tracking_uri=run.tracking_uri,
            )
        if not same:
            rows.append(run)
    return sorted(rows, key=lambda row: (row.started is None, -(row.started or 0.0), row.name))


def worker_losses(files: RunFiles) -> float | None:
    """How many workers the run has lost since its driver last started."""
    return next((values["workers/lost"] for _, values in reversed(files.metrics) if "workers/lost" in values), None)


def logs_of(folder: RunFolder) -> list[str]:
    """Names of the actors' logs in a folder on this machine."""
    place = None if folder.local is None else Path(folder.local, "logs")
    return sorted(path.name for path in place.glob("*.log")) if place is not None else []


def _number(value: object) -> float | None:
    if not isinstance(value, int | float) or isinstance(value, bool) or abs(value) > 1e308:
        return None
    return float(value)


def _time(value: object) -> float | None:
    """Seconds since 1970 that a calendar has."""
    seconds = _number(value)
    return seconds if seconds is not None and 0 <= seconds < LAST_TIME else None


def _whole(value: object) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _text(value: object) -> str | None:
    return value if isinstance(value, str) else None


def _mapping(value: object) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}
