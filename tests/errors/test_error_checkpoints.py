"""Malformed checkpoints and run folders: one message, exit code 2; the newest broken one is gone past."""

from __future__ import annotations

import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from metadist.training.run_folder import RunFolder


def checkpoint(run: Path, step: int) -> Path:
    return run / "checkpoints" / f"step-{step:08d}.safetensors"


def assert_mistake(ended: Any, *parts: str) -> None:
    assert ended.code == 2, ended.err
    assert "Traceback" not in ended.err
    (line,) = (line for line in ended.err.splitlines() if line.startswith("metadist: "))
    for part in parts:
        assert part in line


def cut_off(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-10])


def cut_short(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:5])


def empty(path: Path) -> None:
    path.write_bytes(b"")


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-7] ^= 4
    path.write_bytes(data)


def pickled(path: Path) -> None:
    path.write_bytes(pickle.dumps({"weights": [1, 2, 3]}))


def foreign(path: Path) -> None:
    safetensors.torch.save_file({"weight": torch.ones(3)}, path)


def foreign_format(path: Path) -> None:
    safetensors.torch.save_file({"weight": torch.ones(3)}, path, metadata={"format": "pt"})


SPOILT = [
    (cut_off, "a whole checkpoint"),
    (cut_short, "a whole checkpoint"),
    (empty, "a whole checkpoint"),
    (pickled, "a whole checkpoint"),
    (foreign, "a whole checkpoint"),
    (foreign_format, "a file of format metadist-checkpoint"),
    (flip, "with sha256"),
]


@pytest.mark.parametrize(("spoil", "expected"), SPOILT)
def test_evaluate_spoilt(metadist: Callable[..., Any], run: Path, spoil: Callable[[Path], None], expected: str) -> None:
    spoil(checkpoint(run, 2))
    assert_mistake(metadist("evaluate", str(checkpoint(run, 2))), str(checkpoint(run, 2)), expected)


@pytest.mark.parametrize(("spoil", "expected"), SPOILT)
def test_resume_goes_on_from_the_one_before(
    metadist: Callable[..., Any], run: Path, spoil: Callable[[Path], None], expected: str
) -> None:
    spoil(checkpoint(run, 2))
    ended = metadist("train", "--resume", str(run), "--json")
    assert ended.code == 0, ended.err
    assert f"{checkpoint(run, 2)}: got " in ended.err
    assert expected in ended.err
    assert "Trying the one before it." in ended.err
    assert "going on from step 1" in ended.err
    assert json.loads(ended.out.splitlines()[-1])["step"] == 3


def test_all_spoilt(metadist: Callable[..., Any], run: Path) -> None:
    for step in (1, 2):
        cut_off(checkpoint(run, step))
    assert_mistake(metadist("train", "--resume", str(run)), "2 unreadable checkpoints", "at least one whole")


def test_no_checkpoints(metadist: Callable[..., Any], run: Path) -> None:
    shutil.rmtree(run / "checkpoints")
    assert_mistake(metadist("train", "--resume", str(run)), str(run), "no checkpoint", "Start the job anew.")
    assert_mistake(metadist("evaluate", str(run)), str(run), "no checkpoint")


def test_missing_checkpoint(metadist: Callable[..., Any], run: Path) -> None:
    assert_mistake(metadist("evaluate", str(checkpoint(run, 9))), "step-00000009", "a file that can be read")


@pytest.mark.parametrize("name", ["best.safetensors", "step-2.safetensors", "step-0000000x.safetensors"])
def test_wrong_name(metadist: Callable[..., Any], run: Path, name: str) -> None:
    place = run / "checkpoints" / name
    shutil.copy(checkpoint(run, 2), place)
    assert_mistake(metadist("evaluate", str(place)), name, "a checkpoint in its run folder")


def test_another_models_checkpoint(metadist: Callable[..., Any], run: Path, wider_run: Path) -> None:
    shutil.copy(checkpoint(wider_run, 2), checkpoint(run, 2))
    assert_mistake(metadist("evaluate", str(checkpoint(run, 2))), ": shape [", "as this job's model has it")
    assert_mistake(metadist("train", "--resume", str(run)), "step-00000002", "a checkpoint of this run's job")


def test_evaluate_another_model(metadist: Callable[..., Any], run: Path) -> None:
    assert_mistake(metadist("evaluate", str(run), "--set", "model.width=5"), ": shape [4", "shape [5", "as this job")


@pytest.mark.parametrize(
    ("setting", "field"),
    [
        ("learner.inner_lr=0.3", "learner.inner_lr"),
        ("seed=1", "seed"),
        ("steps=4", "steps"),
        ("optimizer.lr=0.5", "optimizer.lr"),
        ("data.invert=true", "data.invert"),
        ("resources.cpus_per_worker=2", "threads"),
    ],
)
def test_resume_of_another_job(metadist: Callable[..., Any], run: Path, setting: str, field: str) -> None:
    before = sorted(path.relative_to(run) for path in run.rglob("*"))
    ended = metadist("train", "--resume", str(run), "--set", setting)
    assert_mistake(ended, "--resume: got ", str(run), f"changed: {field}", "goes on with another placement only")
    assert sorted(path.relative_to(run) for path in run.rglob("*")) == before


def test_held_run(metadist: Callable[..., Any], run: Path) -> None:
    held = RunFolder(str(run)).acquire()
    assert_mistake(metadist("train", "--resume", str(run)), str(run), "held by process", "Ctrl-C saves a checkpoint")
    held.release()
    assert metadist("train", "--resume", str(run)).code == 0


@pytest.mark.parametrize("name", ["job.yaml", "run.json"])
def test_half_a_run(metadist: Callable[..., Any], run: Path, name: str) -> None:
    (run / name).unlink()
    for command in (["train", "--resume", str(run)], ["evaluate", str(run)]):
        assert_mistake(metadist(*command), str(run), "a run folder (with job.yaml and run.json)")


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("job.yaml", b"steps: [1"),
        ("job.yaml", b""),
        ("job.yaml", b"\xff\xfe"),
        ("run.json", b"{"),
        ("run.json", b"[]"),
        ("run.json", b"{}"),
        ("run.json", b"\xff\xfe"),
        ("lease.json", b"{"),
    ],
)
def test_spoilt_run(metadist: Callable[..., Any], run: Path, name: str, content: bytes) -> None:
    (run / name).write_bytes(content)
    assert_mistake(metadist("train", "--resume", str(run)), " got ")
