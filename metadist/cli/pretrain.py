"""`metadist pretrain`."""

from __future__ import annotations

import shlex
from typing import Any

import typer
from rich.console import Console

from metadist.cli.data import image_progress
from metadist.cli.display import Display
from metadist.cli.fault import parse_fault
from metadist.cli.train import Stop, json_line, placed, shorthands
from metadist.config import Job, load_job
from metadist.errors import UserError


def pretrain_command(
    job: str | None = typer.Argument(None, help="Job file (YAML); its data, model and pretrain sections count."),
    resume: str | None = typer.Option(None, help="Go on with the pre-training in this folder instead of a new one."),
    overrides: list[str] = typer.Option([], "--set", help="dotted.key=value, a YAML value; may be repeated."),
    workers: int | None = typer.Option(None, help="Data-parallel workers (resources.workers)."),
    storage: str | None = typer.Option(None, help="Where the run's folder is made (storage)."),
    name: str | None = typer.Option(None, help="The run's name (name)."),
    run: str | None = typer.Option(None, help="Name of the run's folder; a pre-training that is there goes on."),
    address: str | None = typer.Option(None, help="A Ray cluster's address; an embedded Ray without it."),
    shared_storage: bool = typer.Option(False, help="Local paths are seen by all nodes (resources.shared_storage)."),
    stop_after: int | None = typer.Option(None, min=1, help="Stop after this epoch; resumable."),
    as_json: bool = typer.Option(False, "--json", help="Print one JSON object as the last line of stdout."),
    fault: str | None = typer.Option(None, hidden=True),
) -> None:
    """Train a job's model on all its training classes at once, for `init_from`."""
    if (job is None) == (resume is None):
        raise UserError("JOB", job, "a job file, or --resume RUN_DIR, and not both")
    if run is not None and resume is not None:
        raise UserError("--run", run, "no --resume beside it", "Each of them names the run's folder: leave one out.")
    short = {"workers": workers, "storage": storage, "name": name, "shared_storage": shared_storage}
    every = [*overrides, *shorthands(short)]
    options = {"address": address, "run": run, "stop_after": stop_after, "fault": parse_fault(fault) if fault else None}
    summary, code = pretrain_shown(load_job(job, every) if job is not None else None, resume, every, options)
    if as_json:
        typer.echo(json_line(summary))
    raise typer.Exit(code)


def pretrain_shown(
    job: Job | None, resume: str | None, overrides: list[str], given: dict[str, Any]
) -> tuple[dict[str, Any], int]:
    """Pre-train a job's model, or go on with it, before the user's eyes; the counterpart of `train_shown`."""
    from metadist.distributed.pretrain import pretrain_job, resume_pretraining
    from metadist.distributed.run import RunOptions

    with Display(0, 0) as display, image_progress() as progress:
        stop = Stop(display)
        display.started = True  # from here on Ctrl-C waits for an epoch's end
        options = RunOptions(**given, stop=stop, data_progress=progress)
        with stop.listening():
            if job is not None:
                summary = pretrain_job(job, display, options)
            else:
                summary = resume_pretraining(str(resume), lambda old: placed(old, overrides), display, options)
    _show(summary)
    return summary, 0 if stop.signal is None else 128 + stop.signal


def _show(summary: dict[str, Any]) -> None:
    console = Console(stderr=True, highlight=False)
    where = shlex.quote(summary["run_dir"])
    if summary["outcome"] == "stopped":
        console.print(
            f"Stopped after epoch {summary['epoch']}. To go on: metadist pretrain --resume {where}", soft_wrap=True
        )
        return
    if summary["valid"] is not None:
        valid = summary["valid"]
        console.print(f"held out: {100 * valid['accuracy']:.2f} % of {valid['images']} images, at its best epoch")
    console.print(f"{summary['epoch']} epochs in {summary['train_seconds']:g} s; {summary['classes']} classes")
    console.print(f"params_sha256 {summary['params_sha256']}", soft_wrap=True)
    console.print(f"run {summary['run_dir']}; to start from it: --set init_from.path={where}", soft_wrap=True)
