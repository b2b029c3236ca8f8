"""A learner in a file of the user's own, named in the job by where it is imported from."""

from __future__ import annotations

import importlib
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from metadist.config import dump_job, identity, identity_sha256, parse_job
from metadist.learners import LEARNERS, learner_class
from metadist.reading_yaml import parse_yaml

README = (Path(__file__).parents[2] / "README.md").read_text()
(EXAMPLE,) = re.findall(r"```python\n(# my_package\.py.*?)```", README, re.DOTALL)

JOB = """\
name: own
steps: 4
runtime: inprocess
data: {source: 'sklearn:digits', split: {train: [0, 1, 2, 3], valid: null, test: [6, 7, 8, 9]}}
tasks: {kind: images, ways: 2, shots: 1, query: 2, batch: 4, chunk: 1}
model: {kind: conv4, width: 4, layers: 2, pool: false}
learner: {kind: my_package.MyLearner, inner_lr: 0.1, inner_steps: 2, eval_steps: 1, pull: 0.5}
evaluation: {test_tasks: 4, query: 2}
tracking: {uri: none}
"""
LINEAR = {"tasks": {"kind": "linear"}, "model": {"kind": "mlp"}}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with the README's module and a job; it is not on Python's path."""
    (tmp_path / "my_package.py").write_text(EXAMPLE)
    (tmp_path / "job.yaml").write_text(JOB)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry not in ("", os.getcwd())])
    for name in ("my_package", "broken"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    importlib.invalidate_caches()
    return tmp_path


@pytest.fixture
def importable(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder, on Python's path."""
    monkeypatch.syspath_prepend(folder)
    return folder


def test_the_example_is_short() -> None:
    assert len(EXAMPLE.splitlines()) < 30


def test_same_bits_in_one_process_and_in_a_worker(folder: Path, metadist: Callable[..., Any]) -> None:
    """A worker imports it too; `-P`: as when `metadist` is called by its own name, not as a module."""
    here = metadist("train", "job.yaml", "--json")
    assert here.code == 0, here.err
    command = [
        sys.executable,
        "-P",
        "-m",
        "metadist",
        "train",
        "job.yaml",
        "--json",
        "--set",
        "runtime=ray",
        "--workers",
        "1",
    ]
    program = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120)
    assert program.returncode == 0, program.stderr
    there = json.loads(program.stdout.splitlines()[-1])
    assert there["params_sha256"] == here.result["params_sha256"]
    assert (there["step"], there["test"]) == (4, here.result["test"])


def test_its_settings_count_and_a_resume_keeps_them(folder: Path, metadist: Callable[..., Any]) -> None:
    whole = metadist("train", "job.yaml", "--json")
    other = metadist("train", "job.yaml", "--json", "--set", "learner.pull=0.0")
    assert whole.result["params_sha256"] != other.result["params_sha256"]
    stopped = metadist("train", "job.yaml", "--json", "--stop-after", "2")
    again = metadist("train", "--resume", stopped.result["run_dir"], "--json")
    assert again.result["params_sha256"] == whole.result["params_sha256"]
    changed = metadist("train", "--resume", stopped.result["run_dir"], "--set", "learner.pull=0.4")
    assert changed.code == 2
    assert "learner.pull" in changed.err


def test_identity_names_it(importable: Path) -> None:
    settings = {"kind": "my_package.MyLearner", "inner_steps": 2, "pull": 0.5}
    job = parse_job(LINEAR | {"learner": settings})
    assert identity(job, None)["learner"].items() >= settings.items()
    back = parse_job(parse_yaml(dump_job(job), "dump"))
    assert back == job
    ours = parse_job(LINEAR | {"learner": {"kind": "maml", "inner_steps": 2}})
    assert identity_sha256(identity(job, None)) == identity_sha256(identity(back, None))
    assert identity_sha256(identity(job, None)) != identity_sha256(identity(ours, None))


def test_is_listed_with_its_options(folder: Path, metadist: Callable[..., Any]) -> None:
    ended = metadist("list", "learners", "my_package.MyLearner")
    assert ended.code == 0, ended.err
    lines = ended.out.splitlines()
    assert lines[lines.index("learner.pull  (a number; default 0.1)") + 1] == "    strength of the pull"
    assert "learner.inner_lr  (a number; default 0.4)" in lines


def test_ours_by_their_import_path_are_learners_too() -> None:
    assert learner_class("metadist.learners.reptile.Reptile") is LEARNERS["reptile"]


BROKEN = """
import dataclasses
from metadist.learners import Learner, Maml

class Bare(Maml):
    config_type = None

@dataclasses.dataclass
class Soft:
    kind: str = ""

class Thawed(Maml):
    config_type = Soft

class Half(Learner):
    def init(self, generator):
        return None
"""


@pytest.mark.parametrize(
    ("setting", "field", "message"),
    [
        ("learner.kind=nowhere.Mine", "learner.kind", "ModuleNotFoundError: No module named 'nowhere'"),
        ("learner.kind=my_package.Nothing", "learner.kind", "has no attribute 'Nothing'"),
        ("learner.kind=my_package.MyConfig", "learner.kind", "a subclass of metadist.learners.Learner"),
        ("learner.kind=json.dumps", "learner.kind", "a subclass of metadist.learners.Learner"),
        ("learner.kind=broken.Half", "learner.kind", "defines adaptation, predict"),
        ("learner.kind=broken.Bare", "learner.kind", "config_type is a frozen dataclass"),
        ("learner.kind=broken.Thawed", "learner.kind", "config_type is a frozen dataclass"),
        ("learner.kind=faulty.Mine", "learner.kind", "ZeroDivisionError"),
        ("learner.kind=.", "learner.kind", "'.'"),
        ("learner.kind=Learner_of_mine", "learner.kind", "named by its import path"),
        ("learner.pul=1", "learner.pul", "Did you mean 'pull'?"),
        ("learner.pull=strong", "learner.pull", "a number"),
        ("learner.pull=-1", "learner.pull", "at least 0"),
        ("learner.inner_lr=0", "learner.inner_lr", "above 0"),
    ],
)
def test_mistakes(folder: Path, metadist: Callable[..., Any], setting: str, field: str, message: str) -> None:
    (folder / "broken.py").write_text(BROKEN)
    (folder / "faulty.py").write_text("1 / 0\n")
    ended = metadist("train", "job.yaml", "--set", setting)
    assert ended.code == 2, ended.err
    assert ended.err.startswith(f"metadist: {field}: got ")
    assert message in ended.err
    assert "Traceback" not in ended.err
    assert not (folder / "runs").exists()
