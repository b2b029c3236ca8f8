"""N-way K-shot tasks over a store of images."""

from __future__ import annotations

import statistics
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from metadist.data import AugmentConfig, ClassStore, DataConfig, SplitConfig, prepare
from metadist.errors import UserError
from metadist.tasks import Episode, ImageTasks, Task, take

CPU = torch.device("cpu")
EPISODE = Episode(ways=4, shots=2, query=3)
EXAMPLES = 6


def origin(store: ClassStore, image: torch.Tensor) -> tuple[int, int]:
    """Row of the store and number of quarter turns of an unaugmented image; asserts that there is exactly one."""
    pixels = torch.from_numpy(np.array(store.pixels)).float() / 255
    found = [
        (row, turns)
        for turns in range(4)
        for row in (torch.rot90(pixels, turns, (-2, -1)) == image).all(-1).all(-1).all(-1).nonzero().flatten().tolist()
    ]
    assert len(found) == 1
    return found[0]


def origins(store: ClassStore, task: Task) -> list[list[tuple[int, int]]]:
    """Origin of each image, [ways][shots + query], support first; checks that rows go shot by shot."""
    ways = task.support.ways
    by_way: list[list[tuple[int, int]]] = [[] for _ in range(ways)]
    for part in task:
        assert part.y.tolist() == list(range(ways)) * (len(part.y) // ways)
        for image, label in zip(part.x, part.y.tolist(), strict=True):
            by_way[label].append(origin(store, image))
    return by_way


def test_a_way_is_one_class_and_no_image_comes_twice(store: ClassStore, images: Callable) -> None:
    tasks = images()
    for index in range(10):
        ways = origins(store, take(tasks.batch("train", 0, [index], EPISODE, CPU), 0))
        classes = [{row // EXAMPLES for row, _ in way} for way in ways]
        assert all(len(labels) == 1 for labels in classes)
        assert len(set.union(*classes)) == 4
        assert set.union(*classes) <= set(tasks.classes["train"])
        rows = [row for way in ways for row, _ in way]
        assert len(set(rows)) == len(rows) == 4 * 5


def test_every_class_and_image_comes_in_every_place(store: ClassStore, images: Callable) -> None:
    tasks = images()
    drawn = [tasks.sample("train", 0, index, EPISODE) for index in range(400)]
    by_way = Counter((way, int(task.rows[way, 0]) // EXAMPLES) for task in drawn for way in range(4))
    first = Counter(int(task.rows[0, 0]) for task in drawn)
    assert len(by_way) == 4 * 6
    assert len(first) == 6 * EXAMPLES
    # 400 draws of 6 classes: 66.7 expected, standard deviation 7.5.
    assert all(abs(count - 400 / 6) < 5 * 7.5 for count in by_way.values())


def test_without_a_support_set_the_query_comes_in_an_order_of_its_address(images: Callable) -> None:
    family, episode = images(), Episode(3, 0, 4)
    batch = family.batch("train", 0, range(40), episode, CPU)
    assert (batch.support.x.shape, batch.query.y.shape) == ((40, 0, *family.input_shape), (40, 12))
    shown = family.batch("train", 0, range(40), Episode(3, 1, 3), CPU)
    for task, other in zip(batch.query.x, zip(shown.support.x, shown.query.x, strict=True), strict=True):
        assert {image.numpy().tobytes() for image in task} == {image.numpy().tobytes() for image in torch.cat(other)}
    assert len({tuple(y.tolist()) for y in batch.query.y}) > 30
    assert {y[0].item() for y in batch.query.y} == {0, 1, 2}
    one, again = (family.batch("train", 0, [7], episode, CPU).query for _ in range(2))
    assert torch.equal(one.x, again.x)
    assert torch.equal(one.y[0], batch.query.y[7])


@pytest.mark.parametrize(("rotations", "turns"), [("none", (1, 1, 1)), ("train", (4, 1, 1)), ("all", (4, 4, 4))])
def test_rotations_make_classes(store: ClassStore, images: Callable, rotations: str, turns: tuple[int, ...]) -> None:
    tasks = images(rotations=rotations)
    for split, turned in zip(("train", "valid", "test"), turns, strict=True):
        count = turned * len(tasks.classes[split])
        tasks.check(split, Episode(count, 1, 1))
        with pytest.raises(UserError, match=f"at most the {count} classes of the {split} split"):
            tasks.check(split, Episode(count + 1, 1, 1))
        task = take(tasks.batch(split, 0, [0], Episode(count, 1, 1), CPU), 0)
        drawn = [{(row // EXAMPLES, turn) for row, turn in way} for way in origins(store, task)]
        assert all(len(way) == 1 for way in drawn)
        assert set.union(*drawn) == {(label, turn) for label in tasks.classes[split] for turn in range(turned)}


def test_a_class_is_turned_as_one_and_classes_differ(store: ClassStore, images: Callable) -> None:
    """All images of a way have the same turn, which is not that of the last way, or of all ways."""
    tasks = images(rotations="all")
    seen = set()
    for index in range(20):
        ways = origins(store, take(tasks.batch("train", 0, [index], EPISODE, CPU), 0))
        turns = [{turn for _, turn in way} for way in ways]
        assert all(len(way) == 1 for way in turns)
        seen.add(tuple(way.pop() for way in turns))
    assert sum(len(set(turns)) > 1 for turns in seen) > 15


def test_rotation_is_that_of_torch(store: ClassStore, images: Callable) -> None:
    tasks = images(rotations="train")
    drawn = [tasks.sample("train", 0, index, EPISODE) for index in range(5)]
    batch = tasks.gather(drawn, CPU)
    for index, task in enumerate(drawn):
        images_of = torch.from_numpy(store.pixels[task.rows]).float() / 255
        for way, turns in enumerate(task.turns):
            expected = torch.rot90(images_of[way], int(turns), (-2, -1))
            assert torch.equal(take(batch, index).support.x[way :: EPISODE.ways], expected[:2])
            assert torch.equal(take(batch, index).query.x[way :: EPISODE.ways], expected[2:])


def test_pixels_are_copies(store: ClassStore, images: Callable) -> None:
    tasks = images()
    before = np.array(store.pixels)
    first = tasks.batch("train", 0, [0], EPISODE, CPU)
    kept = first.support.x.clone()
    first.support.x.fill_(7.0)
    assert torch.equal(tasks.batch("train", 0, [0], EPISODE, CPU).support.x, kept)
    assert (store.pixels == before).all()


def test_inverted_pixels(source: Path, store: ClassStore, tmp_path: Path) -> None:
    other = prepare(str(source), tmp_path / "inverted", invert=True)
    assert (other.pixels == 255 - np.array(store.pixels)).all()


def test_standardised_over_the_training_classes(store: ClassStore, images: Callable) -> None:
    plain, standard = images(), images(standardize=True)
    rows = np.concatenate([np.arange(c * EXAMPLES, (c + 1) * EXAMPLES) for c in plain.classes["train"]])
    values = store.pixels[rows].astype(np.float64) / 255
    for split in ("train", "test"):
        a, b = (tasks.batch(split, 0, [0], Episode(2, 2, 2), CPU).query.x for tasks in (plain, standard))
        assert torch.allclose(b.double(), (a.double() - values.mean()) / values.std(), atol=1e-5)


@pytest.mark.parametrize(
    ("change", "holds"),
    [
        (AugmentConfig(flip=True), lambda a, b: torch.equal(a, b) or torch.equal(a.flip(-1), b)),
        (AugmentConfig(crop=1), lambda a, b: any(torch.equal(s, b) for s in shifts(a))),
        (AugmentConfig(noise=0.1), lambda a, b: 0 < (a - b).abs().max() < 0.6),
    ],
    ids=["flip", "crop", "noise"],
)
@pytest.mark.parametrize("sets", ["support", "query", "both"])
def test_augmentation_changes_the_named_sets_of_training_tasks(
    images: Callable, change: AugmentConfig, holds: Callable, sets: str
) -> None:
    plain = images()
    other = images(augment=AugmentConfig(change.flip, change.crop, change.noise, sets))
    for split in ("valid", "test"):
        a, b = (tasks.batch(split, 0, range(3), Episode(2, 2, 2), CPU) for tasks in (plain, other))
        assert all(torch.equal(p.x, q.x) for p, q in zip(a, b, strict=True))
    a, b = (tasks.batch("train", 0, range(5), EPISODE, CPU) for tasks in (plain, other))
    for name in ("support", "query"):
        before, after = getattr(a, name).x.flatten(0, 1), getattr(b, name).x.flatten(0, 1)
        changed = sum(not torch.equal(x, y) for x, y in zip(before, after, strict=True))
        if sets in (name, "both"):
            assert all(holds(x, y) for x, y in zip(before, after, strict=True))
            assert changed > len(before) / 4
            assert len({x.numpy().tobytes() for x in after}) > len(before) / 2
        else:
            assert changed == 0
    again = other.batch("train", 0, range(5), EPISODE, CPU)
    assert all(torch.equal(p.x, q.x) for p, q in zip(b, again, strict=True))


def shifts(image: torch.Tensor) -> list[torch.Tensor]:
    padded = torch.nn.functional.pad(image, (1, 1, 1, 1))
    side = image.shape[-1]
    return [padded[..., i : i + side, j : j + side] for i in range(3) for j in range(3)]


def test_flips_are_one_in_two(images: Callable) -> None:
    plain, flipped = images(), images(augment=AugmentConfig(flip=True))
    a, b = (tasks.batch("train", 0, range(50), EPISODE, CPU).support.x.flatten(0, 1) for tasks in (plain, flipped))
    turned = sum(torch.equal(x.flip(-1), y) for x, y in zip(a, b, strict=True))
    assert len(a) == 400
    assert abs(turned - 200) < 5 * 10


def test_too_few_examples_are_named(images: Callable) -> None:
    images().check("train", Episode(2, 3, 3))
    with pytest.raises(UserError, match=r"tasks\.shots \+ query: got 7, .*have fewer"):
        images().check("train", Episode(2, 3, 4))


def test_a_split_without_classes(images: Callable) -> None:
    tasks = images(split=SplitConfig(train=6, valid=None, test=2))
    assert (tasks.has("train"), tasks.has("valid"), tasks.has("test")) == (True, False, True)


def test_only_square_images_are_rotated(tmp_path: Path) -> None:
    for number in range(3):
        (tmp_path / f"source/{number}").mkdir(parents=True)
        for example in range(2):
            pixels = np.full((4, 6), 40 * number + example, dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / f"source/{number}/{example}.png")
    store = prepare(str(tmp_path / "source"), tmp_path / "store")
    split = SplitConfig(train=1, valid=1, test=1)
    with pytest.raises(UserError, match=r"data\.rotations: got 'train', expected square images, these are 4×6"):
        ImageTasks(store, DataConfig(rotations="train", split=split))
    tasks = ImageTasks(store, DataConfig(split=split))
    assert tasks.batch("train", 0, [0], Episode(1, 1, 1), CPU).support.x.shape == (1, 1, 1, 4, 6)


def test_drawing_is_cheap() -> None:
    """Drawing the indices of a meta-batch costs less than a millisecond per task at Omniglot's size."""
    store = SimpleNamespace(
        shape=(1, 28, 28),
        classes=tuple(f"character{number}" for number in range(1200)),
        offsets=np.arange(1201) * 20,
    )
    tasks = ImageTasks(store, DataConfig(rotations="train", split=SplitConfig(train=1000, valid=100, test=100)))
    seconds = []
    for batch in range(20):
        start = time.perf_counter()
        for index in range(32):
            tasks.sample("train", 0, 32 * batch + index, Episode(5, 1, 1))
        seconds.append((time.perf_counter() - start) / 32)
    assert statistics.median(seconds) < 1e-3
