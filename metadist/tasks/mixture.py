"""Tasks of several families: each address draws first a family, then a task of it."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch

from metadist.errors import UserError
from metadist.tasks.address import generator
from metadist.tasks.base import Episode, Examples, Loss, Split, Task, TaskDistribution, TasksConfig
from metadist.tasks.images import ImageTasksConfig
from metadist.tasks.line import LineTasksConfig
from metadist.tasks.linear import LinearTasksConfig
from metadist.tasks.quadratic import QuadraticTasksConfig
from metadist.tasks.sinusoid import SinusoidTasksConfig
from metadist.tasks.waveform import WaveformTasksConfig

Family = (
    ImageTasksConfig
    | SinusoidTasksConfig
    | LineTasksConfig
    | QuadraticTasksConfig
    | LinearTasksConfig
    | WaveformTasksConfig
)


@dataclass(frozen=True, kw_only=True)
class MixtureTasksConfig(TasksConfig):
    """Each task is drawn from one of several families, which agree in their inputs, outputs and loss."""

    kind: Literal["mixture"] = "mixture"
    #: sections like `tasks` itself, one a family; the sizes (ways, shots, …) are the mixture's own
    of: list[Family]
    #: how often each family is drawn, in relation to the others; null: all equally often
    weights: list[float] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.of:
            raise UserError("of", self.of, "at least one family of tasks")
        if self.weights is not None and (len(self.weights) != len(self.of) or not min(self.weights) > 0):
            raise UserError("weights", self.weights, f"a number above 0 for each of {len(self.of)} families")
        sizes = {field.name for field in dataclasses.fields(TasksConfig)}
        for number, family in enumerate(self.of):
            for field in dataclasses.fields(family):
                value = getattr(family, field.name)
                if field.name in sizes and value != field.default:
                    expected = "no size of its own, for all families have that of the mixture"
                    raise UserError(f"of.{number}.{field.name}", value, expected, f"Set tasks.{field.name} instead.")

    @property
    def loss(self) -> Loss:
        return self.of[0].loss

    @property
    def needs_data(self) -> bool:
        return any(family.needs_data for family in self.of)


class MixtureTasks(TaskDistribution):
    """The families as one. A batch of tasks mixes them; what a task is does not depend on the others in it.

    Args:
        families: what to draw from.
        weights: how often, in relation to each other; above 0.

    Raises:
        UserError: the families differ in loss or input.
    """

    def __init__(self, families: Sequence[TaskDistribution], weights: Sequence[float]) -> None:
        self.families = list(families)
        self.loss, self.input_shape = families[0].loss, families[0].input_shape
        self._bounds = np.cumsum(weights) / np.sum(weights)
        for number, family in enumerate(families):
            self._agree(number, "loss", family.loss, self.loss)
            self._agree(number, "inputs of shape", list(family.input_shape), list(self.input_shape))

    @staticmethod
    def _agree(number: int, what: str, found: object, first: object) -> None:
        if found != first:
            expected = f"{what} {first}, as of the first family"
            raise UserError(f"tasks.of.{number}", f"{what} {found}", expected, "One net serves all families.")

    def sample(self, split: Split, seed: int, index: int, episode: Episode) -> tuple[int, Any]:
        draw = generator("mixture", split, seed, index).random()
        number = int(np.searchsorted(self._bounds[:-1], draw, side="right"))
        return number, self.families[number].sample(split, seed, index, episode)

    def gather(self, drawn: Sequence[tuple[int, Any]], device: torch.device) -> Task:
        order: list[int] = []
        parts: list[Task] = []
        for number, family in enumerate(self.families):
            places = [place for place, (which, _) in enumerate(drawn) if which == number]
            if places:
                order += places
                parts.append(family.gather([drawn[place][1] for place in places], device))
        back = torch.tensor(order, device=device).argsort()
        return Task(
            *(
                Examples(torch.cat([e.x for e in each])[back], torch.cat([e.y for e in each])[back], each[0].ways)
                for each in zip(*parts, strict=True)
            )
        )

    def outputs(self, episode: Episode) -> int:
        first = self.families[0].outputs(episode)
        for number, family in enumerate(self.families):
            self._agree(number, "outputs", family.outputs(episode), first)
        return first

    def check(self, split: Split, episode: Episode) -> None:
        for family in self.families:
            family.check(split, episode)

    def check_unchanged(self) -> None:
        for family in self.families:
            family.check_unchanged()

    def has(self, split: Split) -> bool:
        return all(family.has(split) for family in self.families)
