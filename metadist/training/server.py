"""The parameter server behind both runtimes."""

from __future__ import annotations

import functools
import math
from collections import deque
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor

from metadist.errors import UserError
from metadist.learners import Meta
from metadist.outer import (
    Checkpoint,
    Experiment,
    OuterState,
    Payload,
    Published,
    Update,
    Verdict,
    apply_step,
    decode_checkpoint,
    encode_checkpoint,
    meta_sha256,
    publish,
    tensors_sha256,
)
from metadist.training.run_folder import RunFolder, checkpoint_name


class Server:
    """`metadist.outer.server` with a memory; the server actor is this class in another process."""

    def __init__(self, experiment: Experiment) -> None:
        self.experiment = experiment
        # The newest last. A step may be taken while the driver still deals with the one before, and one more
        # may be ordered behind it: what the driver then asks for is up to two versions old.
        self._states: deque[OuterState] = deque(maxlen=2 + len(experiment.rule.phases))
        self._last = Update(Verdict.DUPLICATE, 0, math.nan, math.nan)

    @property
    def state(self) -> OuterState:
        """The current state."""
        return self._states[-1]

    def start(self, folder: RunFolder | None, checkpoint: str | None) -> tuple[Published, OuterState]:
        """Start from a checkpoint or afresh."""
        if folder is not None and checkpoint is not None:
            state = self._load(folder, checkpoint)
        else:
            state = OuterState(0, self._initial._replace(frozen={}, local={}), {})
        return self.restore(state), state

    def restore(self, state: OuterState) -> Published:
        """Start from a state in memory."""
        self._states.clear()
        self._states.append(state)
        return publish(state)

    def apply(self, version: int, payloads: Sequence[Payload], phase: int = 0) -> tuple[Published, Update, OuterState]:
        """Take a phase of the step from `version` (see `apply_step`)."""
        state, update = apply_step(self.experiment.rule, self.state, version, payloads, phase)
        if update.verdict in (Verdict.ACCEPTED, Verdict.SKIPPED):
            self._states.append(state)
            self._last = update
        elif update.verdict is Verdict.DUPLICATE:
            update = replace(self._last, verdict=Verdict.DUPLICATE)
        return publish(state), update, state

    def save(self, folder: RunFolder, version: int, identity: str, progress: dict[str, Any]) -> str:
        """Write the state at a version as its checkpoint; returns the sha256 of the meta-parameters."""
        state = self._at(version)
        checkpoint = Checkpoint(state, identity, progress, self._frozen_sha256)
        folder.write(checkpoint_name(version), encode_checkpoint(checkpoint))
        return meta_sha256(state.meta)

    def judged(self, version: int) -> Published:
        """A version's meta-parameters as validation and tests judge them."""
        return publish(self._at(version), judged=True)

    def read(self, folder: RunFolder, checkpoint: str) -> Published:
        """A checkpoint's meta-parameters as validation and tests judge them."""
        return publish(self._load(folder, checkpoint), judged=True)

    @functools.cached_property
    def _initial(self) -> Meta:
        return self.experiment.initial()

    @functools.cached_property
    def _frozen_sha256(self) -> str:
        return tensors_sha256(self._initial.still) if self._initial.still else ""

    def _at(self, version: int) -> OuterState:
        (state,) = (state for state in self._states if (state.version, state.phase) == (version, 0))
        return state

    def _load(self, folder: RunFolder, checkpoint: str) -> OuterState:
        path = f"{folder.location}/{checkpoint}"
        read = decode_checkpoint(folder.read(checkpoint), path)
        own, other = _shapes(self._initial), _shapes(read.state.meta)
        if own != other:
            name = min(name for name in own | other if own.get(name) != other.get(name))
            raise UserError(
                path,
                f"{name}: {other.get(name, 'no such tensor')}",
                f"{own.get(name, 'no such tensor')}, as this job's model has it",
                "The checkpoint is another model's: use the settings that it was trained with.",
            )
        entries = [(name, v) for name, entry in read.state.optimizer.items() for v in entry.values() if v.dim()]
        for name, value in [*read.state.average.items(), *entries]:
            if _shape(value) != own.get(name):
                found = f"beside {name}: {_shape(value)}"
                raise UserError(path, found, own.get(name, "no such tensor"), "The checkpoint was changed.")
        if read.frozen_sha256 != self._frozen_sha256:
            raise UserError(
                path,
                f"a version beside frozen parameters of sha256 {read.frozen_sha256 or 'of none'}",
                f"the ones of this job, {self._frozen_sha256 or 'none'}",
                "What a run's `freeze`, `server.share` and `init_from` give must stay as it was.",
            )
        # In the order that the run began with, on which a learner's sums over names may depend.
        parameters = {name: read.state.meta.parameters[name] for name in self._initial.parameters}
        return replace(read.state, meta=read.state.meta._replace(parameters=parameters))


def _shapes(meta: Meta) -> dict[str, str]:
    return {name: _shape(value) for name, value in (meta.parameters | meta.statistics).items()}


def _shape(value: Tensor) -> str:
    return f"shape {list(value.shape)} of {str(value.dtype).removeprefix('torch.')}"
