"""What every runtime must do: tests to inherit from.

A test module of a runtime has a fixture `runtime` that returns a `Runtime` of `averaging_experiment` or
`sinusoid_experiment`, and subclasses these classes with names that begin with `Test`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from metadist.errors import UserError
from metadist.learners import plain_meta
from metadist.outer import (
    ChunkKey,
    ChunkReport,
    Experiment,
    OuterState,
    Payload,
    Published,
    StrategyCheck,
    Verdict,
    apply_step,
    meta_sha256,
    publish,
    to_meta,
)
from metadist.training.run_folder import RunFolder
from metadist.training.seams import Done, Event, Joined, ParameterServer, PoolError, Ref, WorkerPool
from metadist.training.work import CheckWork, EvaluationWork, GradientWork, TaskScores, Work, Worker

CPU = torch.device("cpu")


@dataclass(frozen=True)
class Runtime:
    """A runtime under test.

    Attributes:
        experiment: what its servers and pools run; it has statistics or not.
        server: makes a parameter server.
        pool: makes a pool with so many workers.
        put: makes a ref of a value.
        get: waits for the value of a ref.
        never: makes a ref whose value never comes.
        timeout: seconds within which a worker has done a small piece of work.
    """

    experiment: Experiment
    server: Callable[[], ParameterServer]
    pool: Callable[[int], WorkerPool]
    put: Callable[[Any], Ref]
    get: Callable[[Ref], Any]
    never: Callable[[], Ref]
    timeout: float = 60.0


def make_payloads(experiment: Experiment, version: int, scale: float = 1.0) -> list[Payload]:
    """The payloads of a step: sums that follow from version, chunk and `scale`, not from any task."""
    rule, start = experiment.rule, experiment.initial()
    payloads = []
    for chunk in range(rule.chunks):
        random = np.random.default_rng([version, chunk])
        gradient, statistics = (
            {
                name: np.float32(scale) * random.standard_normal(value.shape, dtype=np.float32)
                for name, value in g.items()
            }
            for g in (start.parameters, start.statistics)
        )
        tasks = len(rule.chunk_tasks(version, chunk))
        payloads.append(Payload(ChunkKey(rule.run, version, 0, chunk), gradient, statistics, tasks))
    return payloads


def sha(published: Published) -> str:
    """SHA-256 of a published version."""
    return meta_sha256(to_meta(published, plain_meta({}), CPU))


def oracle(experiment: Experiment, steps: int) -> OuterState:
    """The state after `steps` steps of `make_payloads`."""
    state = OuterState(0, experiment.initial(), {})
    for version in range(steps):
        state, _ = apply_step(experiment.rule, state, version, make_payloads(experiment, version))
    return state


class ParameterServerContract:
    """See `metadist.training.seams.ParameterServer`."""

    def step(self, runtime: Runtime, server: ParameterServer, version: int, **changes: Any) -> Ref:
        """Order the step from `version` with `make_payloads`."""
        payloads = make_payloads(runtime.experiment, version, **changes)
        return server.apply(version, [runtime.put(payload) for payload in payloads])

    @pytest.fixture
    def server(self, runtime: Runtime) -> Any:
        server = runtime.server()
        yield server
        server.close()

    @pytest.fixture
    def folder(self, tmp_path: Path) -> RunFolder:
        return RunFolder(str(tmp_path / "run")).acquire()

    def test_starts_from_the_initial_state(self, runtime: Runtime, server: ParameterServer) -> None:
        published: Published = runtime.get(server.start(None, None))
        assert published.version == 0
        assert sha(published) == meta_sha256(runtime.experiment.initial())

    def test_steps_are_ordered_ahead_of_their_outcomes(self, runtime: Runtime, server: ParameterServer) -> None:
        first = server.start(None, None)
        following = [self.step(runtime, server, version) for version in range(2)]
        updates = [server.outcome(version) for version in range(2)]
        assert [(update.verdict, update.version) for update in updates] == [("accepted", 1), ("accepted", 2)]
        for steps, ref in enumerate([first, *following]):
            assert runtime.get(ref).version == steps
            assert sha(runtime.get(ref)) == meta_sha256(oracle(runtime.experiment, steps).meta)

    def test_applies_nothing_twice(self, runtime: Runtime, server: ParameterServer) -> None:
        server.start(None, None)
        self.step(runtime, server, 0)
        server.outcome(0)
        again = self.step(runtime, server, 0)
        update = server.outcome(0)
        assert (update.verdict, update.version) == (Verdict.DUPLICATE, 1)
        assert sha(runtime.get(again)) == meta_sha256(oracle(runtime.experiment, 1).meta)

    def test_refuses_what_is_not_the_step(self, runtime: Runtime, server: ParameterServer) -> None:
        """One refusal after the other, of one server: each leaves it where it was."""
        whole = make_payloads(runtime.experiment, 0)
        foreign = [replace(p, key=p.key._replace(run="other")) for p in whole]
        infinite = [replace(p, gradient={n: np.full_like(a, np.nan) for n, a in p.gradient.items()}) for p in whole]
        server.start(None, None)
        for what, payloads, verdict in (
            ("order", whole[::-1], Verdict.INCOMPLETE),
            ("missing", whole[:-1], Verdict.INCOMPLETE),
            ("run", foreign, Verdict.INCOMPLETE),
            ("nan", infinite, Verdict.NON_FINITE),
        ):
            following = server.apply(0, [runtime.put(payload) for payload in payloads])
            update = server.outcome(0)
            assert (update.verdict, update.version) == (verdict, 0), what
            assert sha(runtime.get(following)) == meta_sha256(runtime.experiment.initial()), what
        following = self.step(runtime, server, 0)
        assert server.outcome(0).verdict is Verdict.ACCEPTED
        assert sha(runtime.get(following)) == meta_sha256(oracle(runtime.experiment, 1).meta)

    def test_an_order_whose_payloads_do_not_come_is_replaced(self, runtime: Runtime, server: ParameterServer) -> None:
        server.start(None, None)
        server.apply(0, [runtime.never() for _ in range(runtime.experiment.rule.chunks)])
        for version in range(2):
            following = self.step(runtime, server, version)
            assert server.outcome(version).verdict is Verdict.ACCEPTED
            assert sha(runtime.get(following)) == meta_sha256(oracle(runtime.experiment, version + 1).meta)

    def test_recovers_at_the_last_outcome(self, runtime: Runtime, server: ParameterServer) -> None:
        server.start(None, None)
        for version in range(3):
            self.step(runtime, server, version)
        for version in range(2):
            server.outcome(version)
        published = runtime.get(server.recover())
        assert published.version == 2
        assert sha(published) == meta_sha256(oracle(runtime.experiment, 2).meta)
        # The optimiser's state came back as well.
        following = self.step(runtime, server, 2)
        assert server.outcome(2).verdict is Verdict.ACCEPTED
        assert sha(runtime.get(following)) == meta_sha256(oracle(runtime.experiment, 3).meta)

    def test_goes_on_from_a_checkpoint(self, runtime: Runtime, server: ParameterServer, folder: RunFolder) -> None:
        server.start(None, None)
        self.step(runtime, server, 0)
        server.outcome(0)
        name = "checkpoints/step-00000001.safetensors"
        assert server.save(folder, 1, "identity", {"a": 1}) == meta_sha256(oracle(runtime.experiment, 1).meta)
        other = runtime.server()
        try:
            published: Published = runtime.get(other.start(folder, name))
            assert published.version == 1
            assert list(published.parameters) == list(runtime.experiment.initial().parameters)
            following = self.step(runtime, other, 1)
            other.outcome(1)
            assert sha(runtime.get(following)) == meta_sha256(oracle(runtime.experiment, 2).meta)
        finally:
            other.close()

    def test_saves_the_last_outcome(self, runtime: Runtime, server: ParameterServer, folder: RunFolder) -> None:
        """A step that is ordered but not committed is not in a checkpoint: the driver names it by its version."""
        server.start(None, None)
        self.step(runtime, server, 0)
        server.outcome(0)
        self.step(runtime, server, 1)
        name = "checkpoints/step-00000001.safetensors"
        assert server.save(folder, 1, "", {}) == meta_sha256(oracle(runtime.experiment, 1).meta)
        published: Published = runtime.get(server.read(folder, name))
        assert published.version == 1
        assert sha(published) == meta_sha256(oracle(runtime.experiment, 1).meta)

    def test_reading_leaves_the_state(self, runtime: Runtime, server: ParameterServer, folder: RunFolder) -> None:
        server.start(None, None)
        name = "checkpoints/step-00000000.safetensors"
        server.save(folder, 0, "", {})
        self.step(runtime, server, 0)
        server.outcome(0)
        assert runtime.get(server.read(folder, name)).version == 0
        following = self.step(runtime, server, 1)
        assert server.outcome(1).verdict is Verdict.ACCEPTED
        assert sha(runtime.get(following)) == meta_sha256(oracle(runtime.experiment, 2).meta)

    def test_judges_the_mean_of_versions(self, runtime: Runtime, server: ParameterServer, folder: RunFolder) -> None:
        """Where the job says so: the version to judge is not the one that training goes on from."""
        experiment, name = runtime.experiment, "checkpoints/step-00000004.safetensors"
        server.start(None, None)
        for version in range(4):
            following = self.step(runtime, server, version)
            server.outcome(version)
        state = oracle(experiment, 4)
        assert (meta_sha256(state.judged) != meta_sha256(state.meta)) == (experiment.rule.optimizer.average > 0)
        server.save(folder, 4, "", {})
        server.recover()
        for ref in (server.judged(4), server.read(folder, name)):
            published: Published = runtime.get(ref)
            assert (published.version, published.judged) == (4, True)
            assert sha(published) == meta_sha256(state.judged)
        assert sha(runtime.get(following)) == meta_sha256(state.meta)

    def test_a_broken_checkpoint_is_the_users(
        self, runtime: Runtime, server: ParameterServer, folder: RunFolder
    ) -> None:
        name = "checkpoints/step-00000000.safetensors"
        folder.write(name, b"not a checkpoint")
        with pytest.raises(UserError, match="whole checkpoint"):
            runtime.get(server.start(folder, name))

    def test_closes_twice(self, runtime: Runtime) -> None:
        server = runtime.server()
        server.start(None, None)
        server.close()
        server.close()


class WorkerPoolContract:
    """See `metadist.training.seams.WorkerPool`. `workers` may be overridden."""

    workers = 1

    @pytest.fixture
    def pool(self, runtime: Runtime) -> Any:
        pool = runtime.pool(self.workers)
        yield pool
        pool.close()

    @pytest.fixture
    def published(self, runtime: Runtime) -> Published:
        return publish(OuterState(0, runtime.experiment.initial(), {}))

    def joined(self, runtime: Runtime, pool: WorkerPool) -> list[int]:
        """Wait for all workers; returns their names."""
        names: list[int] = []
        while len(names) < self.workers:
            for event in pool.wait(runtime.timeout):
                assert isinstance(event, Joined)
                assert event.fingerprint["torch"]
                names.append(event.worker)
        assert len(set(names)) == self.workers
        return names

    def events(self, runtime: Runtime, pool: WorkerPool, count: int) -> list[Event]:
        """Wait for so many events."""
        events: list[Event] = []
        while len(events) < count:
            events += pool.wait(runtime.timeout)
        assert len(events) == count
        return events

    def test_chunks_are_those_of_the_worker_class(
        self, runtime: Runtime, pool: WorkerPool, published: Published
    ) -> None:
        """The same bits as one worker in this process."""
        names, version = self.joined(runtime, pool), runtime.put(published)
        works = [
            GradientWork(ChunkKey(runtime.experiment.rule.run, 0, 0, chunk), "loop")
            for chunk in range(runtime.experiment.rule.chunks)
        ]
        refs = [pool.submit(names[n % len(names)], 7 + n, work, version) for n, work in enumerate(works)]
        events = self.events(runtime, pool, len(works))
        one = Worker(runtime.experiment, CPU)
        for event in events:
            assert isinstance(event, Done)
            payload, report = one.run(works[event.ticket - 7], published)
            assert isinstance(report, ChunkReport)
            assert isinstance(event.report, ChunkReport)
            assert replace(event.report, seconds=report.seconds) == report
            assert payload is not None
            sent: Payload = runtime.get(refs[event.ticket - 7])
            assert (sent.key, sent.tasks) == (payload.key, payload.tasks)
            for mine, theirs in ((payload.gradient, sent.gradient), (payload.statistics, sent.statistics)):
                assert mine.keys() == theirs.keys()
                assert all(mine[name].tobytes() == theirs[name].tobytes() for name in mine)
        tickets = {name: {e.ticket for e in events if isinstance(e, Done) and e.worker == name} for name in names}
        assert tickets == {name: set(range(7, 7 + len(works))[i :: len(names)]) for i, name in enumerate(names)}

    def test_work_whose_version_never_comes_can_be_taken_back(
        self, runtime: Runtime, pool: WorkerPool, published: Published
    ) -> None:
        (name, *_), version = self.joined(runtime, pool), runtime.put(published)
        work = GradientWork(ChunkKey(runtime.experiment.rule.run, 0, 0, 0), "loop")
        for ticket in range(3):
            pool.submit(name, ticket, work, runtime.never())
        for ticket in range(3):
            pool.withdraw(name, ticket)
        pool.submit(name, 3, work, version)
        (event,) = self.events(runtime, pool, 1)
        assert isinstance(event, Done)
        assert (event.worker, event.ticket) == (name, 3)

    def test_checks_and_evaluates(self, runtime: Runtime, pool: WorkerPool, published: Published) -> None:
        (name, *_), version = self.joined(runtime, pool), runtime.put(published)
        episode = runtime.experiment.episode
        works: list[Work] = [
            CheckWork("train", 0, runtime.experiment.episode),
            EvaluationWork("test", 3, 1, 2, episode, steps=1, scratch=False, strategy="loop"),
        ]
        for ticket, work in enumerate(works):
            pool.submit(name, ticket, work, version)
        # a pool may do what waits for nothing in any order
        done = {event.ticket: event.report for event in self.events(runtime, pool, 2) if isinstance(event, Done)}
        check, scores = done[0], done[1]
        assert isinstance(check, StrategyCheck)
        assert check.strategy == "captured"
        assert isinstance(scores, TaskScores)
        _, expected = Worker(runtime.experiment, CPU).run(works[1], published)
        assert isinstance(expected, TaskScores)
        assert scores.losses.tobytes() == expected.losses.tobytes()

    def test_waiting_for_nothing_times_out(self, runtime: Runtime, pool: WorkerPool) -> None:
        self.joined(runtime, pool)
        with pytest.raises(TimeoutError):
            pool.wait(0.1)

    def test_an_error_of_a_worker_ends_the_pool_with_its_reason(
        self, runtime: Runtime, pool: WorkerPool, published: Published
    ) -> None:
        (name, *_) = self.joined(runtime, pool)
        episode = runtime.experiment.episode
        nothing = EvaluationWork("test", 0, 0, 0, episode, steps=1, scratch=False, strategy="loop")
        pool.submit(name, 0, nothing, runtime.put(published))
        with pytest.raises(PoolError, match="list index out of range"):
            self.events(runtime, pool, 1)

    def test_closes_twice(self, runtime: Runtime) -> None:
        pool = runtime.pool(self.workers)
        pool.close()
        pool.close()
