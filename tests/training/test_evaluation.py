"""Evaluation against plain loops, scipy and sklearn."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from sklearn import metrics

from metadist.learners import Meta, ProtoNet, ProtoNetConfig
from metadist.outer import Experiment, OuterState, publish
from metadist.tasks import Episode, take
from metadist.testing.toys import linear_experiment, sinusoid_experiment
from metadist.training.dispatch import Dispatcher
from metadist.training.evaluation import Evaluation, EvaluationPlan, _by_sight, evaluate, mean_and_ci95
from metadist.training.inprocess import Box, InProcessPool
from metadist.training.work import TaskScores

CPU = torch.device("cpu")
EXPERIMENTS = {"linear": linear_experiment, "sinusoid": sinusoid_experiment}


def plan(experiment: Experiment, chunk: int = 4, tasks: int = 9, steps: int = 3) -> EvaluationPlan:
    return EvaluationPlan("test", 5, tasks, Episode(experiment.episode.ways, 3, 6), steps, chunk, norm="none")


def judge(experiment: Experiment, meta: Meta, strategy: str = "loop", **settings: Any) -> Evaluation:
    dispatcher = Dispatcher(InProcessPool(experiment, CPU), 1.0, print)
    version = Box(publish(OuterState(0, meta, {})))
    return evaluate(dispatcher, plan(experiment, **settings), strategy, version, with_scratch=True, with_classes=True)


def outputs_by_hand(experiment: Experiment, meta: Meta, steps: int = 3) -> list[tuple[list[np.ndarray], np.ndarray]]:
    """Per task: query outputs after each step, and targets."""
    found = []
    for index in range(9):
        task = take(experiment.distribution.batch("test", 5, [index], plan(experiment).episode, CPU), 0)
        states = experiment.learner.adaptation(meta, task.support, steps)
        outputs = [experiment.learner.predict(state, task.query.x).detach().double().numpy() for state in states]
        found.append((outputs, task.query.y.numpy()))
    return found


def interval(values: list[float]) -> tuple[float, float]:
    low, high = stats.t.interval(0.95, len(values) - 1, np.mean(values), np.std(values, ddof=1) / np.sqrt(len(values)))
    return (low + high) / 2, (high - low) / 2


def test_a_version_and_its_mean_are_not_mistaken_for_each_other() -> None:
    """A worker keeps the version that it copied last: the number alone does not say which parameters."""
    experiment = sinusoid_experiment()
    meta = experiment.initial()
    state = OuterState(3, meta, {}, {name: 2 * value for name, value in meta.parameters.items()})
    dispatcher = Dispatcher(InProcessPool(experiment, CPU), 1.0, print)
    losses = [
        evaluate(dispatcher, plan(experiment), "loop", Box(publish(state, judged))).loss for judged in (False, True)
    ]
    assert losses[0] == judge(experiment, meta).loss
    assert losses[1] == judge(experiment, state.judged).loss != losses[0]


def test_mean_and_interval() -> None:
    # t of 3 degrees of freedom: 3.182446; standard deviation 1.290994 of 1, 2, 3, 4.
    assert mean_and_ci95(np.array([1.0, 2.0, 3.0, 4.0])) == pytest.approx(
        (2.5, 3.182446305 * 1.290994449 / 2), rel=1e-8
    )
    assert mean_and_ci95(np.array([0.25])) == (0.25, 0.0)
    assert mean_and_ci95(np.array([0.5, 0.5, 0.5])) == (0.5, 0.0)
    values = list(np.random.default_rng(0).normal(size=600))
    assert mean_and_ci95(np.array(values)) == pytest.approx(interval(values), rel=1e-10)


@pytest.mark.parametrize("start", ["initial", "scratch"])
def test_classification_by_hand(start: str) -> None:
    experiment = linear_experiment()
    meta = getattr(experiment, start)()
    found = judge(experiment, experiment.initial())
    curve = found.per_step if start == "initial" else found.from_scratch_per_step
    assert curve is not None
    by_hand = outputs_by_hand(experiment, meta)
    for step, point in enumerate(curve):
        accuracies = [float(np.mean(outputs[step].argmax(1) == y)) for outputs, y in by_hand]
        losses = []
        for outputs, y in by_hand:
            logits = outputs[step] - outputs[step].max(1, keepdims=True)
            log_p = logits - np.log(np.exp(logits).sum(1, keepdims=True))
            losses.append(float(-log_p[np.arange(len(y)), y].mean()))
        assert point["step"] == step
        assert (point["accuracy"], point["accuracy_ci95"]) == pytest.approx(interval(accuracies), rel=1e-9)
        assert (point["loss"], point["loss_ci95"]) == pytest.approx(interval(losses), rel=1e-5)
    assert len(curve) == 4
    if start == "initial":
        assert (found.accuracy, found.ci95, found.loss) == tuple(
            curve[-1][name] for name in ("accuracy", "accuracy_ci95", "loss")
        )
        assert found.score == found.accuracy
    else:
        assert (found.from_scratch, found.from_scratch_ci95) == (curve[-1]["accuracy"], curve[-1]["accuracy_ci95"])


def test_regression_by_hand() -> None:
    experiment = sinusoid_experiment()
    found = judge(experiment, experiment.initial())
    by_hand = outputs_by_hand(experiment, experiment.initial())
    for step, point in enumerate(found.per_step):
        losses = [float(np.mean((outputs[step] - y) ** 2)) for outputs, y in by_hand]
        assert (point["loss"], point["loss_ci95"]) == pytest.approx(interval(losses), rel=1e-5)
        assert "accuracy" not in point
    assert (found.accuracy, found.precision, found.confusion) == (None, None, None)
    assert (found.ci95, found.score) == (found.per_step[-1]["loss_ci95"], -found.loss)
    assert found.from_scratch is not None
    assert found.from_scratch != found.loss


def test_classes_are_those_of_sklearn() -> None:
    experiment = linear_experiment()
    found = judge(experiment, experiment.initial())
    by_hand = outputs_by_hand(experiment, experiment.initial())
    labels = np.concatenate([y for _, y in by_hand])
    predictions = np.concatenate([outputs[-1].argmax(1) for outputs, _ in by_hand])
    confusion = [[int(((labels == a) & (predictions == b)).sum()) for b in range(2)] for a in range(2)]
    assert found.confusion == confusion == metrics.confusion_matrix(labels, predictions).tolist()
    assert found.precision == pytest.approx(metrics.precision_score(labels, predictions, average="macro"))
    assert found.recall == pytest.approx(metrics.recall_score(labels, predictions, average="macro"))
    assert found.f1 == pytest.approx(metrics.f1_score(labels, predictions, average="macro"))
    assert found.accuracy == pytest.approx(metrics.accuracy_score(labels, predictions))


def test_sights_by_hand() -> None:
    labels, predictions = np.array([[0, 0, 1, 1], [1, 0, 0, 1]]), np.array([[0, 0, 0, 1], [0, 0, 0, 0]])
    none = np.zeros((2, 1))
    # First sights: right, wrong; wrong, right. Second ones: right, right; right, wrong.
    assert _by_sight(TaskScores((0,), none, none, predictions, labels), 2) == [0.5, 0.75]


@pytest.mark.parametrize("chunk", [1, 2, 9, 100])
@pytest.mark.parametrize("name", EXPERIMENTS)
def test_the_size_of_a_chunk_does_not_matter(name: str, chunk: int) -> None:
    experiment = EXPERIMENTS[name]()
    assert judge(experiment, experiment.initial(), chunk=chunk) == judge(experiment, experiment.initial())


@pytest.mark.parametrize("name", EXPERIMENTS)
@pytest.mark.parametrize("chunk", [2, 9])
def test_strategies_agree(name: str, chunk: int) -> None:
    experiment = EXPERIMENTS[name]()
    loop, vectorized = (
        judge(experiment, experiment.initial(), strategy, chunk=chunk) for strategy in ("loop", "vectorized")
    )
    assert vectorized.confusion == loop.confusion
    for a, b in zip(vectorized.per_step, loop.per_step, strict=True):
        assert a == pytest.approx(b, rel=1e-5)


def test_no_steps_and_learners_without_steps() -> None:
    experiment = linear_experiment()
    assert len(judge(experiment, experiment.initial(), steps=0).per_step) == 1
    network = experiment.learner.network
    network.module.head = torch.nn.Identity()
    experiment = Experiment(
        experiment.distribution, ProtoNet(ProtoNetConfig(), network), experiment.rule, experiment.episode, 0
    )
    assert [point["step"] for point in judge(experiment, experiment.initial(), steps=0).per_step] == [0.0]


def test_evaluation_leaves_no_graph_and_no_change() -> None:
    experiment = linear_experiment()
    meta = experiment.initial()
    before = {name: value.clone() for name, value in meta.parameters.items()}
    judge(experiment, meta)
    assert all(torch.equal(before[name], value) for name, value in meta.parameters.items())
    assert not any(value.requires_grad for value in meta.parameters.values())


def test_a_set_of_tasks_has_a_name() -> None:
    first = plan(linear_experiment())
    assert first.name == "test-9x2w3s6q-seed5"
    assert [work.count for work in first.works("loop", scratch=False)] == [4, 4, 1]
    assert [work.first for work in first.works("loop", scratch=False)] == [0, 4, 8]
