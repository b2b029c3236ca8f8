"""The inner gradient: one name for learners, one implementation per execution strategy."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch
from torch import Tensor

from metadist.models import using_operations

Parameters = dict[str, Tensor]

_functional: ContextVar[bool] = ContextVar("functional", default=False)


@contextmanager
def functional_gradients(folded: bool = False) -> Iterator[None]:
    """Within, `inner_gradient` uses `torch.func.grad`, which can be vectorised over tasks.

    Args:
        folded: whether models fold the tasks (`metadist.models.operations`), which pays where their operations are
            captured; otherwise they use plain operations.
    """
    token = _functional.set(True)
    try:
        with using_operations("folded" if folded else "plain"):
            yield
    finally:
        _functional.reset(token)


def uses_functional_gradients() -> bool:
    """Whether this is within `functional_gradients`."""
    return _functional.get()


def inner_gradient(loss: Callable[[Parameters], Tensor], parameters: Parameters) -> Parameters:
    """Gradient of a scalar `loss` at `parameters`, by name.

    The result depends differentiably on `parameters` when one of them requires a gradient (the second
    derivative of MAML); detach them for a first-order method. A parameter that the loss does not use
    has a gradient of zeros.
    """
    return inner_gradient_and_loss(loss, parameters)[0]


def inner_gradient_and_loss(loss: Callable[[Parameters], Tensor], parameters: Parameters) -> tuple[Parameters, Tensor]:
    """The same, with the loss itself."""
    if uses_functional_gradients():
        found: tuple[Parameters, Tensor] = torch.func.grad_and_value(loss)(parameters)
        return found
    outer = torch.is_grad_enabled() and any(value.requires_grad for value in parameters.values())
    if not outer:
        parameters = {name: value.detach().requires_grad_() for name, value in parameters.items()}
    with torch.enable_grad():
        value = loss(parameters)
    values = torch.autograd.grad(value, tuple(parameters.values()), create_graph=outer, materialize_grads=True)
    return dict(zip(parameters, values, strict=True)), value if outer else value.detach()


def hessian_product(loss: Callable[[Parameters], Tensor], parameters: Parameters) -> Callable[[Parameters], Parameters]:
    """The Hessian of a scalar `loss` at `parameters`, as what it multiplies a vector (by name) with.

    The gradient is taken once; each product is one pass back through it. No derivative is taken of the products.
    """
    if uses_functional_gradients():
        pull = torch.func.vjp(torch.func.grad(loss), parameters)[1]  # the matrix is symmetric
        return lambda vector: pull(vector)[0]
    leaves = {name: value.detach().requires_grad_() for name, value in parameters.items()}
    with torch.enable_grad():
        inputs = tuple(leaves.values())
        gradient = torch.autograd.grad(loss(leaves), inputs, create_graph=True, materialize_grads=True)
    # A parameter that the loss does not use, or is linear in, has a gradient without a graph.
    bent = [number for number, value in enumerate(gradient) if value.requires_grad]

    def product(vector: Parameters) -> Parameters:
        along = tuple(vector.values())
        values = torch.autograd.grad(
            [gradient[number] for number in bent],
            inputs,
            [along[number] for number in bent],
            retain_graph=True,
            materialize_grads=True,
        )
        return dict(zip(leaves, values, strict=True))

    return product
