"""How models of sequences read their inputs: an image is the sequence of its rows."""

from __future__ import annotations

from torch import Tensor

from metadist.errors import UserError


def sequence_shape(kind: str, input_shape: tuple[int, ...]) -> tuple[int, int]:
    """(steps, values a step) of inputs of shape [steps], [steps, values] or [channels, height, width].

    Raises:
        UserError: the inputs have more dimensions.
    """
    if len(input_shape) == 3:
        channels, height, width = input_shape
        return height, channels * width
    if len(input_shape) > 3:
        raise UserError("model.kind", kind, f"a model for inputs of shape {list(input_shape)}", "Use mlp.")
    return input_shape[0], input_shape[1] if len(input_shape) == 2 else 1


def as_sequence(x: Tensor) -> Tensor:
    """Inputs [n, …] as sequences [n, steps, values]."""
    if x.dim() == 4:
        return x.transpose(1, 2).flatten(2)
    return x if x.dim() == 3 else x.unsqueeze(-1)
