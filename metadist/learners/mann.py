"""MANN: Santoro, Bartunov, Botvinick, Wierstra, Lillicrap, "Meta-Learning with Memory-Augmented Neural Networks",
ICML 2016.

An LSTM with an external memory reads examples one after the other, each with the label of the one before, (xₜ, yₜ₋₁).
A read head has a key kₜ, compared by cosine with the rows of the memory (equations 2–4). Its write head writes to the
row that it read before, or to one of the least used rows, which is emptied first (equations 5–8). What was read goes to
the outputs beside the LSTM's state, and into its next step.

Where tasks have no support set (`tasks.shots: 0`), the query set is the paper's episode: a sequence in random order, in
which every row is judged before its label is told. Otherwise the support set is the sequence, and each query is a step
of its own after it. The base model gives the features; the parameters beside it are named `reader.…`.

Deviations. Written is the last key together with its label, now that it is told, kₜ₋₁ + V yₜ₋₁, where the paper
writes kₜ and leaves it to the LSTM to bind an example to the label that comes with the next; keys are of the features
and the LSTM's state, where the paper's are of the state alone; the gate begins near the least used rows. With these
three most labels were found again after 400 episodes of Gaussian classes, without any of them hardly one after 6,000
(one run each). Cosines have a learned factor, as in neural Turing machines. Heads write to different rows, the first
to the least used one. The head sees what there is through a linear layer of as many outputs as there are features.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from metadist.errors import UserError
from metadist.learners.base import Meta
from metadist.learners.metric import Memory, direction
from metadist.learners.reader import Reading, labels
from metadist.models import LstmConfig
from metadist.models.recurrent import LstmLayer
from metadist.tasks import Examples


@dataclass(frozen=True, kw_only=True)
class MannConfig:
    """MANN: an LSTM with an external memory reads the support set, or an episode in which labels come one step late."""

    kind: Literal["mann"] = "mann"
    #: size of the LSTM's state
    width: int = 200
    #: rows of the memory
    slots: int = 128
    #: width of a row
    slot: int = 40
    #: read heads, and as many write heads
    heads: int = 4
    #: share of a row's usage that is left after a step, γ
    decay: float = 0.99

    def __post_init__(self) -> None:
        for name in ("width", "slots", "slot", "heads"):
            if getattr(self, name) < 1:
                raise UserError(name, getattr(self, name), "a whole number of at least 1")
        if self.heads > self.slots:
            raise UserError("heads", self.heads, f"at most slots = {self.slots}, for each writes to a row of its own")
        if not 0 <= self.decay <= 1:
            raise UserError("decay", self.decay, "a number from 0 to 1")


class State(NamedTuple):
    """What one step leaves to the next, of n sequences.

    Attributes:
        output, cell: of the LSTM [n, width].
        memory: [n, slots, slot].
        weights: of the read heads over the rows [n, heads, slots].
        usage: of the rows [n, slots].
        read: [n, heads · slot].
        key, label: of the example before [n, heads, slot], [n, outputs].
    """

    output: Tensor
    cell: Tensor
    memory: Tensor
    weights: Tensor
    usage: Tensor
    read: Tensor
    key: Tensor
    label: Tensor


class Reader(nn.Module):
    """See `Reading`."""

    def __init__(self, config: MannConfig, features: int, outputs: int) -> None:
        super().__init__()
        self.config, self.outputs, read = config, outputs, config.heads * config.slot
        self.controller = LstmLayer(LstmConfig(width=config.width), features + outputs + read)
        self.key = nn.Linear(features + config.width, read)
        self.told = nn.Linear(outputs, read, bias=False)
        self.gate = nn.Parameter(torch.ones(config.heads))
        self.scale = nn.Parameter(torch.ones(config.heads))
        self.leave = nn.Linear(config.width + read, features)

    def forward(self, sequence: Tensor, y: Tensor, queries: Tensor) -> Tensor:
        state, outputs = self.start(sequence), []
        for row in range(len(sequence)):
            state, output = self.step(state, sequence[row : row + 1])
            state = state._replace(label=y[row : row + 1])
            outputs.append(output)
        if len(queries):
            apart = State(*(part.expand(len(queries), *part.shape[1:]) for part in state))
            outputs.append(self.step(apart, queries)[1])
        return torch.cat(outputs)

    def start(self, like: Tensor) -> State:
        """Before the first step of one sequence: nothing is stored, and no label is known."""
        c = self.config
        shapes = [(c.width,), (c.width,), (c.slots, c.slot), (c.heads, c.slots), (c.slots,), (c.heads * c.slot,)]
        shapes += [(c.heads, c.slot), (self.outputs,)]
        return State(*(like.new_zeros(1, *shape) for shape in shapes))

    def step(self, state: State, x: Tensor) -> tuple[State, Tensor]:
        """The next state, and what the head sees [n, features]."""
        driven = self.controller.from_input(torch.cat([x, state.label, state.read], 1))
        output, cell = self.controller.step(driven, state.output, state.cell)
        key = direction(self.by_head(self.key(torch.cat([x, output], 1))))
        free = self.least_used(state.usage)
        gate = (self.gate - 3).sigmoid()[:, None]  # 0.12 at the start
        write = gate * state.weights + (1 - gate) * free  # [n, heads, slots]
        memory = state.memory * (1 - free.sum(1))[..., None]
        memory = memory + write.mT @ (state.key + self.by_head(self.told(state.label)))
        weights = (10 * self.scale[:, None] * key @ direction(memory).mT).softmax(-1)
        read = (weights @ memory).flatten(1)
        usage = (self.config.decay * state.usage + (weights + write).sum(1)).detach()
        after = State(output, cell, memory, weights, usage, read, key, state.label)
        return after, self.leave(torch.cat([output, read], 1))

    def by_head(self, x: Tensor) -> Tensor:
        """[n, heads · slot] as [n, heads, slot]."""
        return x.reshape(len(x), self.config.heads, self.config.slot)

    def least_used(self, usage: Tensor) -> Tensor:
        """1 at the row that each head may empty [n, heads, slots], 0 elsewhere."""
        rows = usage.argsort(dim=-1, stable=True)[:, : self.config.heads]
        return (rows[..., None] == torch.arange(self.config.slots, device=usage.device)).to(usage.dtype)


class Mann(Reading):
    """Classification and regression, any base model whose head is a linear layer."""

    config_type = MannConfig
    reader = Reader
    sequential = True

    def adaptation(self, meta: Meta, support: Examples, steps: int) -> Iterator[Memory]:
        if len(support.x):
            return super().adaptation(meta, support, steps)
        return iter([Memory(support.x, meta.parameters, support)])

    def answer(self, adapted: Any, query: Examples) -> Tensor:
        _, parameters, support = adapted
        if len(support.x):
            return super().answer(adapted, query)
        sequence = self.network.query(parameters, support, query.x, head=False)
        return self.read(parameters, sequence, labels(query, sequence), sequence[:0])
