"""Convolution whose derivatives are convolutions, to any order, over many tasks at once.

A convolution y = x ∗ w is linear in x and in w. So are its two derivatives, and the derivatives of those are the same
three operations again:

    y = C(x, w),    ∂x = X(∂y, w),    ∂w = W(∂y, x)

torch's own second derivative goes through its groups, and vectorised over tasks with weights of their own there is one
group per task, one after the other.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from metadist.models.operations import autocast, fold, operations

_Ints = tuple[int, ...]


@dataclass(frozen=True)
class _Geometry:
    """How the windows of a convolution lie; `inputs` and `kernel` are sizes in height and width."""

    stride: int
    padding: int
    inputs: _Ints
    kernel: _Ints
    groups: int = 1

    def repeated(self, times: int) -> _Geometry:
        return _Geometry(self.stride, self.padding, self.inputs, self.kernel, self.groups * times)

    def transposed(self, gradient: Tensor, x: Tensor, weight: Tensor, wanted: tuple[bool, bool]) -> Tensor:
        pair = [self.stride] * 2, [self.padding] * 2, [1, 1], False, [0, 0], self.groups
        both = torch.ops.aten.convolution_backward(gradient, x, weight, None, *pair, [*wanted, False])
        out: Tensor = both[wanted.index(True)]
        return out


def _channels_last(*tensors: Tensor) -> Iterator[Tensor]:
    return (tensor.contiguous(memory_format=torch.channels_last) for tensor in tensors)


def _empty(like: Tensor, shape: _Ints) -> Tensor:
    """Only its shape and layout, channels last, are looked at."""
    return like.new_empty((shape[0], *shape[2:], shape[1])).movedim(-1, 1)


def _stack_weights(weight: Tensor, axis: int | None, tasks: int) -> Tensor:
    """[outputs, inputs, …] of T tasks at dimension `axis` (`None`: the same for all) as [T · outputs, inputs, …]."""
    batched = weight.expand(tasks, *weight.shape) if axis is None else weight.movedim(axis, 0)
    return batched.movedim(2, -1).flatten(0, 1).movedim(-1, 1)


class _Convolve(torch.autograd.Function):
    """C(x, w)"""

    @staticmethod
    def forward(x: Tensor, weight: Tensor, at: _Geometry) -> Tensor:
        x, weight = _channels_last(x, weight)
        return nn.functional.conv2d(x, weight, None, at.stride, at.padding, 1, at.groups)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.save_for_backward(*inputs[:2])
        ctx.at = inputs[2]

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        x, weight = ctx.saved_tensors
        by_x, by_weight, _ = ctx.needs_input_grad
        return (
            _ByInput.apply(gradient, weight, ctx.at) if by_x else None,
            _ByWeight.apply(gradient, x, ctx.at) if by_weight else None,
            None,
        )

    @staticmethod
    def vmap(info: Any, axes: Any, x: Tensor, weight: Tensor, at: _Geometry) -> tuple[Tensor, int]:
        tasks = info.batch_size
        out = _Convolve.apply(fold(x, axes[0], tasks), _stack_weights(weight, axes[1], tasks), at.repeated(tasks))
        return out.unflatten(1, (tasks, -1)), 1


class _ByInput(torch.autograd.Function):
    """X(g, w)"""

    @staticmethod
    def forward(gradient: Tensor, weight: Tensor, at: _Geometry) -> Tensor:
        gradient, weight = _channels_last(gradient, weight)
        shape = (gradient.shape[0], at.groups * weight.shape[1], *at.inputs)
        x = _empty(gradient, shape)
        return at.transposed(gradient, x, weight, (True, False))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.save_for_backward(*inputs[:2])
        ctx.at = inputs[2]

    @staticmethod
    def backward(ctx: Any, cotangent: Tensor) -> Any:
        gradient, weight = ctx.saved_tensors
        by_gradient, by_weight, _ = ctx.needs_input_grad
        return (
            _Convolve.apply(cotangent, weight, ctx.at) if by_gradient else None,
            _ByWeight.apply(gradient, cotangent, ctx.at) if by_weight else None,
            None,
        )

    @staticmethod
    def vmap(info: Any, axes: Any, gradient: Tensor, weight: Tensor, at: _Geometry) -> tuple[Tensor, int]:
        tasks = info.batch_size
        out = _ByInput.apply(fold(gradient, axes[0], tasks), _stack_weights(weight, axes[1], tasks), at.repeated(tasks))
        return out.unflatten(1, (tasks, -1)), 1


class _ByWeight(torch.autograd.Function):
    """W(g, x)"""

    @staticmethod
    def forward(gradient: Tensor, x: Tensor, at: _Geometry) -> Tensor:
        gradient, x = _channels_last(gradient, x)
        shape = (gradient.shape[1], x.shape[1] // at.groups, *at.kernel)
        weight = _empty(gradient, shape)
        return at.transposed(gradient, x, weight, (False, True))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.save_for_backward(*inputs[:2])
        ctx.at = inputs[2]

    @staticmethod
    def backward(ctx: Any, cotangent: Tensor) -> Any:
        gradient, x = ctx.saved_tensors
        by_gradient, by_x, _ = ctx.needs_input_grad
        return (
            _Convolve.apply(x, cotangent, ctx.at) if by_gradient else None,
            _ByInput.apply(gradient, cotangent, ctx.at) if by_x else None,
            None,
        )

    @staticmethod
    def vmap(info: Any, axes: Any, gradient: Tensor, x: Tensor, at: _Geometry) -> tuple[Tensor, int]:
        tasks = info.batch_size
        out = _ByWeight.apply(fold(gradient, axes[0], tasks), fold(x, axes[1], tasks), at.repeated(tasks))
        return out.unflatten(0, (tasks, -1)), 0


class Convolution(nn.Conv2d):
    """`nn.Conv2d`, folded where tasks are; with one stride and padding for height and width, and nothing else."""

    def forward(self, input: Tensor) -> Tensor:
        input, weight = autocast(input, self.weight)
        if operations() != "folded":
            bias = None if self.bias is None else self.bias.to(weight.dtype)
            out: Tensor = self._conv_forward(input, weight, bias)
            return out
        at = _Geometry(self.stride[0], int(self.padding[0]), tuple(input.shape[2:]), tuple(self.weight.shape[2:]))
        out = _Convolve.apply(input, weight, at)
        return out if self.bias is None else out + self.bias[:, None, None]
