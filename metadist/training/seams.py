"""The two seams between the training loop and whatever runs it.

The in-process pair and the Ray pair pass the same contract tests. A `Ref` is a value that lives where the
runtime keeps it and may not exist yet: the loop hands refs on without looking inside.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from metadist.outer import Update
from metadist.training.run_folder import RunFolder
from metadist.training.work import Report, Work

Ref = Any


@dataclass(frozen=True)
class Done:
    """A worker finished the work with this ticket."""

    worker: int
    ticket: int
    report: Report


@dataclass(frozen=True)
class Lost:
    """A worker is gone, and with it the work it had not finished."""

    worker: int
    tickets: tuple[int, ...]
    reason: str


@dataclass(frozen=True)
class Voided:
    """A worker could not do the work because its version never came to be; the worker is well."""

    worker: int
    ticket: int


@dataclass(frozen=True)
class Exhausted:
    """A worker had not enough memory for the work; the worker is well."""

    worker: int
    ticket: int
    reason: str


@dataclass(frozen=True)
class Joined:
    """A worker is ready for work."""

    worker: int
    fingerprint: dict[str, str]


Event = Done | Lost | Voided | Exhausted | Joined


class PoolError(RuntimeError):
    """No worker can be had, or one raised an error of its own; the text says which and why."""


class WorkerPool(ABC):
    """Workers that take work.

    A worker does one piece of work at a time, in the order in which it was given or nearly so; one whose version is not
    there yet holds up no other.
    """

    def clock(self) -> float:
        """The time in seconds, from any start."""
        return time.monotonic()

    @abstractmethod
    def submit(self, worker: int, ticket: int, work: Work, version: Ref) -> Ref:
        """Give `work` at a version to a worker, without waiting; returns the ref of its payload."""

    @abstractmethod
    def withdraw(self, worker: int, ticket: int) -> None:
        """Take back work whose version is not there yet: no event tells of it. What has been begun may be done."""

    @abstractmethod
    def wait(self, timeout: float) -> list[Event]:
        """Wait for at least one event.

        Raises:
            TimeoutError: none came within `timeout` seconds.
            PoolError: the pool cannot go on.
        """

    @abstractmethod
    def close(self) -> None:
        """End all workers. May be called twice."""


class ServerLost(RuntimeError):
    """The server is gone; `recover` makes a new one."""


class PayloadLost(RuntimeError):
    """A payload that a step needs is gone; the step's chunks must be computed again."""


class ParameterServer(ABC):
    """Holds the meta-parameters of one run and takes the outer steps (see `metadist.outer.server`).

    Each call that waits does so for a bounded time and raises `ServerLost` when the server is gone.
    """

    @abstractmethod
    def start(self, folder: RunFolder | None, checkpoint: str | None) -> Ref:
        """Start from a checkpoint in `folder`, or from the initial state; returns the published version."""

    @abstractmethod
    def apply(self, version: int, payloads: Sequence[Ref], phase: int = 0) -> Ref:
        """Order a phase of the step from `version`, without waiting; returns the ref of what is published then.

        Without payloads the step is skipped. An order of the same phase that was not taken yet is replaced.
        """

    @abstractmethod
    def outcome(self, version: int, phase: int = 0) -> Update:
        """Wait for the phase that was ordered of the step from `version`.

        Raises:
            PayloadLost: one of its payloads is gone.
        """

    @abstractmethod
    def recover(self) -> Ref:
        """A new server in the place of a lost one, where the last outcome that was returned left it.

        Returns what is published there, anew.
        """

    @abstractmethod
    def save(self, folder: RunFolder, version: int, identity: str, progress: dict[str, Any]) -> str:
        """Write a version as its checkpoint; returns the sha256 of the meta-parameters.

        The version is the one whose outcome was returned last, whatever was ordered since.
        """

    @abstractmethod
    def read(self, folder: RunFolder, checkpoint: str) -> Ref:
        """A checkpoint's meta-parameters as tests judge them; the server's own state stays as it is."""

    @abstractmethod
    def judged(self, version: int) -> Ref:
        """The version whose outcome was returned last, as validation and tests judge it."""

    @abstractmethod
    def close(self) -> None:
        """End the server. May be called twice."""
