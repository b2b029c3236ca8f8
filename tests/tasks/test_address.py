"""A task is a function of its address and of nothing else."""

from __future__ import annotations

import hashlib
import os
import random
import subprocess
import sys

import numpy as np
import pytest
import torch

from metadist.errors import UserError
from metadist.tasks import (
    Episode,
    LinearTasks,
    SinusoidTasks,
    Task,
    TaskDistribution,
    TasksConfig,
    generator,
    join,
    take,
)

CPU = torch.device("cpu")
EPISODE = Episode(2, 2, 3)
DIGESTS = """
import hashlib, torch
from metadist.tasks import Episode, LinearTasks, SinusoidTasks, generator
def digest(task):
    return hashlib.sha256(b"".join(t.numpy().tobytes() for part in task for t in part[:2])).hexdigest()[:16]
for family in (SinusoidTasks(), LinearTasks(3)):
    print(digest(family.batch("train", 7, [5, 3], Episode(2, 2, 3), torch.device("cpu"))))
print(generator("images", "train", 0, 1).permutation(1000)[:5].tolist())
"""
GOLDEN = ["85c43de5dbfd6207", "79073a68357724f8", "[925, 237, 810, 60, 211]"]


def digest(task: Task) -> str:
    return hashlib.sha256(b"".join(t.contiguous().numpy().tobytes() for part in task for t in part[:2])).hexdigest()


def one(family: TaskDistribution, split: str, seed: int, index: int, episode: Episode = EPISODE) -> Task:
    return take(family.batch(split, seed, [index], episode, CPU), 0)


def test_the_order_of_drawing_does_not_matter(family: TaskDistribution) -> None:
    forwards = [digest(one(family, "train", 0, index)) for index in range(6)]
    backwards = [digest(one(family, "train", 0, index)) for index in reversed(range(6))]
    batch = family.batch("train", 0, range(6), EPISODE, CPU)
    assert forwards == backwards[::-1] == [digest(take(batch, index)) for index in range(6)]


def test_other_addresses_are_other_tasks(family: TaskDistribution) -> None:
    addresses = [("train", 0, 0), ("train", 0, 1), ("train", 1, 0), ("valid", 0, 0), ("test", 0, 0), ("train", 10, 0)]
    addresses += [("train", 0, 10), ("train", 1, 1)]
    assert len({digest(one(family, *address)) for address in addresses}) == len(addresses)


@pytest.mark.parametrize("query", [1, 2, 4])
def test_support_does_not_depend_on_the_number_of_query_examples(family: TaskDistribution, query: int) -> None:
    for index in range(3):
        wide, narrow = (one(family, "train", 0, index, Episode(2, 2, q)).support for q in (3, query))
        assert torch.equal(wide.x, narrow.x)
        assert torch.equal(wide.y, narrow.y)


def test_fewer_query_examples_are_the_first_of_more(family: TaskDistribution) -> None:
    """Only for tasks as they are evaluated; augmented ones are for training."""
    wide, narrow = (one(family, "test", 0, 0, Episode(2, 2, q)).query for q in (3, 2))
    assert torch.equal(wide.x[: len(narrow.x)], narrow.x)


def test_global_random_states_are_neither_used_nor_moved(family: TaskDistribution) -> None:
    before = digest(one(family, "train", 0, 0))
    random.seed(5), np.random.seed(5), torch.manual_seed(5)
    states = random.getstate(), np.random.get_state()[1].tobytes(), torch.get_rng_state().numpy().tobytes()
    assert digest(one(family, "train", 0, 0)) == before
    assert states == (random.getstate(), np.random.get_state()[1].tobytes(), torch.get_rng_state().numpy().tobytes())


@pytest.mark.parametrize("hash_seed", ["1", "2"])
def test_other_processes_draw_the_same_tasks(hash_seed: str) -> None:
    """The numbers below are part of what a job's seed means: a change is a change of every run."""
    out = subprocess.run(
        [sys.executable, "-c", DIGESTS],
        env={**os.environ, "PYTHONHASHSEED": hash_seed},
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    ).stdout.split("\n")
    assert out[:3] == GOLDEN


def test_keys_are_told_apart() -> None:
    keys = [("a", 1, 23), ("a", 12, 3), ("a1", 23), ("a", "1", "2", "3"), ("a",), ()]
    assert len({generator(*key).integers(2**63) for key in keys}) == len(keys)
    assert generator("a", 1).integers(2**63) == generator("a", "1").integers(2**63)


def test_join_and_take_are_inverse(family: TaskDistribution) -> None:
    batch = family.batch("train", 0, [2, 0], EPISODE, CPU)
    tasks = [take(batch, 0), take(batch, 1)]
    assert digest(join(tasks)) == digest(batch)
    assert join(tasks).support.ways == batch.support.ways


def test_rows_of_classes_go_shot_by_shot(family: TaskDistribution) -> None:
    task = one(family, "train", 0, 0)
    assert task.support.x.dtype == task.query.x.dtype == torch.float32
    if family.loss == "mse":
        assert (task.support.x.shape, task.query.x.shape) == ((2, 1), (3, 1))
        assert task.support.ways == task.query.ways == 0
    else:
        assert task.support.y.tolist() == [0, 1, 0, 1]
        assert task.query.y.tolist() == [0, 1, 0, 1, 0, 1]
        assert task.support.ways == task.query.ways == 2
        assert task.support.x.shape == (4, *family.input_shape)


def test_sinusoids_follow_the_formula() -> None:
    for index in range(50):
        rng = generator("sinusoid", "train", 0, index)
        amplitude, phase = rng.uniform(0.1, 5.0), rng.uniform(0.0, np.pi)
        for part in one(SinusoidTasks(), "train", 0, index, Episode(1, 20, 20)):
            x, y = part.x.double().numpy(), part.y.double().numpy()
            assert np.abs(y - amplitude * np.sin(x - phase)).max() < 1e-5
            assert np.abs(x).max() <= 5.0


def test_sinusoids_fill_their_ranges() -> None:
    """Amplitude and phase are fitted by least squares to each task's points, without the generator's key."""
    batch = SinusoidTasks().batch("train", 0, range(400), Episode(1, 20, 1), CPU)
    found = []
    for x, y in zip(batch.support.x.double().numpy(), batch.support.y.double().numpy(), strict=True):
        basis = np.hstack([np.sin(x), -np.cos(x)])
        (a, b), residue, *_ = np.linalg.lstsq(basis, y[:, 0])
        assert residue < 1e-9
        found.append((np.hypot(a, b), np.arctan2(b, a)))
    amplitude, phase = np.array(found).T
    for values, low, high in ((amplitude, 0.1, 5.0), (phase, 0.0, np.pi)):
        assert low - 1e-6 <= values.min() < low + 0.05 * (high - low)
        assert high - 0.05 * (high - low) < values.max() <= high + 1e-6
        assert values.mean() == pytest.approx((low + high) / 2, abs=4 * (high - low) / np.sqrt(12 * 400))
    assert batch.support.x.std() == pytest.approx(10 / np.sqrt(12), rel=0.03)


@pytest.mark.parametrize("dimension", [1, 2, 5])
def test_linear_tasks_are_balanced_and_separable(dimension: int) -> None:
    family = LinearTasks(dimension)
    normals = []
    for index in range(10):
        normal, offset, (x, y) = separate(one(family, "train", 0, index, Episode(2, 20, 30)))
        assert y.reshape(-1, 2).tolist() == [[0, 1]] * 50
        assert ((x @ normal + offset > 0) == (y == 1)).all()
        normals.append((*np.round(normal, 6), round(offset, 6)))
    assert len(set(normals)) == 10


def separate(task: Task) -> tuple[np.ndarray, float, tuple[np.ndarray, np.ndarray]]:
    """A separating hyperplane, by linear programming."""
    from scipy.optimize import linprog

    x = np.concatenate([part.x.double().numpy() for part in task])
    y = np.concatenate([part.y.numpy() for part in task])
    sign = np.where(y == 1, 1.0, -1.0)[:, None]
    found = linprog(np.zeros(x.shape[1] + 1), -sign * np.c_[x, np.ones(len(x))], -np.ones(len(x)), bounds=(None, None))
    assert found.status == 0, "not linearly separable"
    return found.x[:-1], found.x[-1], (x, y)


@pytest.mark.parametrize(
    ("settings", "field"),
    [({"ways": 0}, "ways"), ({"query": 0}, "query"), ({"train_shots": 0}, "train_shots"), ({"chunk": 33}, "chunk")],
)
def test_impossible_sizes_are_refused(settings: dict[str, int], field: str) -> None:
    with pytest.raises(UserError, match=f"^{field}: got"):
        TasksConfig(**settings)


def test_training_may_have_its_own_size() -> None:
    assert TasksConfig(ways=5, shots=1, query=2).training_episode() == Episode(5, 1, 2)
    assert TasksConfig(ways=5, train_ways=20, train_shots=10).training_episode() == Episode(20, 10, 1)
