"""A job on a cluster, seen from here: the connection, what it prints, and what becomes of Ctrl-C."""

from __future__ import annotations

import re
import shlex
import sys
from typing import TYPE_CHECKING

import typer
from rich.console import Console
from rich.text import Text

from metadist.reading import parse_json

if TYPE_CHECKING:
    from metadist.distributed.cluster_jobs import Attempt, ClusterJobs

#: what Ray puts before a driver's own lines
_PREAMBLE = re.compile(r"\S+ \S+\s+INFO job_manager\.py:.* Runtime env is setting up\.|Running entrypoint for job .*")


def say(text: str) -> None:
    """One line for people, on stderr."""
    Console(stderr=True, highlight=False).print(Text(f"· {text}"), soft_wrap=True)


def open_jobs(address: str | None) -> tuple[ClusterJobs, str, str]:
    """The jobs of the cluster at an address, its dashboard's URL, and how it knows its users."""
    from metadist.distributed.dashboard import find_dashboard

    dashboard = find_dashboard(address)
    from metadist.distributed.cluster_jobs import ClusterJobs
    from metadist.distributed.job_client import JobClient

    return ClusterJobs(JobClient(dashboard.url)), dashboard.url, dashboard.mode


def at(address: str | None) -> str:
    """The option that repeats an address in a command to type."""
    return "" if address is None else f" --address {shlex.quote(address)}"


class LogView:
    """Shows a job's log as it comes, without what Ray puts before it and without the result, which it keeps.

    Args:
        console: where to show it.
    """

    def __init__(self, console: Console) -> None:
        self._console = console
        self._begun = ""
        #: characters that have been handed in
        self.shown = 0
        #: the JSON line that `metadist train --json` ends with
        self.result: str | None = None
        #: whether a Python module was missing
        self.lacks = False

    def write(self, text: str) -> None:
        """Take the next part of the log; a line that has not ended waits for its end."""
        self.shown += len(text)
        *lines, self._begun = (self._begun + text).split("\n")
        for line in lines:
            self._show(line)

    def close(self) -> None:
        """Show a last line that had no end."""
        if self._begun:
            self._show(self._begun)
        self._begun = ""

    def _show(self, line: str) -> None:
        if is_result(line):
            self.result = line
            return
        self.lacks = self.lacks or "No module named" in line
        if not _PREAMBLE.fullmatch(line):
            self._console.print(Text.from_ansi(line), soft_wrap=True)


def is_result(line: str) -> bool:
    """Whether a line is the JSON object that a run ends with."""
    if not line.startswith("{"):
        return False
    try:
        content = parse_json(line)
    except ValueError:
        return False
    return isinstance(content, dict) and "run_dir" in content


def follow_job(jobs: ClusterJobs, attempt: Attempt, view: LogView, address: str | None) -> int:
    """Show a job until it ends or the user has enough of it; the exit code is the job's own."""
    from metadist.distributed.dashboard import Unreachable

    again = f"metadist jobs logs {attempt.name or attempt.id} --follow{at(address)}"
    while True:
        try:
            ended = jobs.follow(attempt, view.write, view.shown)
            break
        except Unreachable as error:
            say(f"{error}")
            say(f"lost sight of {attempt.id}, which goes on if its cluster does. To see it again: {again}")
            return 1
        except KeyboardInterrupt:
            if not _wants_stop():
                stop = f"metadist jobs stop {attempt.name or attempt.id}{at(address)}"
                say(f"{attempt.id} goes on. To see it again: {again}. To stop it: {stop}")
                return 130
            jobs.stop(attempt)
            say("stopping it after its step, with a checkpoint")
    view.close()
    say_end(ended, view)
    return ended.exit_code or 0


def on_terminal() -> bool:
    """Whether somebody can be asked."""
    return sys.stdin.isatty() and sys.stderr.isatty()


def _wants_stop() -> bool:
    if not on_terminal():
        return False
    try:
        answer = str(
            typer.prompt(
                "\nDetach from the job, which then goes on, or stop it (detach, stop)?", default="detach", err=True
            )
        )
    except typer.Abort:
        typer.echo(err=True)
        return False
    return answer.strip().lower() in ("s", "stop")


def say_end(attempt: Attempt, view: LogView) -> None:
    """How a job ended, and what its log does not say of it."""
    if attempt.status == "FAILED" and attempt.driver_code is None:
        # Of a traceback of Ray's own the first line and the last say something to its users.
        typer.echo("\n".join(line for line in attempt.message.splitlines() if line[:1].strip()), err=True)
    took = "" if None in (attempt.started, attempt.ended) else f" after {duration(attempt)}"
    code = f" with exit code {attempt.exit_code}" if attempt.status == "FAILED" else ""
    say(f"{attempt.id} {attempt.status}{code}{took}")
    if attempt.status == "STOPPED" and attempt.name is not None:
        say(f"submitted again as {attempt.name}, it goes on from its last checkpoint")
    if view.lacks:
        say("the cluster lacks a Python package: what metadist requires has to be installed on all of its nodes")


def duration(attempt: Attempt) -> str:
    """How long a job took, or has taken until it ended, as h:mm:ss."""
    if attempt.started is None or attempt.ended is None:
        return ""
    seconds = round((attempt.ended - attempt.started).total_seconds())
    return f"{seconds // 3600}:{seconds // 60 % 60:02d}:{seconds % 60:02d}"
