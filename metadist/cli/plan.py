"""`metadist plan`."""

from __future__ import annotations

import re
from typing import Any

import typer
from rich.table import Table

from metadist.cli.bench import print_all, table_of
from metadist.cli.train import json_line
from metadist.config import load_job
from metadist.errors import UserError

_UNITS = {"": 1, "k": 1e3, "m": 1e6, "g": 1e9, "t": 1e12}


def parse_bandwidth(text: str) -> float:
    """Bytes per second of `25Gbit`, `100Mbit`, `3GB` (a second) or a plain number of bits per second.

    Raises:
        UserError: it is none of these.
    """
    found = re.fullmatch(r"([0-9.]+)\s*([kmgt]?)(bit|b|byte)?(/s)?", text.strip(), re.IGNORECASE)
    try:
        assert found is not None
        number = float(found[1]) * _UNITS[found[2].lower()]
        if not number > 0:
            raise ValueError
    except (AssertionError, ValueError):
        hint = "As 25Gbit, 100Mbit or 3GB (a second)."
        raise UserError("--bandwidth", text, "a number above 0 with its unit", hint) from None
    unit = found[3] or "bit"
    return number if unit == "B" or unit.lower() == "byte" else number / 8


def plan_command(
    job: str = typer.Argument(help="Job file (YAML)."),
    workers: int = typer.Option(..., help="The most workers to look at."),
    gpus_per_worker: float = typer.Option(0.0, help="GPUs that each has; it is measured on one of this machine."),
    bandwidth: str | None = typer.Option(
        None, help="Of the server's machine: 25Gbit; without it the network is not counted."
    ),
    chunk_seconds: float | None = typer.Option(None, help="Seconds per chunk where they were measured elsewhere."),
    overrides: list[str] = typer.Option([], "--set", help="dotted.key=value, a YAML value; may be repeated."),
    as_json: bool = typer.Option(False, "--json", help="Print one JSON object as the last line of stdout."),
) -> None:
    """How fast a job would be on more workers, where its server is full, and when it would be finished.

    Computes some of the job's chunks here, and takes steps without work with the job's own number of parameters, for
    about half a minute together. Each worker is taken to have a machine of its own, as fast as this one. Validation
    and checkpoints are not counted.
    """
    speed = None if bandwidth is None else parse_bandwidth(bandwidth)
    read = load_job(job, overrides)
    from metadist.bench.plan import PlanRequest, plan_job, summary

    plan = plan_job(read, PlanRequest(workers, gpus_per_worker, speed, chunk_seconds), print_all)
    print_all("", "the job as it is", _table(plan["predictions"]), "")
    print_all("with a meta-batch that grows with the workers, one chunk for each", _table(plan["grown"]), "")
    print_all(*summary(plan))
    if as_json:
        typer.echo(json_line(plan))


def _table(rows: list[dict[str, Any]]) -> Table:
    table = table_of("workers", "GPUs", "ms/step", "steps/s", "tasks/s", "workers wait", "finished after")
    for row in rows:
        table.add_row(
            str(row["workers"]),
            f"{row['gpus']:g}",
            f"{1e3 * row['step_seconds']:.1f}",
            f"{row['steps_per_second']:.2f}",
            f"{row['tasks_per_second']:.0f}",
            f"{100 * row['waiting']:.0f} %",
            _duration(row["finished_after_seconds"]),
        )
    return table


def _duration(seconds: float) -> str:
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.1f} s"
