"""N-way K-shot image tasks over a class store.

A task is drawn as indices: which classes, turned how far, which rows of the store. Pixels are gathered
afterwards, on the device that adapts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from metadist.data import (
    AugmentConfig,
    ClassStore,
    DataConfig,
    check_examples,
    pixel_statistics,
    split_classes,
)
from metadist.errors import UserError
from metadist.tasks.address import generator
from metadist.tasks.base import ClassLoss, ClassTasksConfig, Episode, Examples, Split, Task, TaskDistribution


@dataclass(frozen=True, kw_only=True)
class ImageTasksConfig(ClassTasksConfig):
    """N-way K-shot classification of images: each task has its own classes, numbered anew."""

    kind: Literal["images"] = "images"
    #: `folder`: a task's classes come from one folder of the split, such as an alphabet of Omniglot (their names agree
    #: up to the last /); how often a folder is drawn goes by its number of classes, and folders with fewer than a
    #: task's ways are left out. null: from the whole split
    within: Literal["folder"] | None = None

    @property
    def sequences(self) -> bool:
        return True

    @property
    def needs_data(self) -> bool:
        return True


class Augmentation(NamedTuple):
    """Random choices for one task's images, in the order of its rows [ways, shots + query]."""

    flip: np.ndarray
    shift: np.ndarray
    noise: np.ndarray | None


class DrawnImages(NamedTuple):
    """A task as indices: store rows [ways, shots + query], quarter turns [ways], number of support columns.

    Without support columns the query's rows [ways · query] have an order.
    """

    rows: np.ndarray
    turns: np.ndarray
    shots: int
    augmentation: Augmentation | None
    order: np.ndarray | None = None


class ImageTasks(TaskDistribution):
    """Image tasks from one store. Inputs [n, channels, height, width] in 0…1, or standardised.

    Args:
        store: the images.
        config: splits, rotations, standardisation and augmentation.
        loss: what the query set is judged by.
        within: where a task's classes come from together.

    Raises:
        UserError: the splits do not fit the store, or rotations are asked of images that are not square.
    """

    def __init__(
        self,
        store: ClassStore,
        config: DataConfig,
        loss: ClassLoss = "cross_entropy",
        within: Literal["folder"] | None = None,
    ) -> None:
        self.store, self.config, self.loss = store, config, loss
        channels, height, width = store.shape
        self.input_shape = (channels, height, width)
        if config.rotations != "none" and height != width:
            raise UserError(
                "data.rotations",
                config.rotations,
                f"square images, these are {height}×{width}",
                "Set data.size, or data.rotations: none.",
            )
        for name in ("crop", "noise"):
            if not getattr(config.augment, name) >= 0:
                raise UserError(f"data.augment.{name}", getattr(config.augment, name), "a number of at least 0")
        self.classes: Mapping[str, tuple[int, ...]] = split_classes(store.classes, config.split)
        self.within = within
        self._pools = {split: self._parted(numbers) for split, numbers in self.classes.items()}
        pixel = torch.arange(height * width).reshape(height, width)
        turns = range(4 if height == width else 1)
        self._turned = torch.stack([torch.rot90(pixel, turn).flatten() for turn in turns])
        self._mean, self._sd = torch.zeros(channels), torch.ones(channels)
        if config.standardize:
            mean, sd = pixel_statistics(store, self.classes["train"] or range(len(store.classes)))
            self._mean, self._sd = torch.tensor(mean), torch.tensor(sd)
        self._resident: dict[torch.device, Tensor] = {}

    def _parted(self, numbers: Sequence[int]) -> list[Sequence[int]]:
        """Classes by what they can be in a task with."""
        if self.within is None:
            return [numbers]
        folders: dict[str, list[int]] = {}
        for number in numbers:
            folders.setdefault(self.store.classes[number].rpartition("/")[0], []).append(number)
        return list(folders.values())

    def _large(self, split: Split, ways: int) -> list[Sequence[int]]:
        """The pools of classes that have enough for a task."""
        return [pool for pool in self._pools[split] if len(pool) * self.turns(split) >= ways]

    def check_unchanged(self) -> None:
        self.store.check_unchanged()

    def has(self, split: Split) -> bool:
        return bool(self.classes[split])

    def turns(self, split: Split) -> int:
        """How many classes each class of the store counts for in `split`: 4 where its rotations are classes."""
        rotated = self.config.rotations == "all" or (self.config.rotations == "train" and split == "train")
        return 4 if rotated else 1

    def check(self, split: Split, episode: Episode) -> None:
        large = self._large(split, episode.ways)
        if not large:
            most = max(map(len, self._pools[split]), default=0) * self.turns(split)
            place = f"the {split} split" if self.within is None else f"the {split} split's largest {self.within}"
            raise UserError(
                "tasks.ways",
                episode.ways,
                f"at most the {most} classes of {place}",
                f"Lower ways, or give data.split.{split} more classes.",
            )
        check_examples(self.store, chain(*large), episode.shots + episode.query, "tasks.shots + query")

    def sample(self, split: Split, seed: int, index: int, episode: Episode) -> DrawnImages:
        rng = generator("images", split, seed, index)
        pool, turns = self._pool(split, seed, index, episode.ways), self.turns(split)
        # The labels are the order of the draw, which is random.
        chosen = rng.permutation(len(pool) * turns)[: episode.ways]
        assert len(chosen) == episode.ways, f"{split} has too few classes; check() says so before"
        offsets = self.store.offsets
        rows = np.empty((episode.ways, episode.shots + episode.query), dtype=np.int64)
        for way, number in enumerate(chosen):
            label = pool[number // turns]
            first, end = offsets[label], offsets[label + 1]
            # A whole permutation, so that the support set does not depend on the number of query examples.
            rows[way] = first + rng.permutation(end - first)[: rows.shape[1]]
        order = None if episode.shots else generator("order", split, seed, index).permutation(rows.size)
        return DrawnImages(rows, chosen % turns, episode.shots, self._augmentation(split, seed, index, rows), order)

    def _pool(self, split: Split, seed: int, index: int, ways: int) -> Sequence[int]:
        """What a task draws its classes from: the pool of a class that is drawn among those of all large pools."""
        if self.within is None:
            return self.classes[split]
        large = self._large(split, ways)
        ends = np.cumsum([len(pool) for pool in large])
        number = generator("pool", split, seed, index).integers(ends[-1])
        return large[int(np.searchsorted(ends, number, side="right"))]

    def gather(self, drawn: Sequence[DrawnImages], device: torch.device) -> Task:
        shots = drawn[0].shots
        rows = np.stack([task.rows for task in drawn])
        images = self._pixels(rows, device)
        turns = np.stack([task.turns for task in drawn])
        if turns.any():
            flat = images.flatten(-2)
            order = self._turned.to(device)[torch.from_numpy(turns).to(device)][:, :, None, None]
            images = flat.gather(-1, order.expand(flat.shape)).reshape(images.shape)
        x = images.to(torch.float32).div_(255.0)
        if any(task.augmentation for task in drawn):
            x = torch.stack([self._augment(image, task) for image, task in zip(x, drawn, strict=True)])
        if self.config.standardize:
            x = (x - self._mean.to(device)[:, None, None]) / self._sd.to(device)[:, None, None]
        x = x.transpose(1, 2)  # [tasks, shots + query, ways, …]: rows go shot by shot
        labels = torch.arange(rows.shape[1], device=device)
        task = Task(*(self._examples(part, labels) for part in (x[:, :shots], x[:, shots:])))
        if not (orders := [one.order for one in drawn if one.order is not None]):
            return task
        order = torch.from_numpy(np.stack(orders)).to(device)
        among = torch.arange(len(drawn), device=device)[:, None]
        return task._replace(query=task.query._replace(x=task.query.x[among, order], y=task.query.y[among, order]))

    @staticmethod
    def _examples(x: Tensor, labels: Tensor) -> Examples:
        tasks, repeats, ways = x.shape[:3]
        y = labels.expand(tasks, repeats, ways)
        rows = repeats * ways
        return Examples(x.reshape(tasks, rows, *x.shape[3:]), y.reshape(tasks, rows), ways)

    def _pixels(self, rows: np.ndarray, device: torch.device) -> Tensor:
        """The images at `rows` as uint8 [*rows.shape, channels, height, width]; a copy, never the map."""
        if device.type == "cpu":
            return torch.from_numpy(self.store.pixels[rows])
        if device not in self._resident:
            self._resident[device] = torch.from_numpy(np.array(self.store.pixels)).to(device)
        return self._resident[device][torch.from_numpy(rows).to(device)]

    def _augmentation(self, split: Split, seed: int, index: int, rows: np.ndarray) -> Augmentation | None:
        config = self.config.augment
        if split != "train" or config == AugmentConfig(sets=config.sets):
            return None
        # Drawn column by column, each kind from a generator of its own, so that a support image's changes do
        # not depend on the number of query images or on the other kinds.
        ways, columns = rows.shape

        def draws(kind: str) -> np.random.Generator:
            return generator("augmentation", kind, split, seed, index)

        flip = np.zeros((columns, ways), dtype=bool)
        if config.flip:
            flip = draws("flip").random((columns, ways)) < 0.5
        shift = draws("crop").integers(-config.crop, config.crop + 1, size=(columns, ways, 2))
        noise = None
        if config.noise:
            shape = (columns, ways, *self.input_shape)
            noise = draws("noise").standard_normal(shape, dtype=np.float32).swapaxes(0, 1) * config.noise
        flip, shift = flip.swapaxes(0, 1), shift.swapaxes(0, 1)
        return Augmentation(flip, shift, noise)

    def _augment(self, x: Tensor, task: DrawnImages) -> Tensor:
        """Flip, shift within a border of zeros, and add noise to [ways, shots + query, C, H, W]."""
        if task.augmentation is None:
            return x
        flip, shift, noise = task.augmentation
        sets = self.config.augment.sets
        first = task.shots if sets == "query" else 0
        end = task.shots if sets == "support" else x.shape[1]
        border, (height, width) = self.config.augment.crop, x.shape[-2:]
        x = x.clone()
        for way in range(x.shape[0]):
            for column in range(first, end):
                image = x[way, column]
                if flip[way, column]:
                    image = image.flip(-1)
                if border:
                    down, right = (border + int(step) for step in shift[way, column])
                    padded = torch.nn.functional.pad(image, (border,) * 4)
                    image = padded[:, down : down + height, right : right + width]
                if noise is not None:
                    image = image + torch.from_numpy(noise[way, column]).to(x.device)
                x[way, column] = image
        return x
