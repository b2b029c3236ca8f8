"""`precision: bf16`: what is rounded, and what is not."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from metadist.learners import Learner
from metadist.outer import check_strategy, compute_meta_gradient
from metadist.outer.strategy import relative_difference
from tests.numerics.conftest import LEARNERS, in_float32

STRATEGIES = ("loop", "vectorized", "captured")


class Seen(TorchDispatchMode):
    """Notes in what precision convolutions and their derivatives are computed."""

    def __init__(self) -> None:
        super().__init__()
        self.kinds: set[torch.dtype] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in (torch.ops.aten.convolution.default, torch.ops.aten.convolution_backward.default):
            self.kinds.update(value.dtype for value in args[:3] if value is not None)
        return func(*args, **(kwargs or {}))


def lowered(learner: Learner) -> Learner:
    """The learner in bfloat16."""
    low = copy.deepcopy(learner)
    low.network = replace(low.network, precision="bf16")
    if hasattr(low, "relation"):
        low.relation = replace(low.relation, precision="bf16")
    if hasattr(low, "student"):
        low.student = lowered(low.student)
    for expert in getattr(low, "experts", ()):
        expert.learner = lowered(expert.learner)
    return low


CASES = [(name, kind, "batch") for name in LEARNERS for kind in ("conv", "mlp") if "concat" not in name]
CASES.append(("cavia-concat-2", "mlp", "none"))


# The dense solves of iMAML blow up what is rounded.
@pytest.mark.parametrize(("name", "kind", "norm"), [case for case in CASES if case[0][:7] != "imaml-d"])
def test_every_learner_in_every_strategy(setting: Callable, name: str, kind: str, norm: str) -> None:
    learner, meta, batch = setting(name, kind, norm)
    meta, batch = in_float32(meta, batch)
    full = compute_meta_gradient(learner, meta, batch, "loop")
    for strategy in STRATEGIES[:2] if "imaml" in name else STRATEGIES:  # whose products cannot be captured
        low = compute_meta_gradient(lowered(learner), meta, batch, strategy)
        assert all(value.dtype == torch.float32 for value in (*low.gradient.values(), *low.statistics.values()))
        assert all(value.dtype == torch.float32 for value in meta.parameters.values())
        assert 1e-6 < relative_difference(full, low) < 0.5
        assert float(low.loss) == pytest.approx(float(full.loss), rel=0.05)


@pytest.mark.parametrize("strategy", ["loop", "captured"])
def test_convolutions_and_their_derivatives_are_computed_in_it(setting: Callable, strategy: str) -> None:
    learner, meta, batch = setting("maml-3", "conv", "batch")
    meta, batch = in_float32(meta, batch)
    for which, kinds in ((learner, {torch.float32}), (lowered(learner), {torch.bfloat16})):
        compute_meta_gradient(which, meta, batch, strategy)  # what is captured is run the second time
        with Seen() as seen:
            compute_meta_gradient(which, meta, batch, strategy)
        assert seen.kinds == kinds


@pytest.mark.parametrize("rule", ["vectorized", "captured"])
def test_the_check_before_the_first_step_is_exact(setting: Callable, rule: str) -> None:
    learner, meta, batch = setting("maml-3", "conv", "batch")
    found = check_strategy(lowered(learner), *in_float32(meta, batch), rule, "the rule")
    assert (found.strategy, found.reason) == (rule, "the rule")
    assert found.difference < 1e-11
