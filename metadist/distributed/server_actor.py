"""The parameter-server actor: `training.Server` in a process of its own."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

from metadist.distributed.blueprint import Blueprint
from metadist.distributed.logs import name_this_process
from metadist.outer import OuterState, Payload, Published, Update, own_copy
from metadist.training.machine import keep_freed_memory, set_threads
from metadist.training.run_folder import RunFolder
from metadist.training.server import Server


class ServerActor:
    """Holds the meta-parameters, takes the outer steps and publishes versions.

    Its whole state is a return value too: it then belongs to the driver, which can start another server from
    it when this process is lost.
    """

    def __init__(self, blueprint: Blueprint) -> None:
        name_this_process(blueprint.run, "server")
        set_threads(blueprint.threads)
        keep_freed_memory()
        self._blueprint = blueprint
        self._server = Server(blueprint.experiment())

    def start(self, folder: RunFolder | None, checkpoint: str | None) -> tuple[Published, OuterState, tuple[int, int]]:
        """See `Server.start`; also the number of meta-learned values, and of chunks in a step."""
        published, state = self._server.start(folder, checkpoint)
        values = sum(array.size for array in (published.parameters | published.statistics).values())
        return published, state, (values, self._server.experiment.rule.chunks)

    def restore(
        self, state: OuterState, steps: Sequence[tuple[int, int, int]], *payloads: Payload
    ) -> tuple[Published, int]:
        """Go on from a state that another server returned; also the version, which says that it has.

        Args:
            steps: version, phase and number of payloads of what was taken since that state.
            payloads: of these steps, one after the other.
        """
        published, remaining = self._server.restore(own_copy(state)), iter(payloads)
        for version, phase, count in steps:
            taken = list(itertools.islice(remaining, count))
            self._blueprint.reach("apply", version)
            published, _, _ = self._server.apply(version, taken, phase)
        return published, published.version

    def apply(self, version: int, phase: int, after: Update | None, *payloads: Payload) -> tuple[Published, Update]:
        """See `Server.apply`.

        Args:
            after: answer to the step before, where it was not known yet.
        """
        self._blueprint.reach("apply", version)
        published, update, _ = self._server.apply(version, payloads, phase)
        self._blueprint.reach("applied", version)
        return published, update

    def state(self, after: Update) -> tuple[OuterState, tuple[int, int]]:
        """The current state, and its version and phase, which say that it is there.

        Args:
            after: answer to the step that is to be in it.

        A call of its own, because the state is several times a version: the workers have that already, and this goes
        on while they compute.
        """
        state = self._server.state
        self._blueprint.reach("state", state.version)
        return state, (state.version, state.phase)

    def save(self, folder: RunFolder, version: int, identity: str, progress: dict[str, Any]) -> str:
        """See `Server.save`."""
        return self._server.save(folder, version, identity, progress)

    def read(self, folder: RunFolder, checkpoint: str) -> tuple[Published, int]:
        """See `Server.read`; also the version, which says that it could be read."""
        published = self._server.read(folder, checkpoint)
        self._blueprint.reach("read", published.version)
        return published, published.version

    def judged(self, version: int) -> tuple[Published, int]:
        """See `Server.judged`; also the version, which says that there is one."""
        return self._server.judged(version), version
