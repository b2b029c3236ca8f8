"""Dealing the classes of a store to training, validation and test."""

from __future__ import annotations

import fnmatch
import math
from collections.abc import Iterable, Sequence

import numpy as np

from metadist.data.config import SplitConfig
from metadist.data.store import ClassStore
from metadist.errors import UserError, nearest

#: Names of the splits, in the order in which counts and shares are dealt.
SPLITS = ("train", "valid", "test")

# Shares are decimal fractions that add up to 1 but for the rounding of floating point.
_EPSILON = 1e-9


def split_classes(classes: Sequence[str], config: SplitConfig) -> dict[str, tuple[int, ...]]:
    """Class numbers of each split: disjoint, and never empty unless the split is None.

    Lists claim their classes first. The others are shuffled by the seed and dealt in the order of `SPLITS`; a
    share is of these others, and shares are rounded together, so that shares that sum to 1 leave no class
    over.

    Args:
        classes: names of all classes, in the order of the store.
        config: what each split is to have.

    Returns:
        "train", "valid" and "test" → sorted class numbers; () for a split that is None.

    Raises:
        UserError: a list names nothing or overlaps with another, a count or share is out of range, or there
            are fewer classes than wanted.
    """
    if isinstance(config.seed, bool) or not isinstance(config.seed, int) or not 0 <= config.seed < 1 << 64:
        raise UserError("data.split.seed", config.seed, "a whole number of at least 0 and below 2^64")
    wanted = {name: getattr(config, name) for name in SPLITS}
    result: dict[str, tuple[int, ...]] = dict.fromkeys(SPLITS, ())
    owner: dict[int, str] = {}
    for name, value in wanted.items():
        if isinstance(value, list | tuple):
            result[name] = _listed(classes, value, name)
            _claim(classes, result[name], name, owner)
    # One permutation of all classes, from which claimed ones drop out: naming a class does not reshuffle the
    # rest.
    order = np.random.Generator(np.random.Philox(key=config.seed)).permutation(len(classes))
    rest = [int(number) for number in order if int(number) not in owner]
    sizes = _sizes({k: v for k, v in wanted.items() if v is not None and k not in owner.values()}, len(rest))
    total = sum(sizes.values())
    if total > len(rest):
        asked = " + ".join(f"{size} for {name}" for name, size in sizes.items())
        named = f" that no list names (of {len(classes)})" if owner else ""
        raise UserError(
            "data.split",
            f"{total} classes ({asked})",
            f"at most the {len(rest)} classes{named}",
            "Lower the counts or shares.",
        )
    start = 0
    for name, size in sizes.items():
        result[name] = tuple(sorted(rest[start : start + size]))
        _claim(classes, result[name], name, owner)
        start += size
    return result


def check_examples(store: ClassStore, class_numbers: Iterable[int], needed: int, field: str) -> None:
    """Raise UserError if some of the classes have fewer than `needed` examples.

    Args:
        store: the store of the classes.
        class_numbers: the classes to look at.
        needed: examples that a task takes of a class.
        field: the job's field that asks for so many.
    """
    counts = store.counts()
    short = [number for number in class_numbers if counts[number] < needed]
    if not short:
        return
    shown = ", ".join(f"{store.classes[number]!r} ({counts[number]})" for number in short[:5])
    more = ", …" if len(short) > 5 else ""
    least = int(min(counts[number] for number in short))
    raise UserError(
        field,
        needed,
        f"no more examples a class than there are; {len(short)} classes have fewer: {shown}{more}",
        f"Ask for at most {least} a class, or leave such classes out of data.split.",
    )


def _listed(classes: Sequence[str], entries: Sequence[str | int], split: str) -> tuple[int, ...]:
    field = f"data.split.{split}"
    if not entries:
        raise UserError(field, [], "at least one class or pattern", "Use null for a split without classes.")
    numbers = {name: number for number, name in enumerate(classes)}
    found: set[int] = set()
    for entry in map(str, entries):
        if entry in numbers:  # a class may be called "[a]": a name comes before a pattern
            found.add(numbers[entry])
            continue
        matches = [number for name, number in numbers.items() if fnmatch.fnmatchcase(name, entry)]
        if not matches:
            expected = f"a name or pattern of the {len(classes)} classes ({classes[0]!r}, …)"
            raise UserError(field, entry, expected, nearest(entry, _suggestions(classes)))
        found.update(matches)
    return tuple(sorted(found))


def _suggestions(classes: Sequence[str]) -> list[str]:
    """Names of the classes, and a pattern for each folder above them."""
    patterns = {f"{name.rpartition('/')[0]}/*" for name in classes if "/" in name}
    patterns |= {f"{pattern.partition('/')[0]}/*" for pattern in patterns}
    return [*sorted(patterns), *classes]


def _claim(classes: Sequence[str], numbers: Iterable[int], split: str, owner: dict[int, str]) -> None:
    for number in numbers:
        if number in owner:
            raise UserError(
                f"data.split.{split}",
                classes[number],
                f"classes that are not in data.split.{owner[number]} as well",
                "A class belongs to one split only.",
            )
        owner[number] = split


def _sizes(wanted: dict[str, int | float], available: int) -> dict[str, int]:
    """Number of classes of each split that is a count or a share; shares are of `available` classes."""
    sizes: dict[str, int] = {}
    before, share = 0, 0.0
    for split, value in wanted.items():
        field = f"data.split.{split}"
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise UserError(field, value, "a count, a share or a list of classes")
        if isinstance(value, int):
            if value < 1:
                raise UserError(field, value, "a count of at least 1", "Use null for a split without classes.")
            sizes[split] = value
            continue
        if not 0.0 < value <= 1.0:
            raise UserError(field, value, "a share above 0 and at most 1", "A count is a whole number: 5, not 5.0.")
        share += value
        if share > 1.0 + _EPSILON:
            raise UserError("data.split", round(share, 9), "shares that sum to at most 1", "Lower one of them.")
        # Rounding the running sum and not each share: 0.6 + 0.15 + 0.25 of 10 are 6 + 2 + 2 = 10 classes.
        upto = math.floor(share * available + 0.5 + _EPSILON)
        if upto == before:
            expected = f"a share of the {available} classes to deal that holds at least one"
            raise UserError(field, value, expected, "Raise it, or use null for a split without classes.")
        sizes[split] = upto - before
        before = upto
    return sizes
