"""What models of images ask of their inputs."""

from __future__ import annotations

from metadist.errors import UserError


def image_shape(kind: str, input_shape: tuple[int, ...]) -> tuple[int, int, int]:
    """(channels, height, width) of inputs that must be images.

    Raises:
        UserError: they are not.
    """
    if len(input_shape) != 3:
        raise UserError("model.kind", kind, f"a model for inputs of shape {list(input_shape)}", "Use mlp.")
    channels, height, width = input_shape
    return channels, height, width


def too_small(kind: str, input_shape: tuple[int, ...], least: int) -> UserError:
    """The error for images with fewer than `least` pixels a side."""
    height, width = input_shape[1:]
    expected = f"images of at least {least} pixels a side for {kind}, these are {height}×{width}"
    return UserError("model.kind", kind, expected, "Set a larger data.size, or use conv4.")
