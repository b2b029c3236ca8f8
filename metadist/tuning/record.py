"""The record of a sweep: `sweep.json` in its folder, from which a killed sweep goes on.

Written whole after everything that happens. Tune's own snapshots are not used for that: they are seconds old when
a driver is killed, do not hold what a scheduler has seen, and are pickles. What a trial has done is in its run
folder; what became of it, and with which values, is here.
"""

from __future__ import annotations

import dataclasses
import math
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from metadist.errors import UserError
from metadist.tracking import MetricsFile
from metadist.training.run_folder import RunFolder

#: `stopped`: ended early by the scheduler. `unfinished`: the sweep ended first; goes on with `--resume`
State = Literal["waiting", "running", "finished", "stopped", "diverged", "failed", "unfinished"]
#: states that are a trial's result
ENDED = ("finished", "stopped", "diverged")
BROKEN = ("diverged", "failed")
FILE = "sweep.json"


@dataclass
class TrialRecord:
    """One trial.

    Attributes:
        values: of the swept fields.
        initial: whether `tune.initial` asked for it; it is there to compare with, so it is never ended early.
        step: the last outer step that was judged or reached.
        best: the best value of the metric in any validation, at `best_step`.
        reason: why it diverged or failed.
        tracked: whether its run in MLflow has everything and a final status.
    """

    trial: int
    values: dict[str, Any]
    initial: bool = False
    state: State = "waiting"
    step: int = 0
    best: float | None = None
    best_step: int | None = None
    reason: str | None = None
    mlflow_run_id: str | None = None
    tracked: bool = False

    @property
    def folder(self) -> str:
        """Name of its run folder within the sweep's."""
        return f"trial-{self.trial:03d}"

    def observe(self, step: int, value: float, mode: str) -> bool:
        """A validation gave `value`; returns whether that is the trial's best. Told twice, it counts once."""
        self.step = max(self.step, step)
        if not math.isfinite(value):
            return False
        if self.best is None or (value > self.best if mode == "max" else value < self.best):
            self.best, self.best_step = value, step
            return True
        return False


@dataclass
class SweepRecord:
    """A whole sweep.

    Attributes:
        sweep: its id, the name of its folder.
        metric: what trials are judged by, a key of their metrics; `mode` is `max` or `min`.
        state: `running`, `finished`, `interrupted`, `out of time` or `failed`.
        best: number of the best trial.
    """

    sweep: str
    metric: str
    mode: str
    state: str = "running"
    mlflow_run_id: str | None = None
    best: int | None = None
    trials: list[TrialRecord] = field(default_factory=list)

    def ranked(self) -> list[TrialRecord]:
        """The trials, best first; then those that diverged or failed, then those without a validation."""
        sign = -1 if self.mode == "max" else 1

        def key(trial: TrialRecord) -> tuple[bool, bool, float, int]:
            return trial.best is None, trial.state in BROKEN, sign * (trial.best or 0.0), trial.trial

        return sorted(self.trials, key=key)

    def choose(self) -> TrialRecord | None:
        """The best trial so far, if any was validated; ties go to the earlier one.

        One that diverged later is none: its job file would diverge again.
        """
        whole = (trial for trial in self.ranked() if trial.best is not None and trial.state not in BROKEN)
        found = next(whole, None)
        self.best = None if found is None else found.trial
        return found

    def save(self, folder: RunFolder) -> None:
        """Write the record into the sweep's folder."""
        folder.write_json(FILE, dataclasses.asdict(self))


def read_record(folder: RunFolder) -> SweepRecord:
    """The record in a sweep's folder.

    Raises:
        UserError: there is none, or it is not one.
    """
    if not folder.exists(FILE) or not folder.exists("job.yaml"):
        raise UserError(
            "--resume",
            folder.location,
            "a sweep's folder (with sweep.json and job.yaml)",
            "Name a folder that `metadist tune` made; one that was killed before its first trial is started anew.",
        )
    content = folder.read_json(FILE)
    try:
        trials = [TrialRecord(**trial) for trial in content.pop("trials")]
        return SweepRecord(**content, trials=trials)
    except (TypeError, KeyError, AttributeError) as error:
        raise UserError(f"{folder.location}/{FILE}", str(error), "a sweep's record", "The file was changed.") from error


def read_history(folder: RunFolder) -> list[tuple[int, dict[str, float]]]:
    """The metrics of a trial's run folder, wherever it is; empty before its first step."""
    if folder.local is not None:
        return MetricsFile.read(f"{folder.local}/metrics.jsonl")
    if not folder.exists("metrics.jsonl"):
        return []
    with tempfile.TemporaryDirectory(prefix="metadist-") as scratch:
        copy = Path(scratch, "metrics.jsonl")
        copy.write_bytes(folder.read("metrics.jsonl"))
        return MetricsFile.read(str(copy))
