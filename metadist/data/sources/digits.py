"""The 1,797 handwritten digits that come with scikit-learn: 8×8 pixels, nothing to download."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from metadist.data.sources.base import Example, Source
from metadist.errors import UserError

if TYPE_CHECKING:
    from PIL.Image import Image


class DigitsSource(Source):
    """`sklearn:digits`: classes "0" to "9"; scikit-learn's values 0..16 are scaled to 0..255."""

    kind = "sklearn"
    text = "sklearn:digits"
    label = "digits"

    def __init__(self) -> None:
        self._images: Any = None
        self._targets: Any = None

    def fingerprint(self) -> str:
        return self.text

    def class_names(self) -> tuple[str, ...]:
        self._load()
        return tuple(str(digit) for digit in range(10))

    def count(self, name: str) -> int:
        self._load()
        return int((self._targets == int(name)).sum())

    def examples(self, name: str) -> Iterator[Example]:
        self._load()
        for row in np.flatnonzero(self._targets == int(name)):
            yield Example(f"{self.text}[{row}]", partial(_image, self._images[row]))

    def _load(self) -> None:
        if self._images is None:
            try:
                from sklearn.datasets import load_digits
            except Exception as error:
                raise UserError(
                    "data.source",
                    self.text,
                    f"a scikit-learn that can be imported ({type(error).__name__}: {error})",
                    "Install it (pip install scikit-learn), or name a folder or zip of class folders.",
                ) from error
            digits = load_digits()
            self._images = np.rint(digits.images * (255.0 / 16.0)).astype(np.uint8)
            self._targets = digits.target


def _image(pixels: Any) -> Image:
    from PIL import Image

    return Image.fromarray(pixels)
