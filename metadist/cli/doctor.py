"""`metadist doctor`."""

from __future__ import annotations

import dataclasses

import typer
from rich.console import Console
from rich.text import Text

from metadist.cli.train import json_line
from metadist.config import Job, load_job
from metadist.distributed.diagnosis import Check, examine

MARKS = {"ok": ("✓", "green"), "warning": ("!", "yellow"), "problem": ("✗", "red")}


def doctor_command(
    address: str | None = typer.Option(None, help="A Ray cluster's address; an embedded Ray is started without it."),
    job: str | None = typer.Option(None, help="Job file whose data, storage, tracking and resources to look at."),
    overrides: list[str] = typer.Option([], "--set", help="dotted.key=value of the job; may be repeated."),
    as_json: bool = typer.Option(False, "--json", help="Print one JSON object as the last line of stdout."),
) -> None:
    """Look at everything that a run needs, and say what to do about each problem."""
    console = Console(stderr=True, highlight=False)
    findings = []
    for finding in examine(_checks(load_job(job, overrides) if job is not None else None, address)):
        findings.append(finding)
        mark, colour = MARKS[finding.state]
        console.print(Text.assemble((f"{mark} {finding.name:<18}", colour), finding.found), soft_wrap=True)
        if finding.advice:
            console.print(Text(f"  {'':<18}{finding.advice}", "bold"), soft_wrap=True)
    problems = sum(finding.state == "problem" for finding in findings)
    warnings = sum(finding.state == "warning" for finding in findings)
    console.print(f"{len(findings)} checks: {problems} problems, {warnings} warnings")
    if as_json:
        typer.echo(json_line({"problems": problems, "checks": [dataclasses.asdict(finding) for finding in findings]}))
    raise typer.Exit(1 if problems else 0)


def _checks(job: Job | None, address: str | None) -> list[tuple[str, Check]]:
    """Every check, the quick ones first."""
    from metadist.distributed import cluster_checks, machine_checks

    here = address is None
    return [
        ("libraries", machine_checks.libraries),
        ("torch", machine_checks.torch_pair),
        ("processors", lambda: machine_checks.processors(job, here)),
        ("memory", lambda: machine_checks.memory(job, here)),
        ("GPUs", lambda: machine_checks.gpus(job, here)),
        ("shared memory", machine_checks.shared_memory),
        ("storage, cache", lambda: machine_checks.places(job)),
        ("Ray's folder", machine_checks.ray_folder),
        ("data", lambda: machine_checks.data(job)),
        ("MLflow", lambda: machine_checks.mlflow(job)),
        ("Ray's token", lambda: cluster_checks.token(address)),
        ("Ray", lambda: cluster_checks.ray_and_nodes(address, job)),
    ]
