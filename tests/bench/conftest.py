"""Cases that take milliseconds."""

from __future__ import annotations

import pytest
import torch

from metadist.bench.cases import JOB_CHUNK, Case, Setting, build_setting, in_float64
from metadist.learners import MamlConfig
from metadist.models import Conv4Config, MlpConfig
from metadist.tasks import Episode

_CHUNKS = (JOB_CHUNK, 2)


def _conv(pool: bool) -> Conv4Config:
    return Conv4Config(width=3, layers=2, pool=pool, activation="tanh")


_MLP = MlpConfig(hidden=[5], activation="tanh")

TINY = {
    case.name: case
    for case in (
        Case("strides", "", _conv(False), Episode(3, 1, 2), MamlConfig(inner_steps=2), 4, _CHUNKS),
        Case("pooled", "", _conv(True), Episode(2, 2, 1), MamlConfig(inner_steps=1), 3, _CHUNKS),
        Case("first", "", _conv(False), Episode(3, 1, 2), MamlConfig(inner_steps=2, first_order=True), 4, _CHUNKS),
        Case("curve", "", _MLP, Episode(1, 4, 4), MamlConfig(inner_steps=3, inner_lr=0.02), 4, _CHUNKS),
    )
}


@pytest.fixture
def tiny() -> Case:
    """A small net with batch normalisation, two second-order steps."""
    return TINY["strides"]


@pytest.fixture(params=list(TINY))
def exact(request: pytest.FixtureRequest) -> Setting:
    """The setting of each tiny case in float64."""
    case = TINY[request.param]
    return in_float64(build_setting(case, torch.device("cpu")), case.tasks)
