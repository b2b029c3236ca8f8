"""Splits of classes, and the check of their examples."""

from __future__ import annotations

from typing import Any

import pytest

from metadist.data import ClassStore, SplitConfig, check_examples, split_classes
from metadist.errors import UserError

TEN = tuple("0123456789")
TREE = tuple(f"{part}/{letter}/{n}" for part in ("background", "evaluation") for letter in "ab" for n in range(5))


def sizes(classes: tuple[str, ...], **config: Any) -> list[int]:
    splits = split_classes(classes, SplitConfig(**config))
    assert list(splits) == ["train", "valid", "test"]
    numbers = [number for split in splits.values() for number in split]
    assert len(numbers) == len(set(numbers)), "disjoint"
    assert set(numbers) <= set(range(len(classes)))
    assert all(list(split) == sorted(split) for split in splits.values())
    return [len(split) for split in splits.values()]


def test_golden_values() -> None:
    """The deal of a seed is part of every experiment that names it: it must never change."""
    assert split_classes(TEN, SplitConfig()) == {
        "train": (0, 5, 6, 7, 8, 9),
        "valid": (1, 3),
        "test": (2, 4),
    }
    seven = split_classes(tuple(map(str, range(100))), SplitConfig(train=5, valid=3, test=None, seed=7))
    assert seven == {"train": (59, 72, 73, 91, 98), "valid": (67, 71, 86), "test": ()}


def test_seed() -> None:
    classes = tuple(map(str, range(200)))
    deals = [split_classes(classes, SplitConfig(seed=seed)) for seed in (0, 0, 1)]
    assert deals[0] == deals[1]
    assert deals[0] != deals[2]


@pytest.mark.parametrize(
    ("number", "config", "expected"),
    [
        (10, {}, [6, 2, 2]),
        (1623, {}, [974, 243, 406]),
        (200, {"train": 128, "valid": 32, "test": 40}, [128, 32, 40]),
        (200, {"train": 10, "valid": None, "test": None}, [10, 0, 0]),
        (100, {"train": 64, "valid": 0.16, "test": 0.2}, [64, 16, 20]),
        (3, {"train": 1 / 3, "valid": 1 / 3, "test": 1 / 3}, [1, 1, 1]),
        (7, {"train": 0.7, "valid": 0.2, "test": 0.1}, [5, 1, 1]),
        (10, {"train": 1.0, "valid": None, "test": None}, [10, 0, 0]),
        (10, {"train": 1, "valid": None, "test": 0.5}, [1, 0, 5]),
    ],
)
def test_counts_and_shares(number: int, config: dict[str, Any], expected: list[int]) -> None:
    assert sizes(tuple(map(str, range(number))), **config) == expected


def test_lists() -> None:
    config = SplitConfig(train=["background/*"], valid=["evaluation/a/0", "evaluation/a/[12]"], test=["*/b/4"])
    with pytest.raises(UserError, match=r"data\.split\.test: got 'background/b/4'"):
        split_classes(TREE, config)
    config = SplitConfig(train=["background/*"], valid=["evaluation/a/0", "evaluation/a/[12]"], test=["ev*/b/4"])
    assert split_classes(TREE, config) == {"train": tuple(range(10)), "valid": (10, 11, 12), "test": (19,)}


def test_numbers_name_classes() -> None:
    assert split_classes(TEN, SplitConfig(train=[3, "1"], valid=[0], test=None))["train"] == (1, 3)


def test_an_exact_name_comes_before_a_pattern() -> None:
    assert split_classes(("[ab]", "a", "b"), SplitConfig(["[ab]"], ["a"], ["b"]))["train"] == (0,)


def test_shares_are_of_the_classes_that_no_list_names() -> None:
    splits = split_classes(TREE, SplitConfig(train=0.8, valid=0.2, test=["evaluation/*"]))
    assert [len(split) for split in splits.values()] == [8, 2, 10]
    assert splits["test"] == tuple(range(10, 20))


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"train": ["backgroun/*"]}, r"data\.split\.train: got 'backgroun/\*'.*Did you mean 'background/\*'"),
        ({"train": ["background/a/9"]}, "Did you mean 'background/a/"),
        ({"train": []}, "at least one class or pattern"),
        (
            {"train": ["background/*"], "valid": ["background/a/1"]},
            "'background/a/1', expected .* in data.split.train",
        ),
        (
            {"train": 18, "valid": 2, "test": 1},
            r"'21 classes \(18 for train \+ 2 for valid \+ 1 for test\)'.*the 20",
        ),
        (
            {"train": 11, "valid": None, "test": ["evaluation/*"]},
            r"the 10 classes that no list names \(of 20\)",
        ),
        ({"train": 0}, "at least 1"),
        ({"valid": -3}, r"data\.split\.valid: got -3"),
        ({"train": True}, "a count, a share or a list"),
        ({"train": "64"}, "a count, a share or a list"),
        ({"train": 0.0}, "above 0 and at most 1"),
        ({"train": 5.0}, "A count is a whole number"),
        ({"train": float("nan")}, "above 0 and at most 1"),
        (
            {"train": 0.6, "valid": 0.3, "test": 0.2},
            r"data\.split: got 1\.1, expected shares that sum to at most 1",
        ),
        ({"train": 0.9, "valid": 0.001, "test": 0.05}, r"data\.split\.valid: got 0\.001"),
        ({"train": ["*"]}, r"data\.split\.valid: got 0\.15, expected a share of the 0 classes"),
        ({"seed": -1}, r"data\.split\.seed"),
        ({"seed": 1.5}, r"data\.split\.seed"),
    ],
)
def test_mistakes(config: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        split_classes(TREE, SplitConfig(**config))


def test_check_examples(store: ClassStore) -> None:
    check_examples(store, [0, 1, 2], 1, "task.shots")
    check_examples(store, [2], 3, "task.shots")
    with pytest.raises(UserError) as raised:
        check_examples(store, [0, 1, 2], 3, "task.shots")
    assert raised.value.field == "task.shots"
    assert "got 3" in str(raised.value)
    assert "2 classes have fewer: 'a/x9' (1), 'a/x10' (2)" in str(raised.value)


def test_check_examples_lists_five(store: ClassStore) -> None:
    with pytest.raises(UserError, match=r"9 classes have fewer: ('\S+' \(\d\), ){5}…;?\."):
        check_examples(store, [0, 1, 2] * 3, 9, "task.shots")
