"""Weights from a support set: a task encoder, and a generator that emits weights of a base model block by block.

The encoder reads the support set. A second set of the base model's own layers embeds each input; of a classification
task the mean of a class's embeddings gives the class's code, and these together the task's code; of regression,
embeddings and targets give it, as a mean over the rows. No code depends on the order of rows or classes.

The generator is a small net g that sees a code beside a learned embedding of a block of weights and emits that block,
as the hypernetworks of Ha, Dai, Le, "HyperNetworks", ICLR 2017, section 3.1, emit a layer. Blocks are cut from all
weights in a row. A head that classifies has blocks of its own for each class, from that class's code: what it says of a
class follows from the class's examples, whichever number it has in the task.

With more than one level, the net g of a level is itself emitted, from the task's code and embeddings of its own blocks,
by the generator of the level above; the net of the topmost level alone is learned.

All that is learned is a part of the base model, with parameters named `generator.…`.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor, nn

from metadist.errors import UserError
from metadist.learners.adapt import adapting
from metadist.learners.base import HEAD, Network
from metadist.learners.gradient import Parameters
from metadist.tasks import Examples

#: how the names of what generates weights begin
GENERATOR = "generator."
#: at the start, what is emitted for parameters of one dimension, such as biases, is about this large
SMALL = 0.1

Shapes = dict[str, tuple[int, ...]]


@dataclass(frozen=True, kw_only=True)
class GeneratorConfig:
    """What generates weights."""

    #: width of the codes of tasks and classes
    code: int = 64
    #: width of the generator's hidden layer, and of the encoder's in regression
    hidden: int = 64
    #: width of the embeddings of blocks
    embedding: int = 16
    #: weights in a block
    block: int = 64

    def __post_init__(self) -> None:
        for name in ("code", "hidden", "embedding", "block"):
            if getattr(self, name) < 1:
                raise UserError(name, getattr(self, name), "a whole number of at least 1")


class Codes(NamedTuple):
    """What a support set is: codes of the task [code] and of its classes [ways, code]; regression has no classes."""

    task: Tensor
    classes: Tensor


class TaskEncoder(nn.Module):
    """Codes of a support set.

    Args:
        features: width of the embedded inputs.
        values: width of the targets, 0 where these are classes.
    """

    def __init__(self, config: GeneratorConfig, features: int, values: int) -> None:
        super().__init__()
        width = config.hidden if values else config.code
        self.rows, self.task = nn.Linear(features + values, width), nn.Linear(width, config.code)

    def forward(self, embedded: Tensor, y: Tensor, ways: int) -> Codes:
        """Codes for embedded inputs [rows, features] and their targets."""
        if not ways:
            rows = self.rows(torch.cat([embedded, y], 1)).relu()
            return Codes(self.task(rows.mean(0)), embedded.new_zeros(0, 0))
        member = (y[:, None] == torch.arange(ways, device=y.device)).to(embedded.dtype)  # [rows, ways]
        classes = self.rows(member.T @ embedded / member.sum(0)[:, None])
        return Codes(self.task(classes.relu().mean(0)), classes)


class Generator(nn.Module):
    """What is learned: a trunk that embeds, the encoder, embeddings of each level's blocks, and the topmost net."""

    def __init__(self, config: GeneratorConfig, trunk: nn.Module, encoder: TaskEncoder, blocks: list[int]) -> None:
        super().__init__()
        self.trunk, self.encoder = trunk, encoder
        self.blocks = nn.ParameterList(torch.empty(count, config.embedding) for count in blocks)
        self.hidden = nn.Linear(config.code + config.embedding, config.hidden)
        self.out = nn.Linear(config.hidden, config.block)


class WeightGenerator:
    """Generates weights of a base model, which gets a part named `generator` for it.

    Args:
        patterns: of the names of the weights to generate.
        depth: number of levels.

    Raises:
        UserError: the model has no linear head, or no pattern matches.
    """

    def __init__(self, config: GeneratorConfig, network: Network, patterns: Sequence[str], depth: int = 1) -> None:
        module, head = network.module, network.linear_head()
        every: Parameters = dict(module.named_parameters())
        wanted = {name: tuple(value.shape) for name, value in adapting(every, patterns).items()}
        if not wanted:
            raise UserError("learner.generate", list(patterns), f"patterns of some of {', '.join(every)}")
        classifies = network.loss != "mse"
        self.config, self.depth = config, depth
        #: what a class's code gives a row of, and what the task's code gives
        self.by_class = {n: shape for n, shape in wanted.items() if classifies and n.startswith(HEAD)}
        self.by_task = {n: shape for n, shape in wanted.items() if n not in self.by_class}
        self.row = _count(self.by_class) // head.out_features
        self.net: Shapes = {
            "hidden.weight": (config.hidden, config.code + config.embedding),
            "hidden.bias": (config.hidden,),
            "out.weight": (config.block, config.hidden),
            "out.bias": (config.block,),
        }
        trunk = copy.deepcopy(module)
        trunk.head = nn.Identity()
        self.trunk = replace(network, module=trunk)
        self.encoder = TaskEncoder(config, math.prod(module.feature_shape), 0 if classifies else head.out_features)
        blocks = [self._blocks(_count(self.by_task)) + self._blocks(self.row)]
        blocks += [self._blocks(_count(self.net))] * (depth - 1)
        module.generator = Generator(config, trunk, self.encoder, blocks)

    def __call__(self, network: Network, parameters: Parameters, support: Examples) -> Parameters:
        """Weights by name for a support set, each about as large at the start as a layer's own."""
        own = network.part(parameters, GENERATOR)
        trunk, of_encoder = (network.part(parameters, f"{GENERATOR}{part}.") for part in ("trunk", "encoder"))
        embedded = self.trunk.support(trunk, support)  # [rows, features]
        codes = torch.func.functional_call(self.encoder, of_encoder, (embedded, support.y, support.ways))
        net = {name: own[name] for name in self.net}
        for level in range(self.depth - 1, 0, -1):
            net = _split(self._emit(net, codes.task[None], own[f"blocks.{level}"])[0], self.net)
        of_task = self._blocks(_count(self.by_task))
        generated = _split(self._emit(net, codes.task[None], own["blocks.0"][:of_task])[0], self.by_task)
        if self.by_class:
            generated |= _split(self._emit(net, codes.classes, own["blocks.0"][of_task:]), self.by_class)
        return generated

    def _blocks(self, count: int) -> int:
        return math.ceil(count / self.config.block)

    def _emit(self, net: Parameters, codes: Tensor, blocks: Tensor) -> Tensor:
        """Blocks [blocks, embedding] for each code [n, code], in a row [n, values], about 1 in size at the start."""
        sizes = (codes.shape[0], blocks.shape[0], -1)
        blocks = blocks * math.sqrt(3 * self.config.embedding)  # drawn uniformly within 1/√width
        pairs = torch.cat([codes[:, None].expand(sizes), blocks[None].expand(sizes)], 2)
        hidden = nn.functional.linear(pairs, net["hidden.weight"], net["hidden.bias"]).tanh()
        # Weights within 1/√width make about a third of what they are given.
        return 3 * nn.functional.linear(hidden, net["out.weight"], net["out.bias"]).flatten(1)


def own_weights(parameters: Parameters) -> Parameters:
    """The parameters without those of the generator."""
    return {name: value for name, value in parameters.items() if not name.startswith(GENERATOR)}


def _count(shapes: Shapes) -> int:
    return sum(math.prod(shape) for shape in shapes.values())


def _split(values: Tensor, shapes: Shapes) -> Parameters:
    """Emitted values [values], or [ways, values] with a row for each class, as parameters of about their usual size."""
    parameters, first = {}, 0
    for name, shape in shapes.items():
        size = SMALL if len(shape) == 1 else 1 / math.sqrt(math.prod(shape[1:]))
        count = math.prod(shape) // (1 if values.dim() == 1 else values.shape[0])
        parameters[name] = size * values[..., first : first + count].reshape(shape)
        first += count
    return parameters
