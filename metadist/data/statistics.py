"""Mean and standard deviation of the pixels of some classes, exact and the same on every machine."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from metadist.data.store import ClassStore

# Pixels a step: the squares of a step take two bytes a pixel.
_BLOCK = 1 << 20
_MIN_SD = 1e-6


def pixel_statistics(store: ClassStore, class_numbers: Iterable[int]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of pixels / 255 in each channel, over all examples of the given classes.

    Sums are of whole numbers, so neither the order of the classes nor the size of a step changes a bit of the
    result. A class given twice counts once. The standard deviation is that of the population, at least 1e-6.

    Returns:
        (means, standard deviations), one number a channel, in units of the pixel range 0..1.

    Raises:
        ValueError: no classes are given.
    """
    channels, height, width = store.shape
    area = height * width
    step = max(1, _BLOCK // (channels * area))
    total, squares = [0] * channels, [0] * channels
    rows = 0
    for number in sorted(set(class_numbers)):
        begin, end = int(store.offsets[number]), int(store.offsets[number + 1])
        rows += end - begin
        for start in range(begin, end, step):
            block = store.pixels[start : min(end, start + step)]
            # 255² fits in 16 bits; the sums of a step fit in 64 by far, and Python's integers hold the rest.
            square = np.square(block, dtype=np.uint16)
            for channel in range(channels):
                total[channel] += int(block[:, channel].sum(dtype=np.uint64))
                squares[channel] += int(square[:, channel].sum(dtype=np.uint64))
    if rows == 0:
        raise ValueError("pixel_statistics needs at least one class")
    count = rows * area
    means = tuple(t / (count * 255) for t in total)
    # n Σp² - (Σp)² is exact and never negative, unlike E[p²] - E[p]² in floating point.
    variances = [(count * s - t * t) / (count * count * 255 * 255) for t, s in zip(total, squares, strict=True)]
    return means, tuple(max(_MIN_SD, variance**0.5) for variance in variances)
