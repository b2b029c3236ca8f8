"""Supervised training on all classes of a split at once, in one process or data-parallel in several.

A step is the outer step of `metadist.outer`, with the images of a batch in the place of a meta-batch's tasks: each
process takes its share of the batch's rows, the sums of their gradients are added up over the processes, and every
process takes the same step from the same sum.

What batch normalisation sees is a process's share, and sums are rounded by share: the parameters are a function of the
number of processes too, but of nothing else. A run goes on from the end of an epoch.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from metadist.learners import Network, plain_meta
from metadist.learners.gradient import Parameters
from metadist.outer import (
    Checkpoint,
    ChunkKey,
    OuterRule,
    OuterState,
    Payload,
    Verdict,
    apply_step,
    encode_checkpoint,
    meta_sha256,
    own_copy,
    to_arrays,
    torch_generator,
)
from metadist.tasks import generator
from metadist.tasks.labelled import LabelledImages
from metadist.training.run_folder import RunFolder, checkpoint_name
from metadist.training.stepper import Diverged

#: steps between two signs of life
BEAT_STEPS = 20


@dataclass(frozen=True)
class Share:
    """A process's part of the data-parallel work.

    Attributes:
        rank: its number, of `world`.
        add_up: adds a tensor up over all processes, in place; returns when all have the sum.
    """

    rank: int = 0
    world: int = 1
    add_up: Callable[[Tensor], object] = lambda _: None


@dataclass(frozen=True)
class EpochRecord:
    """What an epoch gave.

    Attributes:
        epoch: its number, from 1.
        version: steps so far.
        loss, accuracy: means over the images that it trained on, each before its step.
        valid_loss, valid_accuracy: of the held-out images after the epoch; `None` without any.
        lr: of its last step.
        seconds: of its steps.
        sha256: of the parameters.
    """

    epoch: int
    version: int
    loss: float
    accuracy: float
    valid_loss: float | None
    valid_accuracy: float | None
    lr: float
    seconds: float
    sha256: str


@dataclass(frozen=True)
class Pretraining:
    """Everything that a step of a pre-training is a function of.

    Attributes:
        rule: its `tasks` are the images of a batch, over all processes.
    """

    images: LabelledImages
    network: Network
    rule: OuterRule
    epochs: int
    seed: int
    device: torch.device

    @property
    def steps_per_epoch(self) -> int:
        """Whole batches of the images; what is left over waits for the next epoch's order."""
        return len(self.images.train) // self.rule.tasks

    def initial(self) -> OuterState:
        """The state before the first step: the initial weights of a job with this seed and model."""
        return OuterState(0, plain_meta(self.network.fresh(torch_generator("initial", self.seed))), {})

    def epoch(self, state: OuterState, share: Share, beat: Callable[[], object]) -> tuple[OuterState, EpochRecord]:
        """Take the steps of the epoch that follows `state`."""
        start, number = time.perf_counter(), state.version // self.steps_per_epoch
        order = generator("epoch", self.seed, number).permutation(self.images.train)
        loss = correct = lr = 0.0
        for step in range(self.steps_per_epoch):
            rows = order[step * self.rule.tasks : (step + 1) * self.rule.tasks][share.rank :: share.world]
            gradient, sums = self._sums(state.meta.parameters, rows, share)
            loss, correct = loss + float(sums[0]), correct + float(sums[1])
            key = ChunkKey(self.rule.run, state.version, 0, 0)
            payload = Payload(key, to_arrays(gradient), {}, self.rule.tasks)
            state, update = apply_step(self.rule, state, state.version, [payload])
            if update.verdict is not Verdict.ACCEPTED:
                raise Diverged(f"the gradient of step {state.version + 1} is {update.verdict}; lower the learning rate")
            lr = update.lr
            if step % BEAT_STEPS == 0:
                beat()
        seconds = time.perf_counter() - start
        seen = self.steps_per_epoch * self.rule.tasks
        valid_loss, valid_accuracy = self.judge(state, share)
        sha = meta_sha256(state.meta)
        return state, EpochRecord(
            number + 1, state.version, loss / seen, correct / seen, valid_loss, valid_accuracy, lr, seconds, sha
        )

    def _sums(self, parameters: Parameters, rows: np.ndarray, share: Share) -> tuple[Parameters, Tensor]:
        """Sums over the batch, of all processes: of gradients by name, and of (losses, correct rows)."""
        leaves = {name: value.detach().to(self.device).requires_grad_() for name, value in parameters.items()}
        examples = self.images.examples(rows, self.device)
        outputs = self.network.support(leaves, examples)
        loss = nn.functional.cross_entropy(outputs, examples.y, reduction="sum")
        values = torch.autograd.grad(loss, tuple(leaves.values()), materialize_grads=True)
        correct = (outputs.argmax(1) == examples.y).sum()
        flat = torch.cat([torch.stack([loss.detach(), correct.float()]), *(value.flatten() for value in values)])
        share.add_up(flat)
        sizes = [2, *(value.numel() for value in values)]
        sums, *parts = torch.split(flat.cpu(), sizes)
        shaped = (part.reshape(value.shape) for part, value in zip(parts, values, strict=True))
        return dict(zip(leaves, shaped, strict=True)), sums

    @torch.no_grad()
    def judge(self, state: OuterState, share: Share) -> tuple[float | None, float | None]:
        """Mean loss and accuracy on the held-out images, in batches of the job's size."""
        held, size = self.images.held, self.rule.tasks
        if not len(held):
            return None, None
        # One order for all epochs, in which every batch has all classes: batch statistics then are the training's.
        held = generator("judge", self.seed).permutation(held)
        parameters = {name: value.to(self.device) for name, value in state.judged.parameters.items()}
        sums = torch.zeros(2, dtype=torch.float64)
        for batch in range(share.rank, -(-len(held) // size), share.world):
            examples = self.images.examples(held[batch * size : (batch + 1) * size], self.device)
            outputs = self.network.support(parameters, examples).double()
            sums[0] += nn.functional.cross_entropy(outputs, examples.y, reduction="sum").cpu()
            sums[1] += (outputs.argmax(1) == examples.y).sum().cpu()
        sums = sums.to(self.device)
        share.add_up(sums)
        loss, correct = (float(value) / len(held) for value in sums)
        return loss, correct


@dataclass(frozen=True)
class Watch:
    """Told by the first process what happens.

    Attributes:
        epoch: given each epoch when its checkpoint is there; true ends the run after it.
        beat: a sign of life between epochs.
    """

    epoch: Callable[[EpochRecord], bool]
    beat: Callable[[], object] = lambda: None


def run_epochs(
    pretraining: Pretraining,
    share: Share,
    folder: RunFolder,
    newest: Checkpoint | None,
    identity: str,
    keep: int,
    watch: Watch,
) -> None:
    """Train from `newest`, or from the start, to the last epoch or until `watch` ends it; every process calls this.

    The first process writes the checkpoints, one an epoch.
    """
    # A copy, because the place of a tensor in memory can change bits: in a file they lie where they may.
    state = pretraining.initial() if newest is None else own_copy(newest.state)
    none = {"best_version": None, "best_score": None, "seconds": 0.0}
    progress: dict[str, Any] = none if newest is None else newest.progress
    first = share.rank == 0
    stop = False
    while state.version < pretraining.epochs * pretraining.steps_per_epoch and not stop:
        state, record = pretraining.epoch(state, share, watch.beat if first else lambda: None)
        score = record.valid_accuracy
        progress = progress | {"seconds": progress["seconds"] + record.seconds}
        if score is not None and (progress["best_score"] is None or score > progress["best_score"]):
            progress |= {"best_version": record.version, "best_score": score}
        if first:
            folder.write(checkpoint_name(record.version), encode_checkpoint(Checkpoint(state, identity, progress)))
            best = progress["best_version"]
            folder.prune(keep, set() if best is None else {checkpoint_name(best)})
            stop = watch.epoch(record)
        flag = torch.tensor([float(stop)], device=pretraining.device)
        share.add_up(flag)
        stop = bool(flag > 0)


def shared(values: Sequence[dict[str, str]]) -> dict[str, str]:
    """The fingerprint that all processes have.

    Raises:
        RuntimeError: one of them runs on other hardware or software.
    """
    for rank, value in enumerate(values):
        if value != values[0]:
            raise RuntimeError(
                f"Worker {rank} runs on other hardware or software than the first: {value} against {values[0]}. "
                "The bits of a run would depend on which worker did what; use nodes of one kind."
            )
    return values[0]
