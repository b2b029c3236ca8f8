"""Other ways to the same meta-gradient: the plain loop that clones the module, `higher`, TorchOpt.

Each is written as its users write it, task by task, with one backward pass per task so that its graph is freed
before the next. All get the same module, weights, tasks and losses.
"""

from __future__ import annotations

import copy
import importlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any, cast

import torch
from torch import Tensor, nn

from metadist.bench.cases import Setting
from metadist.learners.gradient import Parameters
from metadist.models import Conv4, Norm
from metadist.models.resnet12 import Block
from metadist.tasks import Examples, Task, take

#: computes the sum of the tasks' meta-gradients, afresh each time that it is called
Run = Callable[[], Parameters]
#: makes the run of a setting from a module that holds the setting's weights
Peer = Callable[[nn.Module, Setting], Run]


class TorchBatchNorm(nn.BatchNorm2d):
    """torch's own batch normalisation, without running statistics, in the place of a `Norm`."""

    def forward(self, x: Tensor, reference: int | None = None) -> Tensor:
        return super().forward(x)


class TextbookConv4(Conv4):
    """Every block in the order of the papers: convolution, normalisation, nonlinearity, pooling."""

    def features(self, x: Tensor, reference: int | None) -> Tensor:
        for block, (conv, norm) in enumerate(zip(self.convs, self.norms, strict=True)):
            x = self.activation(norm(conv(x), reference))
            if self.pool and block < self.poolings:
                x = nn.functional.max_pool2d(x, 2)
        return x.flatten(1) if self.pool else x.mean((2, 3))


class TextbookBlock(Block):
    """The same of a residual block."""

    def forward(self, x: Tensor, reference: int | None) -> Tensor:
        around = self.shortcut_norm(self.shortcut(x), reference)
        for index, (conv, norm) in enumerate(zip(self.convs, self.norms, strict=True)):
            x = norm(conv(x if index == 0 else self.activation(x)), reference)
        return nn.functional.max_pool2d(self.activation(x + around), 2)


_TEXTBOOK = {Conv4: TextbookConv4, Block: TextbookBlock}


def has_batch_norm(setting: Setting) -> bool:
    """Whether the net has normalisation that `nn.BatchNorm2d` can take the place of."""
    return any(_replaceable(module) for module in setting.learner.network.module.modules())


def _replaceable(module: nn.Module) -> bool:
    return isinstance(module, Norm) and module.kind == "batch" and module.positions == 2


def peer_module(setting: Setting, torch_norm: bool) -> nn.Module:
    """A copy of the setting's net that holds its weights.

    Args:
        torch_norm: normalise with `nn.BatchNorm2d`, as users of the peers do.
    """
    module = copy.deepcopy(setting.learner.network.module)
    for part in module.modules():
        part.__class__ = _TEXTBOOK.get(type(part), type(part))
    for parent in list(module.modules()):
        for name, child in parent.named_children():
            if torch_norm and _replaceable(child):
                weight = cast(Tensor, child.weight)
                norm = TorchBatchNorm(weight.numel(), eps=Norm.eps, track_running_stats=False)
                setattr(parent, name, norm.to(weight.device, weight.dtype))
    module.load_state_dict(setting.meta.parameters)
    return module


def clone_loop(module: nn.Module, setting: Setting) -> Run:
    """A differentiable clone of the module for each task, whose parameters each step replaces."""
    config = setting.learner.config

    def backward(task: Task) -> None:
        clone = _clone(module)
        for _ in range(config.inner_steps):
            loss = _loss(setting, clone, task.support)
            gradient = torch.autograd.grad(loss, list(clone.parameters()), create_graph=not config.first_order)
            _descend(clone, iter(gradient), config.inner_lr)
        torch.autograd.backward(_loss(setting, clone, task.query))

    return _sum_over_tasks(module, setting, backward)


def _clone(module: nn.Module) -> nn.Module:
    clone = copy.copy(module)
    parameters = {name: p if p is None else p.clone() for name, p in module._parameters.items()}
    clone._parameters = cast("dict[str, nn.Parameter | None]", parameters)
    clone._modules = {name: child if child is None else _clone(child) for name, child in module._modules.items()}
    return clone


def _descend(clone: nn.Module, gradient: Iterator[Tensor], lr: float) -> None:
    for part in clone.modules():
        for name, value in part._parameters.items():
            if value is not None:
                part._parameters[name] = cast(nn.Parameter, torch.sub(value, next(gradient), alpha=lr))


def higher_loop(module: nn.Module, setting: Setting) -> Run:
    """`higher` (Grefenstette et al., 2019): a functional copy and a differentiable optimiser for each task."""
    higher = _higher()
    config = setting.learner.config
    optimizer = torch.optim.SGD(module.parameters(), lr=config.inner_lr)
    # Without higher gradients the adapted weights are leaves: first-order MAML is the gradient there.
    options = {"copy_initial_weights": False, "track_higher_grads": not config.first_order}

    def backward(task: Task) -> None:
        with higher.innerloop_ctx(module, optimizer, **options) as (net, inner):
            for _ in range(config.inner_steps):
                inner.step(_loss(setting, net, task.support))
            loss = _loss(setting, net, task.query)
            if config.first_order:
                _accumulate(module, torch.autograd.grad(loss, list(net.parameters())))
            else:
                torch.autograd.backward(loss)

    return _sum_over_tasks(module, setting, backward)


def torchopt_loop(module: nn.Module, setting: Setting) -> Run:
    """TorchOpt (Ren et al., 2022): its differentiable SGD on the module itself, put back after each task."""
    torchopt = _torchopt()
    config = setting.learner.config
    optimizer = torchopt.MetaSGD(module, lr=config.inner_lr)
    weights, state = (torchopt.extract_state_dict(each, by="reference") for each in (module, optimizer))

    def backward(task: Task) -> None:
        for _ in range(config.inner_steps):
            optimizer.step(_loss(setting, module, task.support))
            if config.first_order:
                torchopt.stop_gradient(module)
        loss = _loss(setting, module, task.query)
        adapted = list(module.parameters())
        torchopt.recover_state_dict(module, weights)
        torchopt.recover_state_dict(optimizer, state)
        if config.first_order:
            _accumulate(module, torch.autograd.grad(loss, adapted))
        else:
            torch.autograd.backward(loss)

    return _sum_over_tasks(module, setting, backward)


PEERS: dict[str, Peer] = {"clone loop": clone_loop, "higher": higher_loop, "torchopt": torchopt_loop}


def absent_peers() -> dict[str, str]:
    """The peers that cannot be imported here, and why."""
    absent = {}
    for name, load in (("higher", _higher), ("torchopt", _torchopt)):
        try:
            load()
        except ImportError as error:
            absent[name] = str(error).splitlines()[0]
    return absent


def _higher() -> Any:
    return importlib.import_module("higher")


def _torchopt() -> Any:
    return importlib.import_module("torchopt")


def _loss(setting: Setting, net: nn.Module, examples: Examples) -> Tensor:
    return setting.learner.network.cost(net(examples.x), examples.y)


def _accumulate(module: nn.Module, gradient: Iterable[Tensor]) -> None:
    for parameter, value in zip(module.parameters(), gradient, strict=True):
        parameter.grad = value if parameter.grad is None else parameter.grad + value


def _sum_over_tasks(module: nn.Module, setting: Setting, backward: Callable[[Task], None]) -> Run:
    parameters = dict(module.named_parameters())

    def run() -> Parameters:
        for parameter in parameters.values():
            parameter.grad = None
        for index in range(setting.batch.query.x.shape[0]):
            backward(take(setting.batch, index))
        return {name: cast(Tensor, parameter.grad) for name, parameter in parameters.items()}

    return run
