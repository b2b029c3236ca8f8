"""`metadist runs list` and `metadist runs show`."""

from __future__ import annotations

import dataclasses
import datetime
import shlex
import sys
from collections.abc import Callable, Iterable
from typing import Any

import typer
from rich.console import Console
from rich.table import Table

from metadist.cli.train import json_line
from metadist.errors import UserError, nearest
from metadist.tracking import TrackingConfig, resolve_uri
from metadist.tracking.masking import mask_passwords
from metadist.training import run_list
from metadist.training.run_folder import RunFolder
from metadist.training.run_list import RunFiles, RunRow

app = typer.Typer(no_args_is_help=True, help="Look at the runs that there are.")

STORAGE = typer.Option("runs", help="Folder or URI of the runs' folders.")
TRACKING = typer.Option(
    None,
    help="Tracking URI to look in too, or none; MLFLOW_TRACKING_URI or ./mlflow.db, and the jobs' own, without it.",
)
AS_JSON = typer.Option(False, "--json", help="Print one JSON object.")


@app.command("list")
def list_command(
    storage: str = STORAGE,
    tracking: str | None = TRACKING,
    as_json: bool = AS_JSON,
) -> None:
    """The runs under STORAGE and in MLflow, newest first."""
    rows = _rows(storage, tracking)
    if as_json:
        typer.echo(json_line({"storage": storage, "runs": [_plain(row) for row in rows]}))
        return
    if not rows:
        typer.echo(f"no runs in {storage} or in MLflow", err=True)
        return
    table = Table(box=None, padding=(0, 2, 0, 0))
    for column in ("run", "started", "state", "step", "best valid", "test", "MLflow run", "found in"):
        table.add_column(column, header_style="dim", overflow="fold")
    for row in rows:
        test = _figure(row.test, row.measure, row.test_ci95)
        cells = (row.name, _when(row.started), row.state, _steps(row), _figure(row.valid, row.measure), test)
        table.add_row(*cells, (row.mlflow_run_id or "")[:8], " + ".join(row.found))
    _console().print(table)
    for row in rows:
        if row.problem:
            typer.echo(f"· {row.name}: {row.problem}", err=True)


@app.command("show")
def show_command(
    run: str = typer.Argument(
        help="Run folder, name of a run under STORAGE, or an MLflow run's id (8 digits do) or name."
    ),
    storage: str = STORAGE,
    tracking: str | None = TRACKING,
    as_json: bool = AS_JSON,
) -> None:
    """One run: its figures, its checkpoints, and how to go on with it."""
    location = _location(run, storage)
    if location is None:
        row, files = _stored(run, storage, tracking), None
    else:
        files = run_list.read_files(RunFolder(location))
        own = run_list.row_of(files)
        (row,) = run_list.merged(
            [own], [r for r in _stored_rows(tracking, [own]) if r.mlflow_run_id == own.mlflow_run_id]
        )
    facts = _plain(row) | (_details(files) if files else {}) | {"next": _next(row, files)}
    if as_json:
        typer.echo(json_line(facts))
        return
    _show(facts)


def _rows(storage: str, tracking: str | None) -> list[RunRow]:
    folders = run_list.folder_rows(storage)
    return run_list.merged(folders, _stored_rows(tracking, folders))


def _stored_rows(tracking: str | None, folders: Iterable[RunRow]) -> list[RunRow]:
    """The runs in every tracking store that is named, or that a folder's job names; one that fails is told."""
    from metadist.tracking.run_index import RunIndex
    from metadist.tracking.sqlite_place import StoreUnusable

    named = [tracking] if tracking is not None else [None, *(row.tracking_uri for row in folders)]
    uris = dict.fromkeys(resolve_uri(TrackingConfig(uri=uri)) for uri in named)
    rows: list[RunRow] = []
    for uri in uris:
        if uri is None:
            continue
        try:
            found = RunIndex(uri).runs(tuple(key for key, _ in run_list.VALIDATIONS))
            rows += [run_list.stored_row(run, mask_passwords(uri)) for run in found]
        except StoreUnusable as error:
            typer.echo(f"· MLflow at {error}; its runs are not shown", err=True)
    return rows


def _location(run: str, storage: str) -> str | None:
    places = [run, f"{storage.rstrip('/')}/{run}"] if "://" not in run else [run]
    return next((place.rstrip("/") for place in places if RunFolder(place).exists()), None)


def find_run(run: str, storage: str, tracking: str | None) -> str:
    """The location of a run's folder, from whatever names the run.

    Raises:
        UserError: there is no such run, or its folder is not here.
    """
    location = _location(run, storage)
    if location is not None:
        return location
    row = _stored(run, storage, tracking)
    if row.location is None:
        raise UserError("RUN", run, "a run whose folder is here", "Only MLflow knows of it.")
    return row.location


def _stored(run: str, storage: str, tracking: str | None) -> RunRow:
    rows = _rows(storage, tracking)
    found = next(
        (row for row in rows if run == row.name or (len(run) >= 8 and (row.mlflow_run_id or "").startswith(run))), None
    )
    if found is None:
        names = [row.name for row in rows]
        hint = nearest(run, names) or "`metadist runs list` shows them."
        raise UserError("RUN", run, f"a run folder, or a run under {storage} or in MLflow", hint)
    return found


def _details(files: RunFiles) -> dict[str, Any]:
    about, summary = files.about, files.summary
    strategy = about.get("strategy")
    return {
        "identity_sha256": about.get("identity_sha256"),
        "metadist": about.get("metadist"),
        "strategy": strategy.get("strategy") if isinstance(strategy, dict) else None,
        "norm": summary.get("norm"),
        "params_sha256": summary.get("params_sha256"),
        "tasks_per_second": summary.get("tasks_per_second"),
        "worker_losses": summary.get("worker_losses", run_list.worker_losses(files)),
        "server_losses": summary.get("server_losses"),
        "chunks_redone": summary.get("chunks_redone"),
        "chunks_doubled": summary.get("chunks_doubled"),
        "tested_step": summary.get("tested_step"),
        "checkpoints": files.checkpoints,
        "logs": run_list.logs_of(files.folder),
        "validations": [
            {"step": step} | {key.removeprefix("valid/"): value for key, value in values.items()}
            for step, values in files.metrics
            if any(key.startswith("valid/") for key in values)
        ],
        "per_step": run_list.by_step(summary.get("test")),
    }


def _next(row: RunRow, files: RunFiles | None) -> list[str]:
    """What can be typed next."""
    if files is None or row.location is None:
        return []
    place = shlex.quote(row.location)
    commands = []
    if row.state in ("stopped", "killed", "failed") and files.checkpoints:
        commands.append(f"metadist train --resume {place}")
    if files.checkpoints:
        commands.append(f"metadist evaluate {place}")
    return commands


def _show(facts: dict[str, Any]) -> None:
    console = _console()
    plain = {key: value for key, value in facts.items() if not isinstance(value, list) and value not in (None, "")}
    measure = plain.pop("measure", None)
    interval = plain.pop("test_ci95", None)
    shown: dict[str, Callable[[Any], str]] = {
        "valid": lambda value: _figure(value, measure),
        "test": lambda value: _figure(value, measure, interval),
    }
    for key, value in plain.items():
        console.print(f"{key:>16}  {shown.get(key, str)(value)}", soft_wrap=True)
    for key in ("found", "checkpoints", "logs"):
        if facts.get(key):
            console.print(f"{key:>16}  {', '.join(facts[key])}", soft_wrap=True)
    for key, title in (("validations", "validation"), ("per_step", "test, by inner step")):
        if facts.get(key):
            console.print(f"\n{title}")
            console.print(_curve(facts[key]))
    for command in facts["next"]:
        console.print(f"\n{command}", soft_wrap=True)


def _curve(points: list[dict[str, float]]) -> Table:
    names = [name for name in ("accuracy", "loss") if name in points[0]]
    table = Table(box=None, padding=(0, 2, 0, 0))
    for column in ("step", *names):
        table.add_column(column, header_style="dim", justify="right")
    for point in points:
        cells = []
        for name in names:
            interval = point.get(f"{name}_ci95")
            value = f"{point[name]:.4f}" if name in point else ""
            cells.append(value + (f" ± {interval:.4f}" if interval is not None else ""))
        table.add_row(f"{point['step']:.0f}", *cells)
    return table


def _console() -> Console:
    return Console(highlight=False, width=None if sys.stdout.isatty() else 240)


def _plain(row: RunRow) -> dict[str, Any]:
    started = None
    if row.started is not None:
        started = datetime.datetime.fromtimestamp(row.started, datetime.UTC).isoformat(timespec="seconds")
    return dataclasses.asdict(row) | {"started": started, "found": list(row.found)}


def _when(started: float | None) -> str:
    return "" if started is None else f"{datetime.datetime.fromtimestamp(started):%Y-%m-%d %H:%M}"


def _steps(row: RunRow) -> str:
    if row.step is None:
        return ""
    return f"{row.step}/{row.steps}" if row.steps is not None else str(row.step)


def _figure(value: float | None, measure: str | None, interval: float | None = None) -> str:
    if value is None:
        return ""
    factor, unit, digits = (1, "", 4) if measure == "loss" else (100, " %", 2)
    error = "" if interval is None else f" ± {factor * interval:.{digits}f}"
    return f"{factor * value:.{digits}f}{error}{unit}"
