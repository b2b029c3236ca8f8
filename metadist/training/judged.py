"""Scores of a run's last tests, kept in its folder while they come in.

Where the tests take longer than the driver lives, the next one goes on where it was.
"""

from __future__ import annotations

import hashlib
import json
import time
from typing import Any

import numpy as np

from metadist.training.run_folder import JUDGED, RunFolder
from metadist.training.work import EvaluationWork, TaskScores

#: seconds of scores that may be lost: more files would cost more than they save
SECONDS = 1.0


class JudgedTasks:
    """What was judged of one version.

    Args:
        folder: the run's.
        version: what was judged: its number, and the sha of the job's identity.

    Raises:
        UserError: a file in the folder is not as it was written.
    """

    def __init__(self, folder: RunFolder, *version: str | int) -> None:
        self._folder, self._version = folder, version
        self._files = folder.names(JUDGED)
        self._kept: dict[str, Any] = {}
        for name in self._files:
            content = folder.read_json(name)
            self._kept |= content if isinstance(content, dict) else {}
        self._new: dict[str, Any] = {}
        self._written = time.monotonic()

    def _key(self, work: EvaluationWork) -> str:
        return hashlib.sha256(repr((self._version, work)).encode()).hexdigest()

    def find(self, work: EvaluationWork) -> TaskScores | None:
        """The scores of a piece of work, if they were kept."""
        kept = self._kept.get(self._key(work))
        if kept is None:
            return None
        try:
            scores = TaskScores(
                tuple(kept["steps"]),
                np.array(kept["losses"], np.float64),
                *(np.array(kept[name], np.int64) for name in ("correct", "predictions", "labels")),
                figures={name: np.array(values, np.float64) for name, values in kept["figures"].items()},
            )
        except (LookupError, TypeError, ValueError, AttributeError):
            return None  # the file was changed
        arrays = (scores.losses, scores.correct, scores.predictions, scores.labels, *scores.figures.values())
        return scores if all(array.shape[:1] == (work.count,) for array in arrays) else None

    def keep(self, work: EvaluationWork, scores: TaskScores) -> None:
        """Keep the scores of a piece of work."""
        named = {name: getattr(scores, name).tolist() for name in ("losses", "correct", "predictions", "labels")}
        figures = {name: values.tolist() for name, values in scores.figures.items()}
        self._new[self._key(work)] = {"steps": scores.steps, **named, "figures": figures}
        if time.monotonic() - self._written >= SECONDS:
            name = f"{JUDGED}/{len(self._files):06d}.json"
            self._folder.write(name, json.dumps(self._new).encode())
            self._files.append(name)
            self._new, self._written = {}, time.monotonic()
