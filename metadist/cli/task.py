"""`metadist task show`: a task by its address."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, cast

import torch
import typer
from rich.console import Console
from rich.table import Table
from torch import Tensor

from metadist.cli.data import image_progress
from metadist.config import build_distribution, evaluation_episode, load_job, open_data, with_store
from metadist.errors import UserError
from metadist.tasks import Task
from metadist.tasks.base import Split

app = typer.Typer(no_args_is_help=True, help="Look at tasks.")


@app.callback()
def _group() -> None:
    """Look at tasks."""


@app.command("show")
def show_command(
    job: str = typer.Argument(help="Run folder or job file."),
    address: str = typer.Argument(help="SPLIT/SEED/INDEX, for example train/0/17."),
    picture: Path | None = typer.Option(None, help="PNG to write images to: a column a class, support rows first."),
    overrides: list[str] = typer.Option([], "--set", help="dotted.key=value of the job; may be repeated."),
) -> None:
    """Draw a task again by its address, as every run of the job draws it, and show its rows."""
    split, seed, index = _parse(address)
    file = Path(job, "job.yaml")
    given = load_job(str(file) if file.is_file() else job, overrides)
    with image_progress() as progress:
        placed = with_store(given, open_data(given, progress))
    tasks = build_distribution(placed)
    episode = given.tasks.training_episode() if split == "train" else evaluation_episode(given)
    if not tasks.has(split):
        raise UserError("ADDRESS", address, f"another split, for {split} has no classes")
    tasks.check(split, episode)
    batch = tasks.batch(split, seed, [index], episode, torch.device("cpu"))
    rows = Table(box=None, padding=(0, 2, 0, 0))
    for column in ("set", "row", "target", "input"):
        rows.add_column(column, header_style="dim")
    for name, part in zip(("support", "query"), batch, strict=True):
        for row, (x, y) in enumerate(zip(part.x[0], part.y[0], strict=True)):
            rows.add_row(name, str(row), _numbers(y), _numbers(x))
    Console(highlight=False).print(rows)
    if picture is not None:
        _draw(batch, episode.ways, picture)


def _parse(address: str) -> tuple[Split, int, int]:
    found = re.fullmatch(r"(train|valid|test)/(\d+)/(\d+)", address)
    if found is None:
        raise UserError("ADDRESS", address, "SPLIT/SEED/INDEX, for example train/0/17")
    return cast(Split, found[1]), int(found[2]), int(found[3])


def _numbers(value: Tensor) -> str:
    """A few numbers as they are, many by their range."""
    if value.numel() <= 4:
        return ", ".join(f"{number:g}" for number in value.flatten().tolist())
    finite = value[value.isfinite()]
    whole = "" if finite.numel() == value.numel() else f", {value.numel() - finite.numel()} not finite"
    shape = "×".join(map(str, value.shape))
    return f"{shape}: mean {finite.mean():.4g}, {finite.min():.4g} to {finite.max():.4g}{whole}"


def _draw(batch: Task, ways: int, picture: Path) -> None:
    x: Any = torch.cat([part.x[0] for part in batch])
    if x.dim() != 4 or x.shape[1] not in (1, 3):
        raise UserError(
            "--picture", str(picture), "tasks of images", f"Inputs here have the shape {list(x.shape[1:])}."
        )
    from torchvision.utils import save_image

    try:
        save_image(x, picture, nrow=ways, normalize=True, format="png")
    except OSError as error:
        raise UserError("--picture", str(picture), f"a file that can be written ({error.strerror})") from error
