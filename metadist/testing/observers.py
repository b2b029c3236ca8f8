"""An observer that remembers what it was told."""

from __future__ import annotations

from dataclasses import dataclass, field

from metadist.outer import StrategyCheck
from metadist.training.evaluation import Evaluation
from metadist.training.loop import Observer
from metadist.training.stepper import StepRecord


@dataclass
class Notes(Observer):
    """Everything that a run told, in order."""

    said: list[str] = field(default_factory=list)
    records: list[StepRecord] = field(default_factory=list)
    validations: list[tuple[int, Evaluation, bool]] = field(default_factory=list)
    checkpoints: list[int] = field(default_factory=list)
    check: StrategyCheck | None = None
    tested: list[float] = field(default_factory=list)

    def say(self, text: str) -> None:
        self.said.append(text)

    def ready(self, check: StrategyCheck, version: int, fingerprint: dict[str, str]) -> None:
        self.check = check

    def stepped(self, record: StepRecord, workers: int, losses: int) -> None:
        self.records.append(record)

    def validated(self, version: int, evaluation: Evaluation, best: bool) -> None:
        self.validations.append((version, evaluation, best))

    def saved(self, version: int, name: str) -> None:
        self.checkpoints.append(version)

    def testing(self, share: float) -> None:
        self.tested.append(share)
