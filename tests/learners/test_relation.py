"""Relation Networks against the paper's equations, written once more: one pair at a time where nothing is shared."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from metadist.errors import UserError
from metadist.learners import Learner, Meta, Network, RelationConfig, RelationNet
from metadist.models import BaseModel, Conv4, Conv4Config, Mlp, MlpConfig
from metadist.models.own import OwnModel
from metadist.outer import compute_meta_gradient
from metadist.tasks import Examples, Task

torch.set_num_threads(1)
F64 = torch.float64
WAYS, SHOTS, QUERY = 3, 2, 2
Weights = dict[str, Tensor]


def conv4(norm: str, **settings: Any) -> BaseModel:
    config = Conv4Config(**{"width": 4, "layers": 2, "unpooled": 1, "norm": norm, "activation": "tanh"} | settings)
    return Conv4(config, (1, 8, 8), None)


def learner_of(module: BaseModel, **settings: Any) -> RelationNet:
    config = RelationConfig(**{"width": 3, "hidden": 4, "activation": "tanh"} | settings)
    return RelationNet(config, Network(module, "xavier", "cross_entropy"))


def moved(learner: Learner) -> Meta:
    """Initial weights with every value moved, so that no bias is 0 and no norm's weight is 1."""
    generator = torch.Generator().manual_seed(0)
    start = learner.init(generator).parameters
    return Meta({n: v.double() + 0.3 * torch.randn(v.shape, generator=generator) for n, v in start.items()}, {}, {})


def batch_of_two() -> Task:
    generator = torch.Generator().manual_seed(1)
    rows = torch.arange(WAYS)

    def part(repeats: int) -> Examples:
        y = rows.repeat(repeats).expand(2, -1)
        noise = torch.randn(2, WAYS * repeats, 1, 8, 8, generator=generator, dtype=F64)
        return Examples(noise + y[..., None, None, None], y.clone(), WAYS)

    support, query = part(SHOTS), part(QUERY)
    support.y[1] = torch.tensor([2, 0, 0, 1, 0, 2])  # classes of three, one and two examples
    return Task(support, query)


def normalised(x: Tensor, of: Tensor, norm: str, scale: Tensor, shift: Tensor) -> Tensor:
    axes = (1, 2, 3) if norm == "layer" else (0, 2, 3)
    variance, mean = torch.var_mean(x if norm == "layer" else of, axes, correction=0, keepdim=True)
    return (x - mean) / (variance + 1e-5).sqrt() * scale[:, None, None] + shift[:, None, None]


def module_by_hand(w: Weights, pairs: Tensor, among: Tensor, norm: str, poolings: int) -> Tensor:
    """Scores of pairs [n, 2 · channels, side, side]; `among`: the support set's pairs."""
    w = {name.removeprefix("relation."): value for name, value in w.items()}
    for block in range(2):
        kernel, bias = w[f"blocks.convs.{block}.weight"], w.get(f"blocks.convs.{block}.bias")
        pairs, among = (nn.functional.conv2d(part, kernel, bias, padding=1) for part in (pairs, among))
        if norm != "none":
            scale, shift = w[f"blocks.norms.{block}.weight"], w[f"blocks.norms.{block}.bias"]
            of = among if norm == "support" else pairs
            pairs, among = (normalised(*both, norm, scale, shift) for both in ((pairs, of), (among, among)))
        pairs, among = pairs.tanh(), among.tanh()
        if block < poolings:
            pairs, among = (nn.functional.max_pool2d(part, 2) for part in (pairs, among))
    hidden = (pairs.flatten(1) @ w["blocks.head.weight"].T + w["blocks.head.bias"]).tanh()
    return (hidden @ w["head.weight"].T + w["head.bias"])[:, 0]


def loss_by_hand(learner: RelationNet, theta: Weights, task: Task, norm: str, poolings: int) -> Tensor:
    (x, y, _), (query_x, query_y, _) = task
    embedding = {name: value for name, value in theta.items() if not name.startswith("relation.")}
    module = conv4(norm)
    if norm == "support":
        both = torch.func.functional_call(module, embedding, (torch.cat([x, query_x]), len(x)))
        points, queries = both[: len(x)], both[len(x) :]
    else:
        points, queries = (torch.func.functional_call(module, embedding, (part,)) for part in (x, query_x))
    points, queries = (part.reshape(len(part), 4, 4, 4) for part in (points, queries))
    classes = [sum(p for p, label in zip(points, y, strict=True) if label == k) for k in range(WAYS)]

    def pairs(others: Tensor) -> Tensor:
        return torch.stack([torch.cat([c, other]) for other in others for c in classes])

    scores = module_by_hand(
        {n: v for n, v in theta.items() if n.startswith("relation.")}, pairs(queries), pairs(points), norm, poolings
    )
    each = [scores[WAYS * row : WAYS * row + WAYS] for row in range(len(queries))]
    if learner.config.loss == "mse":
        terms = [(1 / (1 + (-r).exp()) - float(k == label)) ** 2 for s, label in zip(each, query_y, strict=True)
                 for k, r in enumerate(s)]  # fmt: skip
        return sum(terms) / len(terms)
    return sum(s.exp().sum().log() - s[label] for s, label in zip(each, query_y, strict=True)) / len(each)


@pytest.mark.parametrize("strategy", ["loop", "vectorized"])
@pytest.mark.parametrize("loss", ["mse", "cross_entropy"])
@pytest.mark.parametrize("norm", ["batch", "support", "layer", "none"])
def test_is_the_papers(norm: str, loss: str, strategy: str) -> None:
    """Loss and gradient, all in float64; two halvings of maps of 4×4."""
    learner = learner_of(conv4(norm), loss=loss)
    meta, batch = moved(learner), batch_of_two()
    found = compute_meta_gradient(learner, meta, batch, strategy)
    theta = {name: value.clone().requires_grad_() for name, value in meta.parameters.items()}

    def outer(theta: Weights) -> Tensor:
        tasks = [Task(*(Examples(part.x[i], part.y[i], WAYS) for part in batch)) for i in range(2)]
        return sum(loss_by_hand(learner, theta, task, norm, 2) for task in tasks)

    expected = outer(theta)
    gradient = dict(zip(theta, torch.autograd.grad(expected, list(theta.values())), strict=True))
    assert float(found.loss) == pytest.approx(float(expected.detach()), rel=1e-12)
    distance = sum(float((found.gradient[n] - gradient[n]).square().sum()) for n in theta) ** 0.5
    length = sum(float(value.square().sum()) for value in gradient.values()) ** 0.5
    assert distance < 1e-9 * length
    with torch.no_grad():  # central differences along a random direction
        generator = torch.Generator().manual_seed(2)
        way = {n: torch.randn(v.shape, generator=generator, dtype=F64) for n, v in theta.items()}
        slope = sum(float((found.gradient[n] * way[n]).sum()) for n in theta)
        ahead, behind = (float(outer({n: v + step * way[n] for n, v in theta.items()})) for step in (1e-6, -1e-6))
    assert (ahead - behind) / 2e-6 == pytest.approx(slope, abs=1e-6 * length)


def test_single_judges_each_query_by_itself() -> None:
    """Embedding and pairs are normalised with the support set's alone; the strategies agree."""
    learner = learner_of(conv4("single"))
    meta, batch = moved(learner), batch_of_two()
    support, query = (Examples(part.x[0], part.y[0], WAYS) for part in batch)
    adapted = learner.adapt(meta, support)
    together = learner.predict(adapted, query.x)
    apart = torch.cat([learner.predict(adapted, row[None]) for row in query.x])
    torch.testing.assert_close(together, apart, rtol=1e-12, atol=1e-12)
    others = learner_of(conv4("batch"))
    assert not torch.allclose(others.predict(others.adapt(meta, support), query.x), together, rtol=1e-3)
    loop, vectorized = (compute_meta_gradient(learner, meta, batch, strategy) for strategy in ("loop", "vectorized"))
    for name, value in loop.gradient.items():
        torch.testing.assert_close(vectorized.gradient[name], value, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(
    ("module", "shapes"),
    [
        (lambda: conv4("none"), {"convs.0": (3, 8, 3, 3), "convs.1": (3, 3, 3, 3), "head": (4, 3)}),
        (lambda: conv4("none", unpooled=0), {"convs.0": (3, 8, 3, 3), "head": (4, 3)}),  # maps of 2×2: one halving
        (lambda: conv4("none", layers=3, unpooled=0), {"layers.0": (3, 8), "layers.1": (3, 3), "head": (4, 3)}),
        (lambda: conv4("none", pool=False, unpooled=0), {"layers.0": (3, 8), "head": (4, 3)}),
        (lambda: Mlp(MlpConfig(hidden=[5]), (1, 8, 8), None), {"layers.0": (3, 10), "layers.1": (3, 3)}),
    ],
    ids=["maps", "small-maps", "one-position", "mean", "mlp"],
)
def test_the_module_is_of_the_base_models_features(module: Callable[[], BaseModel], shapes: dict) -> None:
    learner = learner_of(module())
    meta = moved(learner)
    own = {n.removeprefix("relation."): tuple(v.shape) for n, v in meta.parameters.items() if n.startswith("relation.")}
    assert own.items() >= {f"blocks.{name}.weight": shape for name, shape in shapes.items()}.items()
    assert own["head.weight"] == (1, 4)
    task = Task(*(Examples(part.x[0], part.y[0], WAYS) for part in batch_of_two()))
    loss, outputs, _ = learner.task_loss(meta, task)
    assert outputs.shape == (WAYS * QUERY, WAYS)
    assert float(loss) == pytest.approx(
        float((1 / (1 + (-outputs).exp()) - nn.functional.one_hot(task.query.y, WAYS)).square().mean())
    )


def test_a_frozen_module_is_the_one_that_is_used() -> None:
    learner = learner_of(conv4("batch"))
    meta = moved(learner)
    frozen = {name: value for name, value in meta.parameters.items() if name.startswith("relation.")}
    rest = {name: value for name, value in meta.parameters.items() if name not in frozen}
    task = Task(*(Examples(part.x[0], part.y[0], WAYS) for part in batch_of_two()))
    found = learner.with_frozen(frozen).task_loss(Meta(rest, {}, frozen), task)
    assert torch.equal(found.loss, learner.task_loss(meta, task).loss)


@pytest.mark.parametrize("init", [None, "xavier"])
def test_a_module_of_ones_own_may_end_with_maps(init: Any) -> None:
    model = OwnModel(lambda: nn.Conv2d(1, 5, 3, 2, 1), "own.Net", (1, 8, 8), None)
    learner = RelationNet(RelationConfig(width=3), Network(model, init, "cross_entropy"))
    parameters, again = (learner.init(torch.Generator().manual_seed(0)).parameters for _ in range(2))
    assert parameters["relation.blocks.convs.0.weight"].shape == (3, 10, 3, 3)
    assert all(torch.equal(value, again[name]) for name, value in parameters.items())
    task = Task(*(Examples(part.x[0].float(), part.y[0], WAYS) for part in batch_of_two()))
    assert learner.task_loss(Meta(parameters, {}, {}), task).outputs.shape == (WAYS * QUERY, WAYS)


@pytest.mark.parametrize("settings", [{"width": 0}, {"hidden": 0}])
def test_impossible_settings_are_refused(settings: dict) -> None:
    with pytest.raises(UserError, match="at least 1"):
        RelationConfig(**settings)
