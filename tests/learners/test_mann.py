"""MANN: its two protocols are one, no label is known before it is told, and what it refuses."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from metadist.config import parse_job
from metadist.errors import UserError
from metadist.learners import Mann, MannConfig, Meta, Network, plain_meta
from metadist.models import Mlp, MlpConfig
from metadist.tasks import Examples

torch.set_num_threads(1)
F64 = torch.float64
Y = torch.tensor([2, 0, 0, 1, 2, 1, 0, 2])


@pytest.fixture
def made() -> tuple[Mann, Meta, torch.Tensor]:
    network = Network(Mlp(MlpConfig(hidden=[5], activation="tanh"), (4,), 3), "xavier", "cross_entropy")
    learner, generator = Mann(MannConfig(width=6, slots=6, slot=4, heads=2), network), torch.Generator().manual_seed(0)
    parameters = learner.init(generator).parameters
    moved = {n: v.double() + 0.3 * torch.randn(v.shape, generator=generator) for n, v in parameters.items()}
    return learner, plain_meta(moved), torch.randn(8, 4, generator=generator, dtype=F64)


def in_sequence(learner: Mann, meta: Meta, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return learner.answer(learner.adapt(meta, Examples(x[:0], y[:0], 3)), Examples(x, y, 3))


def test_a_query_is_the_step_after_the_support_set(made: Any) -> None:
    learner, meta, x = made
    adapted = learner.adapt(meta, Examples(x[:5], Y[:5], 3))
    found = learner.predict(adapted, x[5:])
    for row in range(3):
        whole = in_sequence(learner, meta, torch.cat([x[:5], x[5 + row : 6 + row]]), Y[:6])
        assert torch.allclose(found[row], whole[-1], rtol=1e-12)
    assert torch.equal(learner.answer(adapted, Examples(x[5:], Y[5:], 3)), found)


def test_a_label_changes_what_is_said_after_it_only(made: Any) -> None:
    learner, meta, x = made
    other = Y.clone()
    other[3] = 2
    before, after = (in_sequence(learner, meta, x, y) for y in (Y, other))
    same = [torch.allclose(a, b, rtol=1e-12) for a, b in zip(before, after, strict=True)]
    assert same == [True] * 4 + [False] * 4


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"width": 0}, "width: got 0"),
        ({"slots": 0}, "slots: got 0"),
        ({"slots": 3}, "heads: got 4, expected at most slots = 3"),
        ({"decay": 1.5}, "decay: got 1.5"),
    ],
)
def test_impossible_settings_are_refused(settings: dict, message: str) -> None:
    with pytest.raises(UserError, match=f"^{message}"):
        MannConfig(**settings)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"learner": {"kind": "maml"}}, "tasks.shots: got 0, expected at least 1 for learner maml"),
        ({"model": {"kind": "mlp", "gates": 4}}, "model.gates: got 4, expected null where tasks.shots is 0"),
        ({"model": {"kind": "mlp", "norm": "support"}}, "model.norm: got 'support', expected batch, layer or none"),
        ({"tasks": {"kind": "linear", "shots": 0}}, "tasks.shots: got 0, expected a whole number of at least 1"),
    ],
)
def test_only_images_come_as_sequences_and_only_for_learners_that_read_them(changes: dict, message: str) -> None:
    content = {"tasks": {"kind": "images", "shots": 0}, "model": {"kind": "mlp"}, "learner": {"kind": "mann"}}
    parse_job(content)
    with pytest.raises(UserError, match=f"^{message}"):
        parse_job(content | changes)
