"""From the bytes of an image file to the pixels of a store."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from metadist.errors import UserError

if TYPE_CHECKING:
    from PIL.Image import Image

    from metadist.data.sources.base import Example

#: The most bytes that an image file may have.
MAX_FILE_BYTES = 64 << 20
#: The most pixels an image may have before it is decoded.
MAX_PIXELS = 64_000_000

# PIL goes by content, not by name. Its PostScript reader runs an outside program: nothing else is let in.
_FORMATS = ("PNG", "JPEG", "BMP", "GIF", "TIFF", "WEBP", "PPM")
_GREY_MODES = ("1", "L", "LA", "La", "I", "F")


class BadImage(Exception):
    """An image that cannot be decoded; skipped or reported by `prepare`."""


def open_image(data: bytes, name: str) -> Image:
    """The image in `data`, header only: pixels are decoded when they are asked for.

    Raises:
        BadImage: the image has more than `MAX_PIXELS` pixels.
        OSError, ValueError, SyntaxError and others: whatever PIL raises for broken data.
    """
    from PIL import Image

    try:
        image = Image.open(io.BytesIO(data), formats=_FORMATS)
    except Image.DecompressionBombError as error:
        raise BadImage(f"more than {MAX_PIXELS} pixels") from error
    width, height = image.size
    if width * height > MAX_PIXELS:
        raise BadImage(f"{width}×{height} pixels, more than {MAX_PIXELS}")
    return image


def load_image(example: Example) -> Image:
    """The decoded image of an example.

    Raises:
        BadImage: the data cannot be decoded.
        UserError: the file cannot be read at all; that is no fault of the image, and skipping would hide it.
    """
    try:
        image = example.load()
        image.load()
    except (BadImage, UserError, MemoryError):
        raise
    except OSError as error:
        # PIL's own errors are OSErrors too, but only the system's have a number.
        if error.errno is not None:
            raise UserError(example.name, error.strerror, "a file that can be read", "") from error
        raise BadImage(str(error)) from error
    except Exception as error:  # parsers of a dozen formats raise anything: struct.error, SyntaxError, zlib.error, …
        raise BadImage(f"{type(error).__name__}: {error}") from error
    return image


def is_grey(image: Image) -> bool:
    """Whether an image is stored without colour. One with a palette counts as coloured."""
    return image.mode in _GREY_MODES or image.mode.startswith("I;16")


def to_pixels(image: Image, channels: int, size: int | None, invert: bool) -> npt.NDArray[np.uint8]:
    """The pixels of a decoded image: uint8 [channels, height, width].

    Transparency is laid on white, 16-bit greys keep their upper 8 bits. Then the image is made grey (luma of
    ITU-R 601) or RGB, resized, and inverted, in this order.

    Args:
        image: as `load_image` gives it.
        channels: 1 or 3.
        size: side in pixels of the square to which it is resized (Lanczos, antialiased); None keeps its size.
        invert: whether p becomes 255 - p.
    """
    from PIL import Image

    if image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PNG"):
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    elif image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        over = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", over.size, (255, 255, 255, 255)), over)
    # Bits become greys before resizing: a filter cannot blend bits.
    image = image.convert("L" if channels == 1 else "RGB")
    if size is not None and image.size != (size, size):
        image = image.resize((size, size), Image.Resampling.LANCZOS)
    pixels = np.asarray(image, dtype=np.uint8)
    pixels = pixels[None] if channels == 1 else pixels.transpose(2, 0, 1)
    return np.ascontiguousarray(255 - pixels if invert else pixels)
