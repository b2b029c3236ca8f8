"""The `metadist` command: its sub-commands, and what becomes of an error."""

from __future__ import annotations

import sys
import traceback

import typer

import metadist
from metadist.errors import UserError


def _version(show: bool) -> None:
    if show:
        typer.echo(f"metadist {metadist.__version__}")
        raise typer.Exit


def _root(
    version: bool = typer.Option(False, "--version", callback=_version, is_eager=True, help="Print the version."),
) -> None:
    """Distributed meta-training: workers adapt on tasks, a parameter server takes the outer step."""


def _app() -> typer.Typer:
    # The commands import torch, which takes a second in which Ctrl-C must be handled too.
    from metadist.cli.bench import app as bench_app
    from metadist.cli.chaos import chaos_command
    from metadist.cli.compare import compare_command
    from metadist.cli.data import app as data_app
    from metadist.cli.doctor import doctor_command
    from metadist.cli.evaluate import evaluate_command
    from metadist.cli.jobs import app as jobs_app
    from metadist.cli.keys import keys_command
    from metadist.cli.kinds import list_command
    from metadist.cli.plan import plan_command
    from metadist.cli.pretrain import pretrain_command
    from metadist.cli.reproduce import reproduce_command
    from metadist.cli.runs import app as runs_app
    from metadist.cli.submit import submit_command
    from metadist.cli.task import app as task_app
    from metadist.cli.train import train_command
    from metadist.cli.tune import tune_command
    from metadist.cli.ui import ui_command

    app = typer.Typer(
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
        rich_markup_mode="rich",
        epilog="--debug, anywhere on the line, shows the traceback of an error.",
    )
    app.callback()(_root)
    app.command("train")(train_command)
    app.command("pretrain")(pretrain_command)
    app.command("tune")(tune_command)
    app.command("evaluate")(evaluate_command)
    app.command("compare")(compare_command)
    app.command("reproduce")(reproduce_command)
    app.command("submit")(submit_command)
    app.command("ui")(ui_command)
    app.command("keys")(keys_command)
    app.command("list")(list_command)
    app.command("plan")(plan_command)
    app.command("doctor")(doctor_command)
    app.command("chaos")(chaos_command)
    app.add_typer(bench_app, name="bench")
    app.add_typer(data_app, name="data")
    app.add_typer(jobs_app, name="jobs")
    app.add_typer(runs_app, name="runs")
    app.add_typer(task_app, name="task")
    return app


def main() -> None:
    """Run the command line; the exit code is 2 for a user's mistake, 1 for a fault of the run or of metadist."""
    if "" not in sys.path:  # the working folder, for the user's own modules; last, so as to hide no installed one
        sys.path.append("")
    debug = "--debug" in sys.argv
    arguments = [argument for argument in sys.argv[1:] if argument != "--debug"]
    try:
        _app()(args=arguments, prog_name="metadist")
    except UserError as error:
        _fail(str(error), debug, 2)
    except KeyboardInterrupt:
        _fail("interrupted", debug, 130)
    except BrokenPipeError:
        sys.exit(1)
    except Exception as error:  # the last place where it can be said in one line
        notes = [] if debug else getattr(error, "__notes__", [])  # a traceback shows them itself
        _fail("\n".join([f"{type(error).__name__}: {error}", *notes]), debug, 1)


def _fail(text: str, debug: bool, code: int) -> None:
    from metadist.tracking.masking import mask_passwords

    if debug:
        typer.echo(mask_passwords(traceback.format_exc()), err=True, nl=False)
    hint = "" if debug or code != 1 else "\n(--debug shows where)"
    typer.echo(f"metadist: {mask_passwords(text)}{hint}", err=True)
    sys.exit(code)
