"""`metadist train`."""

from __future__ import annotations

import json
import math
import os
import shlex
import signal
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import FrameType
from typing import Any

import typer
from rich.console import Console
from rich.table import Table

from metadist.cli.data import image_progress
from metadist.cli.display import Display
from metadist.cli.fault import parse_fault
from metadist.config import Job, load_job
from metadist.errors import UserError
from metadist.training.run_folder import RunFolder
from metadist.training.run_list import is_finished


class Stop:
    """Whether the user asked to stop: once lets the step end and saves, twice stops at once."""

    def __init__(self, display: Display) -> None:
        self.signal: int | None = None
        self._display = display

    def __call__(self) -> bool:
        return self.signal is not None

    def handle(self, number: int, frame: FrameType | None) -> None:
        """A signal handler."""
        if self.signal is not None or not self._display.started:
            if number == signal.SIGTERM:
                sys.exit(128 + number)
            raise KeyboardInterrupt
        self.signal = number
        self._display.say("stopping after this step, with a checkpoint (once more: at once)")

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Handle Ctrl-C and SIGTERM within."""
        before = {number: signal.signal(number, self.handle) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def train_command(
    job: str | None = typer.Argument(None, help="Job file (YAML)."),
    resume: str | None = typer.Option(None, help="Go on with the run in this folder instead of a new one."),
    overrides: list[str] = typer.Option([], "--set", help="dotted.key=value, a YAML value; may be repeated."),
    workers: int | None = typer.Option(None, help="Worker actors (resources.workers)."),
    steps: int | None = typer.Option(None, help="Outer steps (steps)."),
    storage: str | None = typer.Option(None, help="Where the run's folder is made (storage)."),
    name: str | None = typer.Option(None, help="The run's name (name)."),
    run: str | None = typer.Option(None, help="Name of the run's folder; a run that is there goes on."),
    address: str | None = typer.Option(None, help="A Ray cluster's address; an embedded Ray without it."),
    shared_storage: bool = typer.Option(False, help="Local paths are seen by all nodes (resources.shared_storage)."),
    stop_after: int | None = typer.Option(None, help="Stop after this step with a checkpoint; resumable."),
    as_json: bool = typer.Option(False, "--json", help="Print one JSON object as the last line of stdout."),
    fault: str | None = typer.Option(None, hidden=True),
) -> None:
    """Meta-train a job, or go on with a run."""
    if (job is None) == (resume is None):
        raise UserError("JOB", job, "a job file, or --resume RUN_DIR, and not both")
    if stop_after is not None and stop_after < 1:
        raise UserError("--stop-after", stop_after, "a step of at least 1")
    if run is not None and resume is not None:
        raise UserError("--run", run, "no --resume beside it", "Each of them names the run's folder: leave one out.")
    short = {"workers": workers, "steps": steps, "storage": storage, "name": name, "shared_storage": shared_storage}
    every = [*overrides, *shorthands(short)]
    options = {"address": address, "run": run, "stop_after": stop_after, "fault": parse_fault(fault) if fault else None}
    summary, code = train_shown(load_job(job, every) if job is not None else None, resume, every, options)
    if as_json:
        typer.echo(json_line(summary))
    raise typer.Exit(code)


def shorthands(given: Mapping[str, Any]) -> list[str]:
    """Options that stand for a field of the job, as `dotted.key=value`; those that were not given are left out."""
    fields = {
        "workers": "resources.workers",
        "shared_storage": "resources.shared_storage",
        "steps": "steps",
        "storage": "storage",
        "name": "name",
    }
    values = {fields[key]: value for key, value in given.items() if value is not None and value is not False}
    return [f"{key}={json.dumps(value, ensure_ascii=False)}" for key, value in values.items()]


def train_shown(
    job: Job | None, resume: str | None, overrides: list[str], given: dict[str, Any]
) -> tuple[dict[str, Any], int]:
    """Train a job, or go on with a run, before the user's eyes; returns the summary and the exit code.

    Args:
        overrides: settings for a run that goes on.
        given: the `RunOptions` that are not the terminal's affair.
    """
    from metadist.distributed.run import RunOptions, open_run, resume_run, train_job

    known = job if job is not None else open_run(str(resume))[1]
    with Display(known.steps, known.tasks.batch) as display, image_progress() as progress:
        stop = Stop(display)
        options = RunOptions(**given, stop=stop, data_progress=progress)
        with stop.listening():
            if job is not None:
                summary = train_job(job, display, options)
            else:
                summary = resume_run(str(resume), lambda old: placed(old, overrides), display, options)
    show_summary(summary)
    code = 0 if stop.signal is None else 128 + stop.signal
    return summary, code


def run_to_end(
    job: Job,
    name: str,
    address: str | None,
    shown: Callable[[Job, None, list[str], dict[str, Any]], tuple[dict[str, Any], int]] = train_shown,
) -> RunFolder:
    """The folder of a job's run with this name, which is trained, or goes on, unless it has come to its end.

    Args:
        shown: what trains it.

    Raises:
        typer.Exit: the user stopped it.
    """
    folder = RunFolder(f"{os.path.expanduser(job.storage).rstrip('/')}/{name}")
    if not is_finished(folder):
        summary, code = shown(job, None, [], {"address": address, "run": name})
        if code or summary["outcome"] == "stopped":
            raise typer.Exit(code)
    return folder


def placed(job: Job, overrides: list[str]) -> Job:
    """The job with some values changed, as `--set` does."""
    from metadist.config import job_dict, parse_job, set_value

    content = job_dict(job)
    for override in overrides:
        set_value(content, override)
    return parse_job(content)


def json_line(content: dict[str, Any]) -> str:
    """One line of strict JSON, which has no NaN and no infinity: they become null."""
    return json.dumps(_finite(content), allow_nan=False)


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def show_summary(summary: dict[str, Any]) -> None:
    """The end of a run, for people; on stderr, so that stdout holds the JSON alone."""
    console = Console(stderr=True, highlight=False)
    if summary["outcome"] == "stopped":
        console.print(
            f"Stopped at step {summary['step']}. To go on: metadist train --resume {shlex.quote(summary['run_dir'])}",
            soft_wrap=True,
        )
        return
    show_evaluations([value for key, value in summary.items() if key.startswith("test") and isinstance(value, dict)])
    rate = f"{summary['tasks_per_second']:g} tasks/s, strategy {summary['strategy']}"
    tested = f"; tested version {summary['tested_step']} ({summary['tested_as']})" if summary["tested_as"] else ""
    console.print(f"{summary['step']} steps in {summary['train_seconds']:g} s, {rate}{tested}", soft_wrap=True)
    console.print(f"params_sha256 {summary['params_sha256']}", soft_wrap=True)
    console.print(f"run {summary['run_dir']}; `metadist ui` shows it in MLflow", soft_wrap=True)


def show_evaluations(evaluations: list[dict[str, Any]]) -> None:
    """A table of results, each with what it depends on."""
    table = Table(box=None, padding=(0, 2, 0, 0))
    classifies = any(e["accuracy"] is not None for e in evaluations)
    columns = ("tasks", "normalisation", "steps", "accuracy" if classifies else "squared error", "random start", "gain")
    for column in columns:
        table.add_column(column, header_style="dim")
    for e in evaluations:
        factor, unit, digits = (100, " %", 2) if e["accuracy"] is not None else (1, "", 4)
        value = e["accuracy"] if e["accuracy"] is not None else e["loss"]
        shown = f"{factor * value:.{digits}f} ± {factor * e['ci95']:.{digits}f}{unit}"
        scratch, gain = "", ""
        if e["from_scratch"] is not None:
            scratch = f"{factor * e['from_scratch']:.{digits}f}{unit}"
            gain = f"{factor * (value - e['from_scratch']):+.{digits}f}"
        table.add_row(e["name"], e["norm"], str(e["steps"]), shown, scratch, gain)
    if evaluations:
        Console(stderr=True, highlight=False, width=None if sys.stderr.isatty() else 140).print(table)
