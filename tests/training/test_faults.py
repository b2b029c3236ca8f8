"""Whatever dies, the run ends with the same bits."""

from __future__ import annotations

import errno
import math
import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch

from metadist.errors import UserError
from metadist.outer import ChunkKey, Experiment
from metadist.tasks import Episode, SinusoidTasks, Task
from metadist.tasks.base import Split
from metadist.testing.fakes import FakePool, FakeServer, Fault
from metadist.testing.observers import Notes
from metadist.testing.toys import sinusoid_experiment
from metadist.training.dispatch import DEPTH, Dispatcher, Interrupted
from metadist.training.seams import Done, Joined, Lost, PoolError, Voided, WorkerPool
from metadist.training.stepper import Diverged, StepRecord
from metadist.training.work import CheckWork, GradientWork

FAULTS: dict[str, tuple[tuple, ...]] = {
    "none": (),
    "worker": (("kill", 2, 1),),
    "worker-twice": (("kill", 2, 1, 2),),
    "every-worker": (("kill", 1, 0), ("kill", 1, 1), ("kill", 1, 2)),
    "worker-after-its-payload": (("kill_after", 2, 1),),
    "worker-after-the-last-payload": (("kill_after", 2, 2),),
    "worker-at-the-first-chunk": (("kill", 0, 0),),
    "worker-at-the-last-chunk": (("kill", 5, 2),),
    "version": (("void", 3, 1),),
    "payload": (("lose_payload", 1, 2),),
    "payload-of-the-last-step": (("lose_payload", 5, 0),),
    "payload-twice": (("lose_payload", 1, 2, 2),),
    "server": (("lose_server", 2, 0),),
    "server-at-once": (("lose_server", 0, 0),),
    "server-twice": (("lose_server", 2, 0, 2),),
    "memory": (("exhaust", 2, 1), ("exhaust", 4, 0)),
    "a-worker-at-every-step": tuple(("kill", version, version % 3) for version in range(6)),
    "the-server-at-every-step": tuple(("lose_server", version, 0) for version in range(6)),
    "everything": (("kill", 0, 1), ("lose_server", 1, 0), ("lose_payload", 2, 0), ("void", 3, 2), ("kill", 4, 2)),
}


@pytest.fixture
def undisturbed(make_run: Callable, learner: str, known: dict[str, str] = {}) -> str:  # noqa: B006
    """SHA-256 of the parameters after a run of the in-process runtime, taken once."""
    if learner not in known:
        known[learner] = make_run(sinusoid_experiment(learner=learner)).go().params_sha256
    return known[learner]


@pytest.mark.parametrize(("learner", "seed"), [("maml", 0), ("maml", 1), ("maml", 2), ("task_relation", 0)])
@pytest.mark.parametrize("name", FAULTS)
def test_the_bits_are_those_of_an_undisturbed_run(
    make_run: Callable, undisturbed: str, name: str, learner: str, seed: int
) -> None:
    """Steps of the task-relation model have two phases."""
    faults = [Fault(*fault) for fault in FAULTS[name]]
    run = make_run(sinusoid_experiment(learner=learner))
    server = FakeServer(run.experiment, faults)
    result = run.go(FakePool(run.experiment, server, faults, workers=3, seed=seed), server)
    assert all(fault.times == 0 and fault.struck > 0 for fault in faults), "every fault has happened"
    assert (result.params_sha256, result.outcome, result.step) == (undisturbed, "finished", 6)
    strikes = {kind: sum(f.struck for f in faults if f.kind.startswith(kind)) for kind in ("kill", "lose_server")}
    assert result.worker_losses == strikes["kill"]
    assert result.server_losses >= strikes["lose_server"]
    assert server.recoveries == result.server_losses
    lost_chunks = sum(f.struck for f in faults if f.kind in ("kill", "void", "lose_payload"))
    assert result.chunks_redone >= lost_chunks / 2  # of what is ahead of a step that is computed again, none
    told = [fault.struck for fault in faults if fault.kind != "void"]
    assert len(run.notes.said) >= (sum(told) if learner == "maml" else len(told))  # work ahead of a phase is void, too
    assert [record.version for record in run.notes.records] == [1, 2, 3, 4, 5, 6]
    assert all(math.isfinite(record.gradient_norm) and record.lr > 0 for record in run.notes.records)


@pytest.mark.parametrize("workers", [1, 2, 7])
@pytest.mark.parametrize("learner", ["maml", "reptile", "task_relation"])
def test_the_bits_do_not_depend_on_the_number_of_workers(make_run: Callable, learner: str, workers: int) -> None:
    whole = make_run(sinusoid_experiment(learner=learner))
    expected = whole.go()
    for seed in range(2):
        run = make_run(sinusoid_experiment(learner=learner))
        server = FakeServer(run.experiment)
        result = run.go(FakePool(run.experiment, server, workers=workers, seed=seed), server)
        assert result.params_sha256 == expected.params_sha256
        assert (result.worker_losses, result.server_losses, result.chunks_redone) == (0, 0, 0)
        strip = [replace(record, compute_seconds=0, seconds=0) for record in run.notes.records]
        assert strip == [replace(record, compute_seconds=0, seconds=0) for record in whole.notes.records]


def test_a_chunk_that_kills_ten_workers_ends_the_run_by_name(make_run: Callable) -> None:
    run = make_run()
    fault = Fault("kill", 4, 1, times=10)
    server = FakeServer(run.experiment)
    with pytest.raises(PoolError, match=r"10 workers in a row died of the same piece of work.*version=4.*chunk=1"):
        run.go(FakePool(run.experiment, server, [fault]), server)
    assert fault.struck == 10
    assert run.versions()[-1] == 4, "the last committed version is saved"


@pytest.mark.parametrize("resumed", [False, True])
def test_where_something_else_kills_too_a_chunk_is_blamed_later(make_run: Callable, resumed: bool) -> None:
    """A worker that died of other work, or a driver that had to come back."""
    for times in (29, 30):
        run = make_run(stop_after=3 if resumed else None)
        if resumed:
            run.go()
            run.plan = replace(run.plan, stop_after=None)
        faults = [Fault("kill", 4, 1, times), *([] if resumed else [Fault("kill", 3, 0)])]
        server = FakeServer(run.experiment)
        pool = FakePool(run.experiment, server, faults)
        if times < 30:
            assert run.go(pool, server, resume=resumed).worker_losses == sum(fault.struck for fault in faults)
        else:
            with pytest.raises(PoolError, match=r"30 workers in a row died of .*version=4.*chunk=1"):
                run.go(pool, server, resume=resumed)
        assert all(fault.times == 0 for fault in faults)


def test_too_little_memory_twice_ends_the_run(make_run: Callable) -> None:
    run = make_run()
    fault, server = Fault("exhaust", 4, 1, times=2), FakeServer(run.experiment)
    with pytest.raises(PoolError, match=r"not enough memory, twice, for the fault: lower tasks.chunk"):
        run.go(FakePool(run.experiment, server, [fault]), server)
    assert fault.struck == 2
    assert run.versions()[-1] == 4


def test_two_dead_workers_are_forgiven_when_the_chunk_is_done_in_between(make_run: Callable) -> None:
    run = make_run()
    faults = [Fault("kill", version, 1, times=2) for version in (1, 2, 3)]
    server = FakeServer(run.experiment)
    assert run.go(FakePool(run.experiment, server, faults), server).worker_losses == 6


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("version", [0, 2, 5])
def test_a_meta_gradient_that_is_not_finite_ends_the_run_at_the_last_good_version(
    make_run: Callable, version: int, seed: int
) -> None:
    run, whole = make_run(), make_run()
    fault, server = Fault("nan", version, 1, times=2), FakeServer(run.experiment)
    with pytest.raises(Diverged, match=f"step {version + 1}: the meta-gradient of chunk 1 is not finite"):
        run.go(FakePool(run.experiment, server, [fault], seed=seed), server)
    assert fault.struck == 2
    assert run.versions()[-1] == version
    assert run.go(resume=True).params_sha256 == whole.go().params_sha256


@pytest.mark.parametrize("learner", ["maml", "task_relation"])
@pytest.mark.parametrize("version", [0, 2, 5])
def test_it_is_computed_once_more_first(make_run: Callable, version: int, learner: str) -> None:
    run, whole = (make_run(sinusoid_experiment(learner=learner)) for _ in range(2))
    fault, server = Fault("nan", version, 1), FakeServer(run.experiment)
    result = run.go(FakePool(run.experiment, server, [fault]), server)
    assert fault.struck == 1
    assert result.chunks_redone >= 1
    assert f"step {version + 1}: the meta-gradient of chunk 1 is not finite; computed again" in run.notes.said
    assert result.params_sha256 == whole.go().params_sha256


class Poisoned(SinusoidTasks):
    """Task 7 has a target that is infinite."""

    def gather(self, drawn: Sequence[Any], device: torch.device) -> Task:
        task = super().gather(drawn, device)
        bad = torch.tensor([one[3] == 7 for one in drawn])
        return task._replace(query=task.query._replace(y=task.query.y.masked_fill(bad[:, None, None], math.inf)))

    def sample(self, split: Split, seed: int, index: int, episode: Episode) -> Any:
        return (*super().sample(split, seed, index, episode), index)


def poisoned(on_non_finite: str, learner: str = "maml") -> Experiment:
    experiment = sinusoid_experiment(learner=learner)
    return replace(experiment, distribution=Poisoned(), rule=replace(experiment.rule, on_non_finite=on_non_finite))


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_the_tasks_that_are_not_finite_are_named(make_run: Callable, workers: int) -> None:
    run = make_run(poisoned("stop"), validate=None)
    server = FakeServer(run.experiment)
    seams = (FakePool(run.experiment, server, workers=workers), server) if workers else ()
    with pytest.raises(Diverged, match="step 2: the meta-gradient of chunk 1 is not finite, from the training tasks 7"):
        run.go(*seams)
    assert run.versions() == [1]


@pytest.mark.parametrize("learner", ["maml", "task_relation"])
def test_a_step_is_skipped_where_the_job_says_so(make_run: Callable, learner: str) -> None:
    """With the same bits on any number of workers, and over a lost server and a resume; the next steps go on."""
    whole = make_run(poisoned("skip", learner), validate=None)
    expected = whole.go()
    assert (expected.step, expected.outcome, expected.skipped) == (6, "finished", 1)
    assert "step 2 is skipped: the meta-gradient of chunk 1 is not finite" in whole.notes.said
    norms = [record.gradient_norm for record in whole.notes.records]
    assert [math.isnan(norm) for norm in norms] == [False, True, False, False, False, False]
    for faults in ((), (Fault("lose_server", 1, 0),), (Fault("kill", 1, 0), Fault("lose_server", 2, 0))):
        run = make_run(whole.experiment, validate=None)
        server = FakeServer(run.experiment, faults)
        result = run.go(FakePool(run.experiment, server, faults), server)
        assert all(fault.struck for fault in faults)
        assert (result.params_sha256, result.skipped) == (expected.params_sha256, 1)
    run = make_run(whole.experiment, validate=None)
    run.go(stop=lambda: len(run.notes.records) == 1)
    assert run.go(resume=True).params_sha256 == expected.params_sha256


@pytest.mark.parametrize("lasts", [8.0, 20.0, math.inf])
@pytest.mark.parametrize("hung", [1, 2])
@pytest.mark.parametrize("learner", ["maml", "task_relation"])
def test_what_a_worker_takes_too_long_for_is_computed_elsewhere_too(
    make_run: Callable, learner: str, hung: int, lasts: float, undisturbed: str
) -> None:
    """Also when the helper hangs as well, and whichever of the answers is the first."""
    doubled = []
    for seed in range(4):
        run = make_run(sinusoid_experiment(learner=learner), deadline=1e3)
        fault, server = Fault("hang", 4, 1, times=hung, lasts=lasts), FakeServer(run.experiment)
        result = run.go(FakePool(run.experiment, server, [fault], workers=4, seed=seed), server)
        assert fault.struck == hung
        assert (result.params_sha256, result.worker_losses, result.server_losses) == (undisturbed, 0, 0)
        assert [record.version for record in run.notes.records] == [1, 2, 3, 4, 5, 6]
        said = any("takes far longer than the others" in text for text in run.notes.said)
        assert said == (result.chunks_doubled > 0)
        doubled.append(result.chunks_doubled)
    assert min(doubled) >= hung if lasts == math.inf else max(doubled) >= 1


def test_answers_that_differ_end_the_run(make_run: Callable) -> None:
    """The late one's, which comes when its step was taken long ago."""
    run = make_run(sinusoid_experiment(steps=24), deadline=1e3)
    faults = [Fault("hang", 4, 1, lasts=25.0), Fault("drift", 4, 1)]
    server = FakeServer(run.experiment)
    with pytest.raises(RuntimeError, match=r"step 5: two workers computed chunk 1, and their meta-gradients differ \("):
        run.go(FakePool(run.experiment, server, faults, workers=4), server)
    assert all(fault.struck for fault in faults)


def test_silence_ends_the_run_at_the_last_good_version(make_run: Callable) -> None:
    run = make_run()
    server = FakeServer(run.experiment)
    with pytest.raises(TimeoutError):
        run.go(FakePool(run.experiment, server, [Fault("stall", 4, 0)]), server)
    assert run.versions()[-1] == 4
    whole = make_run()
    assert run.go(resume=True).params_sha256 == whole.go().params_sha256


class Scripted(WorkerPool):
    """Replays events."""

    def __init__(self, *events: list) -> None:
        self.events, self.submitted = list(events), []

    def submit(self, worker: int, ticket: int, work: object, version: object) -> object:
        self.submitted.append((worker, ticket, work))
        return ticket

    def wait(self, timeout: float) -> list:
        if not self.events:
            raise TimeoutError
        return self.events.pop(0)

    def withdraw(self, worker: int, ticket: int) -> None:
        pass

    def close(self) -> None:
        pass


def test_workers_of_other_hardware_are_refused() -> None:
    pool = Scripted([Joined(0, {"device": "a"})], [Joined(1, {"device": "b"})])
    dispatcher = Dispatcher(pool, 1.0, print)
    dispatcher.poll()
    with pytest.raises(PoolError, match=r"Worker 1 runs on other hardware.*'b'.*'a'"):
        dispatcher.poll()


def test_work_goes_to_the_least_busy_worker_and_no_further_than_the_depth() -> None:
    pool = Scripted([Joined(0, {}), Joined(1, {})])
    dispatcher = Dispatcher(pool, 1.0, print)
    assert dispatcher.free() is None
    dispatcher.poll()
    given = []
    while (worker := dispatcher.free()) is not None:
        dispatcher.submit(worker, CheckWork("train", 0, Episode(1, 1, 1)), None)
        given.append(worker)
    assert given == [0, 1] * DEPTH


def test_everything_a_lost_worker_held_is_done_again() -> None:
    works = [GradientWork(ChunkKey("run", 0, 0, chunk), "loop") for chunk in range(3)]
    said: list[str] = []
    pool = Scripted(
        [Joined(0, {})],
        [Lost(0, (0, 1), "gone"), Joined(5, {})],
        [Voided(5, 2)],
        [Done(5, 3, "first")],
        [Done(5, 4, "second")],
        [Done(5, 5, "third")],
    )
    reports = Dispatcher(pool, 1.0, said.append).run_all(works, None)
    assert reports == ["first", "second", "third"]
    # Two of worker 0, the one that was waiting, and two once more: the voided one and what it had pushed back.
    assert sorted(ticket for _, ticket, _ in pool.submitted) == list(range(6))
    assert said == ["worker 0 was lost (gone); its work is done again elsewhere"]


def test_no_work_is_given_out_while_there_are_too_few_workers() -> None:
    said: list[str] = []
    pool = Scripted([Joined(0, {})], [Joined(1, {})], [Lost(0, (), "gone")], [Joined(2, {})])
    dispatcher = Dispatcher(pool, 1.0, said.append, least=2)
    free = []
    for _ in range(4):
        dispatcher.poll()
        free.append(dispatcher.free())
    assert free == [None, 0, None, 1]
    assert "going on with at least 2 workers" in said[0]


def test_stopping_in_the_middle_of_an_evaluation() -> None:
    works = [GradientWork(ChunkKey("run", 0, 0, chunk), "loop") for chunk in range(3)]
    pool = Scripted([Joined(0, {})], [Done(0, 0, "first")])
    dispatcher = Dispatcher(pool, 1.0, print)
    dispatcher.stop = lambda: len(pool.submitted) > 0
    with pytest.raises(Interrupted):
        dispatcher.run_all(works, None)


def test_nothing_within_the_deadline_is_an_error() -> None:
    with pytest.raises(TimeoutError):
        Dispatcher(Scripted(), 1.0, print).poll()


@pytest.mark.parametrize("reason", [errno.ENOSPC, errno.EROFS])
def test_a_checkpoint_that_cannot_be_written_ends_the_run(
    make_run: Callable, monkeypatch: pytest.MonkeyPatch, reason: int
) -> None:
    """A full disk, or one that was mounted read-only: what is there stays whole, and the run goes on from it."""
    run, whole, tried = make_run(checkpoint_every=1), make_run(), []

    def fail(file: int) -> None:
        tried.append(file)
        raise OSError(reason, os.strerror(reason))

    class Filling(Notes):
        def stepped(self, record: StepRecord, workers: int, losses: int) -> None:
            super().stepped(record, workers, losses)
            if record.version == 4:
                monkeypatch.setattr(os, "fsync", fail)

    run.notes = Filling()
    with pytest.raises(UserError, match=rf"step-00000004\.safetensors: got '{os.strerror(reason)}'"):
        run.go()
    assert tried
    monkeypatch.undo()
    assert run.versions()[-1] == 3
    run.notes = Notes()
    assert run.go(resume=True).params_sha256 == whole.go().params_sha256
