"""Which parameters the inner loop changes: task-specific layers among those that all tasks share."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable, Sequence

from metadist.learners.gradient import Parameters

#: before a pattern of names that stay as they are
NOT = "!"


def matches(name: str, patterns: Iterable[str]) -> bool:
    """Whether a name is one of `patterns` (`head.*`)."""
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)


def adapting(parameters: Parameters, patterns: Sequence[str]) -> Parameters:
    """The parameters whose names match one of `patterns`, and none of those after a `!`.

    Examples: `head.*` is ANIL's, `* !head.*` BOIL's, `head.* *.film.*` the head and the scales and shifts of FiLM.
    """
    left_out = [pattern.removeprefix(NOT) for pattern in patterns if pattern.startswith(NOT)]
    wanted = [pattern for pattern in patterns if not pattern.startswith(NOT)]
    return {n: value for n, value in parameters.items() if matches(n, wanted) and not matches(n, left_out)}
