"""The hidden `--fault` option: kills an actor at a named place, to show that a run survives it."""

from __future__ import annotations

from metadist.errors import UserError
from metadist.testing.faults import KillOnce


def parse_fault(text: str) -> KillOnce:
    """A fault from `POINT@VERSION:MARKER`, for example `computed@17:/tmp/marker`.

    The first actor that comes to the point at the version makes the file MARKER and kills itself.
    """
    point, at, rest = text.partition("@")
    version, colon, marker = rest.partition(":")
    if not at or not colon or not version.isdigit() or not marker:
        raise UserError("--fault", text, "POINT@VERSION:MARKER")
    return KillOnce(point, int(version), marker)
