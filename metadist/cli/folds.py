"""`metadist evaluate --folds`."""

from __future__ import annotations

from typing import Any

import numpy as np
import typer
from rich.console import Console
from rich.table import Table

from metadist.cli.data import image_progress
from metadist.cli.train import run_to_end
from metadist.errors import UserError
from metadist.training.evaluation import mean_and_ci95


def cross_validate(run: str, folds: int, seed: int, overrides: list[str], address: str | None) -> dict[str, Any]:
    """Train a run's job once for each fold of its classes, and test it on that fold; returns the figures.

    A fold is a run of its own beside the run: one that was interrupted goes on, and a finished one is only read.
    """
    from metadist.distributed.folds import fold_jobs

    if folds < 2:
        raise UserError("--folds", folds, "a number of folds of at least 2")
    with image_progress() as progress:
        jobs = fold_jobs(run, folds, seed, overrides, progress)
    found = []
    for number, (name, job) in enumerate(jobs, 1):
        typer.echo(f"· fold {number} of {folds}: {job.storage}/{name}", err=True)
        folder = run_to_end(job, name, address)
        test = folder.read_json("summary.json")["test"]
        facts = {"fold": number, "run_dir": folder.location, "classes": job.data.split.test}
        found.append(facts | {key: test[key] for key in ("accuracy", "ci95", "loss", "from_scratch")})
    accuracies = np.array([fold["accuracy"] for fold in found])
    mean, ci95 = mean_and_ci95(accuracies)
    figures = {"accuracy": mean, "ci95": ci95, "sd": float(np.std(accuracies, ddof=1)), "error": 1 - mean}
    _show(found, figures)
    return {"run_dir": run, "seed": seed, "folds": found} | figures


def _show(folds: list[dict[str, Any]], figures: dict[str, float]) -> None:
    table = Table(box=None, padding=(0, 2, 0, 0))
    for column in ("fold", "test classes", "accuracy", "random start"):
        table.add_column(column, header_style="dim", justify="right")
    for fold in folds:
        accuracy = f"{100 * fold['accuracy']:.2f} ± {100 * fold['ci95']:.2f} %"
        table.add_row(str(fold["fold"]), str(len(fold["classes"])), accuracy, f"{100 * fold['from_scratch']:.2f} %")
    console = Console(stderr=True, highlight=False)
    console.print(table)
    console.print(
        f"mean over folds {100 * figures['accuracy']:.2f} ± {100 * figures['ci95']:.2f} % (sd "
        f"{100 * figures['sd']:.2f}); cross-validation error {100 * figures['error']:.2f} %",
        soft_wrap=True,
    )
