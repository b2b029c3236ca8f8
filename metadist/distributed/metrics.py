"""What Prometheus sees of a run: Ray's metrics, set in the driver from what it knows anyway.

Ray's agent on the driver's node exports them, under these names with `ray_` before them. Each carries the run's id.
"""

from __future__ import annotations

import functools
import time
from dataclasses import dataclass, field

from ray.util.metrics import Counter, Gauge, Histogram

from metadist.distributed.server import RayServer
from metadist.outer import StrategyCheck, Update
from metadist.training.evaluation import Evaluation
from metadist.training.loop import Observer
from metadist.training.seams import Ref
from metadist.training.stepper import StepRecord

#: seconds that divide a histogram
SECONDS = [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0]


@dataclass
class MeteredDisplay(Observer):
    """An observer that counts what it is told and passes it on.

    Args:
        display: who is told everything too.
        run: id of the run.
        tasks: tasks per outer step.
    """

    display: Observer
    run: str
    tasks: int
    _losses: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        tag = {"run": self.run}
        self._steps = Counter("metadist_steps_total", "outer steps", ("run",)).set_default_tags(tag)
        self._done = Counter("metadist_tasks_total", "training tasks", ("run",)).set_default_tags(tag)
        self._seconds = Histogram("metadist_step_seconds", "seconds per outer step", SECONDS, ("run",))
        self._seconds.set_default_tags(tag)
        self._workers = Gauge("metadist_workers", "workers that take work", ("run",)).set_default_tags(tag)
        self._lost = Counter("metadist_worker_restarts_total", "workers that were lost", ("run",))
        self._lost.set_default_tags(tag)

    def say(self, text: str) -> None:
        self.display.say(text)

    def ready(self, check: StrategyCheck, version: int, fingerprint: dict[str, str]) -> None:
        self.display.ready(check, version, fingerprint)

    def stepped(self, record: StepRecord, workers: int, losses: int) -> None:
        self._steps.inc(1)
        self._done.inc(self.tasks)
        self._seconds.observe(record.seconds)
        self._workers.set(workers)
        if losses > self._losses:
            self._lost.inc(losses - self._losses)
            self._losses = losses
        self.display.stepped(record, workers, losses)

    def validated(self, version: int, evaluation: Evaluation, best: bool) -> None:
        self.display.validated(version, evaluation, best)

    def saved(self, version: int, name: str) -> None:
        self.display.saved(version, name)

    def testing(self, share: float) -> None:
        self.display.testing(share)


class MeteredServer(RayServer):
    """A server whose pushes and losses are counted.

    A push is timed as the driver waits for it: from when it has the reports of all of a step's chunks until it
    knows that the server has taken the step. That is the way of the payloads to the server and the outer step,
    less what of it went on while the last chunks were computed.
    """

    @functools.cached_property
    def _push(self) -> Histogram:
        made = Histogram("metadist_push_seconds", "seconds from a step's last report to its outcome", SECONDS, ("run",))
        return made.set_default_tags({"run": self._blueprint.run})

    @functools.cached_property
    def _restarts(self) -> Counter:
        made = Counter("metadist_server_restarts_total", "parameter servers that were lost", ("run",))
        return made.set_default_tags({"run": self._blueprint.run})

    def outcome(self, version: int, phase: int = 0) -> Update:
        began = time.perf_counter()
        update = super().outcome(version, phase)
        self._push.observe(time.perf_counter() - began)
        return update

    def recover(self) -> Ref:
        self._restarts.inc(1)
        return super().recover()
