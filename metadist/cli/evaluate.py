"""`metadist evaluate`."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path

import typer
from rich.console import Console
from rich.table import Table

from metadist.cli.data import image_progress
from metadist.cli.display import Display
from metadist.cli.folds import cross_validate
from metadist.cli.train import json_line, show_evaluations
from metadist.errors import UserError
from metadist.training.comparison import dump_scores
from metadist.training.run_folder import RunFolder


class SplitName(StrEnum):
    """Splits by name."""

    train = "train"
    valid = "valid"
    test = "test"


def evaluate_command(
    run: str = typer.Argument(help="Run folder (its best version on validation), or one of its checkpoints."),
    split: SplitName = typer.Option(SplitName.test, help="Classes to draw the tasks from."),
    tasks: int | None = typer.Option(None, min=1, help="Number of tasks (evaluation.test_tasks)."),
    ways: int | None = typer.Option(None, min=1, help="Classes per task."),
    shots: int | None = typer.Option(None, min=0, help="Support examples per class."),
    query: int | None = typer.Option(None, min=1, help="Query examples per class."),
    steps: int | None = typer.Option(None, min=0, help="Adaptation steps (learner.eval_steps)."),
    norm: str | None = typer.Option(None, help="Normalisation (model.norm): batch or single, say."),
    data: str | None = typer.Option(
        None, help="Another source of images; all its classes, or those of --set data.split.test."
    ),
    overrides: list[str] = typer.Option([], "--set", help="dotted.key=value of the job; may be repeated."),
    workers: int | None = typer.Option(None, min=1, help="Worker actors."),
    address: str | None = typer.Option(None, help="A Ray cluster's address; an embedded Ray without it."),
    folds: int | None = typer.Option(
        None, help="Cross-validate over classes: train the job anew for each fold of them."
    ),
    fold_seed: int = typer.Option(0, min=0, help="Deals the classes to the folds."),
    scores: Path | None = typer.Option(None, help="File to write the scores of each task to, for `metadist compare`."),
    as_json: bool = typer.Option(False, "--json", help="Print one JSON object as the last line of stdout."),
) -> None:
    """Judge a trained run on tasks of unseen classes."""
    every = [*overrides, *([] if workers is None else [f"resources.workers={workers}"])]
    if folds is not None:
        for name, value in {"tasks": tasks, "ways": ways, "shots": shots, "query": query, "steps": steps, "norm": norm,
                            "data": data, "scores": scores}.items():  # fmt: skip
            if value is not None:
                hint = "Folds are trained and tested as the job says: change that with --set."
                raise UserError(f"--{name}", str(value), "no --folds beside it", hint)
        figures = cross_validate(run, folds, fold_seed, every, address)
        if as_json:
            typer.echo(json_line(figures))
        return
    from metadist.distributed.evaluate import EvaluationRequest, evaluate_run
    from metadist.distributed.run import RunOptions

    request = EvaluationRequest(split.value, tasks, ways, shots, query, steps, norm, data, every)
    with Display(0, 0) as display, image_progress() as progress:
        result = evaluate_run(run, request, display, RunOptions(address, data_progress=progress))
    found = result.pop("scores")
    if scores is not None:
        RunFolder(str(scores.parent)).write(scores.name, dump_scores([found]))
    figures = result[split.value]
    show_evaluations([figures])
    console = Console(stderr=True, highlight=False)
    if figures["f1"] is not None:
        console.print("macro " + ", ".join(f"{name} {figures[name]:.4f}" for name in ("precision", "recall", "f1")))
    curve = Table(box=None, padding=(0, 2, 0, 0))
    measures = [name for name in ("accuracy", "loss") if name in figures["per_step"][0]]
    for column in ("inner steps", *measures):
        curve.add_column(column, header_style="dim", justify="right")
    for point in figures["per_step"]:
        cells = (f"{point[name]:.4f} ± {point[f'{name}_ci95']:.4f}" for name in measures)
        curve.add_row(f"{point['step']:.0f}", *cells)
    console.print(curve)
    console.print(f"{result['run_dir']}/{result['checkpoint']}", soft_wrap=True)
    if as_json:
        typer.echo(json_line(result))
