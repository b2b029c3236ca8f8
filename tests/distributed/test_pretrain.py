"""Pre-training as a run: repeatable, resumable, and what other jobs start from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from metadist.config import Job, parse_job
from metadist.distributed.pretrain import build_pretraining, pretrain_job, resume_pretraining
from metadist.distributed.run import RunOptions, resume_run, train_job
from metadist.testing.faults import KillOnce
from metadist.testing.observers import Notes
from metadist.testing.together import Pair
from metadist.training.pretraining import EpochRecord, Pretraining, Share

EPOCHS = 3


def job(tmp_path: Path, **changes: Any) -> Job:
    content: dict[str, Any] = {
        "runtime": "inprocess",
        "storage": str(tmp_path),
        "data": {"source": "sklearn:digits", "split": {"train": [0, 1, 2, 3], "valid": None, "test": [6, 7, 8, 9]}},
        "tasks": {"ways": 2, "shots": 1, "query": 2, "batch": 4, "chunk": 2},
        "model": {"kind": "conv4", "width": 4, "layers": 2, "pool": False},
        "evaluation": {"test_tasks": 12, "chunk": 4, "query": 5},
        "pretrain": {"epochs": EPOCHS, "batch": 60, "optimizer": {"lr": 0.01}},
        "tracking": {"uri": "none"},
    }
    return parse_job(content | changes)


def run(tmp_path: Path, name: str, stop_after: int | None = None, fault: Any = None, **changes: Any) -> dict[str, Any]:
    return pretrain_job(job(tmp_path, **changes), Notes(), RunOptions(run=name, stop_after=stop_after, fault=fault))


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return run(tmp_path_factory.mktemp("pretrained"), "whole")


def test_the_run_is_a_folder(pretrained: dict[str, Any]) -> None:
    folder = Path(pretrained["run_dir"])
    names = {path.name for path in folder.iterdir()}
    assert {"job.yaml", "run.json", "checkpoints", "metrics.jsonl", "summary.json", "report.md", "plots"} <= names
    assert (pretrained["outcome"], pretrained["epoch"], pretrained["classes"]) == ("finished", EPOCHS, 4)
    assert pretrained["valid"]["accuracy"] > 0.5, "it has learned something: chance is 0.25"


def test_stopped_and_resumed_is_uninterrupted(tmp_path: Path, pretrained: dict[str, Any]) -> None:
    stopped = run(tmp_path, "half", stop_after=1)
    assert (stopped["outcome"], stopped["epoch"]) == ("stopped", 1)
    ended = resume_pretraining(stopped["run_dir"], lambda old: old, Notes(), RunOptions())
    for key in ("params_sha256", "step", "tested_step", "valid", "outcome"):
        assert ended[key] == pretrained[key]


@pytest.mark.slow
def test_two_workers_and_one_that_dies(ray: Any, tmp_path: Path) -> None:
    """Ray Train, against two processes played by threads: the same bits, also when a worker is killed on the way."""
    settings: dict[str, Any] = {"runtime": "ray", "resources": {"workers": 2, "timeout": 120.0}}

    def build() -> Pretraining:
        return build_pretraining(job(tmp_path, **settings), "run", torch.device("cpu"))

    def epochs(share: Share) -> EpochRecord:
        made = build()  # for each thread: a module is called by one at a time
        state = made.initial()
        for _ in range(EPOCHS):
            state, record = made.epoch(state, share, lambda: None)
        return record

    expected, _ = Pair().run(epochs)
    fault = KillOnce("epoch", build().steps_per_epoch, str(tmp_path / "struck"))
    found = run(tmp_path, "two", fault=fault, **settings)
    assert Path(fault.marker).exists()
    assert (found["outcome"], found["epoch"], found["workers"]) == ("finished", EPOCHS, 2)
    assert found["params_sha256"] == expected.sha256
    with pytest.raises(ValueError, match="changed: workers"):
        resume_pretraining(found["run_dir"], lambda _: job(tmp_path), Notes(), RunOptions())


@pytest.mark.parametrize("head", ["linear", "cosine"])
def test_fine_tuning_starts_from_it(tmp_path: Path, pretrained: dict[str, Any], head: str) -> None:
    start = {"path": pretrained["run_dir"], "fresh": ["head.*"]}
    learner = {"kind": "finetune", "head": head, "inner_lr": 0.1, "eval_steps": 20}
    tuned = job(tmp_path, steps=0, init_from=start, learner=learner)
    summary = train_job(tuned, Notes(), RunOptions())
    assert (summary["outcome"], summary["step"], summary["tested_step"]) == ("finished", 0, 0)
    assert summary["test"]["steps"] == 20
    assert summary["test"]["accuracy"] > 0.6, "chance is 0.5"
    assert summary["test"]["from_scratch"] is not None
    again = resume_run(summary["run_dir"], lambda old: old, Notes(), RunOptions())
    assert (again["test"], again["params_sha256"]) == (summary["test"], summary["params_sha256"])


def test_the_two_kinds_of_run_are_told_apart(tmp_path: Path, pretrained: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="expected the run of a meta-training"):
        resume_run(pretrained["run_dir"], lambda old: old, Notes(), RunOptions())
    trained = train_job(job(tmp_path, steps=1), Notes(), RunOptions(test=False))
    with pytest.raises(ValueError, match="expected the run folder of a pre-training"):
        resume_pretraining(trained["run_dir"], lambda old: old, Notes(), RunOptions())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tasks": {"kind": "linear"}, "model": {"kind": "mlp"}}, "tasks.kind: got 'linear', expected images"),
        ({"pretrain": {"batch": 9999}}, "pretrain.batch: got 9999, expected from the number of workers, 1, to the"),
        ({"pretrain": {"optimizer": {"groups": [{"match": "x"}]}}}, "pretrain.optimizer.groups.0.match: got 'x'"),
        (
            {"runtime": "ray", "resources": {"workers": {"min": 1, "max": 2}}},
            "resources.workers: .* expected one number",
        ),
        ({"data": {"split": {"train": None, "valid": None, "test": [1]}}}, "data.split.train: got None"),
    ],
)
def test_mistakes(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        run(tmp_path, "wrong", **changes)
    assert not (tmp_path / "wrong").exists()
