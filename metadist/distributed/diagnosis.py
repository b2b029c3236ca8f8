"""Checks of everything that a run needs: each says what it found and, if that is not well, what to do.

A check is a function that returns `Finding`s. One that fails is itself a problem, and none may take for ever.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from metadist.errors import UserError

State = Literal["ok", "warning", "problem"]
#: seconds that one check, and all of them together, may take
EACH, ALL = 90.0, 180.0


@dataclass(frozen=True)
class Finding:
    """What a check found.

    Attributes:
        name: what was looked at.
        state: "problem" if runs will fail, "warning" if they may, or will be worse than they could be.
        found: what there is.
        advice: what to do about it; empty when all is well.
    """

    name: str
    state: State
    found: str
    advice: str = ""


Check = Callable[[], Finding | Iterable[Finding]]


def examine(checks: Sequence[tuple[str, Check]], each: float = EACH, total: float = ALL) -> Iterator[Finding]:
    """The findings of all checks, in order, as they come.

    Args:
        checks: with the name under which a failure is reported.
        each: seconds that one check may take.
        total: seconds that all may take; those that are left then are problems.
    """
    end = time.monotonic() + total
    for name, check in checks:
        left = min(each, end - time.monotonic())
        if left <= 0:
            yield Finding(name, "problem", f"not looked at: {total:g} s had passed", "See to what took so long above.")
        else:
            yield from _findings(name, check, left)


def _findings(name: str, check: Check, seconds: float) -> list[Finding]:
    """A check's findings: in a thread, because what it asks may hang in a call that knows no time limit."""
    findings: list[Finding] = []
    done = threading.Event()

    def work() -> None:
        try:
            found = check()
            findings.extend([found] if isinstance(found, Finding) else found)
        except Exception as error:  # whatever it is, it is a finding
            findings.append(failure(name, error))
        done.set()

    threading.Thread(target=work, name=f"metadist-{name}", daemon=True).start()
    if not done.wait(seconds):
        return [Finding(name, "problem", f"no answer within {seconds:.0f} s", "Something that it asks hangs.")]
    return findings


def failure(name: str, error: Exception) -> Finding:
    """The finding that a check ended with an error."""
    if isinstance(error, UserError):
        return Finding(
            name, "problem", f"{error.field}: {error.value}", f"Expected {error.expected}. {error.hint}".strip()
        )
    line = (str(error).strip().splitlines() or [""])[0][:300]
    return Finding(name, "problem", f"{type(error).__name__}: {line}", "The check itself failed.")
