"""Worker actors behind the `WorkerPool` seam."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any

import ray
from ray.exceptions import ObjectLostError, RayActorError, RayError, RayTaskError, TaskCancelledError

from metadist.distributed.blueprint import Blueprint
from metadist.distributed.store_place import Parcel
from metadist.distributed.worker_actor import WorkerActor
from metadist.errors import UserError
from metadist.training.seams import Done, Event, Exhausted, Joined, Lost, PoolError, Ref, Voided, WorkerPool
from metadist.training.work import OutOfMemory, Work

#: workers that may die in a row before they are ready, as long as none ever was, and once it is known that they can be
START_TRIES, LATER_TRIES = 10, 30


@dataclass
class _Member:
    actor: Any
    #: whether its node lacks the job's data; answered before it is told to get ready
    lacks: Any
    ready: Any = None
    joined: bool = False
    pid: int | None = None
    reports: dict[Any, int] = field(default_factory=dict)


class RayPool(WorkerPool):
    """Keeps a number of worker actors alive: a lost one is announced and a new one started.

    Args:
        blueprint: what the workers build.
        workers: how many.
        cpus: CPUs that Ray reserves for each.
        spares: workers beside these that take the place of a lost one at once; a new spare is then started.
    """

    #: what the workers are; a bench has others
    actor_class: type = WorkerActor

    def __init__(self, blueprint: Blueprint, workers: int, cpus: float, spares: int = 0) -> None:
        self._actor = ray.remote(self.actor_class).options(
            num_cpus=cpus,
            num_gpus=blueprint.gpus,
            max_restarts=0,
            max_task_retries=0,
            allow_out_of_order_execution=True,  # what waits for its version holds nothing up, and can be cancelled
        )
        self._blueprint, self._cpus = blueprint, cpus
        self._members: dict[int, _Member] = {}
        self._next = 0
        self._packed: Parcel | None = None
        self._failed_starts, self._tries = 0, START_TRIES
        self._workers = workers
        #: spares that are ready, with what they are
        self._waiting: dict[int, dict[str, str]] = {}
        for _ in range(workers + spares):
            self._start()

    def _start(self) -> None:
        actor = self._make(self._next)
        self._members[self._next] = _Member(actor, actor.lacks_store.remote())
        self._next += 1

    def _make(self, number: int) -> Any:
        return self._actor.remote(self._blueprint, number)

    def submit(self, worker: int, ticket: int, work: Work, version: Ref) -> Ref:
        member = self._members.get(worker)
        if member is None:
            raise KeyError(f"no worker {worker}")
        payload, report = member.actor.run.options(num_returns=2).remote(work, version)
        member.reports[report] = ticket
        return payload

    def withdraw(self, worker: int, ticket: int) -> None:
        reports = self._members[worker].reports
        (report,) = (ref for ref, of in reports.items() if of == ticket)
        del reports[report]
        ray.cancel(report)

    def wait(self, timeout: float) -> list[Event]:
        deadline = time.monotonic() + timeout
        while True:
            if self._waiting and not self._complete():
                name = next(iter(self._waiting))
                return [self._join(name, self._waiting.pop(name))]
            refs = {ref: name for name, m in self._members.items() for ref in (*m.reports, m.lacks, m.ready) if ref}
            if not refs:
                raise TimeoutError("no worker has any work")
            found, _ = ray.wait(list(refs), num_returns=len(refs), timeout=0)
            if not found:
                found, _ = ray.wait(list(refs), num_returns=1, timeout=max(0.0, deadline - time.monotonic()))
            if not found:
                raise TimeoutError(self._stuck(timeout))
            events: list[Event] = []
            for ref in found:
                name = refs[ref]
                if name in self._members:  # not lost by an event before this one
                    event = self._event(name, self._members[name], ref)
                    events += [] if event is None else [event]
            if events:
                return events

    def _event(self, name: int, member: _Member, ref: Any) -> Event | None:
        try:
            value = ray.get(ref, timeout=60)
        except RayTaskError as error:
            if isinstance(error.cause, RayActorError | ObjectLostError | TaskCancelledError) and member.joined:
                return Voided(name, member.reports.pop(ref))
            if isinstance(error.cause, OutOfMemory):
                return Exhausted(name, member.reports.pop(ref), str(error.cause))
            if isinstance(error.cause, UserError):  # found by the check before the first step
                raise error.cause from None
            raise PoolError(f"worker {name} failed: {error.cause!r}\n{error}") from error
        except RayError as error:
            if isinstance(error, ObjectLostError) and ref in member.reports:
                return Voided(name, member.reports.pop(ref))
            # The actor died, ran out of memory, does not answer, or its answer from before it joined is gone.
            return self._lose(name, member, error)
        if ref is member.lacks:
            member.lacks, member.ready = None, member.actor.ready.remote(self._parcel() if value else None)
            return None
        if ref is member.ready:
            member.ready, self._failed_starts, self._tries = None, 0, LATER_TRIES
            seen, member.pid = value
            if not self._complete():
                return self._join(name, seen)
            self._waiting[name] = seen
            return None
        return Done(name, member.reports.pop(ref), value)

    def _complete(self) -> bool:
        return sum(member.joined for member in self._members.values()) >= self._workers

    def _join(self, name: int, fingerprint: dict[str, str]) -> Event:
        self._members[name].joined = True
        return Joined(name, fingerprint)

    def _lose(self, name: int, member: _Member, error: RayError) -> Event:
        if not member.joined:
            self._failed_starts += 1
            if self._failed_starts >= self._tries:
                raise PoolError(f"{self._tries} workers in a row died while they started: {error}") from error
        del self._members[name]
        ray.kill(member.actor)  # it may live on where it cannot be reached
        self._start()
        return Lost(name, tuple(member.reports.values()), f"process {member.pid}: {type(error).__name__}")

    def _stuck(self, timeout: float) -> str:
        waiting = [name for name, member in self._members.items() if not member.joined]
        have, free = ray.cluster_resources(), ray.available_resources()
        if len(waiting) == len(self._members):
            return (
                f"no worker could start within {timeout:g} s: each asks for {self._cpus:g} CPUs and "
                f"{self._blueprint.gpus:g} GPUs; the cluster has {have.get('CPU', 0):g} CPUs "
                f"({free.get('CPU', 0):g} free) and {have.get('GPU', 0):g} GPUs"
            )
        missing = f"; {len(waiting)} of {len(self._members)} could not be started" if waiting else ""
        return f"no worker finished anything within {timeout:g} s{missing}"

    def _parcel(self) -> Parcel:
        """The job's data for other nodes; made when the first of them asks for it."""
        if self._packed is None:
            assert self._blueprint.store is not None
            self._packed = self._blueprint.store.pack()
        return self._packed

    def close(self) -> None:
        members, self._members = self._members, {}
        for member in members.values():
            ray.kill(member.actor)
