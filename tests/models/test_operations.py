"""Convolution and batch normalisation of many tasks at once, against torch's own and finite differences."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck

from metadist.models import using_operations
from metadist.models.batch_norm import batch_norm
from metadist.models.convolution import Convolution

F64 = torch.float64


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=F64).requires_grad_()


def convolve(kernel: int, stride: int, padding: int) -> Callable[[Tensor, Tensor], Tensor]:
    module = Convolution(2, 3, kernel, stride, padding, bias=False)

    def run(x: Tensor, weight: Tensor) -> Tensor:
        with using_operations("folded"):
            return torch.func.functional_call(module, {"weight": weight}, (x,))

    return run


@pytest.mark.parametrize(("kernel", "stride", "padding"), [(3, 2, 1), (3, 1, 1), (1, 1, 0)])
def test_a_convolution_and_its_derivatives(kernel: int, stride: int, padding: int) -> None:
    run, x, weight = convolve(kernel, stride, padding), random(2, 2, 5, 4), random(3, 2, kernel, kernel, seed=1)
    torch.testing.assert_close(run(x, weight), torch.nn.functional.conv2d(x, weight, None, stride, padding))
    assert gradcheck(run, (x, weight), fast_mode=True)
    assert gradgradcheck(run, (x, weight), fast_mode=True)


def test_batch_normalisation_and_its_derivatives() -> None:
    def run(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return batch_norm(x, weight, bias, 1e-5)

    inputs = random(3, 4, 2, 2), random(4, seed=1), random(4, seed=2)
    torch.testing.assert_close(run(*inputs), torch.nn.functional.batch_norm(inputs[0], None, None, *inputs[1:], True))
    assert gradcheck(run, inputs, fast_mode=True)
    assert gradgradcheck(run, inputs, fast_mode=True)


@pytest.mark.parametrize("axes", [(0, 0, 0), (0, None, None), (None, 0, 0), (2, 1, 0)])
def test_many_tasks_at_once_are_the_same_as_one_by_one(axes: tuple[int | None, ...]) -> None:
    """Values and first derivatives over tasks whose dimension is anywhere; the second are in tests/numerics."""
    run = convolve(3, 2, 1)
    one = random(3, 2, 6, 6), random(3, 2, 3, 3, seed=1), random(3, seed=2)
    many = [
        part if axis is None else torch.stack([part.detach() * scale for scale in (1.0, 1.5)], axis)
        for part, axis in zip(one, axes, strict=True)
    ]

    def cost(x: Tensor, weight: Tensor, scale: Tensor) -> Tensor:
        return batch_norm(run(x, weight), scale, scale, 1e-5).sin().sum()

    each = torch.func.vmap(torch.func.grad_and_value(cost, (0, 1, 2)), axes)(*many)
    for task in range(2):
        at = [part if axis is None else part.select(axis, task) for part, axis in zip(many, axes, strict=True)]
        gradients, value = torch.func.grad_and_value(cost, (0, 1, 2))(*at)
        torch.testing.assert_close(each[1][task], value)
        for found, expected in zip(each[0], gradients, strict=True):
            torch.testing.assert_close(found[task], expected)


def test_a_third_derivative_of_batch_normalisation_is_refused() -> None:
    x, weight, bias = random(3, 4, 2, 2), random(4, seed=1), random(4, seed=2)
    value = batch_norm(x, weight, bias, 1e-5).sin().sum()
    once = torch.autograd.grad(value, x, create_graph=True)[0].square().sum()
    twice = torch.autograd.grad(once, x, create_graph=True)[0].sum()
    assert twice.isfinite()
    with pytest.raises(RuntimeError, match="third derivative"):
        torch.autograd.grad(twice, x)
