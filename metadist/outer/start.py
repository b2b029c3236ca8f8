"""Meta-parameters that begin as another run left them."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor

from metadist.errors import UserError
from metadist.learners import Meta, matches

#: names that a message lists of each kind
SHOWN = 4


def check_patterns(field: str, patterns: Sequence[str], names: Iterable[str]) -> None:
    """Raise `UserError` for a pattern that matches no name."""
    names = list(names)
    for number, pattern in enumerate(patterns):
        if not fnmatch.filter(names, pattern):
            raise UserError(f"{field}.{number}", pattern, f"a pattern of {', '.join(names)}")


def start_values(
    own: Meta, other: Mapping[str, Tensor], fresh: Sequence[str], path: str, field: str = "init_from"
) -> dict[str, Tensor]:
    """The values that a job takes from the tensors of another run, as tensors of its own.

    Both sides must have the same names and shapes, but for the names that match `fresh`.

    Args:
        own: the job's meta-parameters without any start.
        other: tensors by name, read from `path`.
        fresh: patterns of names that begin afresh here, and whose counterparts there are left alone.
        field: where the job names `path`.

    Raises:
        UserError: they do not fit; names what is missing, of another shape or left over.
    """
    mine = own.parameters | own.statistics | own.still
    check_patterns("init_from.fresh", fresh, {**mine, **other})
    wanted = {name: value for name, value in mine.items() if not matches(name, fresh)}
    there = {name: value for name, value in other.items() if not matches(name, fresh)}
    missing = [name for name in wanted if name not in there]
    unlike = [
        f"{name} ({list(there[name].shape)}, here {list(value.shape)})"
        for name, value in wanted.items()
        if name in there and there[name].shape != value.shape
    ]
    unused = [name for name in there if name not in wanted]
    wrong = [
        f"{what} {', '.join(names[:SHOWN])}{', …' if len(names) > SHOWN else ''}"
        for what, names in (("missing there:", missing), ("of another shape:", unlike), ("not used here:", unused))
        if names
    ]
    if wrong:
        hint = "Name what shall begin afresh in init_from.fresh, for example {path: RUN, fresh: ['head.*']}."
        if field != "init_from":
            hint = "Its tasks are not like this job's, or its folder was changed."
        raise UserError(field, path, f"the tensors of this job's model; {'; '.join(wrong)}", hint)
    # Each an allocation of its own, as everywhere: the place of a tensor in memory can change bits.
    return {name: torch.empty_like(value).copy_(there[name]) for name, value in wanted.items()}
