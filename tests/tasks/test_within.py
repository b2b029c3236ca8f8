"""Image tasks whose classes all come from one folder of classes, as from an alphabet."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch
from PIL import Image

from metadist.config import identity, parse_job
from metadist.data import ClassStore, DataConfig, SplitConfig, prepare
from metadist.errors import UserError
from metadist.tasks import Episode, ImageTasks

CPU = torch.device("cpu")
#: classes of each folder
FOLDERS = {"Greek": 3, "Korean": 6, "Latin": 2}
ALL = SplitConfig(train=1.0, valid=None, test=None)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> ClassStore:
    root, random = tmp_path_factory.mktemp("source"), np.random.default_rng(0)
    for alphabet, classes in FOLDERS.items():
        for number in range(classes):
            folder = root / alphabet / f"character{number}"
            folder.mkdir(parents=True)
            for example in range(3):
                Image.fromarray(random.integers(0, 256, (5, 5), dtype=np.uint8)).save(folder / f"{example}.png")
    return prepare(str(root), tmp_path_factory.mktemp("stores") / "store")


def tasks_of(store: ClassStore, split: SplitConfig = ALL, rotations: str = "none") -> ImageTasks:
    return ImageTasks(store, DataConfig(split=split, rotations=rotations), within="folder")


def folders(store: ClassStore, tasks: ImageTasks, ways: int, count: int = 600) -> Counter[str]:
    """How many tasks are of each folder; asserts that each is of one, and has as many classes as it should."""
    found: Counter[str] = Counter()
    for index in range(count):
        drawn = tasks.sample("train", 0, index, Episode(ways, 1, 1))
        names = [store.classes[row // 3] for row in drawn.rows[:, 0]]
        (folder,) = {name.partition("/")[0] for name in names}
        assert len(set(zip(names, drawn.turns, strict=True))) == ways
        found[folder] += 1
    return found


def test_a_task_is_of_one_folder_which_its_classes_make_likely(store: ClassStore) -> None:
    found = folders(store, tasks_of(store), 2)
    for folder, classes in FOLDERS.items():
        expected = 600 * classes / 11
        assert abs(found[folder] - expected) < 5 * expected**0.5


def test_small_folders_are_left_out(store: ClassStore) -> None:
    assert folders(store, tasks_of(store), 3).keys() == {"Greek", "Korean"}
    assert folders(store, tasks_of(store), 4).keys() == {"Korean"}
    # With rotations as classes each folder has four times as many.
    assert folders(store, tasks_of(store, rotations="all"), 8).keys() == FOLDERS.keys()


def test_a_split_may_cut_across_folders_or_follow_them(store: ClassStore) -> None:
    across = tasks_of(store, SplitConfig(train=8, valid=None, test=3))
    assert sum(folders(store, across, 2).values()) == 600
    along = tasks_of(store, SplitConfig(train=["Greek/*", "Latin/*"], valid=None, test=["Korean/*"]))
    assert folders(store, along, 2).keys() == {"Greek", "Latin"}
    assert along.batch("test", 0, [0], Episode(6, 1, 2), CPU).query.x.shape == (1, 12, 1, 5, 5)


def test_an_address_is_a_task(store: ClassStore) -> None:
    tasks, again = tasks_of(store), tasks_of(store)
    drawn = [tasks.sample("train", 3, index, Episode(2, 1, 2)).rows for index in range(20)]
    for index in reversed(range(20)):
        same = again.sample("train", 3, index, Episode(2, 1, 1)).rows
        assert np.array_equal(drawn[index][:, :2], same)


def test_no_folder_is_large_enough(store: ClassStore) -> None:
    tasks = tasks_of(store)
    tasks.check("train", Episode(6, 1, 2))
    message = r"^tasks\.ways: got 7, expected at most the 6 classes of the train split's largest folder"
    with pytest.raises(UserError, match=message):
        tasks.check("train", Episode(7, 1, 2))


def test_an_identity_names_it_where_it_is_said() -> None:
    plain, within = ({"kind": "images"} | part for part in ({}, {"within": "folder"}))
    assert "within" not in identity(parse_job({"tasks": plain}), None)["tasks"]
    assert identity(parse_job({"tasks": within}), None)["tasks"]["within"] == "folder"
    mixed = identity(parse_job({"tasks": {"kind": "mixture", "of": [plain, within]}}), None)["tasks"]["of"]
    assert ["within" in family for family in mixed] == [False, True]
