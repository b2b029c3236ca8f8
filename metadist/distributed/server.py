"""The server actor behind the `ParameterServer` seam."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import ray
from ray.exceptions import ObjectLostError, RayActorError, RayError, RayTaskError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from metadist.distributed.blueprint import Blueprint
from metadist.distributed.server_actor import ServerActor
from metadist.outer import Update
from metadist.training.run_folder import RunFolder
from metadist.training.seams import ParameterServer, PayloadLost, Ref, ServerLost

#: steps between two states that travel, up to this many meta-learned values; for twice as many, twice as many steps; …
STATE_STEPS, STATE_VALUES = 4, 4_000_000
#: … but fewer where the payloads since the last state would take more than this share of the object store
HELD_SHARE = 0.25
#: servers that may be lost in a row before one has gone on
LIVES = 5


class RayServer(ParameterServer):
    """Orders steps by reference and keeps references to the server's state, so that it can be replaced.

    The state is the return value of a call that the driver made: it outlives the actor, and a new one goes on
    from it without the disk. Steps since the last state are taken again from their payloads, which the driver
    holds by reference too; nothing is computed twice.

    Args:
        deadline: seconds within which any call must return.
    """

    def __init__(self, blueprint: Blueprint, deadline: float) -> None:
        self._blueprint, self._deadline = blueprint, deadline
        self._actor = self._make()
        self._state: Ref = None
        self._state_every = 1
        self._ordered: dict[tuple[int, int], tuple[Sequence[Ref], Ref, tuple[Ref, Ref] | None]] = {}
        #: version and phase of what was taken since the state, with the payloads
        self._since_state: list[tuple[tuple[int, int], Sequence[Ref]]] = []
        #: a state that was ordered and the ref that says that it is there
        self._coming: tuple[Ref, Ref] | None = None

    def _make(self) -> Any:
        # On the driver's own node: it writes the run folder, which may be on a disk of that node.
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        actor = ray.remote(ServerActor).options(
            num_cpus=0,
            max_restarts=0,
            max_task_retries=0,
            scheduling_strategy=here,
            allow_out_of_order_execution=True,  # a step that is ordered anew does not wait for the old order's payloads
        )
        return actor.remote(self._blueprint)

    def start(self, folder: RunFolder | None, checkpoint: str | None) -> Ref:
        call = self._actor.start.options(num_returns=3)
        published, self._state, sizes = call.remote(folder and folder.anchored(), checkpoint)
        values, chunks = self._get(sizes)
        held = HELD_SHARE * ray.cluster_resources().get("object_store_memory", 0) / (4 * values * chunks)
        self._state_every = max(1, min(STATE_STEPS * math.ceil(values / STATE_VALUES), int(held)))
        return published

    def apply(self, version: int, payloads: Sequence[Ref], phase: int = 0) -> Ref:
        if (version, phase) in self._ordered:
            ray.cancel(self._ordered[version, phase][1])
        # Calls are not made in their order, but what they need comes before them.
        before = max((step for step in self._ordered if step < (version, phase)), default=None)
        after = None if before is None else self._ordered[before][1]
        published, update = self._actor.apply.options(num_returns=2).remote(version, phase, after, *payloads)
        with_state = phase == 0 and (version + 1) % self._state_every == 0
        state = self._actor.state.options(num_returns=2).remote(update) if with_state else None
        self._ordered[version, phase] = (payloads, update, state)
        return published

    def outcome(self, version: int, phase: int = 0) -> Update:
        payloads, ref, state = self._ordered.pop((version, phase))
        try:
            update: Update = ray.get(ref, timeout=self._deadline)
        except RayTaskError as error:
            if isinstance(error.cause, RayActorError | ObjectLostError):
                raise PayloadLost(type(error.cause).__name__) from error
            raise
        except RayError as error:
            raise ServerLost(type(error).__name__) from error
        if self._coming is not None:  # the server took this step after it had returned that state
            arrived, there = self._coming
            reached = self._get(there)
            self._state, self._coming = arrived, None
            self._since_state = [(step, held) for step, held in self._since_state if step >= reached]
        self._since_state.append(((version, phase), payloads))
        self._coming = state or self._coming
        return update

    def recover(self) -> Ref:
        self._ordered.clear()
        self._coming = None
        steps = [(*at, len(payloads)) for at, payloads in self._since_state]
        held = [payload for _, payloads in self._since_state for payload in payloads]
        for _ in range(LIVES):
            ray.kill(self._actor)
            self._actor = self._make()
            if self._state is None:  # it had not been started: it was only to read
                return None
            published, there = self._actor.restore.options(num_returns=2).remote(self._state, steps, *held)
            try:
                self._get(there)  # nothing is ordered of a server that has not gone on: order is not kept
                return published
            except ServerLost:
                continue
            except RayError as error:
                lost = type(error).__name__
                raise ServerLost(f"what a new one would go on from is lost, too ({lost}); use --resume") from error
        raise ServerLost(f"{LIVES} parameter servers in a row were lost before they had gone on; use --resume")

    def save(self, folder: RunFolder, version: int, identity: str, progress: dict[str, Any]) -> str:
        there = folder.anchored()
        return str(self._insist(lambda: self._get(self._actor.save.remote(there, version, identity, progress))))

    def read(self, folder: RunFolder, checkpoint: str) -> Ref:
        there = folder.anchored()
        return self._published(lambda: self._actor.read.options(num_returns=2).remote(there, checkpoint))

    def judged(self, version: int) -> Ref:
        return self._published(lambda: self._actor.judged.options(num_returns=2).remote(version))

    def _published(self, order: Callable[[], tuple[Ref, Ref]]) -> Ref:
        """The first of a call's two results, once the second says that the call has ended well."""

        def call() -> Ref:
            published, version = order()
            self._get(version)
            return published

        return self._insist(call)

    def _insist(self, call: Callable[[], Any]) -> Any:
        """Make a call, with a new server in the place of a lost one, twice at most."""
        for _ in range(2):
            try:
                return call()
            except ServerLost:
                self.recover()
        return call()

    def close(self) -> None:
        if self._actor is not None:
            ray.kill(self._actor)
            self._actor = None

    def _get(self, ref: Any) -> Any:
        try:
            return ray.get(ref, timeout=self._deadline)
        except RayTaskError as error:
            raise error.cause if isinstance(error.cause, Exception) else error from None
        except RayError as error:
            raise ServerLost(type(error).__name__) from error
