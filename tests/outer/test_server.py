"""One outer step: verdicts, sums, clipping, statistics; messages that share no memory."""

from __future__ import annotations

import dataclasses
import math
import os
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch.optim.swa_utils import AveragedModel

from metadist.errors import UserError
from metadist.learners import Meta, plain_meta
from metadist.outer import (
    ChunkKey,
    OptimizerConfig,
    OuterRule,
    OuterState,
    Payload,
    ServerConfig,
    Verdict,
    all_finite,
    apply_step,
    compute_meta_gradient,
    meta_sha256,
    own_copy,
    publish,
    to_meta,
    to_payload,
)
from metadist.outer.digest import tensors_sha256
from metadist.outer.messages import to_tensors
from metadist.outer.server import euclidean_norm
from metadist.testing.toys import averaging_experiment

CPU = torch.device("cpu")
RULE = OuterRule("run", OptimizerConfig(kind="sgd", lr=1.0), steps=10, tasks=5, chunk=2)


def payload(chunk: int, tasks: int = 2, version: int = 3, run: str = "run", **arrays: Any) -> Payload:
    gradient = {name: np.asarray(value, dtype=np.float32) for name, value in arrays.items()}
    return Payload(ChunkKey(run, version, 0, chunk), gradient, {}, tasks)


def simple(*values: float) -> OuterState:
    return OuterState(3, Meta({"w": torch.tensor(values)}, {}, {}), {})


STEP = [payload(0, w=[1, 2]), payload(1, w=[3, 4]), payload(2, 1, w=[6, -1])]


def test_chunks_cut_the_meta_batch() -> None:
    assert RULE.chunks == 3
    assert [list(RULE.chunk_tasks(2, chunk)) for chunk in range(3)] == [[10, 11], [12, 13], [14]]
    assert OuterRule("run", OptimizerConfig(), 1, 4, 2).chunks == 2


def test_a_step_by_hand() -> None:
    """The mean of 5 tasks is (2, 1)."""
    after, update = apply_step(RULE, simple(10.0, 20.0), 3, STEP)
    assert after.meta.parameters["w"].tolist() == [8.0, 19.0]
    assert (after.version, update.version, update.verdict) == (4, 4, Verdict.ACCEPTED)
    assert update.gradient_norm == pytest.approx(math.sqrt(5), rel=1e-12)
    assert update.lr == 1.0


@pytest.mark.parametrize(("clip", "factor"), [(1.0, 1 / math.sqrt(5)), (math.sqrt(5) + 1e-6, 1.0), (None, 1.0)])
def test_clipping_by_hand(clip: float | None, factor: float) -> None:
    rule = dataclasses.replace(RULE, optimizer=OptimizerConfig(kind="sgd", lr=1.0, clip=clip))
    after, update = apply_step(rule, simple(0.0, 0.0), 3, STEP)
    assert after.meta.parameters["w"].tolist() == pytest.approx([-2 * factor, -factor], rel=1e-6)
    assert update.gradient_norm == pytest.approx(math.sqrt(5), rel=1e-12), "the norm is that before clipping"


def test_versions_are_averaged_as_torch_does() -> None:
    """Against `torch.optim.swa_utils`; of ten steps, those after the sixth."""
    rule = dataclasses.replace(RULE, optimizer=OptimizerConfig(kind="adam", lr=0.1, average=0.4))
    state = OuterState(0, Meta({"w": torch.tensor([10.0, 20.0])}, {}, {}), {})
    reference = AveragedModel(torch.nn.ParameterList([torch.zeros(2)]))
    for version in range(10):
        state, _ = apply_step(
            rule, state, version, [dataclasses.replace(p, key=p.key._replace(version=version)) for p in STEP]
        )
        if version < 6:
            assert state.average == {}
            assert state.judged is state.meta
            continue
        reference.update_parameters(torch.nn.ParameterList([state.meta.parameters["w"].clone()]))
        (expected,) = reference.module
        assert state.judged.parameters["w"].tolist() == pytest.approx(expected.tolist(), rel=1e-6)
        assert state.version == 7 or not torch.equal(state.judged.parameters["w"], state.meta.parameters["w"])


def test_the_mean_of_versions_by_hand() -> None:
    """The step of (2, 1) from (8, 4): versions (6, 3), (4, 2); the first step is not averaged."""
    rule = dataclasses.replace(RULE, steps=5, optimizer=OptimizerConfig(kind="sgd", lr=1.0, average=0.4))
    state, _ = apply_step(rule, simple(8.0, 4.0), 3, STEP)
    state, _ = apply_step(rule, state, 4, [dataclasses.replace(p, key=p.key._replace(version=4)) for p in STEP])
    assert state.meta.parameters["w"].tolist() == [4.0, 2.0]
    assert state.judged.parameters["w"].tolist() == [5.0, 2.5]


def test_chunks_are_added_in_their_order() -> None:
    """1e8 + 1 is 1e8 in float32, so that another order gives another sum."""
    values = [1e8, 1.0, -1e8]
    payloads = [payload(chunk, tasks, w=[v]) for chunk, (tasks, v) in enumerate(zip((2, 2, 1), values, strict=True))]
    after, _ = apply_step(RULE, simple(0.0), 3, payloads)
    assert after.meta.parameters["w"].item() == 0.0
    payloads = [payload(chunk, tasks, w=[v]) for chunk, (tasks, v) in enumerate([(2, 1e8), (2, -1e8), (1, 1.0)])]
    after, _ = apply_step(RULE, simple(0.0), 3, payloads)
    assert after.meta.parameters["w"].item() == pytest.approx(-0.2)


@pytest.mark.parametrize(
    ("version", "payloads", "verdict"),
    [
        (2, STEP, Verdict.DUPLICATE),
        (1, STEP, Verdict.STALE),
        (4, STEP, Verdict.STALE),
        (3, STEP[:2], Verdict.INCOMPLETE),
        (2, [], Verdict.DUPLICATE),
        (4, [], Verdict.STALE),
        (3, [STEP[1], STEP[0], STEP[2]], Verdict.INCOMPLETE),
        (3, [STEP[0], STEP[0], STEP[2]], Verdict.INCOMPLETE),
        (3, [*STEP, STEP[0]], Verdict.INCOMPLETE),
        (3, [*STEP[:2], payload(2, 2, w=[6, -1])], Verdict.INCOMPLETE),
        (3, [*STEP[:2], payload(2, 1, run="other", w=[6, -1])], Verdict.INCOMPLETE),
        (3, [*STEP[:2], payload(2, 1, version=2, w=[6, -1])], Verdict.INCOMPLETE),
        (3, [*STEP[:2], payload(2, 1, w=[math.nan, 0])], Verdict.NON_FINITE),
        (3, [*STEP[:2], payload(2, 1, w=[math.inf, 0])], Verdict.NON_FINITE),
        (3, [payload(0, w=[3e38, 0]), payload(1, w=[3e38, 0]), STEP[2]], Verdict.NON_FINITE),
    ],
)
def test_refused_steps_leave_the_state(version: int, payloads: list[Payload], verdict: Verdict) -> None:
    state = simple(1.0, 2.0)
    with np.errstate(over="ignore"):
        after, update = apply_step(RULE, state, version, payloads)
    assert after is state
    assert (update.verdict, update.version) == (verdict, 3)
    assert not math.isfinite(update.gradient_norm)
    assert state.meta.parameters["w"].tolist() == [1.0, 2.0]


def test_a_step_without_chunks_is_skipped() -> None:
    """Parameters, statistics and moments stay; the version counts, in the average, too."""
    rule = dataclasses.replace(RULE, optimizer=OptimizerConfig(kind="adam", average=1.0))
    state, _ = apply_step(rule, simple(1.0, 2.0), 3, STEP)
    after, update = apply_step(rule, state, 4, [])
    assert (update.verdict, update.version) == (Verdict.SKIPPED, 5)
    assert after == dataclasses.replace(state, version=5, average=after.average)
    half = (state.average["w"] * 4 + state.meta.parameters["w"]) / 5
    assert torch.allclose(after.average["w"], half)


def test_statistics_that_are_not_finite_are_never_folded_in() -> None:
    state = OuterState(3, Meta({"w": torch.zeros(2)}, {"s": torch.zeros(1)}, {}), {})
    payloads = [dataclasses.replace(part, statistics={"s": np.array([np.nan], np.float32)}) for part in STEP]
    after, update = apply_step(RULE, state, 3, payloads)
    assert update.verdict is Verdict.NON_FINITE
    assert after is state


def test_statistics_are_folded_in_once_a_step() -> None:
    """A learner with a rule and statistics of its own, over two steps, by hand."""
    experiment = averaging_experiment()
    rule, state = experiment.rule, OuterState(0, experiment.initial(), {})
    centre, square = 0.0, 1.0
    for version in range(2):
        payloads, means, squares = [], [], []
        for chunk in range(rule.chunks):
            indices = rule.chunk_tasks(version, chunk)
            batch = experiment.distribution.batch("train", experiment.seed, indices, experiment.episode, CPU)
            results = [compute_meta_gradient(experiment.learner, state.meta, batch, s) for s in ("loop", "vectorized")]
            loop, vectorized = (
                to_payload(ChunkKey(rule.run, version, 0, chunk), result, version) for result in results
            )
            assert loop.statistics["square"] == pytest.approx(vectorized.statistics["square"], rel=1e-6)
            payloads.append(loop)
            means += batch.support.y.double().mean((1, 2)).tolist()
            squares += batch.support.y.double().square().mean((1, 2)).tolist()
        state, update = apply_step(rule, state, version, payloads)
        assert update.verdict is Verdict.ACCEPTED
        centre -= 0.5 * (centre - sum(means) / 5)
        square = 0.75 * square + 0.25 * sum(squares) / 5
        assert state.meta.parameters["centre"].item() == pytest.approx(centre, rel=1e-5)
        assert state.meta.statistics["square"].item() == pytest.approx(square, rel=1e-5)


@pytest.mark.parametrize("value", [-0.1, 1.0, math.nan])
def test_impossible_momentum_is_refused(value: float) -> None:
    with pytest.raises(UserError, match="statistics_momentum"):
        ServerConfig(statistics_momentum=value)


def everything(state: OuterState) -> dict[str, torch.Tensor]:
    tensors = {f"p/{name}": value for name, value in state.meta.parameters.items()}
    tensors |= {f"s/{name}": value for name, value in state.meta.statistics.items()}
    return tensors | {f"o/{n}/{key}": value for n, entries in state.optimizer.items() for key, value in entries.items()}


def memory(value: torch.Tensor | np.ndarray) -> range:
    array = value.numpy() if isinstance(value, torch.Tensor) else value
    return range(array.__array_interface__["data"][0], array.__array_interface__["data"][0] + array.nbytes)


def overlap(first: list, second: list) -> bool:
    return any(a.start < b.stop and b.start < a.stop for a in map(memory, first) for b in map(memory, second))


@pytest.mark.parametrize("kind", ["sgd", "adam", "adamw"])
def test_state_in_state_out(state: OuterState, tensors: Callable, kind: str) -> None:
    """The state before, what was published of it and the payloads keep their bits, and share no memory with what
    comes after."""
    rule = OuterRule("run", OptimizerConfig(kind=kind, momentum=0.9 * (kind == "sgd"), clip=0.1), 10, 1, 1)
    if kind == "sgd":
        buffers = {name: {"momentum_buffer": value} for name, value in tensors(5).items()}
        state = dataclasses.replace(state, optimizer=buffers)
    gradient = {name: value.numpy() for name, value in tensors(2).items()}
    message = Payload(ChunkKey("run", 3, 0, 0), gradient, {"mean": np.ones(2, np.float32)}, 1)
    published = publish(state)
    before = tensors_sha256(everything(state)), tensors_sha256(tensors(2))
    shared = [*published.parameters.values(), *published.statistics.values()]
    assert not overlap(shared, list(everything(state).values()))
    after, update = apply_step(rule, state, 3, [message])
    assert update.verdict is Verdict.ACCEPTED
    old = [*everything(state).values(), *gradient.values(), *message.statistics.values(), *shared]
    assert not overlap(list(everything(after).values()), old)
    for value in everything(after).values():
        value.fill_(7)
    assert before == (tensors_sha256(everything(state)), tensors_sha256(to_tensors(gradient)))
    assert meta_sha256(to_meta(published, plain_meta({}), CPU)) == meta_sha256(state.meta)


def test_own_copy_shares_nothing(state: OuterState) -> None:
    copy = own_copy(state)
    assert tensors_sha256(everything(copy)) == tensors_sha256(everything(state))
    assert copy.version == state.version
    assert not overlap(list(everything(copy).values()), list(everything(state).values()))


@pytest.mark.parametrize("dtype", ["float32", "float64", "float16", "int64", "uint8", "bool"])
@pytest.mark.parametrize("shape", [(), (3,), (2, 5, 1)])
def test_tensors_are_copies_on_64_bytes(dtype: str, shape: tuple[int, ...]) -> None:
    """Also of arrays that are read-only, or begin anywhere."""
    count = math.prod(shape)
    raw = np.zeros(count * np.dtype(dtype).itemsize + 16, dtype=np.uint8)
    for offset in (0, 1, 8):
        array = np.frombuffer(raw.data, dtype, count, offset).reshape(shape)
        array[...] = np.arange(count).reshape(shape)
        kept = array.copy()
        array.flags.writeable = False
        tensor = to_tensors({"a": array})["a"]
        assert str(tensor.dtype) == f"torch.{dtype}"
        assert (tensor.numpy() == kept).all()
        assert tensor.numpy().shape == shape
        assert tensor.data_ptr() % 64 == 0
        tensor.zero_()
        assert (array == kept).all()


def test_the_norm_is_euclidean(tensors: Callable) -> None:
    values = tensors(0) | {"large": torch.full((40_000,), 1e30)}
    assert euclidean_norm({"a": torch.tensor([3.0]), "b": torch.tensor([[4.0]])}) == 5.0
    assert euclidean_norm(values) == pytest.approx(1e30 * 200, rel=1e-6)
    exact = math.sqrt(math.fsum(float(v) ** 2 for value in tensors(0).values() for v in value.flatten()))
    assert euclidean_norm(tensors(0)) == pytest.approx(exact, rel=1e-14)
    assert euclidean_norm({}) == 0.0
    assert math.isnan(euclidean_norm({"a": torch.tensor([1.0, math.nan])}))
    assert euclidean_norm({"a": torch.tensor([1.0, -math.inf])}) == math.inf
    assert math.isfinite(euclidean_norm({"a": torch.full((100,), torch.finfo(torch.float32).max)}))
    assert euclidean_norm(dict(reversed(values.items()))) == euclidean_norm(values)


NORM = """
import torch
from metadist.outer.server import euclidean_norm
torch.set_num_threads({threads})
value = torch.randn(3_000_000, generator=torch.Generator().manual_seed(0))
print(euclidean_norm({{"a": value, "b": value[:100].reshape(10, 10)}}).hex(), torch.get_num_threads())
"""


def test_the_norm_does_not_depend_on_threads() -> None:
    """A plain sum does: it is cut by the number of threads."""

    def norm(threads: int) -> list[str]:
        command = [sys.executable, "-c", NORM.format(threads=threads)]
        done = subprocess.run(command, env=dict(os.environ), capture_output=True, text=True, check=True, timeout=60)
        return done.stdout.split()

    (one, first), (three, second) = norm(1), norm(3)
    assert (first, second) == ("1", "3")
    assert one == three


@pytest.mark.parametrize(("value", "finite"), [(1.0, True), (math.nan, False), (math.inf, False), (-math.inf, False)])
def test_finiteness(value: float, finite: bool) -> None:
    assert all_finite({"a": torch.ones(3), "b": torch.tensor([0.0, value])}) == finite
