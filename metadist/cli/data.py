"""`metadist data prepare` and `metadist data info`."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from metadist.data import ClassStore, describe, prepare

app = typer.Typer(no_args_is_help=True, help="Prepare and look at class stores.")


@contextmanager
def image_progress() -> Iterator[Callable[[int, int], None]]:
    """A bar on stderr that appears with the first image; a callback of (done, of)."""
    bar = Progress(
        TextColumn("preparing images"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        transient=True,
        disable=not Console(stderr=True).is_terminal,
    )
    task = bar.add_task("images", total=None)

    def show(done: int, total: int) -> None:
        if not bar.live.is_started:
            bar.start()
        bar.update(task, completed=done, total=total)

    try:
        yield show
    finally:
        bar.stop()


@app.command("prepare")
def prepare_command(
    source: str = typer.Argument(help="Folder of class folders, zip of one, torchvision:NAME or sklearn:digits."),
    store: str = typer.Argument(help="Folder of the store to write."),
    size: int | None = typer.Option(None, help="Side in pixels (square); images keep their size without it."),
    channels: int | None = typer.Option(None, help="1 for grey, 3 for colour; as in the source without it."),
    invert: bool = typer.Option(False, "--invert", help="Swap dark and light."),
    skip_bad: bool = typer.Option(False, "--skip-bad", help="Leave out and count images that cannot be decoded."),
    overwrite: bool = typer.Option(False, "--overwrite", help="Replace a store that is there."),
) -> None:
    """Write the images of SOURCE into a class store."""
    with image_progress() as progress:
        made = prepare(
            source,
            store,
            size=size,
            channels=channels,
            invert=invert,
            skip_bad=skip_bad,
            overwrite=overwrite,
            progress=progress,
        )
    _show(made, False)


@app.command("info")
def info_command(
    store: str = typer.Argument(help="Folder of a class store."),
    verify: bool = typer.Option(False, "--verify", help="Read everything and compare the sha256."),
    as_json: bool = typer.Option(False, "--json", help="Print one JSON object."),
) -> None:
    """What is in a class store."""
    opened = ClassStore.open(store)
    if verify:
        opened.verify()
    _show(opened, as_json)


def _show(store: ClassStore, as_json: bool) -> None:
    facts = describe(store)
    if as_json:
        typer.echo(json.dumps(facts))
        return
    for name, value in facts.items():
        shown = ", ".join(f"{k} {v}" for k, v in value.items()) if isinstance(value, dict) else value
        typer.echo(f"{name:>10}  {shown}")
