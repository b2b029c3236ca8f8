"""Randomness by address: the same key gives the same numbers in any process, in any order."""

from __future__ import annotations

import hashlib

import numpy as np


def generator(*key: str | int) -> np.random.Generator:
    """A counter-based generator (Philox) whose whole state follows from `key`.

    Args:
        key: what the numbers are for, for example `("task", "train", seed, index)`.

    Returns:
        A fresh generator; two calls with equal keys give generators that draw equal numbers.
    """
    digest = hashlib.blake2b("\x1f".join(map(str, key)).encode(), digest_size=16).digest()
    return np.random.Generator(np.random.Philox(key=int.from_bytes(digest, "little")))
