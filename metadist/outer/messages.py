"""What crosses between the driver, the workers and the server: small frozen dataclasses.

Tensors travel in `Payload` and `Published` only, from worker to server and from server to worker; the driver
moves references to them, and reads reports.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from metadist.learners import Meta
from metadist.outer.meta_gradient import MetaGradient

Arrays = dict[str, np.ndarray]


class ChunkKey(NamedTuple):
    """Names one piece of training work; a result is applied at most once per key.

    Attributes:
        run: id of the run.
        version: version of the meta-parameters that the chunk is computed at.
        phase: phase of the outer step, 0 for learners whose step has one.
        chunk: number of the chunk in the meta-batch.
    """

    run: str
    version: int
    phase: int
    chunk: int


@dataclass(frozen=True)
class Published:
    """One version of the meta-parameters, for readers. Never changed, and copied by every reader.

    Attributes:
        judged: these are the parameters to judge the version by, not those that training goes on from.
        phase: phases of the next step that are in it already.
    """

    version: int
    parameters: Arrays
    statistics: Arrays
    judged: bool = False
    phase: int = 0


@dataclass(frozen=True)
class Payload:
    """A chunk's sums, for the server.

    Attributes:
        at: the version that they were computed at; `key` says it too, but where steps do not wait for each other.
    """

    key: ChunkKey
    gradient: Arrays
    statistics: Arrays
    tasks: int
    at: int = 0

    @property
    def digest(self) -> str:
        """Of the sums' bits: the same for workers that computed the same."""
        digest = hashlib.sha256()
        for group in (self.gradient, self.statistics):
            for name in sorted(group):
                digest.update(np.ascontiguousarray(group[name]).data)
        return digest.hexdigest()


@dataclass(frozen=True)
class ChunkReport:
    """A chunk's scalars, for the driver: sums over its tasks (see `MetaGradient`), and its processor seconds.

    Attributes:
        digest: of the payload that it goes with.
    """

    key: ChunkKey
    tasks: int
    loss: float
    correct: int
    rows: int
    finite: bool
    seconds: float
    digest: str = ""


class Verdict(StrEnum):
    """What the server says to a step's payloads."""

    ACCEPTED = "accepted"
    #: this update was applied before: a retry
    DUPLICATE = "duplicate"
    #: computed at another version than the server's
    STALE = "stale"
    #: not the chunks of one meta-batch, each once
    INCOMPLETE = "incomplete"
    #: a sum is NaN or infinite: never applied
    NON_FINITE = "non-finite"
    #: the driver gave the step up: the version after it has the parameters of the one before
    SKIPPED = "skipped"


@dataclass(frozen=True)
class Update:
    """The server's answer to a step.

    Attributes:
        version: the server's version afterwards; a step's last phase makes the next one.
        gradient_norm: Euclidean norm of the mean meta-gradient before clipping.
        lr: outer learning rate of the first parameter group in this step.
        age: steps that were taken since the version that the payload was computed at; 0 where steps wait.
    """

    verdict: Verdict
    version: int
    gradient_norm: float
    lr: float
    age: int = 0


def to_arrays(tensors: dict[str, Tensor]) -> Arrays:
    """Tensors as arrays that share their memory (on the CPU), ready to be sent."""
    return {name: value.detach().cpu().contiguous().numpy() for name, value in tensors.items()}


def to_tensors(arrays: Arrays, device: torch.device | None = None) -> dict[str, Tensor]:
    """Arrays copied into tensors of their own.

    Never a view: received arrays lie in memory that other processes read. Each tensor is its own
    allocation, which torch aligns to 64 bytes; another alignment could change bits.
    """
    copies = {}
    for name, array in arrays.items():
        copy = torch.empty(array.shape, dtype=getattr(torch, str(array.dtype)))
        copy.numpy()[...] = array
        copies[name] = copy if device is None or device.type == "cpu" else copy.to(device)
    return copies


def to_meta(published: Published, initial: Meta, device: torch.device) -> Meta:
    """A reader's own copy of a published version, on its device, beside what stays as it is in `initial`."""
    return initial._replace(
        parameters=to_tensors(published.parameters, device), statistics=to_tensors(published.statistics, device)
    )


def to_payload(key: ChunkKey, result: MetaGradient, at: int) -> Payload:
    """A chunk's sums, computed at version `at`, ready to be sent."""
    return Payload(key, to_arrays(result.gradient), to_arrays(result.statistics), result.tasks, at)
