"""N-way K-shot classification of synthetic periodic signals, for models of sequences.

A class is a timbre: how strong and how far shifted each harmonic is, how many periods there are, and when the sound
swells and fades. Examples differ in phase, loudness and noise, so that a class is told by its shape and not by its
values at any one time.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
import torch

from metadist.errors import UserError
from metadist.tasks.address import generator
from metadist.tasks.base import ClassTasksConfig, Episode, Examples, Split, Task, TaskDistribution

#: all classes are made up when a process begins
MOST_CLASSES = 100_000
MOST_POINTS = 10_000


@dataclass(frozen=True, kw_only=True)
class WaveformTasksConfig(ClassTasksConfig):
    """N-way K-shot classification of periodic signals [length, 1], of classes that are made up by number."""

    kind: Literal["waveform"] = "waveform"
    #: classes to train on
    train_classes: int = 64
    #: classes to validate on
    valid_classes: int = 16
    #: classes to test on
    test_classes: int = 20
    #: points of a signal
    length: int = 64
    #: harmonics of a class
    harmonics: int = 6
    #: standard deviation of the noise; that of a signal without it is about 1
    noise: float = 0.3

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, least, most in (
            ("train_classes", 0, MOST_CLASSES),
            ("valid_classes", 0, MOST_CLASSES),
            ("test_classes", 1, MOST_CLASSES),
            ("length", 1, MOST_POINTS),
            ("harmonics", 1, MOST_POINTS),
        ):
            if not least <= getattr(self, name) <= most:
                raise UserError(name, getattr(self, name), f"a whole number from {least} to {most}")
        if not self.noise >= 0:
            raise UserError("noise", self.noise, "a number of at least 0")


class DrawnWaveforms(NamedTuple):
    """A task in few numbers: classes [ways], phase and loudness of its examples [shots + query, ways], and the rest."""

    classes: np.ndarray
    phase: np.ndarray
    loudness: np.ndarray
    shots: int
    address: tuple[Split, int, int]


class WaveformTasks(TaskDistribution):
    """The family. Inputs [n, length, 1]; training, validation and test have their own classes, in this order."""

    def __init__(self, config: WaveformTasksConfig) -> None:
        self.config, self.loss, self.input_shape = config, config.loss, (config.length, 1)
        ends = np.cumsum([0, config.train_classes, config.valid_classes, config.test_classes])
        splits: tuple[Split, ...] = ("train", "valid", "test")
        self.classes = {split: range(ends[number], ends[number + 1]) for number, split in enumerate(splits)}
        timbres = [self._timbre(number) for number in range(ends[-1])]
        #: [classes, harmonics] twice, [classes], [classes, length]
        self._strength, self._shift, self._periods, self._envelope = map(np.stack, zip(*timbres, strict=True))

    def _timbre(self, number: int) -> tuple[np.ndarray, np.ndarray, float, np.ndarray]:
        rng = generator("waveform class", number)
        order = np.arange(1, self.config.harmonics + 1)
        strength = rng.standard_normal(self.config.harmonics) / order
        strength /= np.sqrt((strength**2).sum() / 2)  # a mean square of 1
        shift = rng.uniform(0.0, 2 * np.pi, self.config.harmonics)
        time = (np.arange(self.config.length) + 0.5) / self.config.length
        peak, width = rng.uniform(0.0, 1.0), rng.uniform(0.2, 0.6)
        envelope = np.exp(-0.5 * ((time - peak) / width) ** 2)
        return strength, shift, rng.uniform(2.0, 5.0), envelope / np.sqrt((envelope**2).mean())

    def sample(self, split: Split, seed: int, index: int, episode: Episode) -> DrawnWaveforms:
        rng = generator("waveform", split, seed, index)
        classes = rng.permutation(np.array(self.classes[split]))[: episode.ways]
        # Drawn example by example, so that those of the support set do not depend on the number of the others.
        examples = rng.random((episode.shots + episode.query, episode.ways, 2))
        phase, loudness = 2 * np.pi * examples[..., 0], 0.5 + examples[..., 1]
        return DrawnWaveforms(classes, phase, loudness, episode.shots, (split, seed, index))

    def gather(self, drawn: Sequence[DrawnWaveforms], device: torch.device) -> Task:
        shots = drawn[0].shots
        x = torch.from_numpy(np.stack([self._signals(task) for task in drawn])).to(device, torch.float32)
        ways = x.shape[2]
        y = torch.arange(ways, device=device).repeat(x.shape[1]).repeat(x.shape[0], 1)
        x = x.flatten(1, 2)
        rows = shots * ways
        return Task(Examples(x[:, :rows], y[:, :rows], ways), Examples(x[:, rows:], y[:, rows:], ways))

    def _signals(self, task: DrawnWaveforms) -> np.ndarray:
        """Signals [shots + query, ways, length, 1]."""
        time = (np.arange(self.config.length) + 0.5) / self.config.length
        order = np.arange(1, self.config.harmonics + 1)
        angle = 2 * np.pi * self._periods[task.classes, None] * time + task.phase[..., None]  # [examples, ways, length]
        waves = np.sin(order * angle[..., None] + self._shift[task.classes, None])
        signal = (waves * self._strength[task.classes, None]).sum(-1) * self._envelope[task.classes]
        noise = generator("waveform noise", *task.address).standard_normal(signal.shape)
        signal = task.loudness[..., None] * signal + self.config.noise * noise
        return np.asarray(signal[..., None])

    def has(self, split: Split) -> bool:
        return len(self.classes[split]) > 0

    def check(self, split: Split, episode: Episode) -> None:
        if episode.ways > len(self.classes[split]):
            expected = f"at least the {episode.ways} classes of a task"
            raise UserError(f"tasks.{split}_classes", len(self.classes[split]), expected)
