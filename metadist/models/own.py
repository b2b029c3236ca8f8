"""A module in a user's own file as a base model, by its import path (`my_package.MyNet`).

The class is called with its settings by keyword, and with `input_shape` and `outputs` where its signature has them.
Its settings are the other parameters of its signature, with the types and defaults that they have there.
"""

from __future__ import annotations

import copy
import dataclasses
import functools
import inspect
import pkgutil
import types
import typing
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Generator, Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from metadist.errors import UserError
from metadist.models.base import BaseModel
from metadist.models.initial import InitName, initial_parameters, seeded


@dataclass(frozen=True, kw_only=True)
class OwnModelConfig:
    """A module of one's own, by its import path."""

    #: the class's import path
    kind: str = ""
    #: distribution of the initial weights; null: as the class itself draws them
    init: InitName | None = None
    #: what normalises activations: the module's own affair, or its setting of this name
    norm: Literal["own"] = "own"

    def __reduce__(self) -> tuple[Any, ...]:
        values = {part.name: getattr(self, part.name) for part in dataclasses.fields(self)}
        return _revived, (self.kind, values)


def _revived(kind: str, values: dict[str, Any]) -> OwnModelConfig:
    return own_model_config(kind)(**values)


def named_class(place: str, path: str, what: str) -> Any:
    """What is imported by a dotted path.

    Raises:
        UserError: it cannot be imported; `what` it was to be is said.
    """
    try:
        module, _, name = path.rpartition(".")
        return pkgutil.resolve_name(f"{module}:{name}")
    except Exception as error:  # a user's module may do anything when it is imported
        expected = f"the import path of {what}; importing it gives {type(error).__name__}: {error}"
        hint = "Modules are looked for in the working folder, on PYTHONPATH, and among installed packages."
        raise UserError(place, path, expected, hint) from error


def _module_class(kind: str) -> type[nn.Module]:
    found = named_class("model.kind", kind, "a module")
    if not (isinstance(found, type) and issubclass(found, nn.Module)):
        raise UserError("model.kind", kind, "the import path of a subclass of torch.nn.Module")
    return found


#: parameters of a class that are given by the job, not set in it
GIVEN = ("input_shape", "outputs")


def own_model_config(kind: str) -> type[OwnModelConfig]:
    """The dataclass of the settings of a user's module: its own, and those of `OwnModelConfig`."""
    return _config_of(_module_class(kind))  # type: ignore[arg-type]  # a class can be hashed


@functools.cache
def _config_of(found: type[nn.Module]) -> type[OwnModelConfig]:
    try:
        hints = typing.get_type_hints(found.__init__)
    except Exception:  # annotations may name what is not there at run time
        hints = {}
    fields = []
    for name, parameter in inspect.signature(found).parameters.items():
        if name in ("kind", "init"):
            raise UserError(
                "model.kind", found.__qualname__, f"a class without a parameter {name}, which means something in jobs"
            )
        if name in GIVEN or parameter.kind not in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY):
            continue
        hint, default = hints.get(name, Any), parameter.default
        if default is parameter.empty:
            fields.append((name, _plain_type(hint), field()))
        elif isinstance(default, bool | int | float | str | list | tuple | dict | None):
            fields.append((name, _plain_type(hint), field(default_factory=functools.partial(_default, default, hint))))
    made = dataclasses.make_dataclass(
        f"{found.__name__}Config", fields, bases=(OwnModelConfig,), frozen=True, kw_only=True
    )
    made.__doc__ = (inspect.getdoc(found) if found.__doc__ else "") or f"The module {found.__qualname__}."
    return made


def _default(value: Any, hint: Any) -> Any:
    """A default as it comes back from a job file."""
    if hint is float and isinstance(value, int):
        return float(value)
    return list(value) if isinstance(value, tuple) else copy.deepcopy(value)


def _plain_type(hint: Any) -> Any:
    """The type where a job file can hold it, `Any` otherwise."""
    origin, parts = typing.get_origin(hint), typing.get_args(hint)
    if origin is Literal or hint in (bool, int, float, str, type(None)):
        return hint
    if origin in (list, dict, typing.Union, types.UnionType) and all(_plain_type(part) is part for part in parts):
        return hint
    return Any


class OwnModel(BaseModel):
    """A plain module as trunk and head.

    Where the module applies a layer called `head` last of all, that layer is the head, and what it is given are the
    features. Otherwise the whole module is the trunk, and there is no head.

    Args:
        build: makes the module.
        kind: its import path.
        input_shape: shape of one input.
        outputs: number of outputs that it must have; `None`: it is an embedding, and a head is left out.

    Raises:
        UserError: the module fails on such inputs, has other outputs, changes its buffers, or is random.
    """

    def __init__(
        self, build: Callable[[], nn.Module], kind: str, input_shape: tuple[int, ...], outputs: int | None
    ) -> None:
        module = seeded(build, 0)
        x = torch.randn(2, *input_shape, generator=Generator().manual_seed(0))
        found = _probe(module, x, kind)
        if outputs is not None and found.shape != (2, outputs):
            expected = f"a module with outputs [n, {outputs}] for inputs [n, {', '.join(map(str, input_shape))}]"
            hint = "A parameter called outputs is given their number."
            raise UserError("model.kind", f"{kind} with outputs {list(found.shape)}", expected, hint)
        super().__init__("none", 1, None)
        self._build = build
        self.separable = _is_last(module, x, found)
        if self.separable:
            head: Any = module.head
            module.head = nn.Identity()
            if outputs is not None:
                self.head = head
        self.trunk = module
        with torch.no_grad():
            self.feature_shape = tuple(module(x).shape[1:])

    def features(self, x: Tensor, reference: int | None) -> Tensor:
        with sdpa_kernel(SDPBackend.MATH):  # fused attention has no second derivative
            out: Tensor = self.trunk(x)
        return out.flatten(1) if isinstance(self.head, nn.Identity) else out

    def initial(self, init: InitName | None, generator: Generator) -> dict[str, Tensor]:
        if init is not None:
            return initial_parameters(self, init, generator)
        seed = int(torch.randint(2**62, (), generator=generator))
        drawn = dict(seeded(self._build, seed).named_parameters())
        fresh = initial_parameters(self, "default", generator)  # of what a learner has added
        own = {name: name.removeprefix("trunk.") for name in fresh}
        return {name: drawn[own[name]].detach() if own[name] in drawn else value for name, value in fresh.items()}


def own_model(config: OwnModelConfig, input_shape: tuple[int, ...], outputs: int | None) -> BaseModel:
    """The module that `config` names, as a base model; one that is a `BaseModel` itself stays as it is."""
    found = _module_class(config.kind)
    parameters = inspect.signature(found).parameters
    settings = {
        part.name: getattr(config, part.name)
        for part in dataclasses.fields(config)
        if part.name in parameters and part.name != "kind"
    }
    given = {"input_shape": input_shape, "outputs": outputs}
    if outputs is None and not issubclass(found, BaseModel):
        given["outputs"] = 1  # of the head, which is left out
    settings |= {name: given[name] for name in GIVEN if name in parameters}

    def build() -> nn.Module:
        try:
            return found(**settings)
        except UserError:
            raise
        except Exception as error:  # it is the user's
            expected = f"a class that takes its settings; with them it gives {type(error).__name__}: {error}"
            raise UserError("model.kind", config.kind, expected) from error

    if issubclass(found, BaseModel):
        made = seeded(build, 0)
        assert isinstance(made, BaseModel)
        return made
    model = OwnModel(build, config.kind, input_shape, outputs)
    if outputs is None and "outputs" in parameters and not model.separable:
        expected = "a module that ends in a layer called head, or has no parameter outputs, for a learner that embeds"
        raise UserError("model.kind", config.kind, expected)
    return model


def _probe(module: nn.Module, x: Tensor, kind: str) -> Tensor:
    """What a module gives for `x`, once it is seen that this changes nothing and is always the same."""
    before = {name: value.clone() for name, value in module.named_buffers()}
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            first, again = module(x), module(x)
    except Exception as error:  # it is the user's
        expected = f"a module for inputs {list(x.shape)}; it gives {type(error).__name__}: {error}"
        raise UserError("model.kind", kind, expected) from error
    changed = [name for name, value in module.named_buffers() if not torch.equal(value, before[name])]
    if changed:
        expected = f"a module that leaves its buffers as they are; this one changes {', '.join(changed)}"
        hint = "Batch normalisation does so for running statistics: give it track_running_stats=False."
        raise UserError("model.kind", kind, expected, hint)
    if not isinstance(first, Tensor) or not torch.equal(first, again):
        expected = "a module whose output is one tensor, and the same for the same input"
        raise UserError("model.kind", kind, expected, "Dropout would make a task's loss a matter of chance.")
    return first


def _is_last(module: nn.Module, x: Tensor, outputs: Tensor) -> bool:
    """Whether a layer called `head` is what a module applies last of all."""
    head = getattr(module, "head", None)
    if not isinstance(head, nn.Module):
        return False
    trunk = copy.deepcopy(module)
    trunk.head = nn.Identity()
    try:
        with torch.no_grad():
            return torch.equal(head(trunk(x)), outputs)
    except Exception:  # something after the head cannot take what the head is given
        return False
