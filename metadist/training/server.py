"""The parameter server behind both runtimes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from metadist.errors import UserError
from metadist.learners import Meta
from metadist.outer import (
    Checkpoint,
    Experiment,
    OuterState,
    Payload,
    Published,
    Update,
    apply_step,
    decode_checkpoint,
    encode_checkpoint,
    meta_sha256,
    publish,
)
from metadist.training.run_folder import RunFolder


class Server:
    """`metadist.outer.server` with a memory; the server actor is this class in another process."""

    def __init__(self, experiment: Experiment) -> None:
        self.experiment = experiment
        self._state: OuterState | None = None

    @property
    def state(self) -> OuterState:
        """The current state."""
        assert self._state is not None, "the server was not started"
        return self._state

    def start(self, folder: RunFolder | None, checkpoint: str | None) -> tuple[Published, OuterState]:
        """Start from a checkpoint or afresh."""
        if folder is not None and checkpoint is not None:
            self._state = self._load(folder, checkpoint)
        else:
            self._state = OuterState(0, self.experiment.initial(), {})
        return publish(self.state), self.state

    def restore(self, state: OuterState) -> Published:
        """Start from a state in memory."""
        self._state = state
        return publish(state)

    def apply(self, version: int, payloads: Sequence[Payload]) -> tuple[Published, Update, OuterState]:
        """Take the step from `version` (see `apply_step`)."""
        self._state, update = apply_step(self.experiment.rule, self.state, version, payloads)
        return publish(self._state), update, self._state

    def save(self, folder: RunFolder, name: str, identity: str, progress: dict[str, Any]) -> str:
        """Write the current state as a checkpoint; returns the sha256 of the meta-parameters."""
        folder.write(name, encode_checkpoint(Checkpoint(self.state, identity, progress)))
        return meta_sha256(self.state.meta)

    def read(self, folder: RunFolder, checkpoint: str) -> Published:
        """A checkpoint's meta-parameters as a published version."""
        return publish(self._load(folder, checkpoint))

    def _load(self, folder: RunFolder, checkpoint: str) -> OuterState:
        path = f"{folder.location}/{checkpoint}"
        state = decode_checkpoint(folder.read(checkpoint), path).state
        own, other = _shapes(self.experiment.initial()), _shapes(state.meta)
        if own != other:
            name = min(name for name in own | other if own.get(name) != other.get(name))
            raise UserError(
                path,
                f"{name} of shape {other.get(name)}",
                f"shape {own.get(name)}, as this job's model has it",
                "The checkpoint is another model's: use the settings that it was trained with.",
            )
        return state


def _shapes(meta: Meta) -> dict[str, list[int]]:
    return {name: list(value.shape) for name, value in (meta.parameters | meta.statistics).items()}
