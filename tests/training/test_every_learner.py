"""Every learner that a job can name, built from a job: the same bits again, also when stopped on the way."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from metadist.config import build_experiment, parse_job
from metadist.learners import LEARNERS, plain_meta
from metadist.outer import Experiment, check_strategy, compute_meta_gradient

MODEL = {"kind": "mlp", "hidden": [6], "norm": "support"}
RUN = {
    "path": "run",
    "job": {"tasks": {"kind": "linear"}, "model": MODEL, "learner": {"kind": "maml", "eval_steps": 1}},
}
#: what learners must be told
SETTINGS: dict[str, dict[str, Any]] = {
    "distill": {"teacher": RUN, "student": {"kind": "maml", "inner_lr": 0.1}},
    "fusion": {"experts": [RUN, RUN], "folds": 2},
}
TASKS = {"kind": "linear", "shots": 2, "query": 3, "batch": 5, "chunk": 2}
DIGITS = {"source": "sklearn:digits", "size": 8, "split": {"train": 4, "valid": 3, "test": 3}}
SEQUENCES = {"kind": "images", "ways": 2, "shots": 0, "query": 3, "batch": 5, "chunk": 2}
#: jobs of a learner that are like no other's, by name: its kind and what is different
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "mann-sequence": ("mann", {"data": DIGITS, "tasks": SEQUENCES, "model": MODEL | {"norm": "batch"}}),
    "maml-share": ("maml", {"server": {"share": ["*", "!head.*"]}}),
}
META_TRAINED = [kind for kind, learner in LEARNERS.items() if learner.meta_trains]
TRAINED = [*META_TRAINED, *VARIANTS]


def content(kind: str) -> dict[str, Any]:
    """A job of a learner, or of one of the variants."""
    kind, different = VARIANTS.get(kind, (kind, {}))
    learner = {"kind": kind} | SETTINGS.get(kind, {})
    return {"steps": 6 if kind in META_TRAINED else 0, "tasks": TASKS, "model": MODEL, "learner": learner} | different


def experiment(kind: str, **changes: Any) -> Experiment:
    return build_experiment(parse_job(content(kind) | changes), "run")


@pytest.mark.parametrize("kind", TRAINED)
def test_stopped_and_resumed_is_uninterrupted(make_run: Callable[..., Any], kind: str) -> None:
    assert_resumes(make_run, lambda **changes: experiment(kind, **changes))


def test_a_learner_with_statistics_and_a_schedule_resumes(make_run: Callable[..., Any]) -> None:
    """MAML++ with both: stopped after 4 of 6 steps, its schedule goes on and its statistics are those of the run."""
    learner = {"kind": "mamlpp", "inner_steps": 2, "step_statistics": "running", "first_order_until": 5}
    learner |= {"multi_step_loss_steps": 5, "multi_step_loss_stages": 3}
    model = {"kind": "mlp", "hidden": [6], "norm": "batch"}
    assert_resumes(make_run, lambda **changes: experiment("mamlpp", learner=learner, model=model, **changes))


def assert_resumes(make_run: Callable[..., Any], build: Callable[..., Experiment]) -> None:
    whole, run = make_run(build()), make_run(build())
    expected = whole.go()
    assert run.go(stop=lambda: len(run.notes.records) == 4).step == 4
    result = run.go(resume=True)
    assert (result.step, result.params_sha256) == (6, expected.params_sha256)
    assert [record.loss for record in run.notes.records] == [record.loss for record in whole.notes.records]
    judged = [[(at, found.loss) for at, found, _ in each.notes.validations] for each in (run, whole)]
    assert judged[0] == judged[1]  # statistics that predictions depend on are part of what goes on, too
    assert make_run(build(seed=1)).go().params_sha256 != expected.params_sha256


@pytest.mark.parametrize("kind", [*LEARNERS, *VARIANTS])
def test_vectorised_is_what_runs(kind: str) -> None:
    """No learner falls back to the plain loop with a model of ours."""
    made = experiment(kind)
    batch = made.distribution.batch("train", 0, range(2), made.episode, torch.device("cpu"))
    found = check_strategy(made.learner, made.initial(), batch, "vectorized", "the rule")
    assert (found.strategy, found.reason) == ("vectorized", "the rule")


#: what lets a learner show in a second that it learns
QUICK = {
    "imaml": {"strength": 0.5},
    "metalstm": {"hidden": 4, "inner_steps": 2},
    "reptile": {"inner_optimizer": "sgd", "inner_lr": 0.03, "inner_steps": 10},
}


# Parts that have learned nothing teach nothing: see tests/distributed/test_trained_parts.py.
@pytest.mark.parametrize("kind", [kind for kind in META_TRAINED if kind not in SETTINGS])
def test_it_learns(make_run: Callable[..., Any], kind: str) -> None:
    """After a second its query loss on other tasks of its classes is lower than at its start."""
    made = experiment(
        kind,
        steps=60,
        data={"source": "sklearn:digits", "split": {"train": [0, 1, 2, 3, 4, 5], "valid": None, "test": [6, 7, 8, 9]}},
        tasks={"kind": "images", "ways": 3, "shots": 2, "query": 3, "batch": 4, "chunk": 4},
        model={"kind": "mlp", "hidden": [24], "norm": "support"},
        learner={"kind": kind} | QUICK.get(kind, {}),
        optimizer={"kind": "sgd", "lr": 1.0} if kind == "reptile" else {"lr": 0.01},
    )
    run = make_run(made, validate=None, checkpoint_every=60)
    run.go()
    tasks = made.distribution.batch("train", 1, range(100), made.episode, torch.device("cpu"))
    before, after = (
        float(compute_meta_gradient(made.learner, meta, tasks, "vectorized").loss)
        for meta in (made.initial(), run.end().meta)
    )
    assert after < 0.9 * before


ADAM, AVERAGE = {"kind": "adam", "lr": 0.03}, {"kind": "sgd", "lr": 1.0}


@pytest.mark.parametrize(
    ("part", "learner", "optimizer"),
    [
        ({"film": True}, {"kind": "maml", "inner_lr": 0.1, "adapt": ["head.*", "*.film.*"]}, ADAM),
        ({"film": True}, {"kind": "reptile", "inner_lr": 0.02}, AVERAGE),
        ({"gates": 4}, {"kind": "metasgd", "inner_lr": 0.1, "adapt": ["*", "!gates.*"]}, ADAM),
    ],
    ids=["film-maml", "film-reptile", "gates-metasgd"],
)
def test_task_representations_train_and_resume(
    make_run: Callable[..., Any], part: dict, learner: dict, optimizer: dict
) -> None:
    model = {"kind": "mlp", "hidden": [8], "norm": "support"} | part
    made = experiment(learner["kind"], steps=30, model=model, learner=learner, optimizer=optimizer)
    whole, run = make_run(made), make_run(made)
    expected = whole.go()
    assert run.go(stop=lambda: len(run.notes.records) == 4).step == 4
    assert run.go(resume=True).params_sha256 == expected.params_sha256
    start, end = made.initial().parameters, whole.end().meta.parameters
    own = [name for name in start if name.startswith("gates.") or ".film." in name]
    assert own
    assert not any(torch.equal(start[name], end[name]) for name in own)
    before, after = (loss_on_tests(made, at) for at in (start, end))
    assert after < 0.95 * before


@pytest.mark.parametrize("tasks", [{"kind": "linear", "shots": 5, "query": 5}, {"kind": "sinusoid", "shots": 10}])
def test_learning_in_context_is_learned(make_run: Callable[..., Any], tasks: dict) -> None:
    changes = {
        "tasks": tasks | {"batch": 8, "chunk": 8},
        "model": {"kind": "mlp", "hidden": [32]},
        "learner": {"kind": "incontext", "layers": 1},
        "optimizer": {"kind": "adam", "lr": 0.01},
    }
    made = experiment("incontext", steps=100, **changes)
    run = make_run(made, validate_every=100)
    run.go()
    before, after = (loss_on_tests(made, at) for at in (made.initial().parameters, run.end().meta.parameters))
    assert after < 0.6 * before


def test_sequences_are_learned_and_judged_by_sight(make_run: Callable[..., Any]) -> None:
    """A class that is seen for the second time is known, one that is seen for the first time is not."""
    changes = {
        "data": {"source": "sklearn:digits", "size": 8, "split": {"train": 4, "valid": 3, "test": 3}},
        "tasks": {"kind": "images", "ways": 3, "shots": 0, "query": 4, "batch": 8, "chunk": 8},
        "model": {"kind": "mlp", "hidden": [32], "norm": "batch"},
        "learner": {"kind": "mann", "width": 16, "slots": 16, "slot": 16, "heads": 1},
        "optimizer": {"kind": "adam", "lr": 0.01},
    }
    run = make_run(experiment("mann", steps=40, **changes), validate_every=40)
    run.plan = replace(run.plan, validate=replace(run.plan.validate, tasks=60))
    found = run.go().valid
    assert len(found.by_sight) == 4
    assert np.mean(found.by_sight) == pytest.approx(found.accuracy)
    assert min(found.by_sight[1:]) > 0.5 > found.by_sight[0]


def loss_on_tests(made: Experiment, parameters: dict[str, Tensor]) -> float:
    tasks = made.distribution.batch("test", 0, range(40), made.episode, torch.device("cpu"))
    return float(compute_meta_gradient(made.learner, plain_meta(parameters), tasks, "vectorized").loss)


@pytest.mark.parametrize(("lr", "moved"), [(0.0, False), (0.1, True)])
def test_a_group_of_the_optimizer_can_be_the_step_sizes(make_run: Callable[..., Any], lr: float, moved: bool) -> None:
    run = make_run(experiment("metasgd", optimizer={"lr": 0.01, "groups": [{"match": "step_sizes.*", "lr": lr}]}))
    start = run.experiment.initial().parameters
    run.go()
    end = run.end().meta.parameters
    changed = {name for name in start if not torch.equal(start[name], end[name])}
    assert changed == {name for name in start if moved or not name.startswith("step_sizes.")}
