"""Every learner on Ray, with one worker and with two: the bits of the in-process runtime."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest

from metadist.distributed.blueprint import Blueprint
from metadist.distributed.pool import RayPool
from metadist.distributed.server import RayServer
from metadist.distributed.server_actor import ServerActor
from metadist.distributed.worker_actor import WorkerActor
from tests.training.conftest import make_run  # noqa: F401  a fixture
from tests.training.test_every_learner import TRAINED, experiment

#: seconds that an actor may take to start in, also on a busy machine
DEADLINE = 180.0


class AnyServer(ServerActor):
    """Becomes the server of one run after another, for a process takes seconds to start."""

    def __init__(self) -> None:
        pass

    def become(self, blueprint: Blueprint) -> None:
        super().__init__(blueprint)


class AnyWorker(WorkerActor):
    """Becomes a worker of one run after another."""

    def __init__(self) -> None:
        pass

    def become(self, blueprint: Blueprint, number: int) -> None:
        super().__init__(blueprint, number)


class Server(RayServer):
    actor: Any
    get: Callable[..., Any]

    def _make(self) -> Any:
        self.get(self.actor.become.remote(self._blueprint), timeout=DEADLINE)
        return self.actor

    def close(self) -> None:
        pass


class Pool(RayPool):
    actors: list[Any]
    get: Callable[..., Any]

    def _make(self, number: int) -> Any:
        self.get(self.actors[number].become.remote(self._blueprint, number), timeout=DEADLINE)
        return self.actors[number]

    def close(self) -> None:
        pass


@pytest.fixture(scope="module")
def actors(ray: Any) -> Iterator[None]:
    """A server and two workers for all runs."""
    options = {"num_cpus": 0, "allow_out_of_order_execution": True}  # as those of the product
    Server.get = Pool.get = staticmethod(ray.get)
    Server.actor = ray.remote(AnyServer).options(**options).remote()
    Pool.actors = [ray.remote(AnyWorker).options(**options).remote() for _ in range(2)]
    yield
    for actor in (Server.actor, *Pool.actors):
        ray.kill(actor)


@pytest.mark.usefixtures("actors")
@pytest.mark.parametrize("kind", TRAINED)
def test_the_bits_of_one_process(make_run: Callable[..., Any], kind: str) -> None:  # noqa: F811
    settings = {"deadline": DEADLINE, "checkpoint_every": 6, "validate_every": 6}
    expected = make_run(experiment(kind), **settings).go()
    blueprint = Blueprint(partial(experiment, kind), 1)
    for workers in (1, 2):
        run = make_run(experiment(kind), **settings)
        result = run.go(Pool(blueprint, workers, cpus=0), Server(blueprint, DEADLINE))
        assert (result.step, result.worker_losses, result.server_losses) == (6, 0, 0)
        assert result.params_sha256 == expected.params_sha256
