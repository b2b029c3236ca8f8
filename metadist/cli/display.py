"""What a run shows: a live line on a terminal, plain lines every few seconds otherwise. All on stderr."""

from __future__ import annotations

import time
from collections.abc import Callable
from types import TracebackType

from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from metadist.outer import StrategyCheck
from metadist.training.evaluation import Evaluation
from metadist.training.loop import Observer
from metadist.training.stepper import StepRecord

#: seconds between plain lines
EVERY = 5.0
#: share of the old value in the smoothed training figures
SMOOTH = 0.95


class Display(Observer):
    """Shows one run. A context manager, so that the terminal is always given back.

    Args:
        steps: outer steps of the run.
        tasks: tasks per outer step.
    """

    def __init__(self, steps: int, tasks: int) -> None:
        self._console = Console(stderr=True, highlight=False)
        self._steps, self._tasks = steps, tasks
        self._live: Live | None = None
        self._last_line = 0.0
        self._averages: dict[str, float] = {}
        self._seen = 0
        self._valid = ""
        self._tested, self._testing_since = 1.0, 0.0
        self.started = False

    def __enter__(self) -> Display:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.stop()

    def say(self, text: str) -> None:
        self._console.print(Text(f"· {text}"), soft_wrap=True)

    def ready(self, check: StrategyCheck, version: int, fingerprint: dict[str, str]) -> None:
        self.started = True
        found = f", checked against the plain loop in float64: {check.difference:.0e}" if check.rule != "loop" else ""
        self.say(f"strategy: {check.strategy} ({check.reason}{found})")
        self._last_line = time.monotonic()

    def stepped(self, record: StepRecord, workers: int, losses: int) -> None:
        self._seen += 1
        self._average("seconds", record.seconds)
        self._average("loss", record.loss)
        if record.accuracy is not None:
            self._average("accuracy", record.accuracy)
        self._show(lambda: self._line(record.version, workers, losses), record.version >= self._steps)

    def testing(self, share: float) -> None:
        now = time.monotonic()
        if share <= self._tested:
            self._testing_since = self._last_line = now  # another test
        self._tested = share
        left = int((now - self._testing_since) * (1 / share - 1))
        self._show(lambda: [("testing", f"{100 * share:.0f}%"), ("left", f"{left // 60}:{left % 60:02d}")])

    def _show(self, line: Callable[[], list[tuple[str, str]]], last: bool = False) -> None:
        """A line in the place of the one before on a terminal, and otherwise one every few seconds."""
        now = time.monotonic()
        if self._console.is_terminal:
            if self._live is None:
                self._live = Live(console=self._console, refresh_per_second=4, transient=True)
                self._live.start()
            self._live.update(_table(line()))
        elif now - self._last_line >= EVERY or last:
            self._last_line = now
            self._console.print("  ".join(f"{name} {value}" for name, value in line()), soft_wrap=True)

    def _average(self, name: str, value: float) -> None:
        # A plain mean at first, so that a slow first step is soon forgotten.
        share = max(1 / self._seen, 1 - SMOOTH)
        self._averages[name] = (1 - share) * self._averages.get(name, value) + share * value

    def _line(self, version: int, workers: int, losses: int) -> list[tuple[str, str]]:
        seconds = self._averages["seconds"]
        left = int((self._steps - version) * seconds)
        line = [("step", f"{version}/{self._steps}"), ("loss", f"{self._averages['loss']:.4f}")]
        if "accuracy" in self._averages:
            line.append(("query", f"{100 * self._averages['accuracy']:.1f}%"))
        if self._valid:
            line.append(("valid", self._valid))
        rate = self._tasks / seconds if seconds else 0.0
        line += [("tasks/s", f"{rate:.0f}"), ("left", f"{left // 60}:{left % 60:02d}"), ("workers", str(workers))]
        if losses:
            line.append(("restarts", str(losses)))
        return line

    def validated(self, version: int, evaluation: Evaluation, best: bool) -> None:
        figure = f"{100 * evaluation.accuracy:.2f}%" if evaluation.accuracy is not None else f"{evaluation.loss:.4f}"
        self._valid = figure
        mark = ", the best so far" if best else ""
        self.say(f"step {version}: validation {figure} on {evaluation.name} (norm {evaluation.norm}){mark}")

    def saved(self, version: int, name: str) -> None:
        pass


def _table(line: list[tuple[str, str]]) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0))
    for name, _ in line:
        table.add_column(name, style="bold", header_style="dim")
    table.add_row(*(value for _, value in line))
    return table
