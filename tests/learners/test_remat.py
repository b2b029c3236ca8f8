"""Steps taken again in the backward pass: the same gradients, in memory that hardly grows with their number."""

from __future__ import annotations

import weakref
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from metadist.learners import Maml, MamlConfig, Meta, Network
from metadist.learners.gradient import Parameters, functional_gradients
from metadist.learners.remat import Step, rematerialized
from metadist.models import Conv4, Conv4Config
from metadist.outer import compute_meta_gradient
from metadist.tasks import Examples, Task

torch.set_num_threads(1)
WAYS, TASKS = 3, 2


class Live(TorchDispatchMode):
    """Counts the bytes of all tensors that operations make and that are still alive; `peak` is the most there were."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._known: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(made):
            if isinstance(tensor, Tensor):
                self._add(tensor.untyped_storage())
        return made

    def _add(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key in self._known:
            return
        self._known.add(key)
        self.now += size
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._drop, key, size)

    def _drop(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.now -= size


def setting(**learner: Any) -> tuple[Maml, Meta, Task]:
    """A small convolutional net on tasks of images; activations weigh more than weights, as in the papers."""
    model = Conv4(Conv4Config(width=8, layers=2, norm="batch"), (1, 16, 16), WAYS)
    maml = Maml(MamlConfig(inner_lr=0.1, **learner), Network(model, "kaiming", "cross_entropy"))
    meta = maml.init(torch.Generator().manual_seed(0))
    generator = torch.Generator().manual_seed(1)
    rows = 2 * WAYS
    y = torch.arange(WAYS).repeat(TASKS, 2)
    parts = (Examples(torch.randn((TASKS, rows, 1, 16, 16), generator=generator), y, WAYS) for _ in range(2))
    return maml, meta, Task(*parts)


def peak(strategy: str, **learner: Any) -> int:
    maml, meta, batch = setting(**learner)
    if strategy == "captured":
        compute_meta_gradient(maml, meta, batch, strategy)  # writes it down, which takes more
    with Live() as live:
        compute_meta_gradient(maml, meta, batch, strategy)
    return live.peak


@pytest.mark.parametrize("first_order", [False, True])
@pytest.mark.parametrize("strategy", ["loop", "vectorized", "captured"])
def test_gives_the_same_gradients_in_fp32(strategy: str, first_order: bool) -> None:
    found = []
    for remat in (False, True):
        maml, meta, batch = setting(inner_steps=5, first_order=first_order, remat=remat)
        found.append(compute_meta_gradient(maml, meta, batch, strategy))
    plain, again = (torch.cat([value.flatten() for value in one.gradient.values()]) for one in found)
    assert float((again - plain).norm() / plain.norm()) < 1e-6
    assert torch.equal(found[0].loss, found[1].loss)


@pytest.mark.parametrize("strategy", ["loop", "vectorized", "captured"])
def test_memory_hardly_grows_with_the_steps(strategy: str) -> None:
    growth = [peak(strategy, inner_steps=10, remat=r) - peak(strategy, inner_steps=2, remat=r) for r in (False, True)]
    _, meta, _ = setting()
    at_a_time = 1 if strategy == "loop" else TASKS
    iterates = 8 * at_a_time * sum(value.nbytes for value in meta.parameters.values())
    # The weights of a step and the loss: nothing of the size of an activation.
    assert growth[1] <= 1.1 * iterates
    assert growth[0] > 10 * growth[1]
    assert peak(strategy, inner_steps=10, remat=True) < 0.4 * peak(strategy, inner_steps=10)


@pytest.mark.parametrize("strategy", ["loop", "vectorized"])
def test_first_order_keeps_no_graph_anyway(strategy: str) -> None:
    ours = [peak(strategy, inner_steps=10, first_order=True, remat=remat) for remat in (False, True)]
    assert ours[0] == ours[1]
    assert ours[0] < 0.4 * peak(strategy, inner_steps=10)


def test_takes_every_step_twice_and_no_oftener() -> None:
    calls: list[str] = []

    def step(weights: Parameters, start: Parameters, support: Examples) -> Parameters:
        calls.append("step")
        return {name: value * value + support.x.sum() for name, value in weights.items()}

    _three_steps(rematerialized(step), calls)
    assert calls == ["step"] * 3 + ["backward"] + ["step"] * 3


@pytest.mark.parametrize("functional", [False, True])
def test_is_the_derivative_of_the_step(functional: bool) -> None:
    def step(weights: Parameters, start: Parameters, support: Examples) -> Parameters:
        a, b = weights.values()
        return {
            "a": a * start["b"] + a * (b - start["b"]),
            "b": b + support.x.sum(),
        }

    plain = _three_steps(step, [])
    if functional:
        with functional_gradients():
            again = _three_steps(rematerialized(step), [])
    else:
        again = _three_steps(rematerialized(step), [])
    # a₃ = a b (b + 1) (b + 2) with a = b = 2
    assert plain == again == (24.0, 52.0)


def _three_steps(step: Step, calls: list[str]) -> tuple[float, ...]:
    support = Examples(torch.ones(1), torch.zeros(1), 0)
    start = {name: torch.tensor(2.0, dtype=torch.float64, requires_grad=True) for name in "ab"}
    weights = start
    for _ in range(3):
        weights = step(weights, start, support)
    calls.append("backward")
    return tuple(map(float, torch.autograd.grad(weights["a"], tuple(start.values()))))
