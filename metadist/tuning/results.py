"""What comes out of a sweep: the table, the best job as a ready file, the pictures."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

from metadist.config import Job, job_dict
from metadist.tracking.sweep_plots import SweepAxis, SweepPoint, sweep_curves, sweep_map
from metadist.training.run_folder import RunFolder, checkpoint_name
from metadist.tuning.record import BROKEN, SweepRecord, TrialRecord, read_history
from metadist.tuning.space import Dimension, trial_job

#: the axes of the map where both are swept
INNER, OUTER = "learner.inner_lr", "optimizer.lr"


def table_rows(record: SweepRecord) -> list[dict[str, Any]]:
    """One row a trial, best first: number, swept values, best validation and where, steps, state."""
    return [
        {
            "trial": trial.trial,
            **trial.values,
            f"best {record.metric}": trial.best,
            "at step": trial.best_step,
            "steps": trial.step,
            "state": trial.state + (" (given)" if trial.initial else ""),
        }
        for trial in record.ranked()
    ]


def write_table(record: SweepRecord, folder: RunFolder) -> None:
    """`table.csv`, with every figure in full."""
    rows = table_rows(record)
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]) if rows else ["trial"])
    writer.writeheader()
    writer.writerows(rows)
    folder.write("table.csv", text.getvalue().encode())


def write_best(job: Job, trial: TrialRecord, folder: RunFolder) -> None:
    """`best.yaml`: the job with the best trial's values, as `metadist train` takes it."""
    best = replace(trial_job(job, trial.values), name=f"{job.name}-best", storage=job.storage, resources=job.resources)
    told = f"# {trial.folder} of {folder.location.rpartition('/')[2]}: {trial.best:.5g} at step {trial.best_step}\n"
    content = yaml.safe_dump(job_dict(best), sort_keys=False, allow_unicode=True)
    folder.write("best.yaml", (told + content).encode())


def best_checkpoint(trial: TrialRecord, folder: RunFolder) -> tuple[str, bytes] | None:
    """Name and content of the best trial's checkpoint: of its best validation, or the newest one kept."""
    run = RunFolder(f"{folder.location}/{trial.folder}")
    names = run.checkpoints()
    if not names:
        return None
    wanted = checkpoint_name(trial.best_step) if trial.best_step is not None else names[-1]
    name = wanted if wanted in names else names[-1]
    return Path(name).name, run.read(name)


def draw_sweep(record: SweepRecord, space: Sequence[Dimension], folder: RunFolder, scratch: Path) -> list[Path]:
    """Draw the sweep's pictures into `scratch`; returns their paths."""
    scale = 1.0 if record.metric == "valid/loss" else 100.0
    what = record.metric.replace("valid/", "validation ") + (" (%)" if scale != 1.0 else "")
    drawn = []
    axes = map_axes(space)
    if axes is not None and record.trials:
        x, y = axes
        points = [_point(record, trial, x.path, y.path) for trial in record.trials]
        shown = (SweepAxis(_label(x.path), x.log), SweepAxis(_label(y.path), y.log))
        drawn.append(scratch / "heatmap.png")
        sweep_map(points, shown, what, drawn[-1], record.mode, scale)
    curves = {}
    for trial in record.trials:
        history = read_history(RunFolder(f"{folder.location}/{trial.folder}"))
        points_of = [(step, values[record.metric]) for step, values in history if record.metric in values]
        if points_of:
            curves[trial.folder] = points_of
    if curves:
        best = None if record.best is None else record.trials[record.best].folder
        drawn.append(scratch / "curves.png")
        sweep_curves(curves, best, what, drawn[-1], scale)
    return drawn


def map_axes(space: Sequence[Dimension]) -> tuple[Dimension, Dimension] | None:
    """Which two dimensions the map shows: inner and outer rate, else the first two of numbers; None without two."""
    numeric = [d for d in space if all(isinstance(v, int | float) and not isinstance(v, bool) for v in d.values)]
    rates = [d for path in (INNER, OUTER) for d in numeric if d.path == path]
    others = [d for d in numeric if d not in rates]
    chosen = (rates + others)[:2]
    return (chosen[0], chosen[1]) if len(chosen) == 2 else None


def _label(path: str) -> str:
    return {INNER: f"inner rate ({INNER})", OUTER: f"outer rate ({OUTER})"}.get(path, path)


def _point(record: SweepRecord, trial: TrialRecord, x: str, y: str) -> SweepPoint:
    best = trial.trial == record.best
    return SweepPoint(trial.values[x], trial.values[y], trial.best, trial.state in BROKEN, best, trial.initial)
