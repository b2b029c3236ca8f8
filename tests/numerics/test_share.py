"""Parameters that stay with the task: they adapt, and to the meta-gradient they are constants."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from metadist.learners import Meta
from metadist.outer import compute_meta_gradient
from metadist.outer.strategy import relative_difference
from metadist.tasks import take

LEARNERS = ["maml-3", "fomaml-3", "maml-3-remat", "boil-2", "metasgd-2", "metalstm-3", "mamlpp-3", "cavia-2", "imaml-2"]
LEARNERS += ["reptile-adam-batches", "maml-2-film", "anil-2-gates", "protonet", "relation"]


def parted(meta: Meta, prefix: str) -> Meta:
    """With the parameters of a prefix as the task's own."""
    local = {name: value for name, value in meta.parameters.items() if name.startswith(prefix)}
    shared = {name: value for name, value in meta.parameters.items() if name not in local}
    return meta._replace(parameters=shared, local=local)


@pytest.mark.parametrize("name", LEARNERS)
def test_is_the_gradient_of_the_shared_ones_alone(setting: Callable, name: str) -> None:
    learner, meta, batch = setting(name, "mlp", "support")
    whole = compute_meta_gradient(learner, meta, batch, "loop")
    part = parted(meta, "head." if "head.weight" in meta.parameters else "layers.0.")
    own = {name: value.clone() for name, value in part.local.items()}
    expected = {name: value for name, value in whole.gradient.items() if name not in part.local}
    for strategy in ("loop", "vectorized", "captured"):
        found = compute_meta_gradient(learner, part, batch, strategy)
        assert list(found.gradient) == list(part.parameters)
        for name, value in expected.items():
            assert torch.allclose(found.gradient[name], value, rtol=1e-9, atol=1e-13), (strategy, name)
        assert float(found.loss) == pytest.approx(float(whole.loss), rel=1e-12)
    assert all(torch.equal(value, own[name]) for name, value in part.local.items())


@pytest.mark.parametrize("norm", ["batch", "support"])
def test_strategies_agree_on_images(setting: Callable, norm: str) -> None:
    learner, meta, batch = setting("maml-3", "conv", norm, pool=True)
    part = parted(meta, "convs.1.")
    loop, *others = (compute_meta_gradient(learner, part, batch, way) for way in ("loop", "vectorized", "captured"))
    assert all(relative_difference(loop, other) < 1e-11 for other in others)


@pytest.mark.parametrize("name", ["maml-3", "metasgd-2"])
def test_is_the_slope_with_the_others_constant(setting: Callable, name: str) -> None:
    """Central differences of the query loss: the shared parameters move, every task begins the others as they are."""
    learner, meta, batch = setting(name, "mlp", "none")
    part, task, generator = parted(meta, "head."), take(batch, 0), torch.Generator().manual_seed(2)
    adapted = learner.adapt(part.whole, task.support).parameters
    assert not any(torch.equal(adapted[name], value) for name, value in part.local.items())
    one = batch._replace(**{n: p._replace(x=p.x[:1], y=p.y[:1]) for n, p in batch._asdict().items()})
    gradient = compute_meta_gradient(learner, part, one, "vectorized").gradient
    way = {n: torch.randn(v.shape, generator=generator, dtype=v.dtype) for n, v in part.parameters.items()}
    ends = []
    for step in (1e-5, -1e-5):
        moved = part._replace(parameters={n: value + step * way[n] for n, value in part.parameters.items()})
        ends.append(float(learner.task_loss(moved.whole, task).loss))
    slope = sum(float((gradient[n] * way[n]).sum()) for n in way)
    assert (ends[0] - ends[1]) / 2e-5 == pytest.approx(slope, rel=1e-6)
