"""No learner keeps anything of the steps that it has taken."""

from __future__ import annotations

import gc
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from metadist.learners import Maml
from metadist.outer import Experiment, Strategy, choose_strategy
from metadist.training.dispatch import Dispatcher
from metadist.training.inprocess import InProcessPool, InProcessServer
from metadist.training.stepper import Stepper
from tests.training.test_every_learner import TRAINED, experiment

CPU = torch.device("cpu")
STATUS = Path("/proc/self/status")
#: steps after which everything is there that stays; then one window of steps, or more where the first one grew: what is
#: kept is kept in each
WARM, WINDOW, WINDOWS = 60, 200, 3
STEPS = WARM + WINDOWS * WINDOW
#: what a window may leave behind, in bytes; the graphs of their losses are several times that
ROOM = 2_000_000

pytestmark = pytest.mark.skipif(not STATUS.exists(), reason="this system does not count resident memory as Linux does")


def resident() -> int:
    gc.collect()
    found = re.search(r"VmRSS:\s+(\d+) kB", STATUS.read_text())
    assert found is not None
    return 1024 * int(found[1])


def tensors() -> int:
    return sum(isinstance(each, Tensor) for each in gc.get_objects())


def growth(made: Experiment, strategy: Strategy) -> tuple[int, int]:
    """Bytes and tensors that there are more of after 200 steps."""
    server = InProcessServer(made)
    dispatcher = Dispatcher(InProcessPool(made, CPU), 60.0, print)
    dispatcher.poll()
    stepper = Stepper(dispatcher, server, made.rule, strategy, True, 0, server.start(None, None), print)
    take(stepper.advance(WARM))
    for until in range(WARM + WINDOW, STEPS + 1, WINDOW):
        bytes_before, tensors_before = resident(), tensors()
        take(stepper.advance(until))
        assert stepper.version == until
        more = resident() - bytes_before, tensors() - tensors_before
        if more[0] < ROOM:
            break
    return more


def take(steps: Iterator[Any]) -> None:
    for _ in steps:
        pass


def small(kind: str) -> Experiment:
    tasks = {"kind": "linear", "shots": 2, "query": 3, "batch": 4, "chunk": 4}
    return experiment(kind, steps=STEPS, tasks=tasks)


@pytest.mark.parametrize("kind", TRAINED)
def test_memory_is_flat_over_200_steps(kind: str) -> None:
    made = small(kind)
    more, held = growth(made, choose_strategy(made.learner, CPU)[0])
    assert more < ROOM
    assert held == 0


def test_graphs_that_are_kept_are_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    kept: list[Tensor] = []
    plain = Maml.task_loss

    def keeping(self: Maml, meta: Any, task: Any) -> Any:
        outcome = plain(self, meta, task)
        kept.append(outcome.loss)
        return outcome

    monkeypatch.setattr(Maml, "task_loss", keeping)
    more, held = growth(small("maml"), "loop")
    assert more > ROOM
    assert held >= 200
