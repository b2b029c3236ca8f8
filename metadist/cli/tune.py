"""`metadist tune`."""

from __future__ import annotations

import json
import shlex
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from metadist.cli.data import image_progress
from metadist.cli.train import json_line
from metadist.config import Job, job_dict, load_job, parse_job, set_value
from metadist.errors import UserError


class _Talk:
    """Plain lines on stderr, and whether the user asked to stop."""

    def __init__(self) -> None:
        self._console = Console(stderr=True, highlight=False)
        self.signal: int | None = None

    def say(self, text: str) -> None:
        """One line."""
        self._console.print(Text(f"· {text}"), soft_wrap=True)

    def stopping(self) -> bool:
        """Whether Ctrl-C was pressed or SIGTERM sent."""
        return self.signal is not None

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.signal is not None:
            raise KeyboardInterrupt
        self.signal = number
        self.say("ending the sweep: trials stop after their step, with a checkpoint (once more: at once)")

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Handle Ctrl-C and SIGTERM within."""
        before = {number: signal.signal(number, self._handle) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def tune_command(
    job: str | None = typer.Argument(None, help="Job file (YAML); its tune section says what is swept."),
    resume: str | None = typer.Option(None, help="Go on with the sweep in this folder instead of a new one."),
    overrides: list[str] = typer.Option([], "--set", help="dotted.key=value, a YAML value; may be repeated."),
    samples: int | None = typer.Option(None, help="Trials to draw (tune.num_samples)."),
    storage: str | None = typer.Option(None, help="Where the sweep's folder is made (storage)."),
    name: str | None = typer.Option(None, help="The sweep's name (name)."),
    address: str | None = typer.Option(None, help="A Ray cluster's address; an embedded Ray without it."),
    as_json: bool = typer.Option(False, "--json", help="Print one JSON object as the last line of stdout."),
) -> None:
    """Sweep fields of a job, learning rates by default: many trials, the bad ones ended early."""
    if (job is None) == (resume is None):
        raise UserError("JOB", job, "a job file, or --resume SWEEP_DIR, and not both")
    if resume is not None and (storage is not None or name is not None):
        raise UserError("--resume", resume, "no --storage and no --name beside it", "A sweep keeps its folder.")
    shorthands = {"tune.num_samples": samples, "storage": storage, "name": name}
    given = {key: json.dumps(value, ensure_ascii=False) for key, value in shorthands.items() if value is not None}
    every = [*overrides, *(f"{key}={value}" for key, value in given.items())]
    read = load_job(job, every) if job is not None else None
    from metadist.tuning.sweep import SweepOptions, resume_sweep, start_sweep

    talk = _Talk()
    with image_progress() as progress, talk.listening():
        options = SweepOptions(address, talk.stopping, progress)
        if read is not None:
            result = start_sweep(read, talk.say, options)
        else:
            result = resume_sweep(str(resume), lambda old: _changed(old, every), talk.say, options)
    show_sweep(result)
    if as_json:
        typer.echo(json_line(result))
    code = 0 if talk.signal is None else 128 + talk.signal
    raise typer.Exit(1 if code == 0 and result["state"] == "failed" else code)


def _changed(job: Job, overrides: list[str]) -> Job:
    content = job_dict(job)
    for override in overrides:
        set_value(content, override)
    return parse_job(content)


def show_sweep(result: dict[str, Any]) -> None:
    """The end of a sweep, for people; on stderr, so that stdout holds the JSON alone."""
    console = Console(stderr=True, highlight=False, width=None if sys.stderr.isatty() else 140)
    percent = result["metric"] != "valid/loss"
    table = Table(box=None, padding=(0, 2, 0, 0))
    rows = result["trials"]
    for column in rows[0] if rows else ():
        table.add_column(column + (" (%)" if percent and column.startswith("best ") else ""), header_style="dim")
    best = result["best"]
    for row in rows:
        style = "bold" if best is not None and row["trial"] == best["trial"] else ""
        table.add_row(*(_cell(name, value, percent) for name, value in row.items()), style=style)
    console.print(table)
    sweep = shlex.quote(result["sweep_dir"])
    if result["state"] in ("interrupted", "out of time"):
        console.print(f"The sweep is {result['state']}. To go on: metadist tune --resume {sweep}", soft_wrap=True)
    if best is None:
        console.print("no trial was validated without diverging; narrow the space or raise tune.grace", soft_wrap=True)
        return
    figure = _cell("best ", best["value"], percent) + (" %" if percent else "")
    console.print(f"best: trial {best['trial']}, {result['metric']} {figure} at step {best['step']}", soft_wrap=True)
    console.print(f"to train it in full: metadist train {shlex.quote(best['job'])}", soft_wrap=True)
    console.print(f"sweep {result['sweep_dir']}; `metadist ui` shows it in MLflow", soft_wrap=True)


def _cell(name: str, value: Any, percent: bool) -> str:
    if value is None:
        return ""
    if name.startswith("best "):
        return f"{100 * value:.2f}" if percent else f"{value:.5g}"
    return f"{value:g}" if isinstance(value, float) else str(value)
