"""The one error a user's mistake ends in.

A leaf of the package: every layer may import it, it imports nothing.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable

#: characters of each part of a message: it must not print a whole file
MOST_SHOWN = 1000


class UserError(ValueError):
    """A mistake that the user can mend: what is wrong, where, and what to do.

    Args:
        field: dotted path of the job's field, a file's path, or a command-line option.
        value: what was found there.
        expected: what would have been right, as a clause ("a whole number of at least 1").
        hint: what to do about it, as a sentence; may be empty.
    """

    def __init__(self, field: str, value: object, expected: str, hint: str = "") -> None:
        self.field, self.value, self.expected, self.hint = field, value, expected, hint
        where = field if field.isprintable() else repr(field)  # a path may have anything
        where, shown, expected, hint = map(_clipped, (where, repr(value), expected, hint))
        super().__init__(f"{where}: got {shown}, expected {expected}." + (f" {hint}" if hint else ""))

    def __reduce__(self) -> tuple[type[UserError], tuple[str, object, str, str]]:
        return type(self), (self.field, self.value, self.expected, self.hint)


def _clipped(text: str) -> str:
    return text if len(text) <= MOST_SHOWN else f"{text[:MOST_SHOWN]}…"


def nearest(name: str, valid: Iterable[str]) -> str:
    """A "Did you mean …?" sentence for the valid name nearest to `name`, or an empty string."""
    close = difflib.get_close_matches(name, list(valid), n=1, cutoff=0.5)
    return f"Did you mean {close[0]!r}?" if close else ""
