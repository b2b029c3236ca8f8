"""`metadist reproduce`."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import typer
from rich.console import Console
from rich.table import Table

from metadist.cli.data import image_progress
from metadist.cli.display import Display
from metadist.cli.pretrain import pretrain_shown
from metadist.cli.train import json_line, run_to_end
from metadist.config import content_sha256, load_job, pretrain_content_sha256, read_mapping, set_value
from metadist.errors import UserError
from metadist.paper.rows import Row, Setting, find_rows, read_table
from metadist.paper.summary import read_summary, summarize
from metadist.paper.table import row_state, write_results
from metadist.training.comparison import SCORES, parse_scores
from metadist.training.run_folder import RunFolder

TABLE = Path("jobs/paper")


@dataclass(frozen=True)
class _Options:
    """How rows are run, beside what they say."""

    overrides: list[str]
    data: str | None
    address: str | None


def reproduce_command(
    rows: list[str] = typer.Argument(None, help="Rows (SETTING/ROW), or settings for all their rows."),
    every: bool = typer.Option(False, "--all", help="Every row that needs no GPU."),
    seeds: str | None = typer.Option(None, help="Of the rows' seeds, these, separated by commas."),
    overrides: list[str] = typer.Option([], "--set", help="dotted.key=value; placement and data.source only."),
    data: str | None = typer.Option(None, help="A copy of the data that rows judge another row's runs on."),
    table: Path = typer.Option(TABLE, help="Folder of the table, with its rows.yaml."),
    address: str | None = typer.Option(None, help="A Ray cluster's address; an embedded Ray without it."),
    listing: bool = typer.Option(False, "--list", help="Show the rows and what there is of them; run nothing."),
    as_json: bool = typer.Option(False, "--json", help="Print one JSON object as the last line of stdout."),
) -> None:
    """Run rows of the results table, write their summaries and the table anew.

    A run that was interrupted goes on, and one whose summary is there is skipped.
    """
    settings = read_table(table)
    if listing:
        _list(find_rows(settings, rows) if rows else [row for one in settings for row in one.rows], as_json)
        return
    if bool(rows) == every:
        raise UserError(
            "ROW", rows or None, "one row or setting at least, or --all, and not both", "--list shows them."
        )
    chosen = find_rows(settings, rows) if rows else _without_gpu(settings)
    plan = [(row, seed) for row in chosen for seed in _seeds(row, seeds)]
    for row, _ in plan:  # before any of them takes its time
        _check(row, overrides)
    queries = {setting.name: setting.config.queries for setting in settings}
    options = _Options(overrides, data, address)
    done: list[dict[str, Any]] = []
    for row, seed in plan:
        location = _reproduce(row, seed, queries[row.setting], options)
        done.append({"row": row.id, "seed": seed, "summary": str(row.summary(seed)), "run_dir": location})
        page = write_results(table)
    typer.echo(f"wrote {page}", err=True)
    if as_json:
        typer.echo(json_line({"rows": done, "results": str(page)}))


def _without_gpu(settings: list[Setting]) -> list[Row]:
    return [row for setting in settings for row in setting.rows if row.config.needs == "cpu"]


def _seeds(row: Row, wanted: str | None) -> list[int]:
    if wanted is None:
        return row.config.seeds
    known = {str(seed): seed for seed in row.config.seeds}
    for seed in wanted.split(","):
        if seed.strip() not in known:
            raise UserError("--seeds", seed, f"of the seeds {', '.join(known)} of {row.id}", "rows.yaml lists them.")
    return [known[seed.strip()] for seed in wanted.split(",")]


def _check(row: Row, overrides: list[str]) -> None:
    """Refuse a job file that is wrong, and settings that would make another job of it."""
    row.job_sha256()
    for taken in row.taken.values():
        _check(taken, overrides)
    for path in filter(None, (row.job, row.pretraining)):
        load_job(str(path), overrides)
    content = read_mapping(str(row.job))
    before = content_sha256(content), content.get("seed")
    for override in overrides:
        set_value(content, override)
        if (content_sha256(content), content.get("seed")) != before:
            raise UserError(
                "--set",
                override,
                "a setting of placement (resources, storage, tracking, runtime) or data.source",
                f"It would be another job than {row.id}'s; `metadist train {row.job}` takes every setting.",
            )


def _reproduce(row: Row, seed: int, queries: list[int], options: _Options) -> str | None:
    """Run one seed of a row to its end and write its summary, unless it is there; returns the run's folder."""
    path = row.summary(seed)
    if path.exists() and read_summary(path).job_sha256 == row.job_sha256():
        typer.echo(f"· {row.id}, seed {seed}: {path} is there", err=True)
        return None
    folder, pretrained = _trained(row.trained, seed, options)
    if row.config.judged is None:
        known = {test.protocol["query"]: test for test in parse_scores(folder.read_json(SCORES), folder.location)}
        figures = folder.read_json("summary.json")["test"]
    else:
        known, figures = {}, None
    for query in queries:
        if query not in known:
            result = _judge(row, folder, query, options)
            known[query], figures = result["scores"], figures or result["test"]
    made = summarize(row, seed, folder, pretrained, figures, [known[query] for query in queries])
    RunFolder(str(path.parent)).write(path.name, made.dump().encode())
    return folder.location


def _pretrained(row: Row, seed: int, options: _Options) -> RunFolder | None:
    """The folder of the finished pre-training that a row starts from, which rows may share."""
    if row.pretraining is None:
        return None
    sha = pretrain_content_sha256(read_mapping(str(row.pretraining)))
    name = f"{'-'.join(row.pretraining.relative_to(row.folder).with_suffix('').parts)}-seed{seed}-{sha[:8]}"
    said = load_job(str(row.pretraining))
    job = load_job(str(row.pretraining), [*options.overrides, f"seed={seed}", f"name={name}"])
    # Its results depend on the number of its workers, which is the file's whatever the command says.
    job = replace(job, runtime=said.runtime, resources=replace(job.resources, workers=said.resources.workers))
    address = options.address if job.runtime == "ray" else None
    typer.echo(f"· {row.id}, seed {seed}: pre-training in {job.storage}/{name}", err=True)
    return run_to_end(job, name, address, pretrain_shown)


def _trained(row: Row, seed: int, options: _Options) -> tuple[RunFolder, RunFolder | None]:
    """The folder of a row's finished run, which is trained, or goes on, if need be; and that of its pre-training.

    So are, before it, those that its job takes.
    """
    pretrained = _pretrained(row, seed, options)
    taken = {name: _trained(each, seed, options)[0].location for name, each in row.taken.items()}
    # With the job's sha in its name, a run of a job that was changed since is not taken for one of this.
    name = f"{row.setting}-{row.name}-seed{seed}-{row.job_sha256()[:8]}"
    start = [] if pretrained is None else [f"init_from.path={json.dumps(pretrained.location)}"]
    for field, rows in row.runs.items():
        runs = [taken[each.id] for each in rows] if isinstance(rows, tuple) else taken[rows.id]
        start.append(f"{field}={json.dumps(runs)}")
    job = load_job(str(row.job), [*options.overrides, *start, f"seed={seed}", f"name={name}"])
    typer.echo(f"· {row.id}, seed {seed}: {job.storage}/{name}", err=True)
    return run_to_end(job, name, options.address), pretrained


def _judge(row: Row, folder: RunFolder, query: int, options: _Options) -> dict[str, Any]:
    """Judge a finished run with so many query examples per class, as the row says."""
    from metadist.distributed.evaluate import EvaluationRequest, evaluate_run
    from metadist.distributed.run import RunOptions

    request = EvaluationRequest(query=query, last_only=True)
    if (judged := row.config.judged) is not None:
        data = (options.data or judged.data) if judged.data is not None else None
        request = replace(request, data=data, norm=judged.norm, overrides=judged.set)
    with Display(0, 0) as display, image_progress() as progress:
        display.say(f"judging {folder.location} with {query} query examples")
        return evaluate_run(folder.location, request, display, RunOptions(options.address, data_progress=progress))


def _list(rows: list[Row], as_json: bool) -> None:
    shown = Table(box=None, padding=(0, 2, 0, 0))
    for column in ("row", "needs", "seeds", "state"):
        shown.add_column(column, header_style="dim", overflow="fold")
    found = []
    for row in rows:
        state, seeds = row_state(row), ", ".join(map(str, row.config.seeds))
        missing = f"to run: {', '.join(map(str, state.missing))}" if state.missing else "done"
        words = f"out of date, {missing}" if state.outdated else missing
        shown.add_row(row.id, row.config.needs, seeds, words)
        facts = {"row": row.id, "job": str(row.job), "needs": row.config.needs, "seeds": row.config.seeds}
        found.append(facts | {"job_sha256": state.job_sha256, "missing": state.missing, "state": words})
    if as_json:
        typer.echo(json_line({"rows": found}))
        return
    Console(highlight=False, width=None if sys.stdout.isatty() else 140).print(shown)
