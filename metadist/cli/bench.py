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

app = typer.Typer(
    no_args_is_help=True, help="Measure on this machine: one process with one thread, or the actors of a run."
)

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
    give the same meta-gradient; a difference is an error. The rule's choice is timed in bf16 too, beside how far
    its meta-gradient is then from the one in 32 bits.

    A: Conv4 with strides, 5-way 1-shot, 1 query a class, 1 step. B: 5 steps. C: Conv4 with pooling, 15 query a class.
    D: 20-way, 5 steps. E5, E10 (E for both): sinusoids, 5 and 10 steps. F: B in first order. G: ResNet-12, 32×32.
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
    table = table_of("tasks/s", "median", "least", "most")
    _add_rate(table, "sampled and gathered", result.sampled)
    _add_rate(table, "sampled before", result.presampled)
    print_all(table, f"ratio {result.ratio:.3f} at chunk {result.chunk}")
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
    libraries warm; and the processor time that the chunk takes. Ours is also run with learner.remat: true.
    """
    from metadist.bench.memory import measure_memory

    table = table_of("", "steps", "peak MB", "process before, MB", "seconds")

    def show(peak: Peak) -> None:
        table.add_row(
            peak.implementation,
            str(peak.steps),
            f"{peak.peak_mb:.1f}",
            f"{peak.baseline_mb:.0f}",
            f"{peak.seconds:.3f}",
        )

    measured = measure_memory(_one(case), _numbers(steps), show)
    print_all(table, *(f"{name} is absent: {reason}" for name, reason in measured["absent"].items()))
    if as_json:
        typer.echo(json_line(measured))


@app.command("transport")
def transport_command(
    values: str = typer.Option("100000,1000000,10000000", help="Numbers of fp32 parameters, separated by commas."),
    workers: str = typer.Option("1,2,4", help="Numbers of workers, separated by commas."),
    steps: int = typer.Option(50, help="Steps of each."),
    as_json: bool = _JSON,
) -> None:
    """A synchronous step without work: publish, one ready gradient per worker, aggregate, update.

    With metadist's own actors in an embedded Ray; beside it plain processes of torch.distributed (gloo) that all-reduce
    a gradient and take Adam's step each, and one copy of the parameters from memory to memory.
    """
    from metadist.bench.transport import TransportResult, measure_transport

    table = table_of("parameters", "workers", "ms/step", "least", "most", "gloo, ms", "least", "most", "a copy, ms")

    def show(result: TransportResult) -> None:
        times = (f"{t:.1f}" for part in (result.step, result.gloo) for t in (part.median, part.low, part.high))
        table.add_row(f"{result.values:,}", str(result.workers), *times, f"{result.copy:.2f}")

    measured = measure_transport(_numbers(values, "--values"), _numbers(workers, "--workers"), steps, show)
    print_all(table, f"memory is copied at {measured['copy_bytes_per_second'] / 1e9:.1f} GB/s")
    if as_json:
        typer.echo(json_line(measured))


@app.command("scaling")
def scaling_command(
    case: str = typer.Option("A,B", "--case", help="Cases, separated by commas; none skips them."),
    workers: str = typer.Option("1,2", help="Numbers of workers that compute, separated by commas."),
    steps: int = typer.Option(8, help="Steps of each in a round."),
    repeats: int = _REPEATS,
    fakes: str = typer.Option("8,32,64", help="Numbers of workers that sleep, separated by commas; none skips them."),
    values: int = typer.Option(100_000, help="Parameters that the sleeping workers send sums of."),
    sleep: float = typer.Option(0.1, help="Seconds that they sleep for a chunk, after a round without sleep."),
    as_json: bool = _JSON,
) -> None:
    """Tasks per second of one and more workers over this process alone; and how many workers one server bears.

    The second with workers that sleep instead of computing and have no torch, so that many of them fit on a machine.
    Beside each figure is what the model of `metadist plan` says.
    """
    from metadist.bench.scaling import FakeResult, ScalingResult, measure_fakes, measure_scaling

    cases = [] if case == "none" else find_cases(case)
    counts = [] if fakes == "none" else _numbers(fakes, "--fakes")
    real = table_of(
        "case", "runtime", "tasks/s", "least", "most", "over in process", "over 1 worker", "added", "predicted", "off"
    )
    fake = table_of("workers", "sleep, ms", "ms/step", "pushes/s", "least", "most", "predicted ms", "off", "MB each")

    def show(result: ScalingResult) -> None:
        over_one = "" if result.over_one is None else f"{result.over_one:.3f}"
        added = "" if result.added is None else f"{100 * result.added:.1f} %"
        predicted = ("", "") if result.predicted is None else (f"{result.predicted:.1f}", _off(result.off))
        more = (f"{result.over_inprocess:.3f}", over_one, added, *predicted)
        real.add_row(result.case, result.runtime, *_figures(result.rate), *more)

    def show_fakes(result: FakeResult) -> None:
        push = _figures(result.pushes)
        memory = f"{result.megabytes:.0f}"
        times = (f"{1e3 * result.sleep:.0f}", f"{1e3 * result.step_seconds:.1f}")
        fake.add_row(str(result.workers), *times, *push, f"{1e3 * result.predicted:.1f}", _off(result.off), memory)

    measured = measure_scaling(cases, _numbers(workers, "--workers"), steps, repeats, show) if cases else {}
    if cases:
        print_all(real, "")
    if counts:
        measured |= measure_fakes(values, counts, sleep, steps, repeats, show_fakes)
        print_all(fake)
    if as_json:
        typer.echo(json_line(measured))


@app.command("straggler")
def straggler_command(
    workers: int = typer.Option(4, help="Workers; they sleep instead of computing."),
    chunks: int = typer.Option(4, help="Chunks of a step for each of them."),
    sleep: float = typer.Option(0.2, help="Seconds that they sleep for a chunk."),
    times: float = typer.Option(10.0, help="How many times as long the slow one takes."),
    steps: int = typer.Option(8, help="Steps in a round."),
    repeats: int = typer.Option(3, help="Rounds, each without and with the slow one."),
    as_json: bool = _JSON,
) -> None:
    """What one slow worker costs a step: what it takes too long for is computed elsewhere too."""
    from metadist.bench.straggler import measure_straggler

    result, measured = measure_straggler(workers, chunks, sleep, times, steps, repeats)
    table = table_of("ms/step", "median", "least", "most")
    for name, rate in (("all alike", result.alike), (f"one {times:g} times as slow", result.slow)):
        table.add_row(name, *(f"{1e3 * value:.1f}" for value in (rate.median, rate.low, rate.high)))
    print_all(
        table,
        f"{result.ratio:.2f} times as long; with chunks of any size it could be {result.bound:.2f}",
        f"{result.doubled:.1f} of {workers * chunks} chunks of a step were given to a second worker",
    )
    if as_json:
        typer.echo(json_line(measured))


@app.command("staleness")
def staleness_command(
    job: str = typer.Argument(..., metavar="JOB", help="Job file (YAML)."),
    ages: str = typer.Option("0,1,3,7,15,31", help="Ages of the answers in steps, separated by commas."),
    weights: str = typer.Option("one,inverse", help="Values of server.age_weight, separated by commas."),
    plot: str | None = typer.Option(None, help="A PNG to write."),
    overrides: list[str] = typer.Option([], "--set", help="dotted.key=value, a YAML value; may be repeated."),
    as_json: bool = _JSON,
) -> None:
    """What a job reaches with server.mode: async, by the age of its answers, on its test tasks.

    In this process, with answers of just that age: as W workers that are equally fast have the age W - 1. The
    meta-batch becomes one chunk, and the steps as many more as take the same tasks.
    """
    from metadist.bench.staleness import StalenessResult, measure_staleness, staleness_curves
    from metadist.config import load_job
    from metadist.tracking.plots import accuracy_by_step

    table = table_of("weight of old answers", "age", "figure", "± 95 %")

    def show(result: StalenessResult) -> None:
        figures = ("diverged", "") if result.value is None else (f"{result.value:.4f}", f"{result.ci95 or 0:.4f}")
        table.add_row(result.weight, f"{result.age:.1f}", *figures)
        typer.echo(f"age {result.age:.1f}, {result.weight}: {figures[0]}", err=True)

    read = load_job(job, overrides)
    measured = measure_staleness(read, _numbers(ages, "--ages"), weights.split(","), show)
    print_all("", table)
    if plot is not None:
        label = "query loss" if read.tasks.loss == "mse" else "query accuracy"
        accuracy_by_step(staleness_curves(measured), plot, label, "age of the answers (steps)")
    if as_json:
        typer.echo(json_line(measured))


def _figures(rate: Rate) -> tuple[str, ...]:
    return tuple(f"{value:.1f}" for value in (rate.median, rate.low, rate.high))


def _off(share: float | None) -> str:
    return "" if share is None else f"{100 * share:+.0f} %"


def _show_case(result: CaseResult) -> None:
    table = table_of("tasks/s", "median", "least", "most", "over the best peer", "difference")
    best = result.rates[result.best_peer].median
    for name, rate in result.rates.items():
        _add_rate(table, name, rate, f"{rate.median / best:.2f}", f"{result.differences[name]:.0e}")
    for name in result.absent:
        table.add_row(name, "absent")
    print_all(f"{result.case}: {result.about}", table, result.verdict(), "")


def table_of(*columns: str) -> Table:
    """A table whose first column is text and whose others are figures."""
    table = Table(box=None, padding=(0, 2, 0, 0))
    for number, column in enumerate(columns):
        table.add_column(column, header_style="dim", justify="right" if number else "left")
    return table


def _add_rate(table: Table, name: str, rate: Rate, *more: str) -> None:
    table.add_row(name, *_figures(rate), *more)


def print_all(*contents: Any) -> None:
    """For people, on stderr."""
    console = Console(stderr=True, highlight=False, width=None if sys.stderr.isatty() else 140)
    for content in contents:
        console.print(content, soft_wrap=isinstance(content, str), markup=False)


def _one(text: str) -> Case:
    found = find_cases(text)
    if len(found) > 1:
        raise UserError("--case", text, "one case", f"Take {found[0].name}.")
    return found[0]


def _numbers(text: str, option: str = "--steps") -> list[int]:
    try:
        return [int(number) for number in text.split(",")]
    except ValueError:
        raise UserError(option, text, "whole numbers, separated by commas") from None


def _device(text: str) -> Any:
    import torch

    if text not in ("cpu", "cuda") or (text == "cuda" and not torch.cuda.is_available()):
        raise UserError("--device", text, "cpu, or cuda where there is one")
    return torch.device(text)
