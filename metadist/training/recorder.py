"""Writes down what happens: in the run folder, in MLflow, and on the user's display."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from metadist.outer import StrategyCheck
from metadist.tracking import MetricsFile, Tracker
from metadist.training.evaluation import Evaluation
from metadist.training.loop import Observer
from metadist.training.run_folder import RunFolder
from metadist.training.stepper import StepRecord


class Recorder(Observer):
    """An observer that keeps the metrics and passes everything on to a display.

    Args:
        start: version that the run goes on from; metrics of later versions are dropped.
        about: the run's own description, written as `run.json`.
        tasks: tasks per outer step.
    """

    def __init__(
        self,
        folder: RunFolder,
        tracker: Tracker,
        display: Observer,
        start: int,
        about: dict[str, Any],
        tasks: int,
    ) -> None:
        self._folder, self._tracker, self._display = folder, tracker, display
        self._about, self._tasks = about, tasks
        self._remote = None if folder.local else tempfile.TemporaryDirectory(prefix="metadist-")
        self.metrics_path = Path(folder.local or self._remote.name, "metrics.jsonl")  # type: ignore[union-attr]
        if self._remote and folder.exists("metrics.jsonl"):
            self.metrics_path.write_bytes(folder.read("metrics.jsonl"))
        self._metrics = MetricsFile(str(self.metrics_path))
        self._metrics.truncate_after(start)

    def say(self, text: str) -> None:
        self._display.say(text)

    def ready(self, check: StrategyCheck, version: int, fingerprint: dict[str, str]) -> None:
        before = self._about.get("fingerprint")
        if before not in (None, fingerprint):
            self.say(
                "this hardware or software is not the one that the run began on; the bits will not be those "
                f"of an uninterrupted run: {fingerprint} against {before}"
            )
        self._about |= {"fingerprint": fingerprint, "strategy": vars(check)}
        self._write_about()
        self._display.ready(check, version, fingerprint)

    def stepped(self, record: StepRecord, workers: int, losses: int) -> None:
        values = {
            "train/loss": record.loss,
            "train/gradient_norm": record.gradient_norm,
            "train/lr": record.lr,
            "train/tasks_per_second": self._tasks / record.seconds if record.seconds else 0.0,
            "workers/alive": float(workers),
            "workers/lost": float(losses),
        }
        if record.accuracy is not None:
            values["train/accuracy"] = record.accuracy
        if record.age is not None:
            values |= {"train/age": float(record.age), "train/refused": float(record.refused or 0)}
        self.log(record.version, values)
        self._display.stepped(record, workers, losses)

    def validated(self, version: int, evaluation: Evaluation, best: bool) -> None:
        self.log(version, scores(evaluation, "valid"))
        self._display.validated(version, evaluation, best)

    def saved(self, version: int, name: str) -> None:
        if self._about.get("mlflow_run_id") != self._tracker.run_id:
            self._about["mlflow_run_id"] = self._tracker.run_id
            self._write_about()
        self.keep_metrics()
        self._display.saved(version, name)

    def testing(self, share: float) -> None:
        self._display.testing(share)

    def log(self, version: int, values: dict[str, float]) -> None:
        """Metrics of a version, into the folder and into MLflow."""
        self._metrics.append(version, values)
        self._tracker.metrics(version, values)

    def keep_metrics(self) -> None:
        """Copy the metrics to a run folder that is not on this machine."""
        if self._remote:
            self._folder.write("metrics.jsonl", self.metrics_path.read_bytes())

    def _write_about(self) -> None:
        self._folder.write_json("run.json", self._about)

    def close(self) -> None:
        """Write down what is left."""
        self.keep_metrics()
        self._metrics.close()
        if self._remote:
            self._remote.cleanup()


def scores(evaluation: Evaluation, prefix: str) -> dict[str, float]:
    """An evaluation's main figures as metrics."""
    values = {
        "accuracy": evaluation.accuracy,
        "ci95": evaluation.ci95,
        "loss": evaluation.loss,
        "from_scratch": evaluation.from_scratch,
        "precision": evaluation.precision,
        "recall": evaluation.recall,
        "f1": evaluation.f1,
    }
    return {f"{prefix}/{name}": value for name, value in values.items() if value is not None}
