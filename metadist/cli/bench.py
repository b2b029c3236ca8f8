"""`metadist bench`: measuring on this machine."""

from __future__ import annotations

import dataclasses
import sys
from typing import TYPE_CHECKING, Any

import typer
from rich.console import Console
from rich.table import Table

from metadist.bench.cases import ALL, Case, find_cases
from metadist.bench.timing import REPEATS, SECONDS, Rate, conditions
from metadist.cli.train import json_line
from metadist.errors import UserError

if TYPE_CHECKING:
    from metadist.bench.engine import CaseResult
    from metadist.bench.memory import Peak

app = typer.Typer(no_args_is_help=True, help="Measure on this machine: one process, one thread.")

_CASES = typer.Option(ALL, "--case", help="Cases, separated by commas.")
_CASE = typer.Option("A", "--case", help="One case.")
_SECONDS = typer.Option(SECONDS, help="Time per implementation and round.")
_REPEATS = typer.Option(REPEATS, help="Rounds; all implementations take their turn in each.")
_JSON = typer.Option(False, "--json", help="Print one JSON object as the last line of stdout.")


@app.command("engine")
def engine_command(
    case: str = _CASES,
    seconds: float = _SECONDS,
    repeats: int = _REPEATS,
    device: str = typer.Option("cpu", help="cpu or cuda."),
    as_json: bool = _JSON,
) -> None:
    """Meta-gradients (tasks) per second: ours, by strategy and chunk, against other ways to the same result.

    The others are the plain loop that clones the module for each task, and the packages higher and torchopt where they
    are installed (pip install 'metadist\\[bench]'). All have the same nets, weights and tasks, and are first checked to
    give the same meta-gradient; a difference is an error. metadist has no ResNet-12 yet, so it is not among the cases.

    A: Conv4 with strides, 5-way 1-shot, 1 query a class, 1 step. B: 5 steps. C: Conv4 with pooling, 15 query a class.
    D: 20-way, 5 steps. E5, E10 (E for both): sinusoids, 5 and 10 steps. F: B in first order.
    """
    from metadist.bench.engine import measure_engine

    measured = measure_engine(find_cases(case), seconds, repeats, _device(device), _show_case)
    if as_json:
        typer.echo(json_line(measured))


@app.command("sampling")
def sampling_command(
    case: str = _CASE, seconds: float = _SECONDS, repeats: int = _REPEATS, as_json: bool = _JSON
) -> None:
    """What drawing tasks and gathering their pixels from a store costs, against tasks drawn before.

    The store has random images and lies in a temporary folder.
    """
    from metadist.bench.sampling import CPU, measure_sampling

    result = measure_sampling(_one(case), seconds, repeats)
    table = _table("tasks/s", "median", "least", "most")
    _add_rate(table, "sampled and gathered", result.sampled)
    _add_rate(table, "sampled before", result.presampled)
    _print(table, f"ratio {result.ratio:.3f} at chunk {result.chunk}")
    if as_json:
        typer.echo(json_line(conditions(CPU, seconds, repeats) | dataclasses.asdict(result)))


@app.command("memory")
def memory_command(
    case: str = typer.Option("B", "--case", help="One case; its own number of steps does not count."),
    steps: str = typer.Option("1,5,10", help="Numbers of inner steps, separated by commas."),
    as_json: bool = _JSON,
) -> None:
    """Peak memory of one chunk's meta-gradient by the number of inner steps, each in a process of its own.

    Measured is resident memory as Linux counts it, above what the process holds with net and tasks built and its
    libraries warm.
    """
    from metadist.bench.memory import measure_memory

    table = _table("", "steps", "peak MB", "process before, MB")

    def show(peak: Peak) -> None:
        table.add_row(peak.implementation, str(peak.steps), f"{peak.peak_mb:.1f}", f"{peak.baseline_mb:.0f}")

    measured = measure_memory(_one(case), _numbers(steps), show)
    _print(table, *(f"{name} is absent: {reason}" for name, reason in measured["absent"].items()))
    if as_json:
        typer.echo(json_line(measured))


def _show_case(result: CaseResult) -> None:
    table = _table("tasks/s", "median", "least", "most", "over the best peer", "difference")
    best = result.rates[result.best_peer].median
    for name, rate in result.rates.items():
        _add_rate(table, name, rate, f"{rate.median / best:.2f}", f"{result.differences[name]:.0e}")
    for name in result.absent:
        table.add_row(name, "absent")
    _print(f"{result.case}: {result.about}", table, result.verdict(), "")


def _table(*columns: str) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0))
    for number, column in enumerate(columns):
        table.add_column(column, header_style="dim", justify="right" if number else "left")
    return table


def _add_rate(table: Table, name: str, rate: Rate, *more: str) -> None:
    table.add_row(name, *(f"{value:.1f}" for value in (rate.median, rate.low, rate.high)), *more)


def _print(*contents: Any) -> None:
    console = Console(stderr=True, highlight=False, width=None if sys.stderr.isatty() else 140)
    for content in contents:
        console.print(content, soft_wrap=isinstance(content, str), markup=False)


def _one(text: str) -> Case:
    found = find_cases(text)
    if len(found) > 1:
        raise UserError("--case", text, "one case", f"Take {found[0].name}.")
    return found[0]


def _numbers(text: str) -> list[int]:
    try:
        return [int(number) for number in text.split(",")]
    except ValueError:
        raise UserError("--steps", text, "whole numbers, separated by commas") from None


def _device(text: str) -> Any:
    import torch

    if text not in ("cpu", "cuda") or (text == "cuda" and not torch.cuda.is_available()):
        raise UserError("--device", text, "cpu, or cuda where there is one")
    return torch.device(text)
