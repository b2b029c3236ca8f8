"""What is lost in unusual moments: a server that reads, and an answer of a worker that has not joined yet."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from metadist.distributed.blueprint import Blueprint
from metadist.outer import ChunkKey, ChunkReport, publish
from metadist.testing.contracts import oracle, sha
from metadist.testing.faults import KillOnce
from metadist.testing.toys import averaging_experiment
from metadist.training.run_folder import RunFolder
from metadist.training.seams import Done, Event, Joined, Lost, PoolError
from metadist.training.server import Server
from metadist.training.work import GradientWork, Worker

CPU = torch.device("cpu")


def test_a_checkpoint_is_read_though_the_server_dies(ray: Any, tmp_path: Path) -> None:
    """Also where it was never started, as in an evaluation: there is no state to give to the new one."""
    from metadist.distributed.server import RayServer

    folder = RunFolder(str(tmp_path / "run")).acquire()
    one = Server(averaging_experiment())
    one.start(None, None)
    name = "checkpoints/step-00000000.safetensors"
    one.save(folder, 0, "", {})
    fault = KillOnce("read", 0, str(tmp_path / "struck"))
    server = RayServer(Blueprint(averaging_experiment, 1, fault=fault), deadline=60)
    try:
        published = ray.get(server.read(folder, name), timeout=60)
        assert Path(fault.marker).exists()
        assert sha(published) == sha(one.read(folder, name))
        assert sha(ray.get(server.start(None, None), timeout=60)) == sha(one.restore(oracle(averaging_experiment(), 0)))
    finally:
        server.close()


class Actor:
    """Its calls return refs that say which call they are of."""

    def __getattr__(self, name: str) -> Any:
        return SimpleNamespace(remote=lambda *_: (name, self))

    @classmethod
    def remote(cls, *_: Any) -> Actor:
        return cls()


def fake_ray(lost: Callable[[str, int], bool]) -> Any:
    """Of Ray what a pool needs to start workers; `lost` says which answers are not to be had, of which actor."""
    from ray.exceptions import ObjectLostError

    made: list[Actor] = []

    def get(ref: tuple[str, Actor], timeout: float) -> Any:
        name, actor = ref
        if actor not in made:
            made.append(actor)
        if lost(name, made.index(actor)):
            raise ObjectLostError("0" * 56, None, "")
        return {"lacks_store": False, "ready": ({}, 1)}[name]

    return SimpleNamespace(
        remote=lambda _: SimpleNamespace(options=lambda **_: Actor),
        get=get,
        wait=lambda refs, **_: (refs, []),
        kill=lambda actor: None,
    )


@pytest.mark.parametrize("answer", ["lacks_store", "ready"])
def test_an_answer_that_is_lost_before_a_worker_joins_loses_the_worker(
    answer: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from metadist.distributed import pool

    monkeypatch.setattr(pool, "ray", fake_ray(lambda name, actor: name == answer and actor == 0))
    workers = pool.RayPool(Blueprint(averaging_experiment, 1), 1, cpus=0)
    (event,) = workers.wait(1)
    assert isinstance(event, Lost)
    assert (event.worker, event.tickets) == (0, ())
    (joined,) = workers.wait(1)
    assert joined.worker == 1


@pytest.mark.parametrize(("able", "tries"), [(0, "10"), (1, "30")])
def test_workers_that_die_while_they_start_end_the_run(able: int, tries: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Soon where none could ever start; where some have, it may be what kills them that passes."""
    from metadist.distributed import pool

    deaths = 0

    def dies(name: str, actor: int) -> bool:
        nonlocal deaths
        dead = name == "ready" and actor >= able
        deaths += dead
        return dead

    monkeypatch.setattr(pool, "ray", fake_ray(dies))
    workers = pool.RayPool(Blueprint(averaging_experiment, 1), 1 + able, cpus=0)
    with pytest.raises(PoolError, match=f"^{tries} workers in a row died while they started"):
        list(iter(lambda: workers.wait(1), None))
    assert deaths == int(tries)


def test_a_spare_takes_a_lost_workers_place_at_once(ray: Any, tmp_path: Path) -> None:
    """And a new spare is started, which does not join while all workers are there."""
    from metadist.distributed.pool import RayPool

    experiment = averaging_experiment()
    published = ray.put(publish(oracle(experiment, 0)))
    fault = KillOnce("work", 0, str(tmp_path / "struck"))
    pool = RayPool(Blueprint(averaging_experiment, 1, fault=fault), 1, cpus=1, spares=1)
    work = GradientWork(ChunkKey(experiment.rule.run, 0, 0, 0), "loop")

    def next_event() -> Event:
        (event,) = pool.wait(60)
        return event

    try:
        first = next_event()
        assert isinstance(first, Joined)
        pool.submit(first.worker, 0, work, published)
        lost, second = next_event(), next_event()
        assert Path(fault.marker).exists()
        assert isinstance(lost, Lost)
        assert (lost.worker, lost.tickets) == (first.worker, (0,))
        assert isinstance(second, Joined)
        assert {first.worker, second.worker} == {0, 1}, "a third worker was not waited for"
        pool.submit(second.worker, 1, work, published)
        done = next_event()
        assert isinstance(done, Done)
        assert isinstance(done.report, ChunkReport)
        payload, _ = Worker(experiment, CPU).run(work, ray.get(published))
        assert payload is not None
        assert (done.worker, done.report.digest) == (second.worker, payload.digest)
    finally:
        pool.close()
