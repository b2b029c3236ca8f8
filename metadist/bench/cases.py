"""The settings that are measured: published few-shot protocols, with synthetic pixels."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from metadist.errors import UserError, nearest
from metadist.learners import Maml, MamlConfig, Meta, Network
from metadist.models import Conv4Config, MlpConfig, ResNet12Config, base_model
from metadist.outer import torch_generator
from metadist.tasks import Episode, Examples, SinusoidTasks, Task

#: tasks per chunk where a job does not say otherwise
JOB_CHUNK = 8

IMAGE = (1, 28, 28)


@dataclass(frozen=True)
class Case:
    """One net, one size of task and one inner loop.

    Attributes:
        tasks: tasks per repetition.
        chunks: sizes of chunk that are tried, the job's own among them; each divides `tasks`.
        image: shape of an image.
        exact: tasks that are compared in float64.
    """

    name: str
    about: str
    model: Conv4Config | MlpConfig | ResNet12Config
    episode: Episode
    learner: MamlConfig
    tasks: int = 32
    chunks: tuple[int, ...] = (JOB_CHUNK, 4, 16, 32)
    image: tuple[int, int, int] = IMAGE
    exact: int = JOB_CHUNK


def _maml(steps: int, lr: float, first_order: bool = False) -> MamlConfig:
    return MamlConfig(inner_steps=steps, inner_lr=lr, first_order=first_order)


_STRIDES, _POOLED, _MLP = Conv4Config(pool=False), Conv4Config(pool=True), MlpConfig()
_FIVE_WAY = Episode(ways=5, shots=1, query=1)
_POINTS = Episode(ways=1, shots=10, query=10)

CASES = (
    Case("A", "Conv4-64 with strides, 5-way 1-shot, 1 query a class, 1 step", _STRIDES, _FIVE_WAY, _maml(1, 0.4)),
    Case("B", "as A, 5 steps", _STRIDES, _FIVE_WAY, _maml(5, 0.1), tasks=16, chunks=(JOB_CHUNK, 4, 16)),
    # A pooled net's activations are sixteen times larger: many tasks at once take gigabytes.
    Case(
        "C",
        "Conv4-64 with pooling, 5-way 1-shot, 15 query a class, 1 step",
        _POOLED,
        Episode(5, 1, 15),
        _maml(1, 0.4),
        tasks=8,
        chunks=(JOB_CHUNK, 2),
    ),
    Case(
        "D",
        "Conv4-64 with strides, 20-way 1-shot, 1 query a class, 5 steps",
        _STRIDES,
        Episode(20, 1, 1),
        _maml(5, 0.1),
        tasks=8,
        chunks=(JOB_CHUNK, 4),
    ),
    Case("E5", "MLP 40-40 on sinusoids, 10 + 10 points, 5 steps", _MLP, _POINTS, _maml(5, 0.01)),
    Case("E10", "as E5, 10 steps", _MLP, _POINTS, _maml(10, 0.01)),
    Case(
        "F",
        "as B, first order",
        _STRIDES,
        _FIVE_WAY,
        _maml(5, 0.1, first_order=True),
        tasks=16,
        chunks=(JOB_CHUNK, 4, 16),
    ),
    Case(
        "G",
        "ResNet-12 at 32×32, 5-way 1-shot, 1 query a class, 1 step",
        ResNet12Config(),
        _FIVE_WAY,
        _maml(1, 0.01),
        tasks=8,
        chunks=(JOB_CHUNK,),
        image=(3, 32, 32),
        exact=1,
    ),
)

#: what `--case` is without being given
ALL = ",".join(case.name for case in CASES)


def find_cases(names: str, cases: Sequence[Case] = CASES) -> list[Case]:
    """The cases in a comma-separated list, in their own order; `E` is both of E5 and E10.

    Raises:
        UserError: there is no such case.
    """
    wanted = [name.strip().upper() for name in names.split(",")]
    for name in wanted:
        if not any(name in _names(case) for case in cases):
            known = [case.name for case in cases]
            raise UserError("--case", name, f"some of {','.join(known)}", nearest(name, known))
    return [case for case in cases if _names(case) & set(wanted)]


def _names(case: Case) -> set[str]:
    return {case.name, case.name[0]}


class Setting(NamedTuple):
    """A case with weights and tasks: what every implementation gets."""

    learner: Maml
    meta: Meta
    batch: Task


def in_float64(setting: Setting, tasks: int) -> Setting:
    """The first `tasks` tasks of a setting, everything in float64; the setting stays as it is."""
    learner = copy.deepcopy(setting.learner)
    learner.network.module.double()
    meta = setting.meta._replace(parameters={name: value.double() for name, value in setting.meta.parameters.items()})
    parts = (
        Examples(p.x[:tasks].double(), p.y[:tasks].double() if p.y.is_floating_point() else p.y[:tasks], p.ways)
        for p in setting.batch
    )
    return Setting(learner, meta, Task(*parts))


def in_bf16(setting: Setting) -> Setting:
    """The same in bfloat16 (`precision: bf16`): the passes through the net, nothing else."""
    learner = copy.copy(setting.learner)
    learner.network = replace(learner.network, precision="bf16")
    return setting._replace(learner=learner)


def build_learner(case: Case) -> Maml:
    """The case's learner with its net."""
    curves = isinstance(case.model, MlpConfig)
    shape, outputs = (SinusoidTasks.input_shape, 1) if curves else (case.image, case.episode.ways)
    module = base_model(case.model, shape, outputs)
    network = Network(module, case.model.init, "mse" if curves else "cross_entropy")
    return Maml(case.learner, network)


def build_setting(case: Case, device: torch.device, seed: int = 0) -> Setting:
    """Initial weights and `case.tasks` tasks on `device`; a function of the case and the seed."""
    learner = build_learner(case)
    learner.network.module.to(device)
    meta = learner.init(torch_generator("bench initial", seed))
    meta = meta._replace(parameters={name: value.to(device) for name, value in meta.parameters.items()})
    if isinstance(case.model, MlpConfig):
        return Setting(learner, meta, SinusoidTasks().batch("train", seed, range(case.tasks), case.episode, device))
    return Setting(learner, meta, _pixel_tasks(case, device, seed))


def _pixel_tasks(case: Case, device: torch.device, seed: int) -> Task:
    """Classification of noisy copies of one random image per class."""
    tasks, episode, image = case.tasks, case.episode, case.image
    generator = torch_generator("bench pixels", seed)
    classes = torch.rand((tasks, 1, episode.ways, *image), generator=generator)

    def part(repeats: int) -> Examples:
        noise: Tensor = torch.rand((tasks, repeats, episode.ways, *image), generator=generator)
        x = (0.7 * classes + 0.3 * noise).flatten(1, 2).to(device)
        y = torch.arange(episode.ways, device=device).repeat(repeats).repeat(tasks, 1)
        return Examples(x, y, episode.ways)

    return Task(part(episode.shots), part(episode.query))
