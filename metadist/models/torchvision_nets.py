"""torchvision's image networks as base models: its classifier gives way to our head, its batch normalisation to ours.

`nn.BatchNorm2d` keeps running statistics, and its vectorised second derivative is silently wrong; `Norm` has the same
formula in plain operations and takes over its weights. Layers that are random in training (dropout, stochastic depth)
are as in evaluation, so that a task's loss is a function of the task.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Generator, Tensor, nn

from metadist.errors import UserError, nearest
from metadist.models.base import BaseModel
from metadist.models.images import image_shape
from metadist.models.initial import InitName, initial_parameters, seeded
from metadist.models.norm import Norm, NormKind


@dataclass(frozen=True, kw_only=True)
class TorchvisionConfig:
    """A network of torchvision's, by name, with a head of ours; of random weights, or trained by others."""

    kind: Literal["torchvision"] = "torchvision"
    #: its name there, for example resnet18, mobilenet_v3_small or densenet121
    name: str = "resnet18"
    #: weights to start from: a file of its state (.pth, .safetensors), or a name of torchvision's, such as DEFAULT,
    #: which is downloaded (TORCH_HOME); null: random ones
    weights: str | None = None
    #: statistics that normalise activations where torchvision has batch normalisation, as for the other models
    norm: NormKind = "batch"
    #: distribution of the initial weights that `weights` does not give; null: as torchvision draws them
    init: InitName | None = None

    @property
    def weights_file(self) -> Path | None:
        """The file of `weights`; `None` where they are a name of torchvision's."""
        path = Path(os.path.expanduser(self.weights or ""))
        return path if path.suffix or len(path.parts) > 1 else None


_reference: ContextVar[int | None] = ContextVar("reference", default=None)


@contextmanager
def _normalised_by(reference: int | None) -> Iterator[None]:
    token = _reference.set(reference)
    try:
        yield
    finally:
        _reference.reset(token)


class _Norm(Norm):
    """`Norm` for a network that does not know of reference rows."""

    def forward(self, x: Tensor, reference: int | None = None) -> Tensor:
        return super().forward(x, _reference.get())


class _HardSigmoid(nn.Module):
    """`nn.Hardsigmoid` in plain operations: torch's own has no second derivative."""

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.relu6(x + 3) / 6


class TorchvisionNet(BaseModel):
    """Inputs [n, 3, height, width].

    Raises:
        UserError: torchvision has no such network, it cannot be used here, or the inputs do not fit it.
    """

    def __init__(self, config: TorchvisionConfig, input_shape: tuple[int, ...], outputs: int | None) -> None:
        shape = image_shape(config.kind, input_shape)
        if shape[0] != 3:
            raise UserError(
                "model.kind", config.kind, f"a model for images of {shape[0]} channels", "Set data.channels: 3."
            )
        trunk = seeded(lambda: _trunk(config), 0)
        x = torch.randn(2, *shape, generator=Generator().manual_seed(0))
        features, activations = _probe(config, trunk, x)
        super().__init__(config.norm, features, outputs)
        self.config, self.trunk, self.activations = config, trunk, activations

    def features(self, x: Tensor, reference: int | None) -> Tensor:
        with _normalised_by(reference):
            out: Tensor = self.trunk(x)
        return out

    def initial(self, init: InitName | None, generator: Generator) -> dict[str, Tensor]:
        weights = initial_parameters(self, init or "default", generator)
        if self.config.weights is not None:
            return weights | self._given
        if init is None:
            seed = int(torch.randint(2**62, (), generator=generator))
            drawn = seeded(lambda: _trunk(self.config), seed).named_parameters()
            return weights | {f"trunk.{name}": value.detach() for name, value in drawn}
        return weights

    @cached_property
    def _given(self) -> dict[str, Tensor]:
        """The trunk's weights in the file, or of the name, that the settings give."""
        state = _state(self.config)
        given = {}
        for name, parameter in self.trunk.named_parameters():
            found = state.get(name)
            if not isinstance(found, Tensor) or found.shape != parameter.shape:
                what = f"no {name}" if found is None else f"a {name} that is not of shape {list(parameter.shape)}"
                raise UserError("model.weights", self.config.weights, f"weights of {self.config.name}; it has {what}")
            given[f"trunk.{name}"] = found.detach().to(torch.float32)
        return given


def _trunk(config: TorchvisionConfig) -> nn.Module:
    """The network without its classifier, with our normalisation, and nothing in it that is random or in place."""
    from torchvision import models

    known = models.list_models(module=models)
    if config.name not in known:
        hint = nearest(config.name, known)
        raise UserError("model.name", config.name, "the name of an image classifier in torchvision.models", hint)
    module: nn.Module = models.get_model(config.name, weights=None).eval()
    if any(isinstance(part, nn.MultiheadAttention) for part in module.modules()):
        expected = "a network without fused attention, which has no second derivative"
        raise UserError("model.name", config.name, expected, "model.kind: transformer has plain attention.")
    linear = [name for name, part in module.named_modules() if isinstance(part, nn.Linear)]
    if not linear:
        raise UserError("model.name", config.name, "a network that ends in a linear layer")
    module.set_submodule(linear[-1], nn.Identity())
    for name, part in list(module.named_modules()):
        if isinstance(part, nn.BatchNorm2d):
            own = _Norm(config.norm, part.num_features, 2)
            own.eps = part.eps
            module.set_submodule(name, own)
        elif isinstance(part, nn.Hardsigmoid):
            module.set_submodule(name, _HardSigmoid())
        elif hasattr(part, "inplace"):
            part.inplace = False
    return module


def _probe(config: TorchvisionConfig, trunk: nn.Module, x: Tensor) -> tuple[int, int]:
    """The number of features, and of values per example after the first convolution."""
    values: list[int] = []
    first = next(part for part in trunk.modules() if isinstance(part, nn.Conv2d))
    hook = first.register_forward_hook(lambda module, inputs, output: values.append(output[0].numel()))
    try:
        with torch.no_grad():
            features = trunk(x)
    except Exception as error:  # of whatever kind the network's own is
        expected = f"a network for images of {x.shape[2]}×{x.shape[3]}; it gives {type(error).__name__}: {error}"
        raise UserError("model.name", config.name, expected, "Set a larger data.size.") from error
    finally:
        hook.remove()
    if not isinstance(features, Tensor) or features.dim() != 2:
        raise UserError("model.name", config.name, "a network that ends in a linear layer")
    return features.shape[1], values[0]


def _state(config: TorchvisionConfig) -> dict[str, Any]:
    """The state of `config.weights`, as torchvision names it."""
    weights, path = str(config.weights), config.weights_file
    try:
        if path is None:
            state = _downloaded(config.name, weights)
        elif path.suffix == ".safetensors":
            from safetensors.torch import load_file  # here, as in checkpoints

            state = load_file(path)
        else:
            state = torch.load(path, map_location="cpu", weights_only=True)
    except UserError:
        raise
    except Exception as error:  # of many kinds: of files, of the network, of three formats
        what = (str(error).splitlines() or [""])[0]
        expected = f"weights that can be had and read; this gives {type(error).__name__}: {what}"
        raise UserError("model.weights", weights, expected, "A file of one's own is named by its path.") from error
    if not isinstance(state, dict):
        raise UserError("model.weights", weights, "a file that holds a state: tensors by name")
    return state


def _downloaded(name: str, weights: str) -> Any:
    from torchvision import models

    known = models.get_model_weights(name)
    if weights not in known.__members__:
        expected = f"a file (.pth, .safetensors), or one of {', '.join(known.__members__)}"
        raise UserError("model.weights", weights, expected, nearest(weights, known.__members__))
    return known[weights].get_state_dict(progress=False, check_hash=True, weights_only=True)
