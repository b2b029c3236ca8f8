"""Fine-tuning and the cosine head, against torch.optim and values taken by hand."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from metadist.config import build_experiment, parse_job
from metadist.errors import UserError
from metadist.learners import Finetune, FinetuneConfig, Meta, Network, functional_gradients
from metadist.models import CosineHead, Mlp, MlpConfig
from metadist.outer import compute_meta_gradient
from metadist.tasks import Examples, Task

torch.set_num_threads(1)
F64 = torch.float64
ROWS = [0, 1, 2, 3, 4, 5] * 4


@pytest.fixture
def support() -> Examples:
    generator = torch.Generator().manual_seed(3)
    return Examples(torch.randn(6, 4, generator=generator, dtype=F64), torch.tensor([0, 1, 2, 0, 1, 2]), 3)


def make(norm: str = "none", loss: Any = "cross_entropy", **settings: Any) -> tuple[Finetune, Meta]:
    model = Mlp(MlpConfig(hidden=[5], activation="tanh", norm=norm), (4,), 3)
    learner = Finetune(FinetuneConfig(**settings), Network(model, "xavier", loss))
    meta = learner.init(torch.Generator().manual_seed(0))
    return learner, Meta({name: value.double() for name, value in meta.parameters.items()}, {}, {})


class Reference(nn.Module):
    """Tanh trunk, linear or cosine head, written out."""

    def __init__(self, parameters: dict[str, Tensor], cosine: bool, scale: float) -> None:
        super().__init__()
        self.values = nn.ParameterDict({name.replace(".", "/"): value.clone() for name, value in parameters.items()})
        self.cosine, self.scale = cosine, scale

    def forward(self, x: Tensor) -> Tensor:
        v = self.values
        features = torch.tanh(x @ v["layers/0/weight"].T + v["layers/0/bias"])
        weight = v["head/weight"]
        if self.cosine:
            lengths = features.square().sum(1, keepdim=True).sqrt() * weight.square().sum(1).sqrt()
            return self.scale * (features @ weight.T) / lengths
        return features @ weight.T + v["head/bias"]


@pytest.mark.parametrize("functional", [False, True])
@pytest.mark.parametrize("head", ["linear", "cosine"])
@pytest.mark.parametrize("layers", ["head", "all"])
@pytest.mark.parametrize(("optimizer", "batch"), [("sgd", None), ("sgd", 4), ("adam", None), ("adam", 4)])
def test_takes_the_steps_of_torch(
    support: Examples, layers: str, head: str, optimizer: str, batch: int | None, functional: bool
) -> None:
    learner, meta = make(
        layers=layers, head=head, scale=4.0, inner_optimizer=optimizer, inner_batch=batch,
        inner_lr=0.05, momentum=0.8, weight_decay=0.02,
    )  # fmt: skip
    net = Reference(meta.parameters, head == "cosine", 4.0)
    moving = [value for name, value in net.values.items() if layers == "all" or name.startswith("head")]
    reference: torch.optim.Optimizer = torch.optim.Adam(moving, lr=0.05, weight_decay=0.02)
    if optimizer == "sgd":
        reference = torch.optim.SGD(moving, lr=0.05, momentum=0.8, weight_decay=0.02)

    def compare() -> None:
        for step, adapted in enumerate(learner.adaptation(meta, support, 5)):
            for name, value in net.values.items():
                found = adapted.parameters[name.replace("/", ".")]
                assert torch.allclose(found, value, rtol=1e-10, atol=1e-13), (step, name)
            assert torch.allclose(learner.predict(adapted, support.x), net(support.x), rtol=1e-10, atol=1e-13)
            rows = slice(None) if batch is None else ROWS[4 * step : 4 * step + 4]
            reference.zero_grad()
            nn.functional.cross_entropy(net(support.x[rows]), support.y[rows]).backward()
            reference.step()

    if not functional:
        compare()
        return
    with functional_gradients():
        compare()


def test_two_steps_by_hand() -> None:
    """One feature tanh(1), one output w f + b, squared error to 2, momentum 0.5 and decay 0.1."""
    model = Mlp(MlpConfig(hidden=[1], activation="tanh"), (1,), 1)
    config = FinetuneConfig(inner_lr=0.1, momentum=0.5, weight_decay=0.1, eval_steps=2)
    learner = Finetune(config, Network(model, "xavier", "mse"))
    one = torch.ones(1, 1, dtype=F64)
    meta = Meta({"layers.0.weight": one, "layers.0.bias": 0 * one[0], "head.weight": one, "head.bias": one[0]}, {}, {})
    f, w, b = math.tanh(1), 1.0, 1.0
    moved = (0.0, 0.0)
    for _ in range(2):
        slope = 2 * (w * f + b - 2)
        moved = (0.5 * moved[0] + slope * f + 0.1 * w, 0.5 * moved[1] + slope + 0.1 * b)
        w, b = w - 0.1 * moved[0], b - 0.1 * moved[1]
    adapted = learner.adapt(meta, Examples(one, 2 * one, 0)).parameters
    assert float(adapted["head.weight"]) == pytest.approx(w, rel=1e-14)
    assert float(adapted["head.bias"]) == pytest.approx(b, rel=1e-14)
    assert torch.equal(adapted["layers.0.weight"], one)


def test_cosine_head_by_hand() -> None:
    head = CosineHead(2, 2, scale=5.0).double()
    with torch.no_grad():
        head.weight.copy_(torch.tensor([[3.0, 4.0], [0.0, -2.0]]))
    # Cosines of (1, 0) with (3, 4) and (0, −2): 3/5 and 0; of (2, 2): 7/(5√2) and −1/√2. Lengths do not matter.
    expected = torch.tensor([[3.0, 0.0], [7 / math.sqrt(2), -5 / math.sqrt(2)]], dtype=F64)
    x = torch.tensor([[1.0, 0.0], [2.0, 2.0]], dtype=F64)
    assert torch.allclose(head(x), expected, rtol=1e-14)
    assert torch.allclose(head(100 * x), expected, rtol=1e-14)
    zeros = torch.zeros(1, 2, dtype=F64, requires_grad=True)
    head(zeros).sum().backward()
    assert head(zeros).tolist() == [[0.0, 0.0]]
    assert bool(zeros.grad.isfinite().all())


@pytest.mark.parametrize("norm", ["batch", "support"])
@pytest.mark.parametrize("layers", ["head", "all"])
def test_vectorised_is_task_by_task(support: Examples, layers: str, norm: str) -> None:
    learner, meta = make(norm, layers=layers, head="cosine", inner_lr=0.1, eval_steps=7)
    assert learner.train_steps == 3, "the check of strategies takes a few steps"
    parts = [support, support._replace(x=support.x.flip(0) * 1.3)]
    joined = Examples(torch.stack([p.x for p in parts]), torch.stack([p.y for p in parts]), 3)
    batch = Task(joined, joined)
    one, other = (compute_meta_gradient(learner, meta, batch, strategy) for strategy in ("loop", "vectorized"))
    moved = {name for name, value in one.gradient.items() if bool(value.any())}
    assert moved == (set(meta.parameters) if layers == "all" else {"head.weight"})
    for name, value in one.gradient.items():
        assert torch.allclose(value, other.gradient[name], rtol=1e-9, atol=1e-13), name


def test_the_trunk_is_read_once(support: Examples, monkeypatch: pytest.MonkeyPatch) -> None:
    learner, meta = make(inner_lr=0.1)
    seen: list[int] = []
    features = learner.network.module.features
    monkeypatch.setattr(
        learner.network.module, "features", lambda x, reference: seen.append(len(x)) or features(x, reference)
    )
    learner.adapt(meta, support, 9)
    assert seen == [6]


def test_begins_afresh_in_each_task(support: Examples) -> None:
    learner, meta = make(layers="all", inner_lr=0.05)
    first = learner.adapt(meta, support, 4).parameters
    learner.adapt(meta, support._replace(x=2 * support.x), 4)
    assert all(torch.equal(value, first[name]) for name, value in learner.adapt(meta, support, 4).parameters.items())


@pytest.mark.parametrize(
    ("settings", "field"),
    [
        ({"inner_lr": 0.0}, "inner_lr"),
        ({"scale": 0.0}, "scale"),
        ({"momentum": 1.0}, "momentum"),
        ({"weight_decay": -1.0}, "weight_decay"),
        ({"eval_steps": -1}, "eval_steps"),
        ({"inner_batch": 0}, "inner_batch"),
    ],
)
def test_impossible_settings_are_refused(settings: dict[str, Any], field: str) -> None:
    with pytest.raises(UserError, match=f"^{field}: got"):
        FinetuneConfig(**settings)


def test_there_is_nothing_to_train() -> None:
    with pytest.raises(UserError, match=r"^steps: got 1000, expected 0 for learner finetune"):
        parse_job({"learner": {"kind": "finetune"}})
    sinusoids = {"steps": 0, "tasks": {"kind": "sinusoid"}, "model": {"kind": "mlp"}}
    cosine = parse_job(sinusoids | {"learner": {"kind": "finetune", "head": "cosine"}})
    with pytest.raises(UserError, match=r"^learner.head: got 'cosine', expected linear"):
        build_experiment(cosine, "run")
