"""What a case may end in: success, a `UserError`, or a run that would begin."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from metadist.errors import UserError


class Begun(Exception):
    """Raised in the place of a run that would have begun."""


def begin(*_: Any, **__: Any) -> Any:
    """Stands where a run begins."""
    raise Begun


def settles(action: Callable[[], object]) -> None:
    """Does it; all but success, a `UserError` of moderate length and `Begun` is passed on."""
    mistake = None
    try:
        action()
    except Begun:
        pass
    except UserError as error:
        mistake = error
    assert mistake is None or (mistake.field and len(str(mistake)) < 5000)
