"""How long an outer step takes, from a few measured times: the model behind `metadist plan`.

A synchronous step of K chunks on W workers, each chunk c seconds of computing:

    T = ceil(K / W) · (c + w)  +  s + K · p  +  network

- Workers take chunks as they get free, so the last of them has ceil(K / W), one a round. w is what a worker does about
  a chunk beside computing it: it copies the version, sends the sums and is given the next chunk. On workers that share
  the cores of one machine, a round of n chunks takes max(1, n / cores) times as long, and c grows with the cores that
  are at work, from that of one worker alone to that of all cores at once (they share caches and memory,
  and driver, server and Ray want their part).
- When the last chunk is there, the one server adds all K sums, takes the outer step and publishes; nobody computes
  meanwhile. s is the part of that which every step has, p the part that every chunk adds: its sums read and added,
  its report received, its successor given out. These grow with the number of parameters and are measured at the job's.
- network: the last chunk of each worker goes to the server's machine through its one line, and each worker gets the
  new version through it: 2 · W' · B / bandwidth with B bytes of parameters and W' = min(W, K) workers. Sums of earlier
  rounds travel while others are computed, as far as there is time.

Not in the model: validation and checkpoints, workers of different speed, more than one worker on a machine (which then
get one copy of a version between them).
"""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Rim:
    """What is around the computing, in seconds, for one number of parameters.

    Attributes:
        worker: w, per chunk, on its worker.
        push: p, per chunk, where all wait for it.
        step: s, per step.
    """

    worker: float
    push: float
    step: float

    @classmethod
    def fit(cls, one: float, many: float, alone: float, chunks: int) -> Rim:
        """From the times of three kinds of steps without work.

        Args:
            one: one worker, one chunk.
            many: `chunks` workers, `chunks` chunks.
            alone: one worker, `chunks` chunks.
        """
        worker = max(0.0, (alone - many) / (chunks - 1))
        push = max(0.0, (many - one) / (chunks - 1))
        return cls(worker, push, max(0.0, one - worker - push))

    def scaled(self, factor: float) -> Rim:
        """The same for so many times as many parameters, where copying them is all that counts."""
        return Rim(factor * self.worker, factor * self.push, factor * self.step)


@dataclass(frozen=True)
class Load:
    """What a step is.

    Attributes:
        chunks: K.
        chunk_seconds: c.
        tasks: tasks of the whole step.
        message: B, bytes of a version, and of a chunk's sums.
        bandwidth: of the server's machine, bytes per second each way; `None` where no network is between them.
        cores: processor cores that all workers share; `None` where each has its own.
        crowded: c when all of these cores compute at once; `None`: as alone.
    """

    chunks: int
    chunk_seconds: float
    tasks: int
    message: int
    bandwidth: float | None = None
    cores: int | None = None
    crowded: float | None = None

    def round_seconds(self, chunks: int) -> float:
        """Seconds in which so many workers compute a chunk each."""
        if self.cores is None:
            return self.chunk_seconds
        beside = (min(chunks, self.cores) - 1) / max(1, self.cores - 1)
        slower = beside * ((self.crowded or self.chunk_seconds) - self.chunk_seconds)
        return (self.chunk_seconds + slower) * max(1.0, chunks / self.cores)


@dataclass(frozen=True)
class Prediction:
    """A step on so many workers, in seconds.

    Attributes:
        compute: until the last chunk is computed.
        server: from there, the server's part.
        network: the network's.
    """

    workers: int
    compute: float
    server: float
    network: float

    @property
    def seconds(self) -> float:
        """The whole step."""
        return self.compute + self.server + self.network

    @property
    def waiting(self) -> float:
        """Share of the step in which no worker computes."""
        return (self.server + self.network) / self.seconds


def predict(rim: Rim, load: Load, workers: int) -> Prediction:
    """One step on so many workers; see the module for the model."""
    busy = min(workers, load.chunks)
    rounds, rest = divmod(load.chunks, busy)
    compute = rounds * (load.round_seconds(busy) + rim.worker)
    if rest:
        compute += load.round_seconds(rest) + rim.worker
    network = 0.0
    if load.bandwidth is not None:
        each = load.message / load.bandwidth
        compute = max(compute, (load.chunks - busy) * each)
        network = 2 * busy * each
    return Prediction(workers, compute, rim.step + load.chunks * rim.push, network)


def saturation(rim: Rim, load: Load) -> float:
    """The number of workers at which they wait half of the time, when each has one chunk of every step.

    The meta-batch grows with the workers: that is as far as one server goes.
    """
    each = rim.push + (2 * load.message / load.bandwidth if load.bandwidth is not None else 0.0)
    return max(1.0, (load.chunk_seconds + rim.worker - rim.step) / each) if each else math.inf
