"""`metadist chaos`."""

from __future__ import annotations

import datetime
import os
import secrets
import signal
import sys
from typing import Any

import typer
from rich.console import Console
from rich.table import Table

from metadist.cli.follow import say
from metadist.cli.train import json_line, shorthands
from metadist.config import load_job
from metadist.errors import UserError


def chaos_command(
    job: str = typer.Argument(help="Job file (YAML)."),
    every: str = typer.Option("5s", help="Mean time between two faults of a kind."),
    kinds: str = typer.Option(
        "worker,server", help="Kinds of faults: worker, server, node, driver; worker=5s,driver=20s."
    ),
    seed: int = typer.Option(0, min=0, help="Of the schedule of faults."),
    overrides: list[str] = typer.Option([], "--set", help="dotted.key=value, a YAML value; may be repeated."),
    workers: int | None = typer.Option(None, help="Worker actors (resources.workers)."),
    steps: int | None = typer.Option(None, help="Outer steps (steps)."),
    storage: str | None = typer.Option(None, help="Where the runs' folders are made (storage)."),
    address: str | None = typer.Option(None, help="A Ray cluster's address; an embedded Ray without it."),
    lose_node: str | None = typer.Option(None, help="Command that takes a node from the cluster and adds another."),
    as_json: bool = typer.Option(False, "--json", help="Print one JSON object as the last line of stdout."),
) -> None:
    """Run a job while its processes are killed, then the same job undisturbed, and compare the two to the bit."""
    from metadist.distributed.chaos import Schedule, endure, parse_kinds

    wanted = parse_kinds(kinds, every)
    changes = [*overrides, *shorthands({"workers": workers, "steps": steps, "storage": storage})]
    loaded = load_job(job, changes)
    if loaded.runtime != "ray" or not loaded.steps:
        field, value = ("runtime", loaded.runtime) if loaded.runtime != "ray" else ("steps", loaded.steps)
        raise UserError(field, value, "a job that trains on Ray, with actors to kill")
    if ("node" in wanted) != (lose_node is not None) or (lose_node is not None and address is None):
        hint = "For example --kinds node=20s --address local --lose-node 'cluster/local.sh replace'."
        raise UserError("--lose-node", lose_node, "a command, for faults of kind node on a cluster (--address)", hint)
    if address is not None and (here := [kind for kind in wanted if kind in ("worker", "server")]):
        hint = "A node is lost with the workers, or the server, that run on it."
        raise UserError("--kinds", ", ".join(here), "node and driver on a cluster (--address)", hint)
    if "://" in loaded.storage:
        raise UserError("storage", loaded.storage, "a folder of this machine", "Name one with --storage.")
    place = os.path.expanduser(loaded.storage)
    options = [part for change in changes for part in ("--set", change)]
    options += [] if address is None else ["--address", address]
    name = f"{loaded.name}-{datetime.datetime.now():%Y%m%d-%H%M%S}-{secrets.token_hex(2)}"
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))  # the driver ends with this process
    under = endure(job, f"{name}-chaos", options, place, Schedule(wanted, seed), say, lose_node)
    alone = endure(job, f"{name}-alone", options, place, Schedule({}, seed), say)
    same = under.summary["params_sha256"] == alone.summary["params_sha256"]
    result: dict[str, Any] = {
        "faults": {kind: under.faults[kind] for kind in wanted},
        "steps": under.summary["step"],
        "steps_repeated": under.repeated,
        "seconds": round(under.seconds, 1),
        "undisturbed_seconds": round(alone.seconds, 1),
        "goodput": round(alone.seconds / under.seconds, 4),
        "params_sha256": under.summary["params_sha256"],
        "undisturbed_params_sha256": alone.summary["params_sha256"],
        "same": same,
        "runs": [under.summary["run_dir"], alone.summary["run_dir"]],
    }
    _show(result)
    if as_json:
        typer.echo(json_line(result))
    if not same:
        raise typer.Exit(1)


def _show(result: dict[str, Any]) -> None:
    table = Table(box=None, padding=(0, 2, 0, 0))
    for column in ("", "under faults", "undisturbed"):
        table.add_column(column, header_style="dim")
    for kind, count in result["faults"].items():
        table.add_row(f"{kind}s {'lost' if kind == 'node' else 'killed'}", str(count), "0")
    table.add_row("steps committed", str(result["steps"]), str(result["steps"]))
    table.add_row("steps taken again", str(result["steps_repeated"]), "0")
    table.add_row("seconds", f"{result['seconds']:g}", f"{result['undisturbed_seconds']:g}")
    table.add_row("goodput", f"{100 * result['goodput']:.1f} %", "100 %")
    table.add_row("params_sha256", *(result[key][:16] for key in ("params_sha256", "undisturbed_params_sha256")))
    console = Console(stderr=True, highlight=False)
    console.print(table)
    console.print("the same bits" if result["same"] else "OTHER BITS: this is a defect of metadist, or of the machine")
