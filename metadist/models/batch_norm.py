"""Batch normalisation by torch's kernels, with its second derivative, over many tasks at once.

With n = (x − μ) ρ, ρ = 1 / √(σ² + ε) and means over the M rows and positions of a channel, y = γ n + β. For a gradient
g by y, ∂β = Σ g and ∂γ = Σ g n, and

    ∂x = γ B(g),    B(g) = ρ (g − ∂β / M − n ∂γ / M)

which torch computes in one go. Their derivatives, for cotangents h of ∂x, u of ∂γ and v of ∂β, follow from n and ρ as
functions of x; B is its own transpose, so that the same kernel gives γ B(h) with p = Σ h n and q = Σ h.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
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
        one = _together((x, weight, bias), axes, info.batch_size)
        return _apart(_Normalize.apply(*one, eps), info.batch_size)


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
        return *_SecondGradient.apply(h, u, v, *ctx.saved_tensors, ctx.eps), None, None, None

    @staticmethod
    def vmap(info: Any, axes: Any, *inputs: Any) -> Any:
        one = _together(inputs[:-1], axes, info.batch_size)
        return _apart(_Gradient.apply(*one, inputs[-1]), info.batch_size)


class _SecondGradient(torch.autograd.Function):
    """Derivatives by g, x and γ, of (h, u, v) and what `_Gradient` had and gave."""

    @staticmethod
    def forward(
        h: Tensor,
        u: Tensor,
        v: Tensor,
        g: Tensor,
        x: Tensor,
        weight: Tensor,
        mean: Tensor,
        scale: Tensor,
        by_weight: Tensor,
        by_bias: Tensor,
        eps: float,
    ) -> Any:
        count = x.numel() // x.shape[1]
        by_gradient, p, q = _kernel(h, x, weight, mean, scale, eps)
        inner = (h * g).sum((0, 2, 3), dtype=scale.dtype)  # [channels], as all that follows but the last few lines
        by_gamma = scale * (inner - (q * by_bias + p * by_weight) / count)
        # ∂/∂n is a h + b g; through B, and ρ's own part, that is c h + d g + e x + f.
        a, b = -weight * scale * by_weight / count, u - weight * scale * p / count
        e = -scale * scale * (a * p + b * by_weight + weight * by_gamma) / count
        f = -scale * (a * q + b * by_bias) / count - e * mean
        by_x = _affine(_affine(_affine(f, x, e), h, scale * a), g, scale * b)
        shift = _affine(v - u * scale * mean, x, u * scale)
        return by_gradient + shift, by_x, by_gamma

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, *_: Tensor) -> Any:
        raise RuntimeError("a third derivative of this batch normalisation is not there")

    @staticmethod
    def vmap(info: Any, axes: Any, *inputs: Any) -> Any:
        one = _together(inputs[:-1], axes, info.batch_size)
        return _apart(_SecondGradient.apply(*one, inputs[-1]), info.batch_size)


def _together(parts: Sequence[Tensor], axes: Sequence[int | None], tasks: int) -> Iterator[Tensor]:
    """Of all tasks: images [n, channels, height, width] folded, and what is by channel stacked."""
    return ((fold if part.dim() >= 4 else stack)(part, axis, tasks) for part, axis in zip(parts, axes, strict=False))


def _apart(parts: Sequence[Tensor], tasks: int) -> tuple[tuple[Tensor, ...], tuple[int, ...]]:
    """The same by task again, and the dimension of the tasks in each."""
    axes = tuple(1 if part.dim() == 4 else 0 for part in parts)
    return tuple(torch.unflatten(part, axis, (tasks, -1)) for part, axis in zip(parts, axes, strict=True)), axes


def _affine(shift: Tensor, x: Tensor, factor: Tensor) -> Tensor:
    """shift + factor · x, where `factor` is by channel and `shift` too, or as `x`."""
    start = shift[:, None, None] if shift.dim() == 1 else shift
    return torch.addcmul(start.to(x.dtype), x, factor[:, None, None].to(x.dtype))
