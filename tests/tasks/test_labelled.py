"""A split as one labelled data set."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from metadist.data import ClassStore, DataConfig, SplitConfig, resolve_store
from metadist.errors import UserError
from metadist.tasks import ImageTasks
from metadist.tasks.labelled import LabelledImages

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def store() -> ClassStore:
    return resolve_store(DataConfig())


def tasks(store: ClassStore, **settings: Any) -> ImageTasks:
    split = SplitConfig(train=["3", "5"], valid=None, test=["7"])
    return ImageTasks(store, DataConfig(split=split, **settings))


def test_every_image_has_its_class_and_is_on_one_side(store: ClassStore) -> None:
    images = LabelledImages(tasks(store), "train", 0.1, seed=0)
    three, five = store.counts()[3], store.counts()[5]
    assert images.ways == 2
    assert sorted([*images.train, *images.held]) == list(range(three + five))
    assert len(images.held) == round(0.1 * three) + round(0.1 * five)
    everything = images.examples(range(three + five), CPU)
    assert everything.y.tolist() == [0] * three + [1] * five
    expected = np.concatenate([store.pixels[slice(*store.offsets[n : n + 2])] for n in (3, 5)]) / np.float32(255)
    assert np.array_equal(everything.x.numpy(), expected)
    some = images.examples([three, 0], CPU)
    assert torch.equal(some.x, everything.x[[three, 0]])
    assert (some.y.tolist(), some.ways) == ([1, 0], 2)


def test_the_seed_chooses_what_is_held_out(store: ClassStore) -> None:
    chosen = [LabelledImages(tasks(store), "train", 0.1, seed).held.tolist() for seed in (0, 0, 1)]
    assert chosen[0] == chosen[1] != chosen[2]
    assert not len(LabelledImages(tasks(store), "train", 0.0, 0).held)


def test_turns_are_classes_where_rotations_are(store: ClassStore) -> None:
    """An image that is held out is held out in all its turns."""
    images = LabelledImages(tasks(store, rotations="train"), "train", 0.1, seed=0)
    three, five = map(int, store.counts()[[3, 5]])
    assert images.ways == 8
    first = images.examples([n * three for n in range(4)], CPU)
    assert first.y.tolist() == [0, 1, 2, 3]
    for turn in range(4):
        assert torch.equal(first.x[turn], torch.rot90(first.x[0], turn, (1, 2)))
    held = np.zeros(4 * (three + five), dtype=bool)
    held[images.held] = True
    assert all(np.array_equal(held[:three], held[n * three : (n + 1) * three]) for n in range(4))


def test_images_are_standardised_as_in_tasks(store: ClassStore) -> None:
    images = LabelledImages(tasks(store, standardize=True), "train", 0.0, seed=0)
    x = images.examples(images.train, CPU).x
    assert float(x.mean()) == pytest.approx(0, abs=1e-4)
    assert float(x.std(correction=0)) == pytest.approx(1, abs=1e-4)


def test_a_share_that_leaves_nothing_is_refused(store: ClassStore) -> None:
    with pytest.raises(UserError, match=r"^pretrain.holdout: got 0.999"):
        LabelledImages(tasks(store), "train", 0.999, 0)
