"""Batch normalisation by torch's kernels, with its second derivative, over many tasks at once.

With n = (x − μ) ρ, ρ = 1 / √(σ² + ε) and means over the M rows and positions of a channel, y = γ n + β. For a gradient
g by y, ∂β = Σ g and ∂γ = Σ g n, and

    ∂x = γ B(g),    B(g) = ρ (g − ∂β / M − n ∂γ / M)

which torch computes in one go. Their derivatives, for cotangents h of ∂x, u of ∂γ and v of ∂β, follow from n and ρ as
functions of x; B is its own transpose, so that the same kernel gives γ B(h) with p = Σ h n and q = Σ h.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from metadist.models.operations import fold, stack


def batch_norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """Each channel of `x` [n, channels, height, width] normalised over rows and positions; to second derivatives.

    Args:
        weight: γ [channels].
        bias: β [channels].
    """
    out: Tensor = _Normalize.apply(x, weight, bias, eps)[0]
    return out


def _kernel(gradient: Tensor, x: Tensor, weight: Tensor, mean: Tensor, scale: Tensor, eps: float) -> Any:
    """(γ B(g), Σ g n, Σ g)"""
    gradient, x = (part.contiguous(memory_format=torch.channels_last) for part in (gradient, x))
    every = [True, True, True]
    return torch.ops.aten.native_batch_norm_backward(gradient, x, weight, None, None, mean, scale, True, eps, every)


class _Normalize(torch.autograd.Function):
    """(y, μ, ρ) of (x, γ, β); μ and ρ are for the derivative only."""

    @staticmethod
    def forward(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Any:
        x = x.contiguous(memory_format=torch.channels_last)
        return torch.native_batch_norm(x, weight, bias, None, None, True, 0.0, eps)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        x, weight, _, ctx.eps = inputs
        ctx.mark_non_differentiable(*output[1:])
        ctx.save_for_backward(x, weight, *output[1:])

    @staticmethod
    def backward(ctx: Any, gradient: Tensor, *_: Any) -> Any:
        return *_Gradient.apply(gradient, *ctx.saved_tensors, ctx.eps), None

    @staticmethod
    def vmap(info: Any, axes: Any, x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Any:
        tasks = info.batch_size
        one = fold(x, axes[0], tasks), stack(weight, axes[1], tasks), stack(bias, axes[2], tasks)
        return _apart(_Normalize.apply(*one, eps), tasks)


class _Gradient(torch.autograd.Function):
    """(∂x, ∂γ, ∂β) of (g, x, γ, μ, ρ)."""

    @staticmethod
    def forward(gradient: Tensor, x: Tensor, weight: Tensor, mean: Tensor, scale: Tensor, eps: float) -> Any:
        return _kernel(gradient, x, weight, mean, scale, eps)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        ctx.eps = inputs[-1]
        ctx.save_for_backward(*inputs[:-1], *output[1:])

    @staticmethod
    def backward(ctx: Any, h: Tensor, u: Tensor, v: Tensor) -> Any:
        g, x, weight, mean, scale, by_weight, by_bias = ctx.saved_tensors
        if torch.is_grad_enabled() and any(part.requires_grad for part in (h, u, v, g, x, weight)):
            # μ and ρ are constants below. (`once_differentiable` does not keep `torch.autograd.grad` from going on.)
            raise RuntimeError("a third derivative of this batch normalisation is not there")
        count = x.numel() // x.shape[1]
        by_gradient, p, q = _kernel(h, x, weight, mean, scale, ctx.eps)
        inner = (h * g).sum((0, 2, 3), dtype=scale.dtype)  # [channels], as all that follows but the last few lines
        by_gamma = scale * (inner - (q * by_bias + p * by_weight) / count)
        # ∂/∂n is a h + b g; through B, and ρ's own part, that is c h + d g + e x + f.
        a, b = -weight * scale * by_weight / count, u - weight * scale * p / count
        e = -scale * scale * (a * p + b * by_weight + weight * by_gamma) / count
        f = -scale * (a * q + b * by_bias) / count - e * mean
        by_x = _affine(_affine(_affine(f, x, e), h, scale * a), g, scale * b)
        shift = _affine(v - u * scale * mean, x, u * scale)
        return by_gradient + shift, by_x, by_gamma, None, None, None

    @staticmethod
    def vmap(info: Any, axes: Any, gradient: Tensor, x: Tensor, *rest: Any) -> Any:
        tasks = info.batch_size
        channels = (stack(part, axis, tasks) for part, axis in zip(rest[:-1], axes[2:], strict=False))
        one = fold(gradient, axes[0], tasks), fold(x, axes[1], tasks), *channels
        return _apart(_Gradient.apply(*one, rest[-1]), tasks)


def _apart(folded: Any, tasks: int) -> Any:
    """A folded tensor and two stacked ones, by task."""
    x, first, second = folded
    return (x.unflatten(1, (tasks, -1)), first.unflatten(0, (tasks, -1)), second.unflatten(0, (tasks, -1))), (1, 0, 0)


def _affine(shift: Tensor, x: Tensor, factor: Tensor) -> Tensor:
    """shift + factor · x, where `factor` is by channel and `shift` too, or as `x`."""
    start = shift[:, None, None] if shift.dim() == 1 else shift
    return torch.addcmul(start.to(x.dtype), x, factor[:, None, None].to(x.dtype))
