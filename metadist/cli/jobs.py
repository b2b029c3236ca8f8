"""`metadist jobs`: what was submitted to a cluster."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from metadist.cli.follow import LogView, at, duration, follow_job, is_result, open_jobs, say
from metadist.cli.train import json_line

if TYPE_CHECKING:
    from metadist.distributed.cluster_jobs import Attempt

app = typer.Typer(no_args_is_help=True, help="List, look at, follow and stop the jobs of a cluster.")

_JOB = typer.Argument(help="Name of a job (its last attempt), or id of a submission.")
_ADDRESS = typer.Option(
    None, help="The cluster's dashboard, http://HEAD:8265; RAY_API_SERVER_ADDRESS or the local cluster without it."
)
_JSON = typer.Option(False, "--json", help="Print one JSON object as the last line of stdout.")


@app.command("list")
def list_command(address: str | None = _ADDRESS, as_json: bool = _JSON) -> None:
    """All submissions, oldest first."""
    attempts = open_jobs(address)[0].all()
    if as_json:
        typer.echo(json_line({"jobs": [facts(attempt) for attempt in attempts]}))
        return
    table = Table(box=None, padding=(0, 2, 0, 0))
    for column in ("job", "id", "status", "exit code", "submitted", "took", "run"):
        table.add_column(column, header_style="dim", overflow="fold")
    for attempt in attempts:
        code = "" if attempt.exit_code is None else str(attempt.exit_code)
        when = f"{attempt.started:%Y-%m-%d %H:%M:%S}" if attempt.started else ""
        table.add_row(attempt.name or "", attempt.id, attempt.status, code, when, duration(attempt), attempt.run or "")
    _print(table if attempts else "No job was submitted.")


@app.command("status")
def status_command(job: str = _JOB, address: str | None = _ADDRESS, as_json: bool = _JSON) -> None:
    """What is known of one job, and the last line that it printed."""
    jobs = open_jobs(address)[0]
    attempt = jobs.find(job)
    known = facts(attempt)
    lines = [line for line in jobs.logs(attempt).splitlines() if line.strip() and not is_result(line)]
    if as_json:
        typer.echo(json_line(known))
        return
    table = Table(box=None, padding=(0, 2, 0, 0), show_header=False)
    table.add_column(style="dim")
    table.add_column(overflow="fold")
    for name, value in (known | {"last line": lines[-1] if lines else None}).items():
        if value is not None:
            table.add_row(name.replace("_", " "), Text(str(value)))
    _print(table)


@app.command("logs")
def logs_command(
    job: str = _JOB,
    follow: bool = typer.Option(False, "--follow", "-f", help="Until the job ends; end with its exit code."),
    address: str | None = _ADDRESS,
) -> None:
    """What a job has printed."""
    jobs = open_jobs(address)[0]
    attempt = jobs.find(job)
    if follow:
        raise typer.Exit(follow_job(jobs, attempt, LogView(Console(highlight=False)), address))
    typer.echo(jobs.logs(attempt), nl=False)


@app.command("stop")
def stop_command(job: str = _JOB, address: str | None = _ADDRESS, as_json: bool = _JSON) -> None:
    """Stop a job after its step, with a checkpoint; submitting it again under the same name goes on."""
    jobs = open_jobs(address)[0]
    attempt = jobs.find(job)
    if attempt.over:
        say(f"{attempt.id} has ended before: {attempt.status}")
    else:
        say(f"stopping {attempt.id}; it has {attempt.grace:g} s to end its step and save")
        jobs.stop(attempt)
        attempt = jobs.wait(attempt)
        _say_stopped(attempt, jobs.logs(attempt), address)
    if as_json:
        typer.echo(json_line(facts(attempt)))
    raise typer.Exit(0 if attempt.over else 1)


def _say_stopped(attempt: Attempt, log: str, address: str | None) -> None:
    if not attempt.over:
        say(f"{attempt.id} is still {attempt.status}: see `metadist jobs status {attempt.id}{at(address)}`")
        return
    results = [line for line in log.splitlines() if is_result(line)]
    if attempt.name is None:
        say(f"{attempt.id} {attempt.status}")
    elif results:
        result = json.loads(results[-1])
        what = f"stopped at step {result['step']}" if result["outcome"] == "stopped" else "had just ended"
        say(f"{attempt.id} {what}; its checkpoint is in {result['run_dir']}")
    else:
        say(f"{attempt.id} {attempt.status} without a last checkpoint: it had not begun, or was too slow to save")


def facts(attempt: Attempt) -> dict[str, Any]:
    """What is known of a job, as plain data."""
    return {
        "id": attempt.id,
        "name": attempt.name,
        "attempt": attempt.number or None,
        "status": attempt.status,
        "exit_code": attempt.exit_code,
        "run": attempt.run,
        "submitted": attempt.started.isoformat(timespec="seconds") if attempt.started else None,
        "ended": attempt.ended.isoformat(timespec="seconds") if attempt.ended else None,
        "message": attempt.message if attempt.status == "FAILED" and attempt.driver_code is None else None,
    }


def _print(content: object) -> None:
    Console(highlight=False, width=None if sys.stdout.isatty() else 160).print(content)
