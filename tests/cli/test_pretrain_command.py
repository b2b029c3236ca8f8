"""`metadist pretrain`: what it prints, stopping and going on, and the job that starts from it."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

EPOCHS = ["--set", "pretrain.epochs=2", "--set", "pretrain.batch=100"]


def test_stop_resume_and_start_from_it(
    metadist: Callable[..., Any], job: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # away from a working folder's own runs
    storage = ["--storage", str(tmp_path / "my runs")]
    stopped = metadist("pretrain", job, *storage, *EPOCHS, "--stop-after", "1", "--json")
    assert (stopped.code, stopped.result["outcome"], stopped.result["epoch"]) == (0, "stopped", 1)
    (hint,) = (line.partition("To go on: ")[2] for line in stopped.err.splitlines() if "To go on: " in line)
    ended = metadist(*shlex.split(hint)[1:], "--json")
    assert (ended.code, ended.result["outcome"], ended.result["epoch"]) == (0, "finished", 2)
    assert f"params_sha256 {ended.result['params_sha256']}" in ended.err.splitlines()
    assert "epoch 2/2: loss " in ended.err
    shown = metadist("runs", "list", *storage, "--json")
    assert [row["state"] for row in shown.result["runs"]] == ["finished"]
    run = ended.result["run_dir"]
    sets = ["--set", f"init_from={{path: '{run}', fresh: ['head.*']}}", "--set", "learner={kind: finetune}"]
    tuned = metadist("train", job, *storage, *sets, "--steps", "0", "--json")
    assert tuned.code == 0, tuned.err
    assert tuned.result["test"]["steps"] == 100
    refused = metadist("train", "--resume", run)
    assert refused.code == 2
    assert "`metadist pretrain` goes on with it" in refused.err


def test_a_job_or_a_run(metadist: Callable[..., Any], job: str) -> None:
    for command, field in ((["pretrain"], "JOB"), (["pretrain", "--resume", "x", "--run", "y"], "--run")):
        ended = metadist(*command)
        assert ended.code == 2
        assert f"{field}: got" in ended.err
