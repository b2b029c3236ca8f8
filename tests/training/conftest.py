"""Runs of tiny experiments, in this process or with faults."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.register_assert_rewrite("metadist.testing.contracts")

from metadist.outer import Experiment, OuterState, decode_checkpoint  # noqa: E402
from metadist.testing.observers import Notes  # noqa: E402
from metadist.testing.toys import sinusoid_experiment  # noqa: E402
from metadist.training.evaluation import EvaluationPlan  # noqa: E402
from metadist.training.inprocess import InProcessPool, InProcessServer  # noqa: E402
from metadist.training.loop import TrainPlan, TrainResult, train  # noqa: E402
from metadist.training.run_folder import RunFolder  # noqa: E402
from metadist.training.seams import ParameterServer, WorkerPool  # noqa: E402

torch.set_num_threads(1)
CPU = torch.device("cpu")


@dataclass
class Run:
    """A run folder with an experiment; `go` trains in it, from its newest checkpoint when told to resume."""

    experiment: Experiment
    plan: TrainPlan
    folder: RunFolder
    notes: Notes = field(default_factory=Notes)

    def go(
        self,
        pool: WorkerPool | None = None,
        server: ParameterServer | None = None,
        stop: Callable[[], bool] = lambda: False,
        resume: bool = False,
    ) -> TrainResult:
        pool = pool or InProcessPool(self.experiment, CPU)
        server = server or InProcessServer(self.experiment)
        name = self.folder.checkpoints()[-1] if resume else None
        progress = decode_checkpoint(self.folder.read(name), name).progress if name else None
        return train(self.experiment, self.plan, pool, server, self.folder, self.notes, stop, name, progress)

    def end(self) -> OuterState:
        """The state in the newest checkpoint."""
        name = self.folder.checkpoints()[-1]
        return decode_checkpoint(self.folder.read(name), name).state

    def versions(self) -> list[int]:
        """Versions of the checkpoints in the folder."""
        return [int(name[-20:-12]) for name in self.folder.checkpoints()]


def validation_plan(experiment: Experiment, tasks: int = 5) -> EvaluationPlan:
    return EvaluationPlan("valid", 1, tasks, experiment.episode, steps=2, chunk=2, norm="none")


@pytest.fixture
def make_run(tmp_path: Path) -> Callable[..., Run]:
    """A run of the sinusoid experiment: 6 steps of 3 chunks, validated every 2 and saved every 3 steps."""
    count = 0

    def make(experiment: Experiment | None = None, **changes: Any) -> Run:
        nonlocal count
        count += 1
        experiment = experiment or sinusoid_experiment()
        settings: dict[str, Any] = {
            "steps": experiment.rule.steps,
            "validate": validation_plan(experiment),
            "validate_every": 2,
            "tests": {},
            "checkpoint_every": 3,
            "keep": 2,
            "identity": "identity",
            "deadline": 5.0,
        }
        folder = RunFolder(str(tmp_path / f"run{count}")).acquire()
        return Run(experiment, TrainPlan(**settings | changes), folder)

    return make
