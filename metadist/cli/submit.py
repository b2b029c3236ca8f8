"""`metadist submit`."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer
from rich.console import Console

from metadist.cli.follow import LogView, at, follow_job, open_jobs, say
from metadist.cli.jobs import facts
from metadist.cli.train import json_line, shorthands, train_command
from metadist.config import Job, load_job
from metadist.errors import UserError

if TYPE_CHECKING:
    from metadist.distributed.cluster_jobs import ClusterJobs

#: options of `metadist train` that a submission gives itself
_OWN = ("resume", "run", "address", "as_json")


def submit_command(
    job: str = typer.Argument(help="Job file (YAML)."),
    further: list[str] = typer.Argument(None, help="After --: further arguments of `metadist train`."),
    address: str | None = typer.Option(
        None, help="The cluster's dashboard, http://HEAD:8265; RAY_API_SERVER_ADDRESS or the local cluster without it."
    ),
    name: str | None = typer.Option(None, help="The job's name on the cluster and its run's (name); resumes a run."),
    overrides: list[str] = typer.Option([], "--set", help="dotted.key=value, a YAML value; may be repeated."),
    variables: list[str] = typer.Option([], "--env", help="KEY=VALUE for the job's environment; may be repeated."),
    working_dir: str | None = typer.Option(
        None,
        "--working-dir",
        help="Folder with your modules to send, less what git ignores; the job file alone without.",
    ),
    shared_storage: bool = typer.Option(False, "--shared-storage", help="All nodes see the same local paths."),
    package: bool = typer.Option(True, help="Send this metadist; without, the cluster's own is used."),
    follow: bool = typer.Option(True, help="Show what the job prints until it ends, and end with its exit code."),
    as_json: bool = typer.Option(False, "--json", help="Print one JSON object as the last line of stdout."),
) -> None:
    """Run a job on a cluster; the same name again goes on with its run."""
    arguments = [*(word for override in overrides for word in ("--set", override)), *(further or [])]
    if shared_storage:
        arguments.append("--shared-storage")
    checked = _checked(job, arguments)
    from metadist.distributed.submission import RUN_KEY, Request, check_request, packed

    request = check_request(
        Request(
            file=Path(job),
            job=checked,
            arguments=arguments,
            name=name if name is not None else checked.name,
            environment=_environment(variables),
            working_folder=None if working_dir is None else Path(working_dir),
            package=package,
        )
    )
    jobs, url, mode = open_jobs(address)
    with packed(request, mode) as submission:
        _say_past(jobs, request.name, submission.metadata[RUN_KEY])
        attempt = jobs.submit(submission)
    say(f"{attempt.id} submitted to {url}; its run is {attempt.run}")
    if not follow:
        say(f"To follow it: metadist jobs logs {request.name} --follow{at(address)}")
        if as_json:
            typer.echo(json_line(facts(attempt) | {"address": url}))
        return
    view = LogView(Console(stderr=True, highlight=False))
    code = follow_job(jobs, attempt, view, address)
    if as_json and view.result is not None:
        typer.echo(view.result)
    raise typer.Exit(code)


def _checked(job: str, arguments: list[str]) -> Job:
    """The job as `metadist train` would understand it, whose command line is read here for that."""
    app = typer.Typer(add_completion=False)
    app.command("train")(train_command)
    given: dict[str, Any] = typer.main.get_command(app).make_context("metadist train", [job, *arguments]).params
    for option in _OWN:
        if given[option]:
            flag = "--json" if option == "as_json" else f"--{option}"
            raise UserError(flag, given[option], f"no {flag} after --", "`metadist submit` gives it itself.")
    short = {key: given[key] for key in ("workers", "steps", "storage", "name", "shared_storage")}
    return load_job(job, [*given["overrides"], *shorthands(short)])


def _environment(variables: list[str]) -> dict[str, str]:
    found = {}
    for variable in variables:
        key, equals, value = variable.partition("=")
        if not equals or not re.fullmatch(r"[A-Za-z_]\w*", key):
            raise UserError("--env", variable, "KEY=VALUE", "For example --env MLFLOW_TRACKING_URI=http://mlflow:5000")
        found[key] = value
    return found


def _say_past(jobs: ClusterJobs, name: str, run: str) -> None:
    before = [attempt for attempt in jobs.attempts(name) if attempt.over and attempt.run == run]
    if before:
        done = before[-1].status == "SUCCEEDED"
        what = "is done already; another --name makes another run" if done else f"{before[-1].status}: going on with it"
        say(f"{before[-1].id} {what}")
