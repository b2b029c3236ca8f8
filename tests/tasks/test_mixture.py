"""Mixtures: which family, how often, and that a task is the family's own."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from metadist.config import build_experiment, dump_job, parse_job
from metadist.errors import UserError
from metadist.reading_yaml import parse_yaml
from metadist.tasks import (
    Episode,
    LinearTasks,
    LinearTasksConfig,
    LineTasks,
    LineTasksConfig,
    MixtureTasks,
    MixtureTasksConfig,
    QuadraticTasks,
    SinusoidTasks,
    SinusoidTasksConfig,
    take,
)

CPU = torch.device("cpu")
EPISODE = Episode(1, 3, 4)
THREE = {"kind": "mixture", "ways": 1, "of": [{"kind": "sinusoid"}, {"kind": "line"}, {"kind": "quadratic"}]}


def test_families_come_as_often_as_their_weights_say() -> None:
    mixture = MixtureTasks([SinusoidTasks(), LineTasks(), QuadraticTasks()], [1, 5, 4])
    chosen = torch.tensor([mixture.sample("train", 0, index, EPISODE)[0] for index in range(4000)])
    shares = chosen.bincount(minlength=3) / 4000
    assert shares.tolist() == pytest.approx([0.1, 0.5, 0.4], abs=0.025)


def test_a_task_is_its_familys_at_the_same_address() -> None:
    families = [SinusoidTasks(), LineTasks(), QuadraticTasks()]
    mixture = MixtureTasks(families, [1, 1, 1])
    addresses = [7, 0, 3, 15, 10, 5, 2, 1, 20, 4]
    batch = mixture.batch("valid", 2, addresses, EPISODE, CPU)
    seen = set()
    for place, index in enumerate(addresses):
        number, _ = mixture.sample("valid", 2, index, EPISODE)
        seen.add(number)
        expected = take(families[number].batch("valid", 2, [index], EPISODE, CPU), 0)
        for found, wanted in zip(take(batch, place), expected, strict=True):
            assert torch.equal(found.x, wanted.x)
            assert torch.equal(found.y, wanted.y)
            assert found.ways == wanted.ways
    assert seen == {0, 1, 2}


def test_one_family_is_that_family() -> None:
    mixture = MixtureTasks([LinearTasks(3)], [0.2])
    episode = Episode(2, 1, 1)
    ours, own = (family.batch("test", 0, range(3), episode, CPU) for family in (mixture, LinearTasks(3)))
    assert torch.equal(ours.query.x, own.query.x)
    assert (ours.query.ways, mixture.outputs(episode), mixture.loss) == (2, 2, "cross_entropy")


def test_in_a_job_and_back() -> None:
    job = parse_job({"tasks": {**THREE, "weights": [2, 1, 1], "shots": 10}, "model": {"kind": "mlp"}})
    assert isinstance(job.tasks, MixtureTasksConfig)
    assert isinstance(job.tasks.of[1], LineTasksConfig)
    assert (job.tasks.loss, job.tasks.needs_data) == ("mse", False)
    assert parse_job(parse_yaml(dump_job(job), "dump")) == job
    experiment = build_experiment(job, "run")
    batch = experiment.distribution.batch("train", 0, range(6), experiment.episode, CPU)
    assert batch.support.y.shape == (6, 10, 1)


@pytest.mark.parametrize(
    ("tasks", "message"),
    [
        ({"ways": 5}, r"^tasks\.ways: got 5, expected 1"),
        ({"of": []}, r"^tasks\.of: got \[\], expected at least one family"),
        ({"of": 3}, r"^tasks\.of: got 3, expected a list"),
        ({"of": [{"kind": "lines"}]}, r"^tasks\.of\.0\.kind: got 'lines', .* Did you mean 'line'"),
        ({"of": [{"kind": "mixture", "of": []}]}, r"^tasks\.of\.0\.kind: got 'mixture'"),
        ({"of": [{"kind": "line"}, {"kind": "line", "slope": 1}]}, r"^tasks\.of\.1\.slope: got 1"),
        ({"of": [{"kind": "line", "shots": 3}]}, r"^tasks\.of\.0\.shots: got 3, .* Set tasks\.shots instead"),
        ({"of": [{"kind": "line"}, {"kind": "linear"}]}, r"^tasks\.of\.1: got 'loss cross_entropy', expected loss mse"),
        ({"weights": [1, 2]}, r"^tasks\.weights: got \[1\.0, 2\.0\], expected a number above 0 for each of 3 families"),
        ({"weights": [1, 0, 2]}, r"^tasks\.weights: got"),
        ({"weights": ["a"]}, r"^tasks\.weights: got \['a'\], expected a list, each a number or null"),
    ],
)
def test_mistakes(tasks: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        build_experiment(parse_job({"tasks": THREE | tasks, "model": {"kind": "mlp"}}), "run")


def test_families_must_be_there() -> None:
    with pytest.raises(UserError, match=r"a section with the key of"):
        parse_job({"tasks": {"kind": "mixture"}, "model": {"kind": "mlp"}})


def test_inputs_and_outputs_must_agree() -> None:
    with pytest.raises(UserError, match=r"^tasks\.of\.1: got 'inputs of shape \[3\]', expected inputs of shape \[2\]"):
        MixtureTasks([LinearTasks(2), LinearTasks(3)], [1, 1])
    with pytest.raises(UserError, match="expected loss cross_entropy"):
        MixtureTasks([LinearTasks(2), LinearTasks(2, "binary_cross_entropy")], [1, 1])


def test_sizes_that_are_the_default_may_be_written_out() -> None:
    """As they are in the job file of a run."""
    assert MixtureTasksConfig(of=[SinusoidTasksConfig(shots=10)], ways=1).of == [SinusoidTasksConfig()]
    assert MixtureTasksConfig(of=[LinearTasksConfig()], ways=2).loss == "cross_entropy"


def test_learners_that_compare_classes_are_refused() -> None:
    with pytest.raises(UserError, match=r"^learner\.kind: got 'protonet', expected a learner for regression tasks"):
        parse_job({"tasks": THREE, "model": {"kind": "mlp"}, "learner": {"kind": "protonet"}})
