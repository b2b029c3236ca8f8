"""The images of one split as an ordinary labelled data set, for supervised training on all its classes at once."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from metadist.errors import UserError
from metadist.tasks.address import generator
from metadist.tasks.base import Examples, Split
from metadist.tasks.images import DrawnImages, ImageTasks


class LabelledImages:
    """All images of a split, each with the number of its class; where rotations are classes, each turn is one.

    Some images of every class are held out, chosen by `seed`. Images are not augmented.

    Args:
        holdout: share of each class's images that is held out, rounded.

    Attributes:
        ways: number of classes.
        train, held: numbers of the images to train on, and of those held out.

    Raises:
        UserError: the share leaves a class without images to train on.
    """

    def __init__(self, tasks: ImageTasks, split: Split, holdout: float, seed: int) -> None:
        self._tasks = tasks
        turns, offsets = tasks.turns(split), tasks.store.offsets
        rows, quarter, labels, held = [], [], [], []
        for place, number in enumerate(tasks.classes[split]):
            own = np.arange(offsets[number], offsets[number + 1])
            out = round(holdout * len(own))
            if out >= len(own):
                raise UserError("pretrain.holdout", holdout, f"a share that leaves some of {len(own)} images a class")
            chosen = np.zeros(len(own), dtype=bool)
            chosen[generator("holdout", split, seed, number).permutation(len(own))[:out]] = True
            for turn in range(turns):
                rows.append(own)
                quarter.append(np.full(len(own), turn))
                labels.append(np.full(len(own), place * turns + turn))
                held.append(chosen)
        self.ways = len(labels)
        self._rows, self._turns, self._labels = map(np.concatenate, (rows, quarter, labels))
        self.train = np.flatnonzero(~np.concatenate(held))
        self.held = np.flatnonzero(np.concatenate(held))

    def examples(self, numbers: Sequence[int] | np.ndarray, device: torch.device) -> Examples:
        """The images of these numbers, in this order, on `device`."""
        # To the tasks they are one task with as many classes as images, of one image each.
        drawn = DrawnImages(self._rows[numbers][:, None], self._turns[numbers], 1, None)
        x = self._tasks.gather([drawn], device).support.x[0]
        return Examples(x, torch.from_numpy(self._labels[numbers]).to(device), self.ways)
