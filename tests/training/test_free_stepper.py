"""Steps that do not wait for each other."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch

from metadist.outer import Experiment
from metadist.testing.fakes import FakePool, FakeServer, Fault
from metadist.testing.toys import averaging_experiment, sinusoid_experiment
from metadist.training.inprocess import InProcessPool
from metadist.training.seams import Ref
from metadist.training.stepper import Diverged

CPU = torch.device("cpu")
STEPS = 20
#: before a validation or a checkpoint all answers are waited for
WITHOUT_BARRIERS: dict[str, Any] = {"validate": None, "checkpoint_every": STEPS}


def free(build: Callable[..., Experiment] = sinusoid_experiment, **rule: Any) -> Experiment:
    """An experiment whose steps are single chunks."""
    made = build(steps=STEPS, tasks=2, chunk=2)
    return replace(made, rule=replace(made.rule, **({"mode": "async"} | rule)))


class Watched(FakeServer):
    """Remembers the number, and the version computed at, of every answer that it is given, in their order."""

    def __init__(self, experiment: Experiment, faults: Sequence[Fault] = ()) -> None:
        super().__init__(experiment, faults)
        self.given: list[tuple[int, int]] = []

    def apply(self, version: int, payloads: Sequence[Ref], phase: int = 0) -> Ref:
        (payload,) = payloads
        if payload.state == "there":
            self.given.append((payload.value.key.version, payload.value.at))
        return super().apply(version, payloads, phase)


@pytest.mark.parametrize("mode", ["async", "stale"])
def test_one_worker_takes_the_steps_of_a_synchronous_run(make_run: Callable, mode: str) -> None:
    expected = make_run(free(mode="sync")).go()
    result = make_run(free(mode=mode)).go()
    assert (result.params_sha256, result.step, result.refused) == (expected.params_sha256, STEPS, 0)
    run = make_run(free(mode=mode))
    server = FakeServer(run.experiment)
    assert run.go(FakePool(run.experiment, server, workers=1), server).params_sha256 == expected.params_sha256
    assert [record.age for record in run.notes.records] == [0] * STEPS


@pytest.mark.parametrize("weight", ["one", "inverse"])
@pytest.mark.parametrize("seed", range(3))
def test_every_answer_counts_by_its_age(make_run: Callable, seed: int, weight: str) -> None:
    """Against the recursion by hand, in float64: θ ← θ − 0.5 w (θ_at − mean of the support targets)."""
    run = make_run(free(averaging_experiment, age_weight=weight), **WITHOUT_BARRIERS)
    experiment, server = run.experiment, Watched(run.experiment)
    run.go(FakePool(experiment, server, workers=4, seed=seed), server)
    ages = [record.age for record in run.notes.records]
    assert len(ages) == STEPS
    assert max(ages) >= 2
    centres = [0.0]
    for (number, at), age in zip(server.given, ages, strict=True):
        tasks = experiment.rule.chunk_tasks(number, 0)
        batch = experiment.distribution.batch("train", experiment.seed, tasks, experiment.episode, CPU)
        gradient = centres[at] - float(batch.support.y.double().mean())
        assert age == len(centres) - 1 - at
        centres.append(centres[-1] - 0.5 * gradient / (1 + age if weight == "inverse" else 1))
    assert float(run.end().meta.parameters["centre"]) == pytest.approx(centres[-1], rel=1e-5)
    assert sorted(number for number, _ in server.given) == list(range(STEPS)), "every task once"


@pytest.mark.parametrize("staleness", [0, 1, 2])
def test_answers_that_are_too_old_are_refused_and_counted(make_run: Callable, staleness: int) -> None:
    run = make_run(free(mode="stale", staleness=staleness), **WITHOUT_BARRIERS)
    server = Watched(run.experiment)
    result = run.go(FakePool(run.experiment, server, workers=4), server)
    ages = [record.age for record in run.notes.records]
    assert (len(ages), result.step) == (STEPS, STEPS)
    assert max(ages) == staleness
    assert result.refused == len(server.given) - STEPS > 0
    assert run.notes.records[-1].refused <= result.refused


FAULTS: dict[str, tuple[tuple, ...]] = {
    "worker": (("kill", 3, 0), ("kill_after", 6, 0)),
    "version": (("void", 4, 0),),
    "payload": (("lose_payload", 4, 0),),
    "server": (("lose_server", 5, 0, 2),),
    "memory": (("exhaust", 5, 0),),
}


@pytest.mark.parametrize("name", FAULTS)
def test_every_step_is_committed_whatever_dies(make_run: Callable, name: str) -> None:
    faults = [Fault(*fault) for fault in FAULTS[name]]
    run = make_run(free())
    server = FakeServer(run.experiment, faults)
    result = run.go(FakePool(run.experiment, server, faults, workers=3), server)
    assert all(fault.times == 0 for fault in faults)
    assert (result.outcome, result.step) == ("finished", STEPS)
    assert [record.version for record in run.notes.records] == list(range(1, STEPS + 1))
    assert all(math.isfinite(record.gradient_norm) for record in run.notes.records)


def test_an_answer_that_is_not_finite_ends_the_run(make_run: Callable) -> None:
    run = make_run(free())
    fault, server = Fault("nan", 5, 0), FakeServer(run.experiment)
    with pytest.raises(Diverged, match="the meta-gradient of the tasks of chunk 5 is not finite"):
        run.go(FakePool(run.experiment, server, [fault]), server)


def test_or_is_left_out(make_run: Callable) -> None:
    run = make_run(free(on_non_finite="skip"))
    fault, server = Fault("nan", 5, 0), FakeServer(run.experiment)
    result = run.go(FakePool(run.experiment, server, [fault]), server)
    assert (result.step, result.skipped) == (STEPS, 1)


def test_stop_and_resume(make_run: Callable) -> None:
    run = make_run(free())
    server = FakeServer(run.experiment)
    run.go(FakePool(run.experiment, server), server, stop=lambda: len(run.notes.records) == 7)
    assert run.versions()[-1] == 7
    server = FakeServer(run.experiment)
    assert run.go(FakePool(run.experiment, server), server, resume=True).step == STEPS


def test_workers_that_take_turns_have_answers_of_one_age(make_run: Callable) -> None:
    run = make_run(free(), **WITHOUT_BARRIERS)
    run.go(InProcessPool(run.experiment, CPU, workers=4))
    assert [record.age for record in run.notes.records] == [0, 1, 2] + [3] * (STEPS - 3)
