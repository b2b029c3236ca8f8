"""`compute_meta_gradient` against the papers, written once more: plain loops, torch.autograd.grad, nets by hand.

Nothing of a learner or a model is used here but the names of their parameters and their settings.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import cycle, islice, product
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from metadist.learners import (
    AnilConfig,
    BoilConfig,
    CaviaConfig,
    HypernetworkConfig,
    ImamlConfig,
    InContextConfig,
    MamlPlusPlusConfig,
    MannConfig,
    MatchingConfig,
    MetaLstmConfig,
    MetaSgdConfig,
    ProtoNetConfig,
    RelationConfig,
    ReptileConfig,
)
from metadist.learners.generator import GeneratorConfig
from metadist.outer import compute_meta_gradient
from metadist.tasks import Task, take
from tests.numerics.conftest import LEARNERS as CONFIGS

LEARNERS = ["maml-1", "maml-3", "fomaml-3", "maml-0", "reptile-sgd-batches", "reptile-adam-batches"]
LEARNERS += ["reptile-adam-full", "protonet", "anil-3", "foanil-2", "boil-2", "foboil-2", "metasgd-1", "metasgd-2"]
LEARNERS += ["matching", "matching-scaled", "relation"]
LEARNERS += ["mamlpp-3", "mamlpp-last-loss", "mamlpp-one-rate", "mamlpp-one-norm", "fomamlpp-3"]
LEARNERS += ["cavia-2", "focavia-2"]
LEARNERS += ["metalstm-1", "metalstm-3"]
LEARNERS += ["imaml-dense", "imaml-damped", "imaml-2", "imaml-0"]
LEARNERS += ["maml-3-remat", "fomaml-3-remat", "anil-3-remat", "boil-2-remat"]
LEARNERS += ["maml-2-film", "fomaml-2-film", "metasgd-2-film", "reptile-film"]
LEARNERS += ["maml-2-gates", "anil-2-gates", "protonet-gates"]
LEARNERS += ["incontext", "incontext-dot", "incontext-gates", "mann"]
LEARNERS += ["hypernetwork", "hypernetwork-film", "hypernetwork-depth-2"]
LEARNERS += ["hybrid-2", "fohybrid-2", "task-relation-0", "task-relation-2"]
#: those whose meta-gradient is the derivative of a loss, with no term left out
SLOPES = ["maml-1", "maml-3", "maml-3-remat", "anil-3", "boil-2", "metasgd-2", "mamlpp-3", "cavia-2"]
SLOPES += ["protonet", "matching-scaled", "relation", "maml-2-film", "maml-2-gates"]
SLOPES += ["incontext-dot", "incontext-gates", "mann"]
SLOPES += ["hypernetwork", "hypernetwork-depth-2", "hybrid-2", "task-relation-0", "task-relation-2"]
NORMS = ["batch", "support", "layer", "none"]
KINDS = ["conv", "mlp"]
TRANSFORMS = ["scale", "shift"]
Weights = dict[str, Tensor]


class Net:
    """The nets in functional form. Support and other inputs go through side by side, layer by layer."""

    def __init__(self, kind: str, norm: str) -> None:
        self.kind, self.norm = kind, norm

    def __call__(self, w: Weights, support: Tensor, x: Tensor) -> Tensor:
        """Outputs for `x`; the statistics of `support` count where the norm says so."""
        if self.norm == "single":
            batches = [torch.cat([support, row[None]]) for row in x]
            together = Net(self.kind, "batch")
            return together(w, x, x) if x is support else torch.stack([together(w, b, b)[-1] for b in batches])
        name = "convs" if self.kind == "conv" else "layers"
        for layer in range(2):
            weight, bias = w[f"{name}.{layer}.weight"], w.get(f"{name}.{layer}.bias")
            context = w["context"] if "context" in w and layer == 1 else None
            if context is not None and "context.scale" not in w:
                weight = torch.cat([weight, w["context.shift"]], 1)
                support, x = (torch.cat([part, context.repeat(len(part), 1)], 1) for part in (support, x))
            support, x = (self._linear(part, weight, bias) for part in (support, x))
            if self.norm != "none":
                source = support if self.norm == "support" else x
                scale, shift = w[f"norms.{layer}.weight"], w[f"norms.{layer}.bias"]
                x = self._normalise(x, source, scale, shift)
                support = self._normalise(support, support, scale, shift)
            if f"norms.{layer}.film.weight" in w:
                scale, shift = (w[f"norms.{layer}.film.{own}"] for own in ("weight", "bias"))
                scale, shift = (part.reshape(-1, *(1,) * (x.dim() - 2)) for part in (scale, shift))
                support, x = support * scale + shift, x * scale + shift
            if context is not None and "context.scale" in w:
                film = [(w[f"context.{name}"] @ context).reshape(-1, *(1,) * (x.dim() - 2)) for name in TRANSFORMS]
                support, x = (part * (1 + film[0]) + film[1] for part in (support, x))
            support, x = support.tanh(), x.tanh()
        if self.kind == "conv":
            support, x = (part.sum((2, 3)) / (part.shape[2] * part.shape[3]) for part in (support, x))
        if "gates.hidden.weight" in w:
            x = x * self._gates(w, support)
        return x @ w["head.weight"].T + w["head.bias"] if "head.weight" in w else x

    def _gates(self, w: Weights, support: Tensor) -> Tensor:
        """Of each feature, from its mean and variance over the support set's rows."""
        mean = sum(support) / len(support)
        seen = torch.cat([mean, sum((row - mean) ** 2 for row in support) / len(support)])
        hidden = (w["gates.hidden.weight"] @ seen + w["gates.hidden.bias"]).tanh()
        return 2 / (1 + (-w["gates.out.weight"] @ hidden - w["gates.out.bias"]).exp())

    def _linear(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        if self.kind == "mlp":
            return x @ weight.T + (0 if bias is None else bias)
        columns = nn.functional.unfold(x, 3, padding=1, stride=2)  # [rows, channels · 9, positions]
        out = torch.einsum("of,rfp->rop", weight.flatten(1), columns)
        side = math.isqrt(out.shape[2])
        return (out if bias is None else out + bias[:, None]).reshape(x.shape[0], -1, side, side)

    def _normalise(self, x: Tensor, source: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
        if self.norm == "layer":
            flat = x.flatten(1)
            mean = flat.mean(1)
            sd = ((flat - mean[:, None]) ** 2).mean(1).add(1e-5).sqrt()
            mean, sd = (part.reshape(-1, *(1,) * (x.dim() - 1)) for part in (mean, sd))
        else:
            flat = source.transpose(0, 1).flatten(1)
            mean = flat.mean(1)
            sd = ((flat - mean[:, None]) ** 2).mean(1).add(1e-5).sqrt()
            mean, sd = (part.reshape(1, -1, *(1,) * (x.dim() - 2)) for part in (mean, sd))
        scale, shift = (part.reshape(1, -1, *(1,) * (x.dim() - 2)) for part in (scale, shift))
        return (x - mean) / sd * scale + shift


def cost(outputs: Tensor, y: Tensor) -> Tensor:
    if y.dim() == 2:
        return ((outputs - y) ** 2).mean()
    return sum(row.exp().sum().log() - row[label] for row, label in zip(outputs, y, strict=True)) / len(y)


def grad(loss: Tensor, w: Weights, graph: bool = False) -> Weights:
    return dict(zip(w, torch.autograd.grad(loss, list(w.values()), create_graph=graph), strict=True))


def leaves(w: Weights) -> Weights:
    return {name: value.detach().clone().requires_grad_() for name, value in w.items()}


def adapts(config: Any, name: str) -> bool:
    """Whether the inner loop changes a parameter."""
    is_head = name in ("head.weight", "head.bias")
    if isinstance(config, AnilConfig | BoilConfig):
        return is_head == isinstance(config, AnilConfig)
    if config.adapt == ["*", "!gates.*"]:
        return not name.startswith("gates.")
    parts = {"*": True, "head.*": is_head, "*.film.*": "film" in name}
    return any(parts[pattern] for pattern in config.adapt)


def step_size(config: Any, theta: Weights, name: str) -> float | Tensor:
    """What a gradient-based learner multiplies a weight's inner gradient by; 0 for those that do not adapt."""
    if not adapts(config, name):
        return 0.0
    if isinstance(config, MetaSgdConfig):
        return theta[f"step_sizes.{name}"]
    return config.inner_lr


def prototype_loss(points: Tensor, y: Tensor, embedded: Tensor, query_y: Tensor) -> Tensor:
    prototypes = [torch.stack([p for p, c in zip(points, y, strict=True) if c == k]).mean(0) for k in range(3)]
    return cost(torch.stack([torch.stack([-((e - p) ** 2).sum() for p in prototypes]) for e in embedded]), query_y)


def attention_loss(scale: float, support: Tensor, y: Tensor, embedded: Tensor, query_y: Tensor) -> Tensor:
    total = torch.zeros((), dtype=torch.float64)
    for point, label in zip(embedded, query_y, strict=True):
        cosines = [point @ s / ((point @ point) * (s @ s)).sqrt() for s in support]
        weights = torch.stack([(scale * cosine).exp() for cosine in cosines])
        attention = weights / weights.sum()
        total = total - sum(a for a, c in zip(attention, y, strict=True) if c == label).log()
    return total / len(query_y)


def relation_loss(theta: Weights, norm: str, support: Tensor, y: Tensor, embedded: Tensor, query_y: Tensor) -> Tensor:
    """Of features without positions."""
    blocks = {n.removeprefix("relation.blocks."): v for n, v in theta.items() if n.startswith("relation.blocks.")}
    classes = [sum(s for s, c in zip(support, y, strict=True) if c == k) for k in range(3)]
    among, pairs = (torch.stack([torch.cat([c, e]) for e in rows for c in classes]) for rows in (support, embedded))
    hidden = Net("mlp", norm)(blocks, among, pairs).tanh()
    scores = (hidden @ theta["relation.head.weight"].T + theta["relation.head.bias"]).reshape(-1, 3)
    return ((1 / (1 + (-scores).exp()) - nn.functional.one_hot(query_y, 3)) ** 2).mean()


def read_in_context(config: InContextConfig, theta: Weights, support: Tensor, y: Tensor, queries: Tensor) -> Tensor:
    """Outputs of queries, one at a time, each attending to the support set's tokens one by one."""
    own = {name.removeprefix("reader."): value for name, value in theta.items() if name.startswith("reader.")}
    size = config.width // config.heads

    def linear(name: str, x: Tensor) -> Tensor:
        return own[f"{name}.weight"] @ x + own[f"{name}.bias"]

    def norm(name: str, x: Tensor) -> Tensor:
        centred = x - x.mean()
        return centred / ((centred**2).mean() + 1e-5).sqrt() * own[f"{name}.weight"] + own[f"{name}.bias"]

    def parts(at: str, token: Tensor) -> list[Tensor]:
        """Query, key and value [heads, size]."""
        seen = norm(f"{at}attention_norm.norm", token)
        if config.attention == "dot":
            return list(linear(f"{at}query_key_value", seen).reshape(3, config.heads, size))
        key, value = linear(f"{at}key_value", seen).reshape(2, config.heads, size)
        key = torch.stack([k / (k @ k).sqrt() for k in key])
        return [key * 10 * own[f"{at}scale"][:, None] * size**0.5, key, value]

    def after(at: str, token: Tensor, read: list[Tensor]) -> Tensor:
        query, mixed = parts(at, token)[0], []
        for head in range(config.heads):
            keys, values = zip(
                *((part[1][head], part[2][head]) for part in (parts(at, one) for one in read)), strict=True
            )
            heat = torch.stack([(query[head] @ key / size**0.5).exp() for key in keys])
            mixed.append(sum(h * value for h, value in zip(heat, values, strict=True)) / heat.sum())
        token = token + linear(f"{at}mixed", torch.cat(mixed))
        return token + linear(f"{at}outer", linear(f"{at}inner", norm(f"{at}net_norm.norm", token)).tanh())

    targets = y if y.dim() == 2 else torch.eye(3, dtype=torch.float64)[y]
    read = [linear("enter", x) + linear("label", target) for x, target in zip(support, targets, strict=True)]
    asked = [linear("enter", x) for x in queries]
    for layer in range(config.layers):
        at = f"layers.{layer}."
        asked, read = ([after(at, token, read) for token in tokens] for tokens in (asked, read))
    seen = torch.stack([linear("leave", norm("final_norm.norm", token)) for token in asked])
    return seen @ theta["head.weight"].T + theta["head.bias"]


def read_in_sequence(config: MannConfig, theta: Weights, support: Tensor, y: Tensor, queries: Tensor) -> Tensor:
    """Outputs of queries, each a last step after the support set; the memory is a list of rows."""
    own = {name.removeprefix("reader."): value for name, value in theta.items() if name.startswith("reader.")}
    heads, size, zero = config.heads, config.slot, torch.zeros((), dtype=torch.float64)
    gate = 1 / (1 + (3 - own["gate"]).exp())

    def unit(v: Tensor) -> Tensor:
        length = (v @ v).sqrt() if v.any() else zero
        return v / length.clamp_min(1e-3)

    def after(x: Tensor, label: Tensor, before: dict[str, Any]) -> tuple[dict[str, Any], Tensor]:
        seen = torch.cat([x, label, before["read"].flatten()])
        gates = own["controller.from_input.weight"] @ seen + own["controller.from_input.bias"]
        gates = (gates + own["controller.from_state.weight"] @ before["output"]).reshape(4, config.width)
        enter, keep, show = (1 / (1 + (-gates[i]).exp()) for i in (0, 1, 3))
        cell = keep * before["cell"] + enter * gates[2].tanh()
        output = show * cell.tanh()
        keys = (own["key.weight"] @ torch.cat([x, output]) + own["key.bias"]).reshape(heads, size)
        told = (own["told.weight"] @ label).reshape(heads, size)
        free = sorted(range(config.slots), key=lambda row: float(before["usage"][row].detach()))[:heads]
        rows, writes = [], []
        for number, row in enumerate(before["memory"]):
            write = [
                gate[h] * before["weights"][h][number] + (1 - gate[h]) * float(free[h] == number) for h in range(heads)
            ]
            row = torch.zeros(size, dtype=torch.float64) if number in free else row
            rows.append(row + sum(write[h] * (before["key"][h] + told[h]) for h in range(heads)))
            writes.append(sum(write))
        weights = []
        for h in range(heads):
            heat = torch.stack([(10 * own["scale"][h] * (unit(keys[h]) @ unit(row))).exp() for row in rows])
            weights.append(heat / heat.sum())
        read = torch.stack([sum(w * row for w, row in zip(weights[h], rows, strict=True)) for h in range(heads)])
        usage = [config.decay * u + sum(weights[h][i] for h in range(heads)) + writes[i]
                 for i, u in enumerate(before["usage"])]  # fmt: skip
        state = {"output": output, "cell": cell, "memory": rows, "weights": weights, "usage": usage, "read": read}
        state["key"] = torch.stack([unit(key) for key in keys])
        return state, own["leave.weight"] @ torch.cat([output, read.flatten()]) + own["leave.bias"]

    def zeros(*shape: int) -> Tensor:
        return torch.zeros(shape, dtype=torch.float64)

    state: dict[str, Any] = {"output": zeros(config.width), "cell": zeros(config.width), "usage": zeros(config.slots)}
    state |= {"memory": zeros(config.slots, size), "weights": zeros(heads, config.slots), "read": zeros(heads, size)}
    state["key"] = zeros(heads, size)
    targets = y if y.dim() == 2 else torch.eye(3, dtype=torch.float64)[y]
    label = torch.zeros_like(targets[0])
    for x, target in zip(support, targets, strict=True):
        state, _ = after(x, label, state)
        label = target
    seen = torch.stack([after(x, label, state)[1] for x in queries])
    return seen @ theta["head.weight"].T + theta["head.bias"]


def generated(net: Net, config: GeneratorConfig, theta: Weights, support: Tensor, y: Tensor) -> Weights:
    """Weights that a generator emits, one block after the other and one class after the other."""
    own = {name.removeprefix("generator."): value for name, value in theta.items() if name.startswith("generator.")}
    trunk = {name.removeprefix("trunk."): value for name, value in own.items() if name.startswith("trunk.")}
    seen, outputs = net(trunk, support, support), y.shape[1] if y.dim() == 2 else 3
    shapes = {"head.weight": torch.Size([outputs, seen.shape[1]]), "head.bias": torch.Size([outputs])}
    shapes |= {name: value.shape for name, value in trunk.items()}
    if getattr(config, "generate", ["*"]) == ["head.*"]:
        shapes = {name: shape for name, shape in shapes.items() if name.startswith("head.")}

    def linear(name: str, x: Tensor, of: Weights = own) -> Tensor:
        return of[f"{name}.weight"] @ x + of[f"{name}.bias"]

    def emitted(levels: Weights, code: Tensor, blocks: Tensor) -> Tensor:
        each = (torch.cat([code, block * (3 * config.embedding) ** 0.5]) for block in blocks)
        return torch.cat([3 * linear("out", linear("hidden", one, levels).tanh(), levels) for one in each])

    def cut(values: Tensor, shapes: dict[str, torch.Size]) -> Weights:
        parts = {}
        for name, shape in shapes.items():
            size = 0.1 if len(shape) == 1 else (shape[0] / shape.numel()) ** 0.5
            parts[name], values = size * values[: shape.numel()].reshape(shape), values[shape.numel() :]
        return parts

    def count(shapes: dict[str, torch.Size]) -> int:
        return -(-sum(shape.numel() for shape in shapes.values()) // config.block)

    if y.dim() == 2:
        rows = [linear("encoder.rows", torch.cat([one, target])).relu() for one, target in zip(seen, y, strict=True)]
        classes = []
    else:
        means = [sum(one for one, c in zip(seen, y, strict=True) if c == k) / (y == k).sum() for k in range(3)]
        classes = [linear("encoder.rows", mean) for mean in means]
        rows = [code.relu() for code in classes]
    task = linear("encoder.task", sum(rows) / len(rows))
    top = {name: own[name] for name in ("hidden.weight", "hidden.bias", "out.weight", "out.bias")}
    for level in reversed(range(1, getattr(config, "depth", 1))):
        top = cut(emitted(top, task, own[f"blocks.{level}"]), {name: value.shape for name, value in top.items()})
    of_task = {name: shape for name, shape in shapes.items() if not classes or not name.startswith("head.")}
    blocks = own["blocks.0"]
    weights = cut(emitted(top, task, blocks[: count(of_task)]), of_task) if of_task else {}
    if classes:
        wide = seen.shape[1]
        each = [emitted(top, code, blocks[count(of_task) :]) for code in classes]
        weights["head.weight"] = torch.stack([one[:wide] for one in each]) / wide**0.5
        weights["head.bias"] = torch.stack([one[wide] for one in each]) * 0.1
    return weights


def start_of_task(net: Net, config: GeneratorConfig, theta: Weights, support: Tensor, y: Tensor) -> Weights:
    """What a task begins with: emitted weights, or θ and a tenth of them."""
    added = generated(net, config, theta, support, y)
    if isinstance(config, HypernetworkConfig):
        scales = [f"norms.{layer}.{part}weight" for layer in range(2) for part in ("", "film.")]
        return {name: value + float(name in scales) for name, value in added.items()}
    own = {name: value for name, value in theta.items() if not name.startswith("generator.")}
    return own | {name: own[name] + 0.1 * value for name, value in added.items()}


def query_loss(net: Net, config: Any, theta: Weights, task: Task) -> Tensor:
    """The outer loss of one task, as a differentiable function of `theta`."""
    (x, y, _), (query_x, query_y, _) = task
    if isinstance(config, ProtoNetConfig):
        return prototype_loss(net(theta, x, x), y, net(theta, x, query_x), query_y)
    if isinstance(config, MatchingConfig):
        return attention_loss(config.scale, net(theta, x, x), y, net(theta, x, query_x), query_y)
    if isinstance(config, RelationConfig):
        return relation_loss(theta, net.norm, net(theta, x, x), y, net(theta, x, query_x), query_y)
    if isinstance(config, InContextConfig | MannConfig):
        body = {name: value for name, value in theta.items() if not name.startswith("head.")}
        read = read_in_context if isinstance(config, InContextConfig) else read_in_sequence
        return cost(read(config, theta, net(body, x, x), y, net(body, x, query_x)), query_y)
    if isinstance(config, MamlPlusPlusConfig):
        return stepwise_loss(net, config, theta, task)
    if isinstance(config, CaviaConfig):
        context = torch.zeros(3, dtype=torch.float64, requires_grad=True)
        for _ in range(2):
            (step,) = torch.autograd.grad(
                cost(net(theta | {"context": context}, x, x), y), [context], create_graph=not config.first_order
            )
            context = context - 1.0 * step
        return cost(net(theta | {"context": context}, x, query_x), query_y)
    if isinstance(config, MetaLstmConfig):
        return cost(net(lstm_weights(net, config, theta, task), x, query_x), query_y)
    if isinstance(config, GeneratorConfig):
        w = start_of_task(net, config, theta, x, y)
    else:
        w = {name: value for name, value in theta.items() if not name.startswith("step_sizes.")}
    first_order = getattr(config, "first_order", False)
    for _ in range(getattr(config, "inner_steps", 0)):
        at = leaves(w) if first_order else w
        step = grad(cost(net(at, x, x), y), at, graph=not first_order)
        w = {name: value - step_size(config, theta, name) * step[name] for name, value in w.items()}
    return cost(net(w, x, query_x), query_y)


def stepwise_loss(net: Net, config: MamlPlusPlusConfig, theta: Weights, task: Task) -> Tensor:
    """MAML++ before its first outer step: all losses count alike, if those of more than the last step do."""
    (x, y, _), (query_x, query_y, _) = task
    fixed = [name for name in theta if config.step_norms and name.startswith("norms.")]
    w = {name: value for name, value in theta.items() if name not in fixed and not name.startswith("step_sizes.")}
    losses = []
    for i in range(config.inner_steps):
        scales = {name: theta[name][i] for name in fixed}
        at = leaves(w) if config.first_order_until else w
        step = grad(cost(net(at | scales, x, x), y), at, graph=not config.first_order_until)
        rates = {name: theta[f"step_sizes.{name}"][i] if config.learn_step_sizes else config.inner_lr for name in w}
        w = {name: value - rates[name] * step[name] for name, value in w.items()}
        losses.append(cost(net(w | scales, x, query_x), query_y))
    return sum(losses) / len(losses) if config.multi_step_loss_steps else losses[-1]


def lstm_weights(net: Net, config: MetaLstmConfig, theta: Weights, task: Task) -> Weights:
    """Weights as cell states, tensor by tensor: what the inner loop measures has no graph."""
    own = {name.removeprefix("optimizer."): value for name, value in theta.items() if name.startswith("optimizer.")}
    w = {name: value for name, value in theta.items() if not name.startswith("optimizer.")}
    from_input, from_state = own["lstm.weight"].split([4, config.hidden], 1)
    rows = {name: value.numel() for name, value in w.items()}
    states = {name: [torch.zeros(count, config.hidden, dtype=torch.float64)] * 2 for name, count in rows.items()}
    gates = {name: [torch.zeros(count, 1, dtype=torch.float64)] * 2 for name, count in rows.items()}
    for _ in range(config.inner_steps):
        at = leaves(w)
        loss = cost(net(at, task.support.x, task.support.x), task.support.y)
        step = grad(loss, at)
        for name, value in w.items():
            cell, slope = value.reshape(-1, 1), step[name].reshape(-1, 1)
            seen = torch.cat([*two_parts(slope), *two_parts(loss.detach().expand(slope.shape))], 1)
            states[name] = torch.lstm_cell(seen, states[name], from_input, from_state, own["lstm.bias"], None)
            gates[name] = [
                torch.cat([states[name][0], cell, before], 1) @ own[f"{gate}.weight"][:, None] + own[f"{gate}.bias"]
                for gate, before in zip(("keep", "rate"), gates[name], strict=True)
            ]
            gates[name] = [1 / (1 + (-total).exp()) for total in gates[name]]
            w = w | {name: (gates[name][0] * cell - gates[name][1] * slope).reshape(value.shape)}
    return w


def two_parts(x: Tensor) -> list[Tensor]:
    """log|x| / 10 and the sign; −1 and x · exp(10) for small ones."""
    large = x.abs() >= math.exp(-10)
    return [torch.where(large, x.abs().log() / 10, -1.0), torch.where(large, x.sign(), math.exp(10) * x)]


def reptile_weights(net: Net, config: ReptileConfig, theta: Weights, task: Task) -> Weights:
    """φ: the weights after k steps of a stateful optimiser of torch."""
    w = leaves(theta)
    changing = [value for name, value in w.items() if adapts(config, name)]
    if config.inner_optimizer == "adam":
        inner = torch.optim.Adam(changing, config.inner_lr, betas=(config.beta1, config.beta2), eps=1e-8)
    else:
        inner = torch.optim.SGD(changing, config.inner_lr)
    x, y, _ = task.support
    rows = cycle(range(len(y)))
    for _ in range(config.inner_steps):
        part = list(islice(rows, config.inner_batch or len(y)))
        inner.zero_grad()
        cost(net(w, shown := x[part], shown), y[part]).backward()
        inner.step()
    return {name: value.detach() for name, value in w.items()}


def pulled_weights(net: Net, config: ImamlConfig, theta: Weights, task: Task) -> Weights:
    """Near the minimum of the support loss and of the pull towards θ."""
    w, start = leaves(theta), {name: value.detach() for name, value in theta.items()}
    for _ in range(config.inner_steps):
        pull = sum(((value - start[name]) ** 2).sum() for name, value in w.items())
        step = grad(cost(net(w, task.support.x, task.support.x), task.support.y) + config.strength / 2 * pull, w)
        w = leaves({name: value - config.inner_lr * step[name] for name, value in w.items()})
    return w


def implicit_gradient(net: Net, config: ImamlConfig, w: Weights, task: Task) -> tuple[Weights, float]:
    """(I + H/λ)⁻¹ g with H in full; after k steps, the best in the Krylov space of k dimensions."""
    loss = cost(net(w, task.support.x, task.query.x), task.query.y)
    target = flat(grad(loss, w))
    sizes, names = [w[name].numel() for name in sorted(w)], sorted(w)

    def support_loss(vector: Tensor) -> Tensor:
        parts = (part.reshape(w[name].shape) for name, part in zip(names, vector.split(sizes), strict=True))
        return cost(net(dict(zip(names, parts, strict=True)), task.support.x, task.support.x), task.support.y)

    hessian = torch.autograd.functional.hessian(support_loss, flat(w).detach())
    matrix = torch.eye(len(target), dtype=torch.float64) + hessian / (config.strength + config.damping)
    solution = target if config.cg_steps == 0 else torch.linalg.solve(matrix, target)
    if config.cg_steps == 2:
        basis = torch.linalg.qr(torch.stack([target, matrix @ target], 1))[0]
        solution = basis @ torch.linalg.solve(basis.T @ matrix @ basis, basis.T @ target)
    parts = (part.reshape(w[name].shape) for name, part in zip(names, solution.split(sizes), strict=True))
    return dict(zip(names, parts, strict=True)), float(loss.detach())


def reference(net: Net, config: Any, theta: Weights, task: Task) -> tuple[Weights, float]:
    """One task's meta-gradient and query loss, from the paper."""
    theta = leaves(theta)
    (x, y, _), (query_x, query_y, _) = task
    if isinstance(config, ReptileConfig):
        phi = reptile_weights(net, config, theta, task)
        gradient = {name: value.detach() - phi[name] for name, value in theta.items()}
        return gradient, float(cost(net(phi, x, query_x), query_y))
    if isinstance(config, ImamlConfig):
        return implicit_gradient(net, config, pulled_weights(net, config, theta, task), task)
    if getattr(config, "first_order", False) and not isinstance(config, CaviaConfig | GeneratorConfig):
        w = theta
        for _ in range(config.inner_steps):
            step = grad(cost(net(w, x, x), y), w)
            w = leaves({name: value - step_size(config, theta, name) * step[name] for name, value in w.items()})
        loss = cost(net(w, x, query_x), query_y)
        return grad(loss, w), float(loss.detach())
    loss = query_loss(net, config, theta, task)
    values = torch.autograd.grad(loss, list(theta.values()), materialize_grads=True)
    return dict(zip(theta, values, strict=True)), float(loss.detach())


def flat(gradient: Weights) -> Tensor:
    return torch.cat([gradient[name].flatten() for name in sorted(gradient)])


def relative_error(found: Weights, expected: Weights) -> float:
    assert found.keys() == expected.keys()
    return float((flat(found) - flat(expected)).norm() / flat(expected).norm())


@pytest.mark.parametrize("strategy", ["loop", "vectorized"])
@pytest.mark.parametrize(
    ("name", "kind", "norm"),
    [
        *product(LEARNERS, KINDS, NORMS),
        *product(["maml-3", "fomaml-3", "reptile-adam-batches", "protonet", "mamlpp-3"], KINDS, ["single"]),
        *product(["cavia-concat-2"], ["mlp"], ["none", "layer"]),
    ],
)
def test_is_the_papers(setting: Callable, name: str, kind: str, norm: str, strategy: str) -> None:
    learner, meta, batch = setting(name, kind, norm)
    config = CONFIGS[name]
    count = batch.query.x.shape[0]
    each = [reference(Net(kind, norm), config, meta.parameters, take(batch, index)) for index in range(count)]
    expected = {n: sum(gradient[n] for gradient, _ in each) for n in meta.parameters}
    found = compute_meta_gradient(learner, meta, batch, strategy)
    assert relative_error(found.gradient, expected) < 1e-9
    assert float(found.loss) == pytest.approx(sum(loss for _, loss in each), rel=1e-12)
    assert (found.tasks, found.rows, found.statistics) == (count, count * 9, {})
    assert not any(value.requires_grad for value in (*found.gradient.values(), found.loss, *meta.parameters.values()))


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", SLOPES)
def test_is_the_slope_of_the_outer_loss(setting: Callable, name: str, kind: str, norm: str) -> None:
    """Central differences of the loss along random directions; no derivative is taken of the outer loss."""
    learner, meta, batch = setting(name, kind, norm)
    config, net = CONFIGS[name], Net(kind, norm)
    gradient = flat(compute_meta_gradient(learner, meta, batch, "vectorized").gradient)
    generator = torch.Generator().manual_seed(2)

    def outer_loss(w: Weights) -> float:
        return sum(query_loss(net, config, leaves(w), take(batch, index)).item() for index in range(3))

    for _ in range(2):
        way = {n: torch.randn(v.shape, generator=generator, dtype=torch.float64) for n, v in meta.parameters.items()}
        length, step = float(flat(way).norm()), 1e-4
        ahead, behind = (
            outer_loss({n: v + sign * step / length * way[n] for n, v in meta.parameters.items()}) for sign in (1, -1)
        )
        slope = float(gradient @ flat(way)) / length
        assert (ahead - behind) / (2 * step) == pytest.approx(slope, abs=1e-6 * float(gradient.norm()))


@pytest.mark.parametrize("norm", NORMS)
def test_the_implicit_gradient_is_the_slope_where_the_inner_loop_has_converged(setting: Callable, norm: str) -> None:
    """Central differences of the query loss at the minimum that the reference finds from θ moved either way."""
    learner, meta, batch = setting("imaml-converged", "mlp", norm)
    net, task, generator = Net("mlp", norm), take(batch, 0), torch.Generator().manual_seed(2)
    one = Task(*(part._replace(x=part.x[:1], y=part.y[:1]) for part in batch))
    gradient = flat(compute_meta_gradient(learner, meta, one, "vectorized").gradient)
    way = {n: torch.randn(v.shape, generator=generator, dtype=torch.float64) for n, v in meta.parameters.items()}
    length, step, ends = float(flat(way).norm()), 1e-4, []
    for sign in (1, -1):
        moved = {n: v + sign * step / length * way[n] for n, v in meta.parameters.items()}
        w = pulled_weights(net, learner.config, moved, task)
        ends.append(cost(net(w, task.support.x, task.query.x), task.query.y).item())
    slope = float(gradient @ flat(way)) / length
    assert (ends[0] - ends[1]) / (2 * step) == pytest.approx(slope, abs=1e-6 * float(gradient.norm()))


@pytest.mark.parametrize("strategy", ["loop", "vectorized"])
@pytest.mark.parametrize("name", LEARNERS)
def test_of_a_batch_is_the_sum_over_its_tasks(setting: Callable, name: str, strategy: str) -> None:
    learner, meta, batch = setting(name, "conv", "support")
    whole = compute_meta_gradient(learner, meta, batch, strategy)
    singles = []
    for index in range(3):
        one = Task(*(part._replace(x=part.x[index : index + 1], y=part.y[index : index + 1]) for part in batch))
        singles.append(compute_meta_gradient(learner, meta, one, strategy))
    total = {n: sum(one.gradient[n] for one in singles) for n in meta.parameters}
    assert relative_error(whole.gradient, total) < 1e-13
    assert float(whole.loss) == pytest.approx(sum(float(one.loss) for one in singles), rel=1e-14)
    assert int(whole.correct) == sum(int(one.correct) for one in singles)
    assert (whole.tasks, whole.rows) == (3, sum(one.rows for one in singles))


@pytest.mark.parametrize("strategy", ["loop", "vectorized"])
def test_counts_correct_rows(setting: Callable, strategy: str) -> None:
    learner, meta, batch = setting("maml-1", "conv", "batch")
    outputs = [
        learner.predict(learner.adapt(meta, take(batch, i).support, 1), take(batch, i).query.x) for i in range(3)
    ]
    right = sum(
        int(row.argmax() == label)
        for out, y in zip(outputs, batch.query.y, strict=True)
        for row, label in zip(out, y, strict=True)
    )
    assert 0 < right < 27
    assert int(compute_meta_gradient(learner, meta, batch, strategy).correct) == right


@pytest.mark.parametrize("flat_areas", [False, True], ids=["noise", "flat-areas"])
@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize(
    "name",
    [
        "maml-1",
        "maml-3",
        "maml-3-remat",
        "reptile-adam-batches",
        "protonet",
        "anil-3",
        "boil-2",
        "metasgd-2",
        "matching-scaled",
        "relation",
        "maml-2-film",
        "maml-2-gates",
        "incontext",
    ],
)
def test_strategies_agree_with_max_pooling(setting: Callable, name: str, norm: str, flat_areas: bool) -> None:
    """Also where all values of a pooling window are equal, as in the background of drawn characters."""
    learner, meta, batch = setting(name, "conv", norm, pool=True)
    if flat_areas:
        for part in batch:
            part.x[..., :6, :] = 1.0
    loop, vectorized = (compute_meta_gradient(learner, meta, batch, strategy) for strategy in ("loop", "vectorized"))
    assert relative_error(vectorized.gradient, loop.gradient) < 1e-9
    assert float(vectorized.loss) == pytest.approx(float(loop.loss), rel=1e-12)


def test_a_parameter_without_effect_has_a_gradient_of_zeros(setting: Callable) -> None:
    learner, meta, batch = setting("maml-1", "mlp", "none")
    learner.network.module.unused = nn.Parameter(torch.zeros(2))
    meta.parameters["unused"] = torch.ones(2, dtype=torch.float64)
    for strategy in ("loop", "vectorized"):
        found = compute_meta_gradient(learner, meta, batch, strategy)
        assert found.gradient["unused"].tolist() == [0.0, 0.0]
