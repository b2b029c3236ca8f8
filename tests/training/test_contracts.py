"""The in-process pair and the fakes keep the contracts of the seams."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from metadist.outer import Experiment
from metadist.testing.contracts import ParameterServerContract, Runtime, WorkerPoolContract
from metadist.testing.fakes import FakePool, FakeRef, FakeServer, there
from metadist.testing.toys import averaging_experiment, sinusoid_experiment
from metadist.training.inprocess import Box, InProcessPool, InProcessServer

CPU = torch.device("cpu")


@pytest.fixture(params=[averaging_experiment, sinusoid_experiment])
def experiment(request: pytest.FixtureRequest) -> Experiment:
    build: Callable[[], Experiment] = request.param
    return build()


class InProcess:
    @pytest.fixture
    def runtime(self, experiment: Experiment) -> Runtime:
        return Runtime(
            experiment,
            server=lambda: InProcessServer(experiment),
            pool=lambda workers: InProcessPool(experiment, CPU),
            put=Box,
            get=lambda ref: ref.value,
            never=Box,
        )


class Fake:
    @pytest.fixture
    def runtime(self, experiment: Experiment) -> Runtime:
        return Runtime(
            experiment,
            server=lambda: FakeServer(experiment),
            pool=lambda workers: FakePool(experiment, FakeServer(experiment), workers=workers),
            put=there,
            get=lambda ref: ref.value,
            never=FakeRef,
        )


class TestInProcessServer(InProcess, ParameterServerContract):
    pass


class TestInProcessPool(InProcess, WorkerPoolContract):
    pass


class TestFakeServer(Fake, ParameterServerContract):
    pass


class TestFakePool(Fake, WorkerPoolContract):
    workers = 2
