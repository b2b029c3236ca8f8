"""In-context learning: what a prediction depends on, and which models it takes."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from metadist.errors import UserError
from metadist.learners import InContext, InContextConfig, Meta, Network, plain_meta
from metadist.models import Mlp, MlpConfig
from metadist.models.own import OwnModel
from metadist.tasks import Examples

torch.set_num_threads(1)
F64 = torch.float64


def make(attention: str) -> tuple[InContext, Meta]:
    network = Network(Mlp(MlpConfig(hidden=[5], activation="tanh"), (4,), 3), "xavier", "cross_entropy")
    learner = InContext(InContextConfig(width=8, heads=2, attention=attention), network)
    parameters = learner.init(torch.Generator().manual_seed(0)).parameters
    return learner, plain_meta({name: value.double() for name, value in parameters.items()})


@pytest.mark.parametrize("attention", ["cosine", "dot"])
def test_the_support_sets_order_does_not_matter_and_its_labels_do(attention: str) -> None:
    learner, meta = make(attention)
    generator = torch.Generator().manual_seed(1)
    x, query = (torch.randn(rows, 4, generator=generator, dtype=F64) for rows in (6, 5))
    y, order = torch.tensor([0, 2, 2, 1, 0, 2]), torch.randperm(6, generator=generator)
    first, moved, renamed = (
        learner.predict(learner.adapt(meta, Examples(*rows, 3)), query)
        for rows in ((x, y), (x[order], y[order]), (x, (y + 1) % 3))
    )
    assert torch.allclose(first, moved, rtol=1e-12)
    assert not torch.allclose(first, renamed, rtol=1e-3)


def test_a_model_without_a_linear_head_is_refused() -> None:
    model = OwnModel(lambda: nn.Linear(4, 3), "own.Net", (4,), 3)
    with pytest.raises(UserError, match=r"^model\.kind: got 'OwnModel', .* whose head is a linear layer"):
        InContext(InContextConfig(), Network(model, "xavier", "cross_entropy"))


@pytest.mark.parametrize(
    ("settings", "message"), [({"layers": 0}, "layers: got 0"), ({"width": 6}, "heads: got 4, expected a divisor of")]
)
def test_impossible_settings_are_refused(settings: dict[str, int], message: str) -> None:
    with pytest.raises(UserError, match=f"^{message}"):
        InContextConfig(**settings)
