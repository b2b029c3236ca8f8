"""`metadist keys`: every key of a job file, with its type, default and meaning, read from the code."""

from __future__ import annotations

import dataclasses
import inspect
import types
import typing
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import typer

from metadist.config import Job, describe_type
from metadist.errors import UserError, nearest


@dataclass(frozen=True)
class Key:
    """One key of a job file."""

    path: str
    type: str
    default: str
    meaning: str


def keys_command(
    section: str | None = typer.Argument(None, help="Only the keys below this one, for example learner."),
) -> None:
    """Every key of a job file: type, default, meaning."""
    found = [key for key in job_keys() if section is None or f"{key.path}.".startswith(f"{section}.")]
    if not found:
        sections = {key.path.partition(".")[0] for key in job_keys()}
        raise UserError("SECTION", section, f"one of {', '.join(sorted(sections))}", nearest(str(section), sections))
    show_keys(found)


def show_keys(keys: Iterable[Key]) -> None:
    """Print keys, one paragraph each."""
    for key in keys:
        typer.echo(f"{typer.style(key.path, bold=True)}  ({key.type}; {key.default})")
        typer.echo(f"    {key.meaning}")


def job_keys() -> list[Key]:
    """The keys of a job file, in its order; where a section has kinds, each kind's keys in turn."""
    return list(section_keys(Job, ""))


def section_keys(config: Any, path: str) -> Iterator[Key]:
    """The keys of one section's dataclass; `path` is what goes before their names."""
    hints, meanings = typing.get_type_hints(config), _meanings(config)
    for field in dataclasses.fields(config):
        hint, place = hints[field.name], f"{path}{field.name}"
        members = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
        if dataclasses.is_dataclass(members[0]):
            for member in members:
                yield from section_keys(member, f"{place}.")
            continue
        default = field.default_factory() if callable(field.default_factory) else field.default
        if field.name == "kind":
            yield Key(place, "kind", str(default), summary(config))
        else:
            shown = "required" if default is dataclasses.MISSING else f"default {_yaml(default)}"
            yield Key(place, describe_type(hint), shown, meanings.get(field.name, ""))


def summary(config: Any) -> str:
    """What a section's dataclass is, in a line: the first of its docstring."""
    return (inspect.getdoc(config) or "").partition("\n")[0]


def _yaml(value: Any) -> str:
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def _meanings(config: Any) -> dict[str, str]:
    """The `#:` comments above a dataclass's fields, by field; a field's own class before its bases."""
    meanings: dict[str, str] = {}
    base: type[Any]
    for base in config.__mro__:
        if not dataclasses.is_dataclass(base):
            continue
        try:
            source = inspect.getsource(base)
        except OSError:  # it was made of the signature of a user's module
            continue
        comment: list[str] = []
        for line in source.splitlines():
            text = line.strip()
            if text.startswith("#:"):
                comment.append(text.removeprefix("#:").strip())
            elif comment:
                meanings.setdefault(text.partition(":")[0], " ".join(comment))
                comment = []
    return meanings
