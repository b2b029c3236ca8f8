"""Recurrent nets: LSTM (Hochreiter, Schmidhuber, 1997; forget gates: Gers et al., 2000) and GRU (Cho et al., 2014).

The cells are plain operations, with the equations of `nn.LSTM` and `nn.GRU`, which themselves fail under
`torch.func.vmap`. What is normalised, where something is, is what the inputs add to the gates, over rows and steps
(Laurent et al., "Batch Normalized Recurrent Neural Networks", ICASSP 2016).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from metadist.errors import UserError
from metadist.models.base import ACTIVATIONS, Activation, BaseModel, ModelConfig
from metadist.models.norm import Norm
from metadist.models.sequences import as_sequence, sequence_shape


@dataclass(frozen=True, kw_only=True)
class RecurrentConfig(ModelConfig):
    """A recurrent net over a sequence, or over the rows of an image."""

    #: size of the state
    width: int = 64
    #: layers, each reading the states of the one before
    layers: int = 1
    #: what the head sees: the `last` state, or the `mean` of all
    readout: Literal["last", "mean"] = "last"
    #: nonlinearity of candidates and outputs; the gates are sigmoids
    activation: Activation = "tanh"

    def __post_init__(self) -> None:
        for name in ("width", "layers"):
            if getattr(self, name) < 1:
                raise UserError(name, getattr(self, name), "a whole number of at least 1")


@dataclass(frozen=True, kw_only=True)
class LstmConfig(RecurrentConfig):
    """LSTM over a sequence, or over the rows of an image."""

    kind: Literal["lstm"] = "lstm"


@dataclass(frozen=True, kw_only=True)
class GruConfig(RecurrentConfig):
    """GRU over a sequence, or over the rows of an image."""

    kind: Literal["gru"] = "gru"


class Layer(ABC, nn.Module):
    """Sequences [n, steps, inputs] to states [n, steps, width]."""

    #: parts of what inputs and state add up to
    gates: ClassVar[int]
    #: whether what the state adds has a bias of its own
    bias: ClassVar[bool]

    def __init__(self, config: RecurrentConfig, inputs: int) -> None:
        super().__init__()
        self.width = config.width
        self.from_input = nn.Linear(inputs, self.gates * config.width, bias=config.norm in ("layer", "none"))
        self.norm = Norm(config.norm, self.gates * config.width, 0, config.film)
        self.from_state = nn.Linear(config.width, self.gates * config.width, bias=self.bias)
        self.activation = ACTIVATIONS[config.activation]

    def forward(self, x: Tensor, reference: int | None) -> Tensor:
        rows, steps = x.shape[:2]
        flat = self.norm(self.from_input(x).flatten(0, 1), None if reference is None else reference * steps)
        driven = flat.unflatten(0, (rows, steps))
        output, memory = x.new_zeros(rows, self.width), x.new_zeros(rows, self.width)
        outputs = []
        for step in range(steps):
            output, memory = self.step(driven[:, step], output, memory)
            outputs.append(output)
        return torch.stack(outputs, 1)

    @abstractmethod
    def step(self, driven: Tensor, output: Tensor, memory: Tensor) -> tuple[Tensor, Tensor]:
        """The next output and memory [n, width]; `driven` is what this step's input adds to the gates."""


class LstmLayer(Layer):
    """Input, forget and output gate, and a memory beside the output."""

    gates, bias = 4, False

    def step(self, driven: Tensor, output: Tensor, memory: Tensor) -> tuple[Tensor, Tensor]:
        enter, keep, candidate, show = (driven + self.from_state(output)).chunk(4, -1)
        memory = keep.sigmoid() * memory + enter.sigmoid() * self.activation(candidate)
        return show.sigmoid() * self.activation(memory), memory


class GruLayer(Layer):
    """Reset and update gate; the output is the memory."""

    gates, bias = 3, True

    def step(self, driven: Tensor, output: Tensor, memory: Tensor) -> tuple[Tensor, Tensor]:
        reset, update, candidate = driven.chunk(3, -1)
        reset_state, update_state, candidate_state = self.from_state(output).chunk(3, -1)
        keep = (update + update_state).sigmoid()
        fresh = self.activation(candidate + (reset + reset_state).sigmoid() * candidate_state)
        output = keep * output + (1 - keep) * fresh
        return output, memory


class Recurrent(BaseModel):
    """Inputs [n, steps, values], [n, steps], or images [n, channels, height, width], read row by row."""

    layer: ClassVar[type[Layer]]

    def __init__(self, config: LstmConfig | GruConfig, input_shape: tuple[int, ...], outputs: int | None) -> None:
        _, values = sequence_shape(config.kind, input_shape)
        super().__init__(config.norm, config.width, outputs)
        self.readout = config.readout
        inputs = [values] + [config.width] * (config.layers - 1)
        self.layers = nn.ModuleList(self.layer(config, size) for size in inputs)

    def features(self, x: Tensor, reference: int | None) -> Tensor:
        x = as_sequence(x)
        for layer in self.layers:
            x = layer(x, reference)
        return x[:, -1] if self.readout == "last" else x.mean(1)


class Lstm(Recurrent):
    """See `Recurrent`."""

    layer = LstmLayer


class Gru(Recurrent):
    """See `Recurrent`."""

    layer = GruLayer
