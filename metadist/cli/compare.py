"""`metadist compare`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import typer
from rich.console import Console
from rich.table import Table

from metadist.cli.runs import STORAGE, TRACKING, find_run
from metadist.cli.train import json_line
from metadist.errors import UserError
from metadist.reading import MOST_JSON, parse_json, read_bounded
from metadist.training.comparison import SCORES, TaskSet, check_comparable, parse_scores
from metadist.training.evaluation import mean_and_ci95, paired
from metadist.training.run_folder import RunFolder


def compare_command(
    runs: list[str] = typer.Argument(
        help="Run folders, names of runs under STORAGE, MLflow runs' ids, or files of scores (`evaluate --scores`)."
    ),
    query: int | None = typer.Option(None, min=1, help="Of a run's tests, the one with so many query examples."),
    storage: str = STORAGE,
    tracking: str | None = TRACKING,
    as_json: bool = typer.Option(False, "--json", help="Print one JSON object as the last line of stdout."),
) -> None:
    """Paired differences between runs, task by task, with 95 % intervals.

    Only runs that were judged on the same tasks can be compared.
    """
    if len(runs) < 2 or len({*runs}) < len(runs):
        raise UserError("RUN", " ".join(runs), "at least two different runs")
    sets: dict[str, TaskSet] = {}
    for run in runs:
        tests = _tests(run, storage, tracking)
        wanted = query if query is not None or not sets else next(iter(sets.values())).protocol["query"]
        sets[run] = _chosen(run, tests, wanted, query is not None)
    check_comparable(sets)
    first = next(iter(sets.values()))
    rows = [_row(name, one, first) for name, one in sets.items()]
    _show(rows, first)
    if as_json:
        typer.echo(json_line({"set": first.protocol["set"], "measure": first.measure, "runs": rows}))


def _tests(run: str, storage: str, tracking: str | None) -> list[TaskSet]:
    if run.endswith(".json"):
        path = Path(run)
        try:
            content = parse_json(read_bounded(path, MOST_JSON))
        except (OSError, ValueError) as error:
            reason = (isinstance(error, OSError) and error.strerror) or "no JSON"
            raise UserError(
                "RUN", run, f"a file of scores ({reason})", "`metadist evaluate --scores` makes one."
            ) from error
        return parse_scores(content, run)
    folder = RunFolder(find_run(run, storage, tracking))
    if not folder.exists("run.json"):
        raise UserError("RUN", run, "a run folder (with run.json)", "`metadist runs list` shows those that there are.")
    if not folder.exists(SCORES):
        raise UserError(
            "RUN",
            run,
            f"a finished run that was tested, with {SCORES} in its folder",
            f"`metadist train --resume {folder.location}` goes on with it; of a finished one, "
            "`metadist evaluate RUN --scores FILE` makes a file that can be compared.",
        )
    return parse_scores(folder.read_json(SCORES), f"{folder.location}/{SCORES}")


def _chosen(run: str, tests: list[TaskSet], query: int | None, asked: bool) -> TaskSet:
    """The test with so many query examples per class; of a run that has none, the first, unless it was asked for."""
    found = next((test for test in tests if test.protocol["query"] == query), None)
    if found is None and asked:
        known = " and ".join(str(test.protocol["query"]) for test in tests)
        hint = f"`metadist evaluate RUN --query {query} --scores FILE` makes a file that can be compared."
        raise UserError("--query", query, f"{known}, with which {run} was tested", hint)
    return found or tests[0]


def _row(name: str, one: TaskSet, first: TaskSet) -> dict[str, Any]:
    mean, ci95 = mean_and_ci95(one.values)
    facts = {"run": name, "steps": one.steps, "norm": one.norm, one.measure: mean, "ci95": ci95}
    if one is first:
        return facts
    found = paired(one.values, first.values)
    return facts | {
        "difference": found.mean,
        "difference_ci95": found.ci95,
        "excludes_zero": found.excludes_zero,
    }


def _show(rows: list[dict[str, Any]], first: TaskSet) -> None:
    factor, unit, digits = (100, " %", 2) if first.rows else (1, "", 4)
    table = Table(box=None, padding=(0, 2, 0, 0))
    for column in ("run", "normalisation", "steps", first.measure, f"against {rows[0]['run']}", "excludes 0"):
        table.add_column(column, header_style="dim", overflow="fold")
    for row in rows:
        shown = f"{factor * row[first.measure]:.{digits}f} ± {factor * row['ci95']:.{digits}f}{unit}"
        difference, excludes = "", ""
        if "difference" in row:
            difference = f"{factor * row['difference']:+.{digits}f} ± {factor * row['difference_ci95']:.{digits}f}"
            excludes = "yes" if row["excludes_zero"] else "no"
        table.add_row(row["run"], row["norm"], str(row["steps"]), shown, difference, excludes)
    console = Console(stderr=True, highlight=False)
    console = console if console.is_terminal else Console(stderr=True, highlight=False, width=140)
    console.print(f"{first.protocol['count']} tasks of {first.protocol['set']}, paired")
    console.print(table)
