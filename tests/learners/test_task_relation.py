"""The task-relation model's two phases, by hand, and what its generator sees."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from metadist.errors import UserError
from metadist.learners import (
    HybridConfig,
    HypernetworkConfig,
    Maml,
    Meta,
    Network,
    TaskRelation,
    TaskRelationConfig,
    learner_class,
)
from metadist.learners.gradient import Parameters
from metadist.models import BaseModel, Mlp, MlpConfig
from metadist.outer import (
    ChunkKey,
    OptimizerConfig,
    OuterRule,
    OuterState,
    Verdict,
    apply_step,
    compute_meta_gradient,
    publish,
    to_payload,
)
from metadist.outer.optimizer import GroupConfig
from metadist.tasks import Examples, Task, join

F64 = torch.float64


class Slope(BaseModel):
    """y = w x."""

    def __init__(self) -> None:
        super().__init__("none", 1, 1)
        self.head = nn.Linear(1, 1, bias=False)

    def features(self, x: Tensor, reference: int | None) -> Tensor:
        return x


class TwoParameters(TaskRelation):
    """w = θ + φ s, where s is the mean of the support targets in the place of a generator."""

    def added(self, meta: Meta, support: Examples) -> Parameters:
        phi = self.network.part(meta.parameters, "generator.")["phi"]
        return {"head.weight": phi * support.y.mean()}


def points(x: list[float], y: list[float]) -> Examples:
    return Examples(torch.tensor(x, dtype=F64)[:, None], torch.tensor(y, dtype=F64)[:, None], 0)


@pytest.mark.parametrize("strategy", ["loop", "vectorized", "captured"])
def test_two_phases_are_one_step(strategy: str) -> None:
    # L(w) = mean (w x − y)² has the slope 2 (a w − b) with a = mean x², b = mean x y.
    tasks = [
        Task(points([1, 2], [2, 3]), points([1, 3], [1, 2])),  # s = 2.5; a = 2.5, b = 4 and a = 5, b = 3.5
        Task(points([1, -1], [3, 1]), points([2, 0], [1, 5])),  # s = 2; a = 1, b = 1 and a = 2, b = 1
    ]
    coefficients = [(2.5, 2.5, 4.0, 5.0, 3.5), (2.0, 1.0, 1.0, 2.0, 1.0)]
    theta, phi, inner, alpha, beta = 0.5, -0.25, 0.1, 0.2, 0.3
    phi_after = phi - alpha * sum(2 * (a * (theta + phi * s) - b) * s for s, _, _, a, b in coefficients) / 2
    slopes = []
    for s, a_support, b_support, a, b in coefficients:
        w = theta + phi_after * s
        adapted = w - inner * 2 * (a_support * w - b_support)
        slopes.append(2 * (a * adapted - b) * (1 - inner * 2 * a_support))
    theta_after = theta - beta * sum(slopes) / 2

    learner = TwoParameters(TaskRelationConfig(inner_lr=inner), Network(Slope(), "xavier", "mse"))
    groups = [GroupConfig(match="generator.*", lr=alpha)]
    optimizer = OptimizerConfig(kind="sgd", lr=beta, groups=groups)
    rule = OuterRule("run", optimizer, steps=1, tasks=2, chunk=2, phases=learner.phases)
    parameters = {name: torch.full((1, 1), value) for name, value in (("generator.phi", phi), ("head.weight", theta))}
    state = OuterState(0, Meta(parameters, {}, {}), {})
    for phase in range(2):
        meta = rule.moving(Meta({n: v.double() for n, v in state.meta.parameters.items()}, {}, {}), phase)
        result = compute_meta_gradient(learner.in_phase(phase), meta, join(tasks), strategy)
        payload = to_payload(ChunkKey("run", 0, phase, 0), result, 0)
        assert list(payload.gradient) == [["generator.phi"], ["head.weight"]][phase]
        in_32_bits = {name: value.astype("float32") for name, value in payload.gradient.items()}
        payload = copy.copy(payload)
        object.__setattr__(payload, "gradient", in_32_bits)
        stale, refused = apply_step(rule, state, 0, [payload], 1 - phase)
        assert refused.verdict is (Verdict.DUPLICATE if phase else Verdict.STALE)
        assert stale is state
        state, update = apply_step(rule, state, 0, [payload], phase)
        assert (update.verdict, update.version, update.lr) == (Verdict.ACCEPTED, phase, (alpha, beta)[phase])
        published = publish(state)
        assert (published.version, published.phase) == ((0, 1), (1, 0))[phase]
        assert float(published.parameters["generator.phi"][0, 0]) == pytest.approx(phi_after, rel=1e-6)
    assert float(published.parameters["head.weight"][0, 0]) == pytest.approx(theta_after, rel=1e-6)


def mlp() -> Mlp:
    return Mlp(MlpConfig(hidden=[6], activation="tanh"), (4,), 3)


@pytest.fixture
def support() -> Examples:
    x = torch.randn(6, 4, generator=torch.Generator().manual_seed(1))
    return Examples(x, torch.tensor([0, 1, 2, 0, 1, 2]), 3)


@pytest.mark.parametrize("config", [HypernetworkConfig(), HypernetworkConfig(depth=3), HybridConfig(inner_steps=0)])
def test_a_class_keeps_its_outputs_under_another_number(config: HypernetworkConfig, support: Examples) -> None:
    """Nor does the order of the support set matter."""
    learner = learner_class(config.kind)(config, Network(mlp(), "default", "cross_entropy"))
    meta = learner.init(torch.Generator().manual_seed(0))
    if "head.weight" in meta.parameters:  # θ of the hybrid knows a class by its number
        meta.parameters["head.weight"].zero_(), meta.parameters["head.bias"].zero_()
    order = torch.tensor([4, 0, 5, 3, 1, 2])
    renamed = Examples(support.x[order], (support.y[order] + 1) % 3, 3)
    x = support.x.flip(0)
    outputs, others = (learner.predict(learner.adapt(meta, each, 0), x) for each in (support, renamed))
    assert torch.allclose(outputs, others.roll(-1, 1), atol=1e-6)
    assert outputs.std(1).min() > 1e-3


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_a_hypernetwork_has_no_weights_of_its_own(depth: int, support: Examples) -> None:
    learner = learner_class("hypernetwork")(HypernetworkConfig(depth=depth), Network(mlp(), "default", "cross_entropy"))
    meta = learner.init(torch.Generator().manual_seed(0))
    assert all(name.startswith("generator.") for name in meta.parameters)
    emitted = learner.adapt(meta, support).parameters
    assert {name: value.shape for name, value in emitted.items()} == {n: p.shape for n, p in mlp().named_parameters()}
    # About what a layer begins with: uniform within 1/√inputs, of standard deviation 0.58/√inputs.
    for name in ("layers.0.weight", "head.weight"):
        assert 0.2 < float(emitted[name].std()) * emitted[name].shape[1] ** 0.5 < 3
    levels = sum(name.startswith("generator.blocks.") for name in meta.parameters)
    assert levels == depth


def test_the_hybrid_begins_at_mamls_start_where_nothing_is_added(support: Examples) -> None:
    """With a generator of zeros it is MAML: θ's meta-gradient is MAML's."""
    config = HybridConfig(inner_steps=2, inner_lr=0.3)
    hybrid = learner_class("hybrid")(config, Network(mlp(), "default", "cross_entropy"))
    start = hybrid.init(torch.Generator().manual_seed(0)).parameters
    start |= {name: torch.zeros_like(v) for name, v in start.items() if name.startswith("generator.out.")}
    theta = {name: value for name, value in start.items() if not name.startswith("generator.")}
    maml = Maml(config, Network(mlp(), "default", "cross_entropy"))
    batch = join([Task(support, support._replace(x=-support.x))])
    expected = compute_meta_gradient(maml, Meta(theta, {}, {}), batch, "loop").gradient
    found = compute_meta_gradient(hybrid, Meta(start, {}, {}), batch, "loop").gradient
    assert all(torch.equal(found[name], value) for name, value in expected.items())
    assert any(bool(found[name].any()) for name in found if name.startswith("generator.out."))


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: HypernetworkConfig(depth=0), "depth"),
        (lambda: HybridConfig(code=0), "code"),
        (lambda: TaskRelationConfig(inner_lr=0), "inner_lr"),
        (lambda: learner_class("hybrid")(HybridConfig(generate=["body.*"]), Network(mlp(), None, "mse")), "generate"),
        (
            lambda: learner_class("hypernetwork")(
                HypernetworkConfig(), Network(Mlp(MlpConfig(), (4,), None), None, "mse")
            ),
            "head is a linear layer",
        ),
    ],
)
def test_mistakes_are_named(make: Callable[[], object], words: str) -> None:
    with pytest.raises(UserError, match=words):
        make()
