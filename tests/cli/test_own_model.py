"""A module in a file of the user's own as base model, named in the job by where it is imported from."""

from __future__ import annotations

import importlib
import os
import pickle
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from metadist.config import build_experiment, dump_job, identity, parse_job
from metadist.errors import UserError
from metadist.outer import Experiment, check_strategy
from metadist.reading_yaml import parse_yaml

README = (Path(__file__).parents[2] / "README.md").read_text()
(EXAMPLE,) = re.findall(r"```python\n(# my_net\.py.*?)```", README, re.DOTALL)

JOB = """\
name: own
steps: 3
runtime: inprocess
data: {source: 'sklearn:digits', split: {train: [0, 1, 2, 3], valid: null, test: [6, 7, 8, 9]}}
tasks: {kind: images, ways: 2, shots: 1, query: 2, batch: 4, chunk: 2}
model: {kind: my_net.MyNet, width: 4, depth: 2}
learner: {kind: maml, inner_lr: 0.1}
evaluation: {test_tasks: 4, query: 2}
tracking: {uri: none}
"""

NETS = '''
import torch
from torch import nn
from metadist.models import BaseModel

class Bare(nn.Module):
    """Without a head, for inputs of one dimension."""
    def __init__(self, outputs: int, width: int = 5, slope: float = 1, sizes: tuple = (2, 3), act=nn.Tanh):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(2, width), act(), nn.Linear(width, outputs))
    def forward(self, x):
        return self.layers(x)

class Softmaxed(Bare):
    """What is called head is not the last."""
    def __init__(self, outputs):
        super().__init__(4)
        self.head = nn.Linear(4, outputs)
    def forward(self, x):
        return self.head(self.layers(x)).log_softmax(1)

class Embedding(Bare):
    def __init__(self, width: int = 6):
        super().__init__(width)

class Ours(BaseModel):
    def __init__(self, input_shape, outputs):
        super().__init__("support", 3, outputs)
        self.layer = nn.Linear(2, 3)
    def features(self, x, reference):
        return self.layer(x)

class Normed(nn.Module):
    def __init__(self, outputs: int, track: bool = False, cell: bool = False, drop: float = 0.0, wide: int = 0):
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3, 2, 1)
        self.norm = nn.BatchNorm2d(4, track_running_stats=track)
        self.cell = nn.LSTM(4, 4, batch_first=True) if cell else None
        self.drop = nn.Dropout(drop)
        self.head = nn.Linear(4, outputs + wide)
    def forward(self, x):
        x = self.conv(x)
        x = self.norm(x) if self.cell is None else self.cell(x.flatten(2).mT)[0].mT.unflatten(2, x.shape[2:])
        return self.head(self.drop(x.tanh().mean((2, 3))))

class Attending(nn.Module):
    """Attention as torch fuses it; `hard`: an activation without second derivative."""
    def __init__(self, outputs: int, hard: bool = False):
        super().__init__()
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.last = nn.Hardsigmoid() if hard else nn.Tanh()
        self.head = nn.Linear(8, outputs)
    def forward(self, x):
        x = x.flatten(1, 2)
        return self.head(self.last(self.attention(x, x, x, need_weights=False)[0].mean(1)))

class Needy(nn.Module):
    def __init__(self, size: int, outputs: int = 1):
        super().__init__()
        raise ZeroDivisionError("no")

class Kindly(nn.Module):
    def __init__(self, kind):
        super().__init__()
'''


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with the README's module, some others, and a job; on Python's path."""
    (tmp_path / "my_net.py").write_text(EXAMPLE)
    (tmp_path / "nets.py").write_text(NETS)
    (tmp_path / "job.yaml").write_text(JOB)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *(entry for entry in sys.path if entry not in ("", os.getcwd()))])
    for name in ("my_net", "nets"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    importlib.invalidate_caches()
    return tmp_path


def linear(model: dict[str, Any], learner: str = "maml") -> Experiment:
    content = {"tasks": {"kind": "linear"}, "model": model, "learner": {"kind": learner}}
    return build_experiment(parse_job(content), "run")


def digits(**model: Any) -> Experiment:
    content = parse_yaml(JOB, "job") | {"model": {"kind": "nets.Normed", **model}}
    return build_experiment(parse_job(content), "run")


def test_the_example_is_short() -> None:
    assert len(EXAMPLE.splitlines()) < 30


def test_trains_and_resumes_to_the_same_bits(folder: Path, metadist: Callable[..., Any]) -> None:
    whole = metadist("train", "job.yaml", "--json")
    assert whole.code == 0, whole.err
    stopped = metadist("train", "job.yaml", "--json", "--stop-after", "2")
    again = metadist("train", "--resume", stopped.result["run_dir"], "--json")
    assert again.result["params_sha256"] == whole.result["params_sha256"]
    changed = metadist("train", "--resume", stopped.result["run_dir"], "--set", "model.depth=1")
    assert changed.code == 2
    assert "model.depth" in changed.err


def test_its_settings_are_those_of_its_signature(folder: Path, metadist: Callable[..., Any]) -> None:
    ended = metadist("list", "models", "my_net.MyNet")
    assert ended.code == 0, ended.err
    assert ended.out.startswith("Dilated convolutions: each sees twice as far as the one before.\n")
    assert "model.width  (a whole number; default 32)" in ended.out.splitlines()
    assert "outputs" not in ended.out
    job = parse_job({"model": {"kind": "nets.Bare"}})
    assert identity(job, None)["model"] == {
        "kind": "nets.Bare", "init": None, "norm": "own", "width": 5, "slope": 1.0, "sizes": [2, 3],
    }  # fmt: skip
    assert parse_job(parse_yaml(dump_job(job), "dump")) == job
    assert pickle.loads(pickle.dumps(job)) == job


def test_initial_weights_are_its_own_and_follow_from_the_seed(folder: Path) -> None:
    state = torch.get_rng_state()
    made = linear({"kind": "nets.Bare", "width": 400})
    weights = made.initial().parameters
    assert list(weights) == [f"trunk.layers.{name}" for name in ("0.weight", "0.bias", "2.weight", "2.bias")]
    assert torch.equal(weights["trunk.layers.0.bias"], made.initial().parameters["trunk.layers.0.bias"])
    assert not torch.equal(weights["trunk.layers.0.bias"], made.scratch().parameters["trunk.layers.0.bias"])
    assert weights["trunk.layers.0.bias"].abs().max() <= 2**-0.5  # of nn.Linear, not 0
    assert not linear({"kind": "nets.Bare", "init": "xavier"}).initial().parameters["trunk.layers.0.bias"].any()
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("learner", ["anil", "boil", "protonet"])
def test_a_head_is_told_from_the_trunk(folder: Path, learner: str) -> None:
    content = parse_yaml(JOB, "job") | {"learner": {"kind": learner}}
    made = build_experiment(parse_job(content), "run")
    batch = made.distribution.batch("train", 0, range(2), made.episode, torch.device("cpu"))
    found = check_strategy(made.learner, made.initial(), batch, "vectorized", "the rule")
    assert (found.strategy, found.reason) == ("vectorized", "the rule")
    heads = [name for name in made.initial().parameters if name.startswith("head.")]
    assert heads == ([] if learner == "protonet" else ["head.weight", "head.bias"])


def test_an_embedding_needs_no_head(folder: Path) -> None:
    made = linear({"kind": "nets.Embedding", "width": 7}, "protonet")
    assert made.learner.network.module(torch.zeros(3, 2)).shape == (3, 7)


def test_a_base_model_stays_one(folder: Path) -> None:
    module = linear({"kind": "nets.Ours"}).learner.network.module
    assert type(module).__name__ == "Ours"
    assert module.norm_kind == "support"


@pytest.mark.parametrize(("cell", "reason"), [(False, "differs from the plain loop"), (True, "vectorised it fails")])
def test_a_wrong_vectorised_gradient_is_found(folder: Path, cell: bool, reason: str) -> None:
    made = digits(cell=cell)
    batch = made.distribution.batch("train", 0, range(2), made.episode, torch.device("cpu"))
    found = check_strategy(made.learner, made.initial(), batch, "vectorized", "the rule")
    assert (found.strategy, found.rule) == ("loop", "vectorized")
    assert reason in found.reason


def test_attention_has_a_second_derivative(folder: Path) -> None:
    made = digits(kind="nets.Attending")
    batch = made.distribution.batch("train", 0, range(2), made.episode, torch.device("cpu"))
    found = check_strategy(made.learner, made.initial(), batch, "vectorized", "the rule")
    assert (found.strategy, found.reason) == ("vectorized", "the rule")


def test_a_missing_second_derivative_is_told(folder: Path, metadist: Callable[..., Any]) -> None:
    ended = metadist("train", "job.yaml", "--set", "model={kind: nets.Attending, hard: true}")
    assert ended.code == 2, ended.err
    assert ended.err.startswith("metadist: learner.first_order: got False, expected true for this model")
    assert "derivative for aten::hardsigmoid_backward is not implemented" in ended.err
    again = metadist(
        "train", "job.yaml", "--set", "model={kind: nets.Attending, hard: true}", "--set", "learner.first_order=true"
    )
    assert again.code == 0, again.err


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"track": True},
            r"leaves its buffers as they are; this one changes norm\.running_mean, .* track_running_stats",
        ),
        ({"drop": 0.5}, r"the same for the same input\. Dropout"),
        ({"wide": 1}, r"got 'nets\.Normed with outputs \[2, 3\]', expected a module with outputs \[n, 2\]"),
        ({"widht": 1}, r"^model\.widht: got 1, .* Did you mean 'wide'"),
        ({"track": 3}, r"^model\.track: got 3, expected true or false"),
        ({"norm": "batch"}, r"^model\.norm: got 'batch', expected own"),
    ],
)
def test_modules_that_cannot_be_used(folder: Path, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        digits(**settings)


@pytest.mark.parametrize(
    ("kind", "learner", "message"),
    [
        ("nowhere.Net", "maml", r"^model\.kind: .* No module named 'nowhere'"),
        ("json.dumps", "maml", r"^model\.kind: .* a subclass of torch\.nn\.Module"),
        ("nets.Kindly", "maml", r"^model\.kind: .* without a parameter kind"),
        ("nets.Needy", "maml", r"^model: .* the key size"),
        ("nets.Normed", "maml", r"^model\.kind: .* a module for inputs \[2, 2\]; it gives "),
        ("MyNet", "maml", r"^model\.kind: .* A module of your own is named by its import path"),
        ("nets.Bare", "anil", r"^learner\.kind: got 'anil', .* no head"),
        ("nets.Bare", "boil", r"^learner\.kind: got 'boil'"),
        ("nets.Softmaxed", "anil", r"^learner\.kind: got 'anil'"),
        ("nets.Bare", "protonet", r"^model\.kind: .* a layer called head, or has no parameter outputs"),
    ],
)
def test_mistakes(folder: Path, kind: str, learner: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        linear({"kind": kind}, learner)


def test_what_its_class_raises_is_told(folder: Path) -> None:
    with pytest.raises(UserError, match=r"^model\.kind: .* ZeroDivisionError: no"):
        linear({"kind": "nets.Needy", "size": 3})
