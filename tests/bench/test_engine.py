"""The engine's bench: it compares like with like, and finds what is not."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from metadist.bench import engine
from metadist.bench.cases import CASES, JOB_CHUNK, Case, Setting, build_setting, find_cases, in_float64
from metadist.bench.engine import Mismatch, check_equal, implementations, measure_case, our_run
from metadist.bench.peers import PEERS, Run, absent_peers, clone_loop, has_batch_norm
from metadist.errors import UserError
from metadist.learners import Maml

CPU = torch.device("cpu")


def test_all_implementations_give_the_same_meta_gradient(exact: Setting) -> None:
    ours, runs = implementations(exact, (JOB_CHUNK, 2), absent_peers())
    assert ours == ["loop, chunk 8", "vectorized, chunk 8", "captured, chunk 8", "captured, chunk 2"]
    assert "clone loop" in runs
    assert ("clone loop, nn.BatchNorm2d" in runs) == has_batch_norm(exact)
    differences = check_equal(runs)
    assert set(differences) == set(runs)
    assert max(differences.values()) < 1e-9
    assert differences["captured, chunk 8"] > 0  # two computations, not one twice


@pytest.mark.parametrize("package", ["higher", "torchopt"])
@pytest.mark.parametrize("case", [case.name for case in CASES if case.name in "ACF" or case.name == "E5"])
def test_peers_give_it_on_the_measured_nets(package: str, case: str) -> None:
    pytest.importorskip(package, reason="the extra `bench` is not installed")
    setting = in_float64(build_setting(replace(find_cases(case)[0], tasks=1), CPU), 1)
    _, runs = implementations(setting, (JOB_CHUNK,), {})
    assert max(check_equal(runs).values()) <= engine.TOLERANCE


def first_order(module: nn.Module, setting: Setting) -> Run:
    learner = setting.learner
    other = Maml(replace(learner.config, first_order=True), learner.network)
    return clone_loop(module, setting._replace(learner=other))


def one_percent_off(module: nn.Module, setting: Setting) -> Run:
    learner = setting.learner
    other = Maml(replace(learner.config, inner_lr=1.01 * learner.config.inner_lr), learner.network)
    return clone_loop(module, setting._replace(learner=other))


def mean(module: nn.Module, setting: Setting) -> Run:
    run, tasks = clone_loop(module, setting), setting.batch.query.x.shape[0]
    return lambda: {name: value / tasks for name, value in run().items()}


def without_head(module: nn.Module, setting: Setting) -> Run:
    run = clone_loop(module, setting)
    return lambda: {name: value for name, value in run().items() if not name.startswith("head")}


def not_a_number(module: nn.Module, setting: Setting) -> Run:
    run = clone_loop(module, setting)
    return lambda: {name: value * float("nan") for name, value in run().items()}


@pytest.mark.parametrize("wrong", [first_order, one_percent_off, mean, without_head, not_a_number])
def test_a_wrong_peer_is_an_error_before_anything_is_timed(
    wrong: Callable[..., Run], tiny: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    def timed(*_: Any) -> None:
        raise AssertionError("timed before checked")

    monkeypatch.setattr(engine, "alternate", timed)
    monkeypatch.setitem(PEERS, "wrong", wrong)
    with pytest.raises(Mismatch, match=r"^wrong differs from loop, chunk 8 by"):
        measure_case(tiny, 0.01, 1, CPU)


def test_a_wrong_strategy_is_an_error(tiny: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    def skewed(setting: Setting, strategy: Any, chunk: int) -> Run:
        run = our_run(setting, strategy, chunk)
        factor = 1 + 2 * engine.TOLERANCE if strategy == "vectorized" else 1
        return lambda: {name: factor * value for name, value in run().items()}

    monkeypatch.setattr(engine, "our_run", skewed)
    with pytest.raises(Mismatch, match=r"^vectorized, chunk 8 differs from loop, chunk 8 by 2\.0e-07"):
        measure_case(tiny, 0.01, 1, CPU)


def test_a_case_is_measured(tiny: Case) -> None:
    result = measure_case(tiny, 0.01, 2, CPU)
    assert set(result.rates) == set(result.differences)
    for rate in result.rates.values():
        assert 0 < rate.low <= rate.median <= rate.high
    peers = {name: rate.median for name, rate in result.rates.items() if name.partition(",")[0] in PEERS}
    assert result.best_peer == max(peers, key=lambda name: peers[name])
    assert result.rule == "captured"
    assert "captured: " in result.verdict()
    assert 1e-6 < result.differences["captured, chunk 8, bf16"] < 0.5
    assert f"in bf16 {result.bf16_over_fp32:.2f} times" in result.verdict()


def test_the_command_says_what_is_absent(metadist: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    for package in ("higher", "torchopt"):
        monkeypatch.setitem(sys.modules, package, None)  # as if it were not installed
    done = metadist("bench", "engine", "--case", "E5", "--seconds", "0.01", "--repeats", "1", "--json")
    assert done.code == 0, done.err
    (case,) = done.result["cases"]
    assert done.result["threads"] == 1
    assert (case["case"], case["rule"], case["best_peer"]) == ("E5", "captured", "clone loop")
    assert case["differences"]["clone loop"] <= done.result["tolerance"] == engine.TOLERANCE
    assert set(case["absent"]) == {"higher", "torchopt"}
    assert [line.split() for line in done.err.splitlines() if "absent" in line] == [
        ["higher", "absent"],
        ["torchopt", "absent"],
    ]


ALONE = """
import runpy, sys
for name in ("ray", "mlflow", "pydantic", "pyarrow", "safetensors", "yaml", "rich", "typer", "PIL", "torchvision"):
    sys.modules[name] = None
sys.argv = ["engine", "--case", "E5", "--seconds", "0.01", "--repeats", "1", "--json"]
runpy.run_module("metadist.bench.engine", run_name="__main__", alter_sys=True)
"""


def test_it_runs_with_torch_and_numpy_alone() -> None:
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-c", ALONE], cwd=root, env=dict(os.environ), capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["cases"][0]["case"] == "E5"
    assert "E5: MLP" in done.stderr


def test_cases_are_found_by_name_and_letter() -> None:
    assert [case.name for case in find_cases("e, B")] == ["B", "E5", "E10"]
    assert [case.name for case in find_cases("E10")] == ["E10"]
    for case in CASES:
        assert JOB_CHUNK in case.chunks
        assert all(case.tasks % chunk == 0 for chunk in case.chunks)
    with pytest.raises(UserError, match="some of A,B"):
        find_cases("A,Z")


MISTAKES = {
    "engine --case Z": "--case: got 'Z'",
    "engine --seconds 0": "--seconds: got 0.0",
    "engine --repeats 0": "--repeats: got 0",
    "engine --device tpu": "--device: got 'tpu'",
    "sampling --case E5": "--case: got 'E5'",
    "sampling --case A,B": "--case: got 'A,B', expected one case",
    "memory --steps 1,x": "--steps: got '1,x'",
    "memory --steps 0": "--steps: got 0",
}


@pytest.mark.parametrize("call", MISTAKES)
def test_mistakes_are_one_message(call: str, metadist: Callable[..., Any]) -> None:
    done = metadist("bench", *call.split())
    assert done.code == 2
    assert MISTAKES[call] in done.err
    assert len(done.err.splitlines()) == 1
