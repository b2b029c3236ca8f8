"""Capturing: the operations on a chunk's tensors are written down once and done again for every chunk.

What `torch.func.vmap`, `torch.func.grad` and autograd do for a chunk of small tasks costs more time than the operations
that they arrive at. These are the same for all chunks of one shape. So the first chunk is computed under a mode that
sees every operation below all of these, and a flat program is made of them, in which all derivatives are taken and all
tasks stand side by side. A program is a function of learner and shapes: every process has the same.

(`make_fx` writes down the same operations, but takes two to ten seconds for it.)
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from torch.utils import _pytree
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.weak import WeakTensorKeyDictionary

from metadist.learners import Learner, Meta, TaskGradient
from metadist.tasks import Task, run_of

#: values of the largest activation of a piece, 2 MB in float32: more tasks at once leave a core's caches
PIECE = 2**19

#: operations whose result, or its shape, follows from values or chance; a program would do what the first chunk did
UNFIT = {torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape, torch.Tag.nondeterministic_seeded}

Compute = Callable[[Learner, Meta, Task], TaskGradient]
Program = Callable[..., TaskGradient]

_programs: WeakKeyDictionary[Learner, dict[Any, Program]] = WeakKeyDictionary()


def pieces(learner: Learner, batch: Task) -> Iterator[Task]:
    """A batch in pieces of one size, the largest that divides it and fits a core's caches.

    They are half as large where inner steps are taken again, which is for memory, and costs no time.
    """
    count = batch.query.x.shape[0]
    most = fitting(learner, max(part.x.shape[1] for part in batch)) // (2 if learner.remat else 1)
    size = max(size for size in range(1, count + 1) if count % size == 0 and size <= max(1, most))
    for first in range(0, count, size):
        yield run_of(batch, slice(first, first + size))


def fitting(learner: Learner, rows: int) -> int:
    """How many tasks of so many rows fit a core's caches at once, at least 1."""
    each = rows * max(getattr(network.module, "activations", 0) for network in learner.all_networks())
    return max(1, PIECE // max(1, each))


def run_captured(compute: Compute, learner: Learner, meta: Meta, batch: Task) -> TaskGradient:
    """`compute(learner, meta, batch)`, from its program; the first call with the shapes of `batch` captures it.

    The precision is not part of a program: it is that of `meta` and `batch`; but autocast's casts are, where it was
    captured in 32 bits. Nor is the order of the names in `meta`.

    Raises:
        RuntimeError: the computation cannot be captured; it depends on values, say.
    """
    meta = Meta(*(dict(sorted(group.items())) for group in meta))
    named = [(f"{group} {name}", value) for group, values in enumerate(meta) for name, value in values.items()]
    named += [(str(part.ways), value) for part in batch for value in (part.x, part.y)]
    tensors = [value for _, value in named]
    known = _programs.setdefault(learner, {})
    key = (compute, *((name, value.shape, value.device) for name, value in named))
    if key not in known:
        known[key] = _capture(lambda: compute(learner, meta, batch), tensors)
    with torch.no_grad():
        return known[key](*tensors)


def _capture(compute: Callable[[], TaskGradient], inputs: list[Tensor]) -> Program:
    tape = _Tape(inputs)
    with tape:
        result = compute()
    leaves, structure = _pytree.tree_flatten(result)
    outputs = [tape.name(leaf) for leaf in leaves]
    source = "\n    ".join(["def program(*inputs):", *tape.lines(outputs), f"return [{', '.join(outputs)}]"])
    exec(compile(source, "<captured>", "exec"), tape.values)
    program = tape.values["program"]
    return lambda *tensors: _pytree.tree_unflatten(program(*tensors), structure)


class _Tape(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Writes down every operation as a line of Python; tensors that are neither inputs nor results are constants."""

    def __init__(self, inputs: list[Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._inputs = [f"x{number}" for number in range(len(inputs))]
        self._names: Any = WeakTensorKeyDictionary(dict(zip(inputs, self._inputs, strict=True)))
        self._precision = inputs[0].dtype
        self._steps: list[tuple[str, set[str], list[str], bool]] = []  # call, operands, results, whether it writes
        self._constants: list[str] = []
        self._bases: dict[str, str] = {}  # of a view, the tensor that it is a view of, by name
        self._views: dict[str, dict[Any, str]] = {}  # of a tensor, its views by where in memory they lie
        #: by the name they have in the program
        self.values: dict[str, Any] = {}

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Of torch: whether to import its compiler (900 modules) to keep it from compiling this."""
        return False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if (unfit := UNFIT.intersection(func.tags)) and not _by_numbers(func, args):
            raise RuntimeError(f"{func} cannot be captured: {', '.join(str(tag) for tag in unfit)}")
        operands: set[str] = set()
        given = [self._text(value, operands) for value in args]
        given += [f"{name}={self._text(value, operands)}" for name, value in (kwargs or {}).items()]
        out = func(*args, **(kwargs or {}))
        if (
            (func.is_view or func is torch.ops.aten._unsafe_view.default)
            and isinstance(out, Tensor)
            and self._known_view(args[0], out)
        ):
            return out
        results = [self._result(value) for value in (out if isinstance(out, (tuple, list)) else [out])]
        target = results[0] if not isinstance(out, (tuple, list)) else f"({', '.join(results)},)"
        call = f"{target} = {self._value(func)}({', '.join(given)})"
        self._steps.append((call, operands, results, func._schema.is_mutable))
        return out

    def name(self, tensor: Tensor) -> str:
        """What a tensor is called in the program."""
        known: str | None = self._names.get(tensor)
        if known is None:
            known = self._names[tensor] = self._value(tensor)
            if tensor.dim() and tensor.dtype == self._precision:
                self._constants.append(known)
        return known

    def lines(self, outputs: list[str]) -> Iterator[str]:
        """The program's lines without what no output needs; tensors are let go after their last use."""
        needed = set(outputs)
        kept: list[str] = []
        for call, operands, results, writes in reversed(self._steps):
            if not writes and needed.isdisjoint(results):
                continue
            last = {name for name in (*operands, *results) if name[0] in "xv"} - needed
            needed |= last
            kept.append(f"{call}; del {', '.join(sorted(last))}" if last else call)
        yield f"{', '.join(self._inputs)}, = inputs"
        yield "precision = x0.dtype"
        yield f"lower = {self._value(torch.bfloat16)} if precision is {self._value(torch.float32)} else precision"
        for name in self._constants:
            yield f"{name}_ = {name}.to(precision)"
        yield from reversed(kept)

    def _known_view(self, source: Tensor, out: Tensor) -> bool:
        """Whether a view of a tensor is one that there is already: most only undo what the one before did."""
        base = self._bases.setdefault(self.name(source), self.name(source))
        where = (out.storage_offset(), out.shape, out.stride(), out.dtype)
        own = (source.storage_offset(), source.shape, source.stride(), source.dtype)
        known = self._views.setdefault(base, {})
        known.setdefault(own, self.name(source))
        if where in known:
            self._names[out] = known[where]
            return True
        known[where] = self._result(out)
        self._bases[known[where]] = base
        return False

    def _text(self, value: Any, operands: set[str]) -> str:
        if isinstance(value, Tensor):
            name = self.name(value)
            operands.add(name)
            return f"{name}_" if name in self._constants else name
        if isinstance(value, (list, tuple)):
            return f"[{', '.join(self._text(part, operands) for part in value)}]"
        if value is self._precision:
            return "precision"  # what is made like another tensor has its precision
        if value is torch.bfloat16:
            return "lower"  # of autocast, which leaves 64 bits alone
        return repr(value) if value is None or type(value) in (bool, int) else self._value(value)

    def _result(self, value: Any) -> str:
        if not isinstance(value, Tensor):
            return "_"
        if value not in self._names:  # an operation that writes gives back what it has written to
            self._names[value] = f"v{len(self._steps)}_{len(self._names)}"
        name: str = self._names[value]
        return name

    def _value(self, value: Any) -> str:
        name = f"k{len(self.values)}"
        self.values[name] = value
        return name


def _by_numbers(func: Any, args: Any) -> bool:
    """Whether an operation picks by row numbers, so that the shape is the numbers', and not by a mask."""
    return func is torch.ops.aten.index.Tensor and all(at is None or at.dtype == torch.int64 for at in args[1])
