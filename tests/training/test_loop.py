"""Training in one process: it learns, it can be stopped anywhere, and decisions belong to versions."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from metadist.errors import UserError
from metadist.learners import Maml, MamlConfig, Network
from metadist.models import Mlp, MlpConfig
from metadist.outer import Experiment, OptimizerConfig, OuterRule, decode_checkpoint, meta_sha256
from metadist.tasks import Episode, SinusoidTasks
from metadist.testing.toys import averaging_experiment, linear_experiment, sinusoid_experiment
from metadist.training import loop
from metadist.training.evaluation import Evaluation
from metadist.training.inprocess import InProcessPool
from metadist.training.work import GradientWork, Work

CPU = torch.device("cpu")
#: what two runs of the same bits may differ in
NO_TIME = {"seconds": 0, "compute_seconds": 0}


def test_meta_training_learns_sinusoids(make_run: Callable) -> None:
    network = Network(Mlp(MlpConfig(hidden=[20, 20]), (1,), 1), "kaiming", "mse")
    learner = Maml(MamlConfig(inner_lr=0.02, inner_steps=1, eval_steps=2), network)
    rule = OuterRule("run", OptimizerConfig(lr=0.01), steps=300, tasks=10, chunk=5)
    experiment = Experiment(SinusoidTasks(), learner, rule, Episode(1, 10, 10), seed=0)
    run = make_run(experiment, validate_every=300, checkpoint_every=300)
    run.plan = replace(run.plan, validate=replace(run.plan.validate, tasks=100), tests={"test": run.plan.validate})
    result = run.go()
    assert result.valid is not None
    curve = [point["loss"] for point in result.valid.per_step]
    assert result.valid.from_scratch_per_step is not None
    assert curve[-1] + result.valid.ci95 < 0.8 * result.valid.from_scratch_per_step[-1]["loss"]
    assert curve[1] + result.valid.per_step[1]["loss_ci95"] < curve[0], "the trained step helps"
    records = [record.loss for record in run.notes.records]
    assert sum(records[-30:]) < 0.9 * sum(records[:30])
    assert (result.outcome, result.step, result.tested, result.tested_as) == (
        "finished",
        300,
        300,
        "best on validation",
    )
    assert set(result.tests) == {"test"}
    assert run.notes.tested == sorted({*run.notes.tested, 0.5, 1.0})  # the random start is the second half


@pytest.mark.parametrize("build", [sinusoid_experiment, linear_experiment, averaging_experiment])
def test_the_same_run_twice_is_the_same_bits_and_another_seed_is_not(
    make_run: Callable, build: Callable[..., Experiment]
) -> None:
    first, again, other = (make_run(build(seed=seed)).go().params_sha256 for seed in (0, 0, 1))
    assert first == again != other


@pytest.mark.parametrize("how", ["signal", "plan"])
@pytest.mark.parametrize("at", range(1, 6))
def test_stopped_and_resumed_is_uninterrupted(make_run: Callable, at: int, how: str) -> None:
    whole, run = make_run(), make_run()
    expected = whole.go()
    if how == "signal":
        first = run.go(stop=lambda: len(run.notes.records) == at)
    else:
        run.plan = replace(run.plan, stop_after=at)
        first = run.go()
        run.plan = replace(run.plan, stop_after=None)
    assert (first.outcome, first.step, run.versions()[-1]) == ("stopped", at, at)
    result = run.go(resume=True)
    assert (result.params_sha256, result.outcome, result.step) == (expected.params_sha256, "finished", 6)
    assert [record.version for record in run.notes.records] == [1, 2, 3, 4, 5, 6]
    # What it goes on from is written once more only where its validation, cut off by the signal, was made up for.
    assert run.notes.checkpoints.count(at) == (2 if how == "signal" and at % 2 == 0 else 1)
    # What it goes on from is written once more only where its validation, cut off by the signal, was made up for.
    assert run.notes.checkpoints.count(at) == (2 if how == "signal" and at % 2 == 0 else 1)
    assert [record.loss for record in run.notes.records] == [record.loss for record in whole.notes.records]
    assert run.notes.validations == whole.notes.validations
    assert progress(run) | NO_TIME == progress(whole) | NO_TIME


def progress(run: Any) -> dict[str, Any]:
    name = run.folder.checkpoints()[-1]
    return decode_checkpoint(run.folder.read(name), name).progress


def test_stopped_after_every_step_is_uninterrupted(make_run: Callable) -> None:
    whole, run = make_run(), make_run()
    expected, notes = whole.go(), run.notes
    results: list[Any] = []
    while not results or results[-1].outcome == "stopped":
        steps = len(notes.records)
        stop = lambda steps=steps: len(notes.records) > steps  # noqa: E731
        results.append(run.go(stop=stop, resume=bool(results)))
    # The validation that falls due at every second step is made up for by the next run before it takes a step.
    assert [result.step for result in results] == [1, 2, 3, 4, 5, 6, 6]
    assert results[-1].params_sha256 == expected.params_sha256
    assert notes.validations == whole.notes.validations
    assert progress(run) | NO_TIME == progress(whole) | NO_TIME


def test_a_finished_run_resumed_stays_as_it_is(make_run: Callable) -> None:
    run = make_run()
    first, second = run.go(), run.go(resume=True)
    assert (second.params_sha256, second.step, second.outcome) == (first.params_sha256, 6, "finished")
    assert len(run.notes.records) == 6


def test_another_models_checkpoint_is_refused(make_run: Callable) -> None:
    run = make_run()
    run.go()
    run.experiment = averaging_experiment()
    with pytest.raises(UserError, match="another model's"):
        run.go(resume=True)


class Scores:
    """Stands in for `evaluate`: validation scores by version."""

    def __init__(self, *scores: float) -> None:
        self.scores, self.asked = list(scores), []

    def __call__(
        self, dispatcher: Any, plan: Any, strategy: str, version: Any, *args: Any, **kwargs: Any
    ) -> Evaluation:
        self.asked.append(version.value.version)
        loss = -self.scores[(version.value.version - 1) % len(self.scores)]
        return Evaluation("valid", 5, 1, 4, 4, 2, "none", None, 0.0, loss, [{"step": 0.0, "loss": loss}])


@pytest.fixture
def scored(make_run: Callable, monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[Any, Scores]]:
    """A run that is validated after every step with the given scores."""

    def make(*scores: float, **changes: Any) -> tuple[Any, Scores]:
        fake = Scores(*scores)
        monkeypatch.setattr(loop, "evaluate", fake)
        settings = {"validate_every": 1, "checkpoint_every": 100} | changes
        return make_run(sinusoid_experiment(steps=len(scores)), **settings), fake

    return make


def test_the_best_version_on_validation_is_kept_and_tested(scored: Callable, make_run: Callable) -> None:
    run, fake = scored(-3.0, -1.0, -2.0, -1.0, -1.5)
    run.plan = replace(run.plan, tests={"test": run.plan.validate})
    result = run.go()
    assert [best for _, _, best in run.notes.validations] == [True, True, False, False, False], "the first of equals"
    assert (result.tested, result.tested_as, result.step) == (2, "best on validation", 5)
    assert fake.asked == [1, 2, 3, 4, 5, 2, 2]
    assert run.versions() == [2, 5]
    assert run.notes.checkpoints == [1, 2, 5]


@pytest.mark.parametrize(("keep", "kept"), [(1, [2, 6]), (2, [2, 5, 6]), (3, [2, 4, 5, 6]), (10, [1, 2, 3, 4, 5, 6])])
def test_old_checkpoints_are_deleted_but_the_best(scored: Callable, keep: int, kept: list[int]) -> None:
    run, _ = scored(-3.0, -1.0, -2.0, -2.0, -2.0, -2.0, checkpoint_every=1, keep=keep)
    run.go()
    assert run.versions() == kept


@pytest.mark.parametrize("stopped", [None, 2, 3])
def test_patience_ends_the_run_early_also_across_a_stop(scored: Callable, stopped: int | None) -> None:
    run, _ = scored(-2.0, -2.5, -1.0, -1.5, -1.5, -0.5, patience=2)
    if stopped:
        run.go(stop=lambda: len(run.notes.records) == stopped)
    result = run.go(resume=bool(stopped))
    assert (result.outcome, result.step) == ("early", 5)
    assert run.versions()[-1] == 5
    again = run.go(resume=True)
    assert (again.outcome, again.step) == ("early", 5)


@pytest.mark.parametrize("odd", [math.nan, -math.inf])
def test_a_score_that_is_not_a_number_is_never_the_best(scored: Callable, odd: float) -> None:
    run, _ = scored(odd, -2.0, odd, -1.0, -3.0)
    run.plan = replace(run.plan, tests={"test": run.plan.validate})
    assert run.go().tested == 4


def test_without_validation_the_last_version_is_tested(make_run: Callable) -> None:
    run = make_run(validate=None)
    run.plan = replace(run.plan, tests={"test": make_run().plan.validate})
    result = run.go()
    assert (result.tested, result.tested_as, result.valid) == (6, "last", None)
    assert run.notes.validations == []


class Watched(InProcessPool):
    """Remembers the newest version that chunks were given out for."""

    newest = -1

    def submit(self, worker: int, ticket: int, work: Work, version: Any) -> Any:
        if isinstance(work, GradientWork):
            self.newest = max(self.newest, work.key.version)
        return super().submit(worker, ticket, work, version)


def test_no_later_work_is_given_out_before_a_version_is_decided_on(make_run: Callable, monkeypatch: Any) -> None:
    run = make_run()
    pool = Watched(run.experiment, CPU)
    seen: list[tuple[int, int]] = []
    real = loop.evaluate

    def watching(dispatcher: Any, plan: Any, strategy: Any, version: Any, *args: Any, **kwargs: Any) -> Evaluation:
        seen.append((version.value.version, pool.newest))
        return real(dispatcher, plan, strategy, version, *args, **kwargs)

    monkeypatch.setattr(loop, "evaluate", watching)
    run.go(pool)
    assert seen == [(2, 1), (4, 3), (6, 5)]


def test_records_are_means_over_the_meta_batch(make_run: Callable) -> None:
    """Against the losses of the tasks, taken one by one at the published versions."""
    run = make_run(linear_experiment(), checkpoint_every=1, keep=10)
    run.go()
    experiment = run.experiment
    metas = [experiment.initial()] + [
        decode_checkpoint(run.folder.read(name), name).state.meta for name in run.folder.checkpoints()
    ]
    for version, record in enumerate(run.notes.records):
        losses, correct = [], []
        for index in range(version * 4, version * 4 + 4):
            batch = experiment.distribution.batch("train", 0, [index], experiment.episode, CPU)
            task = type(batch)(*(part._replace(x=part.x[0], y=part.y[0]) for part in batch))
            loss, outputs, _ = experiment.learner.task_loss(metas[version], task)
            losses.append(float(loss))
            correct += (outputs.argmax(-1) == task.query.y).tolist()
        assert record.version == version + 1
        assert record.loss == pytest.approx(sum(losses) / 4, rel=1e-5)
        assert record.accuracy == sum(correct) / len(correct)
        assert record.lr == 0.01
    assert meta_sha256(metas[-1]) == run.go(resume=True).params_sha256


def test_the_strategy_is_checked_before_the_first_step(make_run: Callable, monkeypatch: Any) -> None:
    run = make_run()
    order: list[str] = []
    monkeypatch.setattr(
        run.notes, "ready", lambda check, version, fingerprint: order.append(f"{check.strategy} {version}")
    )
    monkeypatch.setattr(run.notes, "stepped", lambda record, workers, losses: order.append(f"step {record.version}"))
    result = run.go()
    assert order[:2] == ["captured 0", "step 1"]
    assert result.strategy.difference < 1e-12
