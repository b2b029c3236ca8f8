"""iMAML on a parabola, and what its implicit meta-gradient is made of."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from metadist.errors import UserError
from metadist.learners import Imaml, ImamlConfig, Meta, Network, functional_gradients
from metadist.learners.gradient import Parameters, hessian_product
from metadist.learners.imaml import conjugate_gradient
from metadist.outer import compute_meta_gradient
from metadist.tasks import Examples, Task
from tests.learners.conftest import Slope

torch.set_num_threads(1)
F64 = torch.float64


def values(*numbers: float) -> Tensor:
    return torch.tensor(numbers, dtype=F64)[None, :, None]


@pytest.fixture(params=[False, True], ids=["autograd", "functional"])
def gradients(request: pytest.FixtureRequest) -> Iterator[None]:
    if request.param:
        with functional_gradients():
            yield
    else:
        yield


@pytest.mark.parametrize("strategy", ["loop", "vectorized"])
@pytest.mark.parametrize("cg_steps", [0, 1, 3])
@pytest.mark.parametrize("steps", [1, 2])
def test_on_a_parabola(steps: int, cg_steps: int, strategy: Any) -> None:
    config = ImamlConfig(inner_lr=0.1, inner_steps=steps, strength=2.0, cg_steps=cg_steps)
    learner = Imaml(config, Network(Slope(), "xavier", "mse"))
    meta = Meta({"w": torch.tensor([[0.5]], dtype=F64)}, {}, {})
    batch = Task(Examples(values(1.0, 2.0), values(2.0, 3.0), 0), Examples(values(1.0, 3.0), values(1.0, 2.0), 0))
    # L_support' = 5 w − 8 and the pull is 2 (w − 0.5): w ← w − 0.1 (7 w − 9) = 0.3 w + 0.9.
    w = (1.05, 1.215)[steps - 1]
    found = compute_meta_gradient(learner, meta, batch, strategy)
    assert float(found.loss) == pytest.approx(5 * w * w - 7 * w + 2.5, rel=1e-14)
    # L_query' = 10 w − 7 and 1 + H/λ = 1 + 5/2, solved exactly by one step in one dimension; further ones stay there.
    expected = (10 * w - 7) / (3.5 if cg_steps else 1.0)
    assert float(found.gradient["w"]) == pytest.approx(expected, rel=1e-13)


def test_conjugate_gradients_solve_in_as_many_steps_as_dimensions() -> None:
    generator = torch.Generator().manual_seed(0)
    root = torch.randn(5, 5, generator=generator, dtype=F64)
    matrix, target = root @ root.T + torch.eye(5, dtype=F64), torch.randn(5, generator=generator, dtype=F64)

    def multiply(vector: Parameters) -> Parameters:
        image = matrix @ torch.cat([vector["a"], vector["b"]])
        return {"a": image[:2], "b": image[2:]}

    errors = []
    for steps in range(6):
        found = conjugate_gradient(multiply, {"a": target[:2], "b": target[2:]}, steps)
        errors.append(float((matrix @ torch.cat([found["a"], found["b"]]) - target).norm()))
    assert errors[5] < 1e-10 < errors[4]
    zeros = conjugate_gradient(multiply, {"a": torch.zeros(2, dtype=F64), "b": torch.zeros(3, dtype=F64)}, 2)
    assert all(value.tolist() == [0.0] * len(value) for value in zeros.values())


@pytest.mark.parametrize(
    ("diagonal", "expected"),
    [
        ((-1.0, 2.0), 2.0),  # (1, 1) has 1, its square is 2: a step of 2 / 1; then (12, 6) has -72
        ((-1.0, 1.0), 1.0),  # (1, 1) has 0: the target as it is
        ((-3.0, 1.0), 1.0),
    ],
)
def test_no_step_is_taken_along_a_direction_that_bends_down(diagonal: Any, expected: float) -> None:
    matrix, target = torch.tensor(diagonal, dtype=F64), {"a": torch.ones(2, dtype=F64)}
    for steps in (1, 2, 5):
        found = conjugate_gradient(lambda vector: {"a": matrix * vector["a"]}, target, steps)
        assert found["a"].tolist() == [expected] * 2


@pytest.mark.usefixtures("gradients")
def test_products_with_a_hessian() -> None:
    """Of a² b + b + 7: a parameter that the loss does not use has zeros, and all of a constant are zeros."""
    at = {"a": torch.tensor(2.0, dtype=F64), "b": torch.tensor(3.0, dtype=F64), "c": torch.ones(2, dtype=F64)}
    along = {"a": torch.tensor(1.0, dtype=F64), "b": torch.tensor(10.0, dtype=F64), "c": torch.ones(2, dtype=F64)}
    with torch.no_grad():
        product = hessian_product(lambda p: p["a"] ** 2 * p["b"] + p["b"] + 7, at)
        for scale in (1.0, 2.0):  # as often as one likes
            found = product({name: scale * value for name, value in along.items()})
            assert float(found["a"]) == scale * (2 * 3 * 1 + 2 * 2 * 10)
            assert float(found["b"]) == scale * 2 * 2 * 1
            assert found["c"].tolist() == [0.0, 0.0]
        flat = hessian_product(lambda p: p["b"] + 7 * p["c"].sum(), at)(along)
        assert all(not value.any() for value in flat.values())
    assert not any(value.requires_grad for value in (*found.values(), *at.values()))


@pytest.mark.parametrize(
    ("settings", "field"),
    [
        ({"strength": 0.0}, "strength"),
        ({"damping": -1.0}, "damping"),
        ({"inner_lr": -1.0}, "inner_lr"),
        ({"inner_steps": 0}, "inner_steps"),
        ({"eval_steps": -1}, "eval_steps"),
        ({"cg_steps": -1}, "cg_steps"),
    ],
)
def test_impossible_settings_are_refused(settings: dict[str, Any], field: str) -> None:
    with pytest.raises(UserError, match=f"^{field}: got"):
        ImamlConfig(**settings)
