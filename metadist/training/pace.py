"""How long work takes, and which takes far longer: stragglers. What is computed does not depend on it."""

from __future__ import annotations

import math
import statistics
from collections import deque

#: how many times as long as the middle one of the last pieces a piece of work may take
PATIENCE = 2.5
#: seconds that every piece of work may take: less is lost by waiting than by giving it out again
LEAST = 0.1
#: pieces of work that are remembered, and below which none counts as late
WINDOW, ENOUGH = 64, 8


class Pace:
    """The times of the last pieces of work of one kind, in seconds."""

    def __init__(self) -> None:
        self._seconds: deque[float] = deque(maxlen=WINDOW)

    def took(self, seconds: float) -> None:
        """A piece of work was done."""
        self._seconds.append(seconds)

    @property
    def limit(self) -> float:
        """Seconds above which a piece of work is late."""
        if len(self._seconds) < ENOUGH:
            return math.inf
        return max(LEAST, PATIENCE * statistics.median(self._seconds))
