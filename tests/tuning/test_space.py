"""The space of a sweep: how it is written, what is refused before anything starts, what is drawn."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from metadist.config import Job, dump_job, identity, load_job, parse_job
from metadist.errors import UserError
from metadist.tuning.space import (
    Dimension,
    check_space,
    draw_trials,
    metric_of,
    read_space,
    trial_job,
)

BASE: dict[str, Any] = {
    "tasks": {"kind": "sinusoid", "batch": 4, "chunk": 2},
    "model": {"kind": "mlp", "hidden": [8]},
    "learner": {"kind": "maml", "inner_lr": 0.01},
}
RATES = {"learner.inner_lr": {"loguniform": [0.01, 10]}, "optimizer.lr": {"loguniform": [1e-5, 0.1]}}


def job(**tune: Any) -> Job:
    return parse_job(BASE | {"tune": tune})


def refused(**tune: Any) -> UserError:
    """What is said of a sweep, by the parts that look at it in turn."""
    with pytest.raises(UserError) as caught:
        look_at(tune)
    return caught.value


def look_at(tune: dict[str, Any]) -> None:
    made = job(**tune)
    check_space(made, read_space(made))
    metric_of(made.tune, False)


def test_rates_are_swept_together_by_default() -> None:
    assert [(d.path, d.kind) for d in read_space(job())] == [
        ("learner.inner_lr", "loguniform"),
        ("optimizer.lr", "loguniform"),
    ]


def test_without_an_inner_rate_the_outer_one_is_left() -> None:
    content = {"tasks": {"kind": "linear"}, "model": {"kind": "mlp"}, "learner": {"kind": "protonet"}}
    assert [d.path for d in read_space(parse_job(content))] == ["optimizer.lr"]


def test_sections_are_dotted_paths() -> None:
    """As `--set tune.space.learner.inner_lr=…` writes them."""
    nested = {"learner": {"inner_lr": {"uniform": [0.1, 0.2]}, "inner_steps": {"integers": [1, 3]}}}
    assert read_space(job(space=nested)) == [
        Dimension("learner.inner_lr", "uniform", (0.1, 0.2)),
        Dimension("learner.inner_steps", "integers", (1, 3)),
    ]


@pytest.mark.parametrize(
    ("space", "field", "hint"),
    [
        ({}, "tune.space", "learning rates"),
        ({"learner.inner_lr": [0.1, 0.2]}, "tune.space.learner.inner_lr", "loguniform"),
        ({"learner.inner_lr": {"logunifrom": [0.1, 0.2]}}, "tune.space.learner.inner_lr", "loguniform"),
        ({"learner.inner_lr": {"uniform": 0.1}}, "tune.space.learner.inner_lr.uniform", ""),
        ({"learner.inner_lr": {"uniform": [0.2, 0.1]}}, "tune.space.learner.inner_lr.uniform", ""),
        ({"learner.inner_lr": {"uniform": [0.1, "0.2"]}}, "tune.space.learner.inner_lr.uniform", ""),
        ({"learner.inner_lr": {"loguniform": [0, 0.1]}}, "tune.space.learner.inner_lr.loguniform", "zero"),
        ({"learner.inner_lr": {"choice": []}}, "tune.space.learner.inner_lr.choice", ""),
        ({"learner.inner_lr": {"grid": [0.1, 0.1]}}, "tune.space.learner.inner_lr.grid", ""),
        ({"learner.inner_steps": {"integers": [1, 2.5]}}, "tune.space.learner.inner_steps.integers", ""),
        ({"learner.iner_lr": {"uniform": [0.1, 0.2]}}, "tune.space.learner.iner_lr", "inner_lr"),
        ({"lerner.inner_lr": {"uniform": [0.1, 0.2]}}, "tune.space.lerner.inner_lr", "learner"),
        ({"learner.inner_steps": {"uniform": [1, 2]}}, "tune.space.learner.inner_steps", ""),
        ({"learner.inner_lr": {"uniform": [-1, 1]}}, "tune.space.learner.inner_lr", ""),
        ({"model.activation": {"choice": ["relu", "rleu"]}}, "tune.space.model.activation", "relu"),
        ({"resources.workers": {"integers": [1, 2]}}, "tune.space.resources.workers", "tune.resources"),
        ({"storage": {"choice": ["a", "b"]}}, "tune.space.storage", "never"),
        ({"tune.num_samples": {"integers": [1, 2]}}, "tune.space.tune.num_samples", "never"),
    ],
)
def test_a_space_that_cannot_be(space: Any, field: str, hint: str) -> None:
    error = refused(space=space)
    assert error.field == field
    assert hint in str(error)


@pytest.mark.parametrize(
    ("tune", "field"),
    [
        ({"metric": "accuracy"}, "tune.metric"),
        ({"metric": "los"}, "tune.metric"),
        ({"reduction": 1}, "tune.reduction"),
        ({"num_samples": 0}, "tune.num_samples"),
        ({"resources": {"workers": 0}}, "tune.resources"),
        ({"resources": {"wrokers": 1}}, "tune.resources"),
        ({"initial": [{"learner.inner_lr": -1.0}]}, "tune.initial.0"),
        ({"initial": [{"learner.first_order": True}]}, "tune.initial.0"),
        ({"space": RATES | {"seed": {"grid": [1, 2]}}, "search": "optuna"}, "tune.space.seed"),
    ],
)
def test_a_sweep_that_cannot_be(tune: dict[str, Any], field: str) -> None:
    assert refused(**tune).field == field


def test_classification_goes_by_accuracy_and_regression_by_loss() -> None:
    assert metric_of(job().tune, True) == ("valid/accuracy", "max")
    assert metric_of(job().tune, False) == ("valid/loss", "min")
    assert metric_of(job(metric="loss").tune, True) == ("valid/loss", "min")
    assert metric_of(job(metric="f1", mode="min").tune, True) == ("valid/f1", "min")


def test_draws_are_a_function_of_the_seed() -> None:
    few, many = job(space=RATES, num_samples=3), job(space=RATES, num_samples=7)
    drawn = draw_trials(many, read_space(many))
    assert draw_trials(few, read_space(few)) == drawn[:3]
    assert len({str(values) for values in drawn}) == 7
    other = parse_job(BASE | {"seed": 1, "tune": {"space": RATES, "num_samples": 7}})
    assert draw_trials(other, read_space(other)) != drawn


def test_initial_trials_come_first_and_take_the_rest_from_the_job() -> None:
    made = job(space=RATES, initial=[{"optimizer.lr": 0.5}], num_samples=1)
    first, second = draw_trials(made, read_space(made))
    assert first == {"learner.inner_lr": 0.01, "optimizer.lr": 0.5}
    assert second != first


def test_a_grid_is_walked_whole_for_each_sample() -> None:
    grids = {"seed": {"grid": [0, 1]}, "learner.first_order": {"grid": [False, True]}}
    made = job(space=grids, num_samples=5)
    drawn = draw_trials(made, read_space(made))
    assert [tuple(values.values()) for values in drawn] == [(0, False), (0, True), (1, False), (1, True)]
    mixed = job(space=grids | RATES, num_samples=2)
    drawn = draw_trials(mixed, read_space(mixed))
    assert len(drawn) == 8
    assert len({values["optimizer.lr"] for values in drawn}) == 8


def test_draws_fill_their_ranges() -> None:
    rng = np.random.default_rng(0)
    rates = [Dimension("x", "loguniform", (1e-4, 1.0)).draw(rng) for _ in range(2000)]
    assert 1e-4 <= min(rates) < 2e-4
    assert 0.8 < max(rates) <= 1
    assert np.histogram(np.log10(rates), 4, (-4, 0))[0] == pytest.approx([500] * 4, rel=0.15)
    assert {Dimension("x", "integers", (1, 3)).draw(rng) for _ in range(100)} == {1, 2, 3}
    counts = np.bincount([Dimension("x", "logintegers", (1, 8)).draw(rng) for _ in range(4000)])
    assert counts[1] > counts[4] > counts[8] > 0
    assert {Dimension("x", "choice", ("a", None)).draw(rng) for _ in range(50)} == {"a", None}


def test_drawn_numbers_are_short_and_within_bounds() -> None:
    dimension = Dimension("x", "uniform", (0.123456, 0.1234567))
    rng = np.random.default_rng(0)
    assert {dimension.draw(rng) for _ in range(20)} <= {0.123456, 0.1234567}
    rate = Dimension("x", "loguniform", (1e-5, 10.0)).draw(rng)
    assert float(f"{rate:.4g}") == rate
    assert math.isfinite(rate)


def test_a_trials_job_is_the_sweeps_with_its_values_and_resources() -> None:
    made = job(space=RATES, resources={"workers": 5})
    trial = trial_job(made, {"learner.inner_lr": 0.3})
    assert trial.learner.inner_lr == 0.3  # type: ignore[union-attr]
    assert trial.resources.workers == 5
    assert made.resources.workers != 5
    assert "tune" not in yaml.safe_load(dump_job(trial))


def test_items_of_lists_have_numbers() -> None:
    content = BASE | {"optimizer": {"groups": [{"match": "head.*", "lr": 0.1}]}}
    made = parse_job(content | {"tune": {"space": {"optimizer.groups.0.lr": {"uniform": [0.1, 0.2]}}}})
    (dimension,) = read_space(made)
    assert trial_job(made, {dimension.path: 0.15}).optimizer.groups[0].lr == 0.15


def test_a_sweep_is_no_part_of_a_runs_identity(tmp_path: Path) -> None:
    assert identity(job(), None) == identity(job(space=RATES, num_samples=50), None)
    again = tmp_path / "job.yaml"
    again.write_text(dump_job(job(space=RATES)))
    assert load_job(str(again)) == job(space=RATES)
