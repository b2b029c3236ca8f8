"""`metadist list`: the learners, models and tasks that a job can name, and the options of each, read from the code."""

from __future__ import annotations

import typing
from enum import StrEnum
from typing import Any

import typer

from metadist.cli.keys import section_keys, show_keys, summary
from metadist.config import LearnerKind, ModelKind, TasksKind
from metadist.errors import UserError, nearest
from metadist.learners import learner_class
from metadist.models import own_model_config


class What(StrEnum):
    """What can be listed."""

    learners = "learners"
    models = "models"
    tasks = "tasks"


#: the section of a job that each stands in, and its dataclasses
SECTIONS: dict[What, tuple[str, Any]] = {
    What.learners: ("learner", LearnerKind),
    What.models: ("model", ModelKind),
    What.tasks: ("tasks", TasksKind),
}
#: what may be of a user's own, by its import path, and what gives the dataclass of its settings
OWN: dict[What, Any] = {
    What.learners: lambda kind: learner_class(kind).config_type,
    What.models: own_model_config,
}


def list_command(
    what: What = typer.Argument(help="What to list."),
    kind: str | None = typer.Argument(
        None, help="Only this one, with its options; one of your own by its import path."
    ),
) -> None:
    """The learners, models or tasks that a job can name; of one of them, its options."""
    section, union = SECTIONS[what]
    kinds = {config.kind: config for config in typing.get_args(union)}
    if kind is None:
        width = max(map(len, kinds))
        for name, config in kinds.items():
            typer.echo(f"{typer.style(f'{name:{width}}', bold=True)}  {summary(config)}")
        return
    if what in OWN and "." in kind:
        kinds[kind] = OWN[what](kind)
    if kind not in kinds:
        raise UserError("KIND", kind, f"one of {', '.join(kinds)}", nearest(kind, kinds))
    typer.echo(f"{summary(kinds[kind])}\n")
    show_keys(key for key in section_keys(kinds[kind], f"{section}.") if key.path != f"{section}.kind")
