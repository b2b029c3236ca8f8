"""Rematerialisation: inner steps that are computed again in the backward pass instead of being kept.

A step θₖ → θₖ₊₁ that takes a gradient leaves the graph of that gradient behind for the second derivative, and K
steps leave K graphs. Here a step leaves nothing but θₖ, its inner iterate. The backward pass is then a reverse
sweep over the iterates, with one step taken again and one vector-Jacobian product for each:

    λ_K = ∂L_query/∂θ_K,    λₖ = (∂θₖ₊₁/∂θₖ)ᵀ λₖ₊₁

One graph is alive at a time; the price is that every step is taken twice. (`torch.utils.checkpoint` does the same
for layers, but refuses `torch.func.grad`.)
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from metadist.learners.gradient import Parameters, functional_gradients, uses_functional_gradients
from metadist.models.operations import operations
from metadist.tasks import Examples

#: an inner step: weights before it, the weights at the start and the support set in; weights after it out
Step = Callable[[Parameters, Parameters, Examples], Parameters]


def rematerialized(step: Step) -> Step:
    """`step` with the same result and the same derivative, without a graph of its own.

    Args:
        step: a pure function. It is called again in the backward pass, and its derivative is taken by the two groups
            of weights that it is given only: not by the support set, nor by anything that it closes over.
    """

    def run(weights: Parameters, start: Parameters, support: Examples) -> Parameters:
        names, count = tuple(weights), len(weights)

        def flat(x: Tensor, y: Tensor, *values: Tensor) -> tuple[Tensor, ...]:
            at = dict(zip(names, values[:count], strict=True))
            stepped = step(at, dict(zip(start, values[count:], strict=True)), Examples(x, y, support.ways))
            return tuple(stepped[name] for name in names)

        pullback = _pullback
        if uses_functional_gradients():
            pullback = functools.partial(_vectorizable_pullback, operations() == "folded")
        tensors = (support.x, support.y, *weights.values(), *start.values())
        return dict(zip(names, _Rematerialized.apply(flat, pullback, *tensors), strict=True))

    return run


class _Rematerialized(torch.autograd.Function):
    # The batched form is derived from forward and backward: both are made of what `torch.func.vmap` can batch.
    generate_vmap_rule = True

    @staticmethod
    def forward(flat: Any, pullback: Any, x: Tensor, y: Tensor, *values: Tensor) -> Any:
        return flat(x, y, *values)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        ctx.flat, ctx.pullback, *tensors = inputs
        ctx.save_for_backward(*tensors)

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor) -> Any:
        x, y, *values = ctx.saved_tensors
        return None, None, None, None, *ctx.pullback(lambda *at: ctx.flat(x, y, *at), values, cotangents)


def _pullback(step: Callable[..., Any], values: list[Tensor], cotangents: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """The vector-Jacobian product of `step` at `values`, by plain autograd."""
    leaves = [value.detach().requires_grad_() for value in values]
    with torch.enable_grad():
        stepped = step(*leaves)
    return torch.autograd.grad(stepped, leaves, cotangents, materialize_grads=True)


def _vectorizable_pullback(
    folded: bool, step: Callable[..., Any], values: list[Tensor], cotangents: tuple[Tensor, ...]
) -> tuple[Tensor, ...]:
    """The same by `torch.func`, for many tasks at once."""
    with functional_gradients(folded):  # autograd may run this in a thread of the device's own, where it is not set
        pull = torch.func.vjp(step, *values)[1]
        pulled: tuple[Tensor, ...] = pull(cotangents)
    return pulled
