"""Small smooth nets and tasks in float64."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from metadist.learners import (
    AnilConfig,
    BoilConfig,
    CaviaConfig,
    Distill,
    DistillConfig,
    Fusion,
    FusionConfig,
    HybridConfig,
    HypernetworkConfig,
    ImamlConfig,
    InContextConfig,
    Learner,
    MamlConfig,
    MamlPlusPlusConfig,
    MannConfig,
    MatchingConfig,
    Meta,
    MetaLstmConfig,
    MetaSgdConfig,
    Network,
    ProtoNetConfig,
    RelationConfig,
    ReptileConfig,
    TaskRelationConfig,
    TrainedPart,
    gated,
    learner_class,
)
from metadist.models import BaseModel, Conv4, Conv4Config, Mlp, MlpConfig
from metadist.tasks import Examples, Task

torch.set_num_threads(1)
WAYS, SHOTS, QUERY, TASKS = 3, 2, 3, 3
F64 = torch.float64

SMALL = {"code": 3, "hidden": 4, "embedding": 2, "block": 7}

LEARNERS = {
    "maml-1": MamlConfig(inner_steps=1, inner_lr=0.3),
    "maml-3": MamlConfig(inner_steps=3, inner_lr=0.3),
    "fomaml-3": MamlConfig(inner_steps=3, inner_lr=0.3, first_order=True),
    "maml-3-remat": MamlConfig(inner_steps=3, inner_lr=0.3, remat=True),
    "fomaml-3-remat": MamlConfig(inner_steps=3, inner_lr=0.3, first_order=True, remat=True),
    "anil-3-remat": AnilConfig(inner_steps=3, inner_lr=0.3, remat=True),
    "boil-2-remat": BoilConfig(inner_steps=2, inner_lr=0.3, remat=True),
    "maml-0": MamlConfig(inner_steps=0),
    "reptile-sgd-batches": ReptileConfig(inner_optimizer="sgd", inner_lr=0.2, inner_steps=4, inner_batch=4),
    "reptile-adam-batches": ReptileConfig(inner_lr=0.01, inner_steps=4, inner_batch=4, beta1=0.3),
    "reptile-adam-full": ReptileConfig(inner_lr=0.01, inner_steps=3, inner_batch=None),
    "protonet": ProtoNetConfig(),
    "anil-3": AnilConfig(inner_steps=3, inner_lr=0.3),
    "foanil-2": AnilConfig(inner_steps=2, inner_lr=0.3, first_order=True),
    "boil-2": BoilConfig(inner_steps=2, inner_lr=0.3),
    "foboil-2": BoilConfig(inner_steps=2, inner_lr=0.3, first_order=True),
    "metasgd-1": MetaSgdConfig(inner_steps=1),
    "metasgd-2": MetaSgdConfig(inner_steps=2, inner_lr=0.1),
    "metalstm-1": MetaLstmConfig(inner_steps=1, hidden=3),
    "metalstm-3": MetaLstmConfig(inner_steps=3, hidden=4, inner_lr=0.3, keep=0.9),
    "mamlpp-3": MamlPlusPlusConfig(inner_steps=3, inner_lr=0.2, multi_step_loss_steps=5),
    "mamlpp-last-loss": MamlPlusPlusConfig(inner_steps=2, inner_lr=0.2),
    "mamlpp-one-rate": MamlPlusPlusConfig(inner_steps=2, learn_step_sizes=False, multi_step_loss_steps=5),
    "mamlpp-one-norm": MamlPlusPlusConfig(inner_steps=2, step_norms=False),
    "fomamlpp-3": MamlPlusPlusConfig(inner_steps=3, inner_lr=0.2, multi_step_loss_steps=5, first_order_until=1),
    "cavia-2": CaviaConfig(inner_steps=2, context=3, layer=2),
    "focavia-2": CaviaConfig(inner_steps=2, context=3, layer=2, first_order=True),
    "cavia-concat-2": CaviaConfig(inner_steps=2, context=3, layer=2, conditioning="concat"),
    # Pulled so strongly that no direction bends down: conjugate gradients go on to the end.
    "imaml-dense": ImamlConfig(inner_steps=3, inner_lr=0.02, strength=30.0, cg_steps=60),
    "imaml-damped": ImamlConfig(inner_steps=3, strength=3.0, damping=27.0, cg_steps=60),
    "imaml-2": ImamlConfig(inner_steps=3, strength=3.0, cg_steps=2),
    "imaml-converged": ImamlConfig(inner_steps=200, inner_lr=0.03, strength=5.0, cg_steps=60),
    "imaml-0": ImamlConfig(inner_steps=2, cg_steps=0),
    "matching": MatchingConfig(),
    "matching-scaled": MatchingConfig(scale=5.0),
    "maml-2-film": MamlConfig(inner_steps=2, inner_lr=0.3, adapt=["head.*", "*.film.*"]),
    "fomaml-2-film": MamlConfig(inner_steps=2, inner_lr=0.3, adapt=["*.film.*"], first_order=True),
    "metasgd-2-film": MetaSgdConfig(inner_steps=2, adapt=["head.*", "*.film.*"]),
    "reptile-film": ReptileConfig(inner_lr=0.01, inner_steps=3, inner_batch=4, adapt=["head.*", "*.film.*"]),
    "maml-2-gates": MamlConfig(inner_steps=2, inner_lr=0.3, adapt=["*", "!gates.*"]),
    "anil-2-gates": AnilConfig(inner_steps=2, inner_lr=0.3),
    "protonet-gates": ProtoNetConfig(),
    "hypernetwork": HypernetworkConfig(**SMALL),
    "hypernetwork-film": HypernetworkConfig(**SMALL),
    "hypernetwork-depth-2": HypernetworkConfig(depth=2, **SMALL),
    "hybrid-2": HybridConfig(inner_steps=2, inner_lr=0.3, **SMALL),
    "fohybrid-2": HybridConfig(inner_steps=2, inner_lr=0.3, first_order=True, generate=["head.*"], **SMALL),
    "task-relation-0": TaskRelationConfig(inner_steps=0, **SMALL),
    "task-relation-2": TaskRelationConfig(inner_steps=2, inner_lr=0.3, **SMALL),
    "relation": RelationConfig(width=3, hidden=4, activation="tanh"),
    "distill-maml-2": DistillConfig(teacher="run", student=MamlConfig(inner_steps=2, inner_lr=0.3), weight=0.7),
    "distill-maml-remat": DistillConfig(
        teacher="run", student=MamlConfig(inner_steps=2, inner_lr=0.3, remat=True), weight=1.0
    ),
    "distill-mamlpp": DistillConfig(
        teacher="run", student=MamlPlusPlusConfig(inner_steps=2, inner_lr=0.2, multi_step_loss_steps=5)
    ),
    "distill-protonet": DistillConfig(teacher="run", student=ProtoNetConfig(), temperature=3.0),
    "fusion-3": FusionConfig(experts=["run"] * 3, inner_steps=3, inner_lr=0.5, folds=2),
    "fusion-agreement": FusionConfig(experts=["run"] * 2, inner_steps=2, folds=3, uniform=0.3, agreement=0.4),
    "incontext": InContextConfig(width=8, heads=2, hidden=4, activation="tanh"),
    "incontext-dot": InContextConfig(width=6, layers=1, heads=3, hidden=4, activation="tanh", attention="dot"),
    "mann": MannConfig(width=4, slots=5, slot=3, heads=2),
    "incontext-gates": InContextConfig(width=4, layers=1, heads=1, hidden=3, activation="tanh"),
}
#: what teachers and experts are: of a headed student, and of an embedding
TEACHERS = {False: MamlConfig(inner_steps=1, eval_steps=2, inner_lr=0.2), True: ProtoNetConfig()}


def embeds(config: Any) -> bool:
    return learner_class(getattr(config, "student", config).kind).embeds


EMBEDDINGS = [name for name, config in LEARNERS.items() if embeds(config)]


def build_learner(name: str, module: BaseModel, loss: str) -> Learner:
    config = LEARNERS[name]
    network = Network(module, "xavier", loss)
    if isinstance(config, DistillConfig | FusionConfig):
        known = TEACHERS[embeds(config)]
        trained = [
            learner_class(known.kind)(known, replace(network, module=copy.deepcopy(module))) for _ in config.runs
        ]
        parts = [TrainedPart(name, learner) for name, learner in zip(config.runs, trained, strict=True)]
        if isinstance(config, FusionConfig):
            return Fusion(config, parts)
        return Distill(config, learner_class(config.student.kind)(config.student, network), *parts)
    return learner_class(config.kind)(config, gated(network, 3) if "gates" in name else network)


def build_model(kind: str, norm: str, outputs: int | None, pool: bool = False, film: bool = False) -> BaseModel:
    if kind == "mlp":
        return Mlp(MlpConfig(hidden=[6, 5], norm=norm, activation="tanh", film=film), (4,), outputs)
    config = Conv4Config(width=4, layers=2, pool=pool, norm=norm, activation="tanh", film=film)
    return Conv4(config, (1, 8, 8), outputs)


def random_meta(learner: Learner, seed: int = 0) -> Meta:
    """Initial weights with every value moved, so that no bias is 0 and no norm's weight is 1."""
    generator = torch.Generator().manual_seed(seed)
    start = learner.init(generator)
    moved, frozen = (
        {
            name: value.double() + 0.2 * torch.randn(value.shape, generator=generator, dtype=F64)
            for name, value in group.items()
        }
        for group in (start.parameters, start.frozen)
    )
    return Meta(moved, {name: value.double() for name, value in start.statistics.items()}, frozen)


def random_tasks(shape: tuple[int, ...], loss: str, seed: int = 1) -> Task:
    """A batch of tasks; each class has its own mean."""
    generator = torch.Generator().manual_seed(seed)

    def part(repeats: int) -> Examples:
        rows = repeats * WAYS
        x = torch.randn((TASKS, rows, *shape), generator=generator, dtype=F64)
        y = torch.arange(WAYS).repeat(repeats).expand(TASKS, rows).clone()
        if loss == "mse":
            return Examples(x, torch.randn((TASKS, rows, 2), generator=generator, dtype=F64), 0)
        return Examples(x + y.reshape(TASKS, rows, *(1,) * len(shape)), y, WAYS)

    return Task(part(SHOTS), part(QUERY))


def in_float32(meta: Meta, batch: Task) -> tuple[Meta, Task]:
    """Both in 32 bits."""
    meta32 = Meta(*({name: value.float() for name, value in group.items()} for group in meta))
    return meta32, Task(*(part._replace(x=part.x.float(), y=part.y if part.ways else part.y.float()) for part in batch))


@pytest.fixture
def setting() -> Callable[..., tuple[Learner, Meta, Task]]:
    """A learner by name with a model and norm; the multi-layer perceptron regresses where the learner can."""

    def make(name: str, kind: str, norm: str, pool: bool = False) -> tuple[Learner, Meta, Task]:
        loss = "mse" if kind == "mlp" and name not in EMBEDDINGS else "cross_entropy"
        outputs = None if name in EMBEDDINGS else 2 if loss == "mse" else WAYS
        learner = build_learner(name, build_model(kind, norm, outputs, pool, "film" in name), loss)
        return learner, random_meta(learner), random_tasks((4,) if kind == "mlp" else (1, 8, 8), loss)

    return make
