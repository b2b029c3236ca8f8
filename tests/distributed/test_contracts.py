"""The Ray pair passes the contract tests that the in-process pair passes."""

from __future__ import annotations

from typing import Any

import pytest

from metadist.distributed.blueprint import Blueprint
from metadist.testing.contracts import ParameterServerContract, Runtime, WorkerPoolContract
from metadist.testing.toys import averaging_experiment

#: seconds that a worker may take to start in, also on a busy machine
DEADLINE = 180.0


class OnRay:
    @pytest.fixture
    def runtime(self, ray: Any) -> Runtime:
        from metadist.distributed.pool import RayPool
        from metadist.distributed.server import RayServer

        blueprint = Blueprint(averaging_experiment, 1)
        return Runtime(
            averaging_experiment(),
            server=lambda: RayServer(blueprint, deadline=DEADLINE),
            pool=lambda workers: RayPool(blueprint, workers, cpus=1),
            put=ray.put,
            get=lambda ref: ray.get(ref, timeout=DEADLINE),
            never=lambda: ray.remote(averaging_experiment).options(resources={"what no node has": 1}).remote(),
            timeout=DEADLINE,
        )


class TestRayServer(OnRay, ParameterServerContract):
    pass


class TestRayPool(OnRay, WorkerPoolContract):
    pass
