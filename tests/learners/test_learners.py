"""Adaptation and prediction against values taken by hand, and against torch.optim."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from metadist import learners
from metadist.errors import UserError
from metadist.learners import (
    AnilConfig,
    BoilConfig,
    ImamlConfig,
    Learner,
    Maml,
    MamlConfig,
    MatchingConfig,
    Meta,
    MetaLstmConfig,
    MetaSgd,
    MetaSgdConfig,
    Network,
    ProtoNetConfig,
    RelationConfig,
    Reptile,
    ReptileConfig,
    functional_gradients,
    inner_gradient,
    learner_class,
)
from metadist.models import Mlp, MlpConfig
from metadist.outer import compute_meta_gradient
from metadist.tasks import Examples, Task
from tests.learners.conftest import Slope

torch.set_num_threads(1)
F64 = torch.float64


def values(*numbers: float) -> Tensor:
    return torch.tensor(numbers, dtype=F64)[:, None]


def batch_of_one(task: Task) -> Task:
    return Task(*(part._replace(x=part.x[None], y=part.y[None]) for part in task))


def make(config: Any, norm: str = "none") -> Any:
    """A learner on a small multi-layer perceptron, with three outputs where it has a head."""
    kind = learner_class(config.kind)
    model = Mlp(MlpConfig(hidden=[5], activation="tanh", norm=norm), (4,), None if kind.embeds else 3)
    return kind(config, Network(model, "xavier", "cross_entropy"))


def fresh(learner: Learner, seed: int = 0) -> Meta:
    meta = learner.init(torch.Generator().manual_seed(seed))
    return Meta({name: value.double() for name, value in meta.parameters.items()}, {}, {})


@pytest.fixture
def support() -> Examples:
    generator = torch.Generator().manual_seed(3)
    return Examples(torch.randn(6, 4, generator=generator, dtype=F64), torch.tensor([0, 1, 2, 0, 1, 2]), 3)


@pytest.fixture(params=[False, True], ids=["autograd", "functional"])
def gradients(request: pytest.FixtureRequest) -> Iterator[None]:
    if request.param:
        with functional_gradients():
            yield
    else:
        yield


# L(w) = mean (w x − y)² = a w² − 2 b w + c with a = mean x², b = mean x y; L'(w) = 2 (a w − b).
SUPPORT = Examples(values(1.0, 2.0), values(2.0, 3.0), 0)  # a = 2.5, b = 4
QUERY = Examples(values(1.0, 3.0), values(1.0, 2.0), 0)  # a = 5, b = 3.5, c = 2.5


@pytest.mark.parametrize("strategy", ["loop", "vectorized"])
@pytest.mark.parametrize("first_order", [False, True])
@pytest.mark.parametrize("steps", [0, 1, 2])
def test_maml_on_a_parabola(steps: int, first_order: bool, strategy: str) -> None:
    learner = Maml(
        MamlConfig(inner_lr=0.1, inner_steps=steps, first_order=first_order), Network(Slope(), "xavier", "mse")
    )
    meta = Meta({"w": torch.tensor([[0.5]], dtype=F64)}, {}, {})
    # w ← w − 0.1 · 2 (2.5 w − 4) = 0.5 w + 0.8, so that dw'/dw = 0.5 a step.
    weights = [0.5, 1.05, 1.325]
    adapted = [float(a.parameters["w"]) for a in learner.adaptation(meta, SUPPORT, 2)]
    assert adapted == pytest.approx(weights, rel=1e-14)
    w = weights[steps]
    found = compute_meta_gradient(learner, meta, batch_of_one(Task(SUPPORT, QUERY)), strategy)
    assert float(found.loss) == pytest.approx(5 * w * w - 7 * w + 2.5, rel=1e-14)
    slope = (10 * w - 7) * (1.0 if first_order else 0.5**steps)
    assert float(found.gradient["w"]) == pytest.approx(slope, rel=1e-14)


def test_meta_sgd_on_a_parabola() -> None:
    """Its second parameter is the step size α: w' = w − α g, so that dL/dα = −g L'(w')."""
    learner = MetaSgd(MetaSgdConfig(inner_steps=1), Network(Slope(), "xavier", "mse"))
    meta = Meta(
        {name: torch.tensor([[value]], dtype=F64) for name, value in (("w", 0.5), ("step_sizes.w", 0.1))}, {}, {}
    )
    found = compute_meta_gradient(learner, meta, batch_of_one(Task(SUPPORT, QUERY)), "loop")
    # g = 5 w − 8 = −5.5, w' = 0.5 + 0.55 = 1.05, L'(w') = 10 w' − 7 = 3.5, dw'/dw = 1 − 5 α.
    assert float(found.gradient["w"]) == pytest.approx(3.5 * 0.5, rel=1e-14)
    assert float(found.gradient["step_sizes.w"]) == pytest.approx(3.5 * 5.5, rel=1e-14)


def test_step_sizes_begin_where_they_are_told() -> None:
    constant, drawn = (make(MetaSgdConfig(**settings)) for settings in ({"inner_lr": 0.3}, {}))
    first, again, other = (drawn.init(torch.Generator().manual_seed(seed)).parameters for seed in (0, 0, 1))
    weights = [name for name in first if not name.startswith("step_sizes.")]
    assert list(first) == [*weights, *(f"step_sizes.{name}" for name in weights)]
    for name in weights:
        sizes = first[f"step_sizes.{name}"]
        assert sizes.shape == first[name].shape
        assert 0.005 <= sizes.min() < sizes.max() < 0.1, "each weight has one of its own"
        assert torch.equal(sizes, again[f"step_sizes.{name}"])
        assert not torch.equal(sizes, other[f"step_sizes.{name}"])
        assert fresh(constant).parameters[f"step_sizes.{name}"].unique().tolist() == pytest.approx([0.3])


@pytest.mark.usefixtures("gradients")
@pytest.mark.parametrize(("kind", "adapting"), [("anil", {"head.weight", "head.bias"}), ("boil", {"layers.0.weight"})])
def test_only_a_part_adapts(support: Examples, kind: str, adapting: set[str]) -> None:
    learner = make(learner_class(kind).config_type(inner_lr=0.1), norm="batch")
    meta = fresh(learner)
    changed = {
        name
        for name, value in learner.adapt(meta, support, 2).parameters.items()
        if not torch.equal(value, meta.parameters[name])
    }
    assert changed == adapting | ({"norms.0.weight", "norms.0.bias"} if kind == "boil" else set())


def test_anil_computes_the_features_of_a_support_set_once(support: Examples, monkeypatch: pytest.MonkeyPatch) -> None:
    learner = make(AnilConfig(inner_lr=0.1))
    seen: list[Tensor] = []
    features = learner.network.module.features
    monkeypatch.setattr(
        learner.network.module, "features", lambda x, reference: seen.append(x) or features(x, reference)
    )
    adapted = learner.adapt(fresh(learner), support, 5)
    assert [x is support.x for x in seen] == [True]
    learner.predict(adapted, support.x[:1])
    assert len(seen) == 2


@pytest.mark.parametrize("steps", [1, 2])
def test_reptile_on_a_parabola(steps: int) -> None:
    config = ReptileConfig(inner_optimizer="sgd", inner_lr=0.1, inner_steps=steps, inner_batch=1)
    learner = Reptile(config, Network(Slope(), "xavier", "mse"))
    meta = Meta({"w": torch.tensor([[0.5]], dtype=F64)}, {}, {})
    # Row (1, 2): w ← w − 0.2 (w − 2) = 0.8 w + 0.4. Row (2, 3): w ← w − 0.2 (4 w − 6) = 0.2 w + 1.2.
    phi = [0.5, 0.8, 1.36][steps]
    found = compute_meta_gradient(learner, meta, batch_of_one(Task(SUPPORT, QUERY)), "loop")
    assert float(found.gradient["w"]) == pytest.approx(0.5 - phi, rel=1e-14)
    assert float(found.loss) == pytest.approx(5 * phi * phi - 7 * phi + 2.5, rel=1e-14)


@pytest.mark.usefixtures("gradients")
@pytest.mark.parametrize(("beta1", "beta2"), [(0.0, 0.999), (0.9, 0.99), (0.5, 0.0)])
@pytest.mark.parametrize("inner_batch", [None, 4, 100])
def test_reptile_takes_the_steps_of_adam(
    support: Examples, beta1: float, beta2: float, inner_batch: int | None
) -> None:
    config = ReptileConfig(inner_lr=0.05, inner_batch=inner_batch, beta1=beta1, beta2=beta2)
    learner = make(config)
    meta = fresh(learner)
    leaves = {name: value.clone().requires_grad_() for name, value in meta.parameters.items()}
    adam = torch.optim.Adam(leaves.values(), lr=0.05, betas=(beta1, beta2), eps=1e-8)
    rows = [0, 1, 2, 3, 4, 5] * 4 if inner_batch == 4 else None
    for step, adapted in enumerate(learner.adaptation(meta, support, 6)):
        for name, value in leaves.items():
            assert torch.allclose(adapted.parameters[name], value, rtol=1e-9, atol=1e-12)
        part = slice(None) if rows is None else rows[4 * step : 4 * step + 4]
        adam.zero_grad()
        out = torch.func.functional_call(learner.network.module, leaves, (support.x[part],))
        nn.functional.cross_entropy(out, support.y[part]).backward()
        adam.step()
    assert step == 6


def test_reptile_begins_afresh_in_each_task(support: Examples) -> None:
    """No moment is carried from task to task, in whatever order they come."""
    learner = make(ReptileConfig(inner_lr=0.05, beta1=0.9))
    meta = fresh(learner)
    other = Examples(support.x.flip(0) * 2, support.y, 3)
    first = learner.adapt(meta, support).parameters
    learner.adapt(meta, other)
    again = learner.adapt(meta, support).parameters
    assert all(torch.equal(first[name], again[name]) for name in first)


@pytest.mark.parametrize("norm", ["none", "layer", "batch", "support"])
def test_protonet_by_hand(support: Examples, norm: str) -> None:
    learner = make(ProtoNetConfig(), norm)
    meta = fresh(learner)
    query = torch.randn(4, 4, generator=torch.Generator().manual_seed(4), dtype=F64)
    y = torch.tensor([2, 0, 1, 1])
    module = learner.network.module

    def embed(x: Tensor) -> Tensor:
        if norm == "support":
            both = torch.cat([support.x, x])
            return torch.func.functional_call(module, meta.parameters, (both, len(support.x)))[len(support.x) :]
        return torch.func.functional_call(module, meta.parameters, (x,))

    points = (
        embed(support.x) if norm != "support" else torch.func.functional_call(module, meta.parameters, (support.x,))
    )
    prototypes = [(points[k] + points[k + 3]) / 2 for k in range(3)]
    logits = [[-sum((a - b) ** 2 for a, b in zip(e, p, strict=True)).item() for p in prototypes] for e in embed(query)]
    adapted = learner.adapt(meta, support)
    assert torch.allclose(learner.predict(adapted, query), torch.tensor(logits, dtype=F64), atol=1e-12)
    expected = -sum(row[k] - math.log(sum(map(math.exp, row))) for row, k in zip(logits, y.tolist(), strict=True)) / 4
    loss, outputs, _ = learner.task_loss(meta, Task(support, Examples(query, y, 3)))
    assert float(loss) == pytest.approx(expected, rel=1e-12)
    assert outputs.shape == (4, 3)


def test_protonet_takes_unbalanced_classes_in_any_order(support: Examples) -> None:
    learner = make(ProtoNetConfig())
    meta = fresh(learner)
    uneven = Examples(support.x, torch.tensor([2, 0, 0, 1, 0, 2]), 3)
    points = torch.func.functional_call(learner.network.module, meta.parameters, (support.x,))
    expected = torch.stack([(points[1] + points[2] + points[4]) / 3, points[3], (points[0] + points[5]) / 2])
    outputs = learner.predict(learner.adapt(meta, uneven), support.x)
    assert torch.allclose(outputs, -(torch.cdist(points, expected) ** 2), atol=1e-13)


def test_protonet_by_cosines(support: Examples) -> None:
    learner = make(ProtoNetConfig(distance="cosine", scale=7.0))
    meta = fresh(learner)
    points = torch.func.functional_call(learner.network.module, meta.parameters, (support.x,))
    prototypes = [(points[k] + points[k + 3]) / 2 for k in range(3)]
    cosines = [[float(e @ p / (e @ e).sqrt() / (p @ p).sqrt()) for p in prototypes] for e in points]
    outputs = learner.predict(learner.adapt(meta, support), support.x)
    assert torch.allclose(outputs, 7 * (torch.tensor(cosines, dtype=F64) - 1), atol=1e-13)


@pytest.mark.parametrize("scale", [1.0, 7.0])
def test_matching_by_hand(support: Examples, scale: float) -> None:
    """Classes of one, two and three rows in any order; the class weights of a query sum to 1."""
    learner = make(MatchingConfig(scale=scale))
    meta = fresh(learner)
    uneven = Examples(support.x, torch.tensor([2, 0, 2, 1, 0, 2]), 3)
    query = torch.randn(4, 4, generator=torch.Generator().manual_seed(4), dtype=F64)
    points, embedded = (
        torch.func.functional_call(learner.network.module, meta.parameters, (x,)) for x in (support.x, query)
    )
    mixtures = []
    for row in embedded:
        heat = [math.exp(scale * float(row @ p) / math.dist(row, [0] * 5) / math.dist(p, [0] * 5)) for p in points]
        mixtures.append([sum(h for h, y in zip(heat, uneven.y, strict=True) if y == k) / sum(heat) for k in range(3)])
    outputs = learner.predict(learner.adapt(meta, uneven), query)
    assert torch.allclose(outputs.softmax(1), torch.tensor(mixtures, dtype=F64), atol=1e-13)
    y = torch.tensor([2, 0, 1, 1])
    loss = learner.task_loss(meta, Task(uneven, Examples(query, y, 3))).loss
    expected = -sum(math.log(row[k]) for row, k in zip(mixtures, y.tolist(), strict=True)) / 4
    assert float(loss) == pytest.approx(expected, rel=1e-12)


def test_matching_takes_an_embedding_of_zeros(support: Examples) -> None:
    """It has no direction: every class is equally near, and its gradient is finite."""
    learner = make(MatchingConfig())
    meta = fresh(learner)
    zeros = {name: torch.zeros_like(value) for name, value in meta.parameters.items()}
    batch = batch_of_one(Task(support, support))
    found = compute_meta_gradient(learner, meta._replace(parameters=zeros), batch, "loop")
    assert float(found.loss) == pytest.approx(math.log(3))
    assert all(value.isfinite().all() for value in found.gradient.values())


LEARNERS: list[Callable[[], Learner]] = [
    lambda: make(MamlConfig(inner_lr=0.1, eval_steps=3)),
    lambda: make(MamlConfig(inner_lr=0.1, eval_steps=3, first_order=True)),
    lambda: make(ReptileConfig(eval_steps=3)),
    lambda: make(AnilConfig(inner_lr=0.1, eval_steps=3)),
    lambda: make(BoilConfig(inner_lr=0.1, eval_steps=3)),
    lambda: make(MetaSgdConfig(eval_steps=3)),
    lambda: make(MamlConfig(inner_lr=0.1, eval_steps=3, remat=True)),
    lambda: make(ImamlConfig(inner_lr=0.1, eval_steps=3)),
    lambda: make(MetaLstmConfig(eval_steps=3)),
]
NAMES = ["maml", "fomaml", "reptile", "anil", "boil", "metasgd", "maml-remat", "imaml", "metalstm"]


@pytest.mark.usefixtures("gradients")
@pytest.mark.parametrize("build", LEARNERS, ids=NAMES)
@pytest.mark.parametrize("steps", [0, 1, 4])
def test_adaptation_yields_every_step_and_leaves_no_graph(
    build: Callable[[], Learner], support: Examples, steps: int
) -> None:
    learner = build()
    meta = fresh(learner)
    before = {name: value.clone() for name, value in meta.parameters.items()}
    with torch.no_grad():
        states = list(learner.adaptation(meta, support, steps))
        outputs = [learner.predict(state, support.x) for state in states]
    assert len(states) == steps + 1
    assert all(torch.equal(value, before[name]) for name, value in states[0].parameters.items())
    assert not any(value.requires_grad for state in states for value in state.parameters.values())
    assert not any(out.requires_grad for out in outputs)
    assert len({out.numpy().tobytes() for out in outputs}) == steps + 1
    assert all(torch.equal(meta.parameters[name], before[name]) for name in before)
    assert not any(value.requires_grad or value.grad is not None for value in meta.parameters.values())
    losses = [float(learner.network.cost(out, support.y)) for out in outputs]
    assert losses == sorted(losses, reverse=True)


@pytest.mark.parametrize("build", LEARNERS, ids=NAMES)
def test_adapt_takes_the_evaluation_steps_unless_told(build: Callable[[], Learner], support: Examples) -> None:
    learner = build()
    meta = fresh(learner)
    states = list(learner.adaptation(meta, support, 3))
    for adapted, state in ((learner.adapt(meta, support), states[3]), (learner.adapt(meta, support, 1), states[1])):
        assert all(torch.equal(adapted.parameters[name], value) for name, value in state.parameters.items())


@pytest.mark.parametrize("config", [ProtoNetConfig(), MatchingConfig(), RelationConfig()])
def test_embeddings_have_nothing_to_adapt_step_by_step(support: Examples, config: Any) -> None:
    learner = make(config)
    with torch.no_grad():
        states = list(learner.adaptation(fresh(learner), support, learner.eval_steps))
    assert len(states) == 1
    assert not states[0][0].requires_grad


#: learners whose predictions are their own, and no part's
ALONE = {
    kind: learner
    for kind, learner in learners.LEARNERS.items()
    if not issubclass(learner.config_type, learners.OnTrainedRuns)
}


@pytest.mark.parametrize("norm", ["batch", "support", "single", "layer", "none"])
@pytest.mark.parametrize("kind", ALONE)
def test_predictions_depend_on_other_queries_with_batch_statistics_only(
    kind: str, norm: str, support: Examples
) -> None:
    """The transductive setting changes what accuracy means, so it must be the one that was asked for."""
    configs = {kind: learner.config_type() for kind, learner in ALONE.items()}
    configs |= {
        kind: learner_class(kind).config_type(inner_lr=0.1)
        for kind in ("maml", "mamlpp", "anil", "boil", "metasgd", "imaml")
    }
    learner = make(configs[kind], norm)
    meta = fresh(learner)
    query = torch.randn(5, 4, generator=torch.Generator().manual_seed(5), dtype=F64)
    adapted = learner.adapt(meta, support, 1)
    together, alone = learner.predict(adapted, query), learner.predict(adapted, query[:2])
    assert torch.allclose(together[:2], alone, atol=1e-12) == (norm != "batch")
    with_other_support = learner.predict(learner.adapt(meta, Examples(3 * support.x, support.y, 3), 0), query)
    if learner.eval_steps and not hasattr(learner, "generator"):  # which reads the support set without a step
        unadapted = learner.predict(learner.adapt(meta, support, 0), query)
        assert torch.allclose(unadapted, with_other_support, atol=1e-12) == (norm not in ("support", "single"))


@pytest.mark.usefixtures("gradients")
def test_inner_gradient_of_an_unused_parameter_is_zeros() -> None:
    parameters = {"a": torch.tensor(2.0, dtype=F64), "b": torch.ones(3, dtype=F64)}
    found = inner_gradient(lambda p: p["a"] ** 3, parameters)
    assert float(found["a"]) == 12.0
    assert found["b"].tolist() == [0.0, 0.0, 0.0]
    assert not any(value.requires_grad for value in (*found.values(), *parameters.values()))


@pytest.mark.usefixtures("gradients")
def test_inner_gradient_can_be_differentiated_again() -> None:
    a = torch.tensor(2.0, dtype=F64, requires_grad=True)
    found = inner_gradient(lambda p: p["a"] ** 3, {"a": a})["a"]
    (second,) = torch.autograd.grad(found, a)
    assert float(second) == 12.0


def test_learners_without_a_rule_of_their_own_say_so(support: Examples) -> None:
    learner = make(MamlConfig())
    with pytest.raises(TypeError, match="Maml has no rule of its own"):
        learner.task_gradient(fresh(learner), Task(support, support))


@pytest.mark.parametrize(
    ("config", "settings", "field"),
    [
        (MamlConfig, {"inner_lr": 0.0}, "inner_lr"),
        (MamlConfig, {"inner_lr": math.nan}, "inner_lr"),
        (MamlConfig, {"inner_steps": -1}, "inner_steps"),
        (MamlConfig, {"eval_steps": -1}, "eval_steps"),
        (AnilConfig, {"inner_lr": 0.0}, "inner_lr"),
        (BoilConfig, {"inner_steps": -1}, "inner_steps"),
        (MetaSgdConfig, {"inner_lr": 0.0}, "inner_lr"),
        (MetaSgdConfig, {"inner_lr": [0.1, 0.05]}, "inner_lr"),
        (MetaSgdConfig, {"inner_lr": [0.0, 0.05]}, "inner_lr"),
        (MetaSgdConfig, {"inner_lr": [0.1]}, "inner_lr"),
        (MetaSgdConfig, {"inner_lr": []}, "inner_lr"),
        (MetaSgdConfig, {"inner_steps": 0}, "inner_steps"),
        (MetaSgdConfig, {"eval_steps": -1}, "eval_steps"),
        (MetaLstmConfig, {"hidden": 0}, "hidden"),
        (MetaLstmConfig, {"inner_lr": 1.0}, "inner_lr"),
        (MetaLstmConfig, {"keep": 1.0}, "keep"),
        (MetaLstmConfig, {"inner_steps": 0}, "inner_steps"),
        (MetaLstmConfig, {"eval_steps": -1}, "eval_steps"),
        (MatchingConfig, {"scale": 0.0}, "scale"),
        (ProtoNetConfig, {"scale": -1.0}, "scale"),
        (ReptileConfig, {"inner_lr": -1.0}, "inner_lr"),
        (ReptileConfig, {"inner_steps": 0}, "inner_steps"),
        (ReptileConfig, {"inner_batch": 0}, "inner_batch"),
        (ReptileConfig, {"beta1": 1.0}, "beta1"),
        (ReptileConfig, {"beta2": -0.1}, "beta2"),
    ],
)
def test_impossible_settings_are_refused(config: type, settings: dict, field: str) -> None:
    with pytest.raises(UserError, match=f"^{field}: got"):
        config(**settings)
