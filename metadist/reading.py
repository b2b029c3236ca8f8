"""Reads what anybody may have written: files of a bounded size, and JSON.

A leaf of the package, as `errors` is: every layer may import it.
"""

from __future__ import annotations

import json
import os
from typing import Any

from metadist.errors import UserError

#: bytes of a JSON file that are read
MOST_JSON = 1 << 25


def read_bounded(path: str | os.PathLike[str], most: int) -> bytes:
    """The content of a file.

    Raises:
        OSError: it cannot be read.
        UserError: it has more than `most` bytes, of which no more were read.
    """
    try:
        with open(path, "rb") as file:
            data = file.read(most + 1)
    except ValueError as error:  # a path that no system takes, with a zero byte say
        raise OSError(None, str(error)) from error
    check_size(data, most, str(path))
    return data


def check_size(data: bytes, most: int, place: str) -> None:
    """Raise `UserError` for more than `most` bytes."""
    if len(data) > most:
        raise UserError(place, f"more than {most} bytes", "a file of a sensible size", "It is none of metadist's.")


def parse_json(text: bytes | str) -> Any:
    """The value in a JSON text.

    Raises:
        ValueError: it is not JSON.
    """
    try:
        return json.loads(text)
    except RecursionError as error:
        raise ValueError("too many brackets within brackets") from error
